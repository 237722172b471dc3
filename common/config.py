"""config.json <-> frozen dataclass <-> absl flags.

A value comes from the first of: its flag, the preset, the file given with --config, the
challenge's own config.json. The originals' config files can be given as they are.
"""

import contextlib
import dataclasses
import json
import pathlib

from common import files
from common.attack.ball import check_radius
from common.errors import InputError, one_line

# The original code's names, and what they are called here.
OLD_NAMES = {
    "k": "num_steps",
    "a": "step_size",
    "tf_random_seed": "random_seed",
}
# Keys of original files that have no meaning here: one seed decides everything, and devices are
# TensorFlow's choice.
UNUSED_NAMES = ("_comment", "np_random_seed", "eval_on_cpu", "eval_checkpoint_steps", "optimizer")
MOST = 2**31  # TensorFlow counts steps, images and seeds in int32, which end below it
LARGEST = 3.4e38  # all else is float32, which ends soon after it


def key(help, parse):
    """A setting: its help text, and its parser (value, pixel_range) that raises ValueError."""
    return dataclasses.field(metadata={"help": help, "parse": parse})


def _fail(expected, value):
    try:
        got = json.dumps(value, default=str)
    except (ValueError, RecursionError):  # nested too deep
        got = type(value).__name__
    raise ValueError(f"expected {expected}, got {one_line(got)}")


def integer(low, high=MOST):
    """Parser of whole numbers from `low` to below `high`."""

    def parse(value, pixel_range):
        try:
            count = int(value)
            if isinstance(value, bool) or count != float(value) or not low <= count < high:
                raise ValueError
            return count
        except (TypeError, ValueError, OverflowError):
            upper = "2**31" if high == MOST else high
            return _fail(f"an integer of {low} or more and below {upper}", value)

    return parse


def number(low=-LARGEST, high=LARGEST):
    """Parser of numbers from `low` to below `high`."""

    def parse(value, pixel_range):
        try:
            if not isinstance(value, bool) and low <= float(value) < high:
                return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        return _fail(f"a number from {low:g} to below {high:g}", value)

    return parse


def pixels(value, pixel_range):
    """Parses a distance in pixel units; a fraction, as 8/255, is that part of the pixel range."""
    if isinstance(value, str) and value.count("/") == 1:
        top, bottom = value.split("/")
        try:
            distance = float(top) / float(bottom) * pixel_range
            if abs(distance) < LARGEST:
                return distance
        except (ValueError, ZeroDivisionError):
            pass
        return _fail("a number or a fraction of the pixel range such as 8/255", value)
    return number()(value, pixel_range)


def boolean(value, pixel_range):
    """Parses true or false."""
    names = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, str) and value.lower() in names:
        return names[value.lower()]
    return value if isinstance(value, bool) else _fail("true or false", value)


def one_of(*choices):
    """Parser of a word out of `choices`."""

    def parse(value, pixel_range):
        return value if value in choices else _fail(f"one of {', '.join(choices)}", value)

    return parse


def boolean_or_auto(value, pixel_range):
    """Parses true, false, yes, no or auto."""
    if value == "auto":
        return value
    try:
        return boolean(value, pixel_range)
    except ValueError:
        return _fail("one of auto, yes, no", value)


def path(value, pixel_range):
    """Parses the text of a path, in which a leading `~` is the home directory."""
    return files.expand_path(value) if isinstance(value, str) else _fail("text", value)


def path_or_null(value, pixel_range):
    """Parses the text of a path, or null for none."""
    return None if value is None else path(value, pixel_range)


def schedule(value, pixel_range):
    """Parses [[0, rate], [step, rate], ...], also as JSON text."""
    try:
        pairs = json.loads(value) if isinstance(value, str) else value
        count, rate = integer(0), number(0)
        pairs = tuple((count(s, None), rate(r, None)) for s, r in pairs)
        steps = [step for step, _ in pairs]
        if not pairs or steps[0] != 0 or sorted(set(steps)) != steps:
            raise ValueError
        return pairs
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _fail("[[0, rate], [step, rate], ...] with rising steps and no rate below 0", value)


def attacks_or_null(value, pixel_range):
    """Parses [[0, num_steps, step_size], [from step, ...], ...], also as JSON text, or null."""
    try:
        rows = json.loads(value) if isinstance(value, str) else value
        if rows is None:
            return None
        steps = schedule([row[:2] for row in rows], pixel_range)
        count = integer(0)
        return tuple(
            (step, count(num_steps, None), pixels(step_size, pixel_range))
            for (step, _), (_, num_steps, step_size) in zip(steps, rows)
        )
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _fail("[[0, num_steps, step_size], ...] with rising first steps, or null", value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a challenge; the field's metadata holds its help text and parser.

    Distances (epsilon, step_size) are in the challenge's pixel units.
    """

    model_dir: str = key(
        "training directory (an original's too), SavedModel, .keras file or shipped model", path
    )
    data_dir: str | None = key("TFDS directory, or one with the original data files", path_or_null)
    random_seed: int = key("decides weights, data order, augmentation, random starts", integer(0))
    adversary: str = key("what training defends against", one_of("pgd", "fgsm", "none"))
    max_num_training_steps: int = key("training ends after this many steps", integer(1))
    num_output_steps: int = key("steps between printed accuracies", integer(1))
    num_summary_steps: int = key("steps between TensorBoard summaries", integer(1))
    num_checkpoint_steps: int = key("steps between checkpoints, three are kept", integer(1))
    num_validation_steps: int = key(
        "steps between evaluations on 500 images under a strong PGD (CIFAR-10: of the test set), "
        "0 for none",
        integer(0),
    )
    training_batch_size: int = key("images in a training step", integer(1))
    step_size_schedule: tuple = key("learning rates: [[from step, rate], ...]", schedule)
    step_size_interpolation: str = key(
        "between the schedule's steps: keep the rate, or change it linearly",
        one_of("constant", "linear"),
    )
    average_decay: float = key(
        "the weights that count are an average over the training, which keeps this part of itself "
        "in each step; 0: the last ones",
        number(0, 1),
    )
    epsilon_warmup_steps: int = key(
        "training steps over which epsilon and step_size grow from 0 to their values", integer(0)
    )
    num_eval_examples: int = key("test images evaluated, from the first", integer(1))
    eval_batch_size: int = key("images evaluated at a time", integer(1))
    epsilon: float = key("radius of the ball, in pixel units or as 8/255", pixels)
    num_steps: int = key("PGD steps", integer(0))
    attack_schedule: tuple | None = key(
        "training: PGD by [[from step, num_steps, step_size], ...]; null: num_steps and step_size",
        attacks_or_null,
    )
    step_size: float = key("length of a PGD step, in pixel units or as 2/255", pixels)
    random_start: bool = key("start PGD at a random point of the ball", boolean)
    num_restarts: int = key("evaluation: an example must withstand this many runs", integer(1))
    loss_func: str = key("loss that the attack maximises", one_of("xent", "cw"))
    kappa: float = key("confidence of cw: 50 is the paper's CW+, 0 its CW", number())
    round_to_8_bits: bool = key("round adversarial images to 256 levels a pixel", boolean)
    jit_compile: bool | str = key(
        "XLA for the whole attack and training step: yes, no or auto, on a GPU or TPU",
        boolean_or_auto,
    )
    store_adv_path: str = key("attack file that is written or scored", path)

    def to_json(self):
        """The settings as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


# Settings that leave the course of a training alone, so that a run may be resumed with others.
NOT_OF_TRAINING = frozenset(
    {
        "model_dir",
        "data_dir",
        "max_num_training_steps",
        "num_output_steps",
        "num_summary_steps",
        "num_checkpoint_steps",
        "num_validation_steps",
        "num_eval_examples",
        "eval_batch_size",
        "num_restarts",
        "round_to_8_bits",
        "store_adv_path",
    }
)


def read_json(path):
    """The settings in a config file, under today's names.

    Raises:
        InputError: there is no such file, it holds no JSON object, or a name twice.
    """
    path = pathlib.Path(path)
    values = files.read_json(path, repeatable=("_comment",))
    if not isinstance(values, dict):
        raise InputError(f"expected a JSON object in {path}, got {type(values).__name__}")
    if "a" in values and "step_size" in values:
        # The files beside some published MNIST networks: there it is Adam's learning rate.
        values["step_size_schedule"] = [[0, values.pop("step_size")]]
    if "data_path" in values:
        # The originals' folder of data beside their config file, which not every user has.
        folder = values.pop("data_path")
        with contextlib.suppress(InputError, OSError):
            if (path.parent / files.expand_path(str(folder))).is_dir():
                values["data_dir"] = folder
    return {
        OLD_NAMES.get(name, name): value
        for name, value in values.items()
        if name not in UNUSED_NAMES
    }


def make_config(challenge, *layers, norm="linf"):
    """The challenge's config, from its own config.json and `layers`, of which later ones win.

    Args:
        challenge: a `common.challenge.Challenge`.
        *layers: pairs (where from, {name: value}); the first word of the error, the settings.
        norm: of the ball, "linf" or "l2", whose radius may be more than the pixel range.

    Raises:
        InputError: an unknown name, a value of the wrong kind, or epsilon or step_size outside
            what the norm allows; the message says what was expected.
    """
    fields = {field.name: field for field in dataclasses.fields(challenge.config_class)}
    own = challenge.directory / "config.json"
    pixel_range = challenge.bounds[1] - challenge.bounds[0]
    config = {}
    for source, values in ((own, read_json(own)), *layers):
        for name, value in values.items():
            if name not in fields:
                raise InputError(f"{source}: unknown setting {name!r}; known: {', '.join(fields)}")
            try:
                config[name] = fields[name].metadata["parse"](value, pixel_range)
            except ValueError as error:
                raise InputError(f"{source}: {name}: {error}") from None
    scheduled = [step_size for _, _, step_size in config["attack_schedule"] or ()]
    for step_size in (config["step_size"], *scheduled):
        check_radius(config["epsilon"], step_size, challenge.bounds, norm)
    return challenge.config_class(**config)
