"""The settings of a challenge: config.json as a frozen dataclass.

A value comes from the first of: its flag, the preset, the file given with --config, the
challenge's own config.json. The originals' config files are accepted unchanged.
"""

import contextlib
import dataclasses
import json
import pathlib

from common import files
from common.attack.ball import check_radius
from common.errors import InputError, one_line

# The original code's names, and ours.
OLD_NAMES = {
    "k": "num_steps",
    "a": "step_size",
    "tf_random_seed": "random_seed",
}
# Keys of original files that mean nothing here: one seed decides everything, and TensorFlow chooses
# the devices.
UNUSED_NAMES = ("_comment", "np_random_seed", "eval_on_cpu", "eval_checkpoint_steps", "optimizer")
MOST = 2**31  # TensorFlow counts steps, images and seeds in int32; they must be below it
LARGEST = 3.4e38  # just below the largest float32, the type of all other numbers


# The kinds of work; a script has flags for the settings that its kinds use.
TRAINING, ATTACK, EVALUATION = "training", "attack", "evaluation"
ATTACK_FILE, SCORING = "attack file", "scoring"
# The headings of --help, in its order.
GROUPS = {
    "model": "What to attack",
    ATTACK: "The attack",
    EVALUATION: "The evaluation and its output",
    TRAINING: "Training",
}


def key(help, parse, group=TRAINING, used_by=(TRAINING,)):
    """A setting, as a dataclass field.

    Args:
        help: its help text.
        parse: its parser (value, pixel_range), which raises ValueError. Its attribute `form` says
            what --help shows behind the flag.
        group: one of `GROUPS`.
        used_by: the kinds of work that it changes: `TRAINING`, `ATTACK`, ...
    """
    metadata = {"help": help, "parse": parse, "group": group, "used_by": used_by}
    return dataclasses.field(metadata=metadata)


def _with_form(form):
    """Decorator that gives a parser its `form`."""

    def decorate(parse):
        parse.form = form
        return parse

    return decorate


def _fail(expected, value):
    try:
        got = json.dumps(value, default=str)
    except (ValueError, RecursionError):  # nested too deep
        got = type(value).__name__
    raise ValueError(f"expected {expected}, got {one_line(got)}")


def integer(low, high=MOST):
    """Parser of whole numbers from `low` to below `high`."""

    @_with_form("N")
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

    @_with_form("X")
    def parse(value, pixel_range):
        try:
            if not isinstance(value, bool) and low <= float(value) < high:
                return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        return _fail(f"a number from {low:g} to below {high:g}", value)

    return parse


@_with_form("X|X/255")
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


@_with_form("true|false")
def boolean(value, pixel_range):
    """Parses true or false."""
    names = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, str) and value.lower() in names:
        return names[value.lower()]
    return value if isinstance(value, bool) else _fail("true or false", value)


def one_of(*choices):
    """Parser of a word out of `choices`."""

    @_with_form("|".join(choices))
    def parse(value, pixel_range):
        return value if value in choices else _fail(f"one of {', '.join(choices)}", value)

    return parse


@_with_form("auto|yes|no")
def boolean_or_auto(value, pixel_range):
    """Parses true, false, yes, no or auto."""
    if value == "auto":
        return value
    try:
        return boolean(value, pixel_range)
    except ValueError:
        return _fail("one of auto, yes, no", value)


@_with_form("auto|N")
def count_or_auto(value, pixel_range):
    """Parses a number of 1 or more, or auto."""
    try:
        return value if value == "auto" else integer(1)(value, pixel_range)
    except ValueError:
        return _fail("auto or an integer of 1 or more", value)


@_with_form("auto|float32|bfloat16")
def precision(value, pixel_range):
    """Parses auto, float32 or bfloat16; mixed_bfloat16, as Keras calls it, is bfloat16."""
    value = "bfloat16" if value == "mixed_bfloat16" else value
    return one_of("auto", "float32", "bfloat16")(value, pixel_range)


@_with_form("PATH")
def path(value, pixel_range):
    """Parses the text of a path, in which a leading `~` is the home directory."""
    return files.expand_path(value) if isinstance(value, str) else _fail("text", value)


@_with_form("PATH")
def path_or_null(value, pixel_range):
    """Parses the text of a path, or null for none."""
    return None if value is None else path(value, pixel_range)


@_with_form("JSON")
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


@_with_form("JSON")
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
            for (step, _), (_, num_steps, step_size) in zip(steps, rows, strict=True)
        )
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _fail("[[0, num_steps, step_size], ...] with rising first steps, or null", value)


_ALL = (TRAINING, ATTACK, EVALUATION, SCORING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a challenge; a field's metadata is what `key` was given.

    Distances (epsilon, step_size) are in the challenge's pixel units.
    """

    model_dir: str = key(
        "training directory (ours or an original's), SavedModel, .keras file or shipped model",
        path,
        "model",
        _ALL,
    )
    data_dir: str | None = key(
        "TFDS directory, or one with the original data files", path_or_null, "model", _ALL
    )
    random_seed: int = key(
        "seed of weights, data order, augmentation, random starts",
        integer(0),
        "model",
        (TRAINING, ATTACK, EVALUATION),
    )
    adversary: str = key(
        "adversary that the training defends against", one_of("pgd", "fgsm", "none")
    )
    max_num_training_steps: int = key("training ends after this many steps", integer(1))
    num_output_steps: int = key("steps between printed accuracies", integer(1))
    num_summary_steps: int = key("steps between TensorBoard summaries", integer(1))
    num_checkpoint_steps: int = key(
        "steps between checkpoints, of which three are kept", integer(1)
    )
    num_validation_steps: int = key(
        "steps between evaluations on 500 images (CIFAR-10: test images) under a strong PGD, "
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
        "the result's weights are an average over the training, which keeps this share of itself "
        "in each step; 0: the last weights",
        number(0, 1),
    )
    epsilon_warmup_steps: int = key(
        "training steps over which epsilon and step_size grow from 0 to their values", integer(0)
    )
    natural_share: float = key("share of each training batch that is not attacked", number(0, 1))
    loss: str = key(
        "what the training minimises: the cross-entropy of the adversarial images, of the natural "
        "and the adversarial ones, or TRADES",
        one_of("adversarial", "natural_and_adversarial", "trades"),
    )
    natural_weight: float = key(
        "natural_and_adversarial: weight of the natural images' loss, of 1 for both", number(0, 1)
    )
    trades_beta: float = key("trades: weight of the divergence", number(0))
    distribute: str = key(
        "several devices share each batch: none, mirrored (those of this host) or multi_worker "
        "(those of the hosts in TF_CONFIG); the result is that of one device but for rounding",
        one_of("none", "mirrored", "multi_worker"),
    )
    num_devices: int | str = key(
        "devices of this host that --distribute takes; auto: its GPUs, or without a GPU the "
        "processor as one device; a number parts the processor into as many",
        count_or_auto,
    )
    num_eval_examples: int = key(
        "test images evaluated, from the first", integer(1), EVALUATION, (EVALUATION, SCORING)
    )
    eval_batch_size: int = key("images evaluated at a time", integer(1), EVALUATION, _ALL)
    epsilon: float = key(
        "radius of the ball, in pixel units or as 8/255",
        pixels,
        ATTACK,
        (TRAINING, ATTACK, SCORING),
    )
    num_steps: int = key("PGD steps", integer(0), ATTACK, (TRAINING, ATTACK))
    attack_schedule: tuple | None = key(
        "training: PGD by [[from step, num_steps, step_size], ...]; null: num_steps and step_size",
        attacks_or_null,
    )
    step_size: float = key(
        "length of a PGD step, in pixel units or as 2/255", pixels, ATTACK, (TRAINING, ATTACK)
    )
    random_start: bool = key(
        "start PGD at a random point of the ball", boolean, ATTACK, (TRAINING, ATTACK)
    )
    num_restarts: int = key(
        "evaluation: an example must withstand this many runs", integer(1), ATTACK, (ATTACK,)
    )
    loss_func: str = key(
        "loss that the attack maximises", one_of("xent", "cw"), ATTACK, (TRAINING, ATTACK)
    )
    kappa: float = key(
        "confidence of cw: 50 is the paper's CW+, 0 its CW", number(), ATTACK, (TRAINING, ATTACK)
    )
    round_to_8_bits: bool = key(
        "round adversarial images to 256 levels a pixel", boolean, ATTACK, (ATTACK,)
    )
    jit_compile: bool | str = key(
        "XLA for the whole attack and training step: yes, no or auto, on a GPU or TPU",
        boolean_or_auto,
        ATTACK,
        (TRAINING, ATTACK, EVALUATION),
    )
    precision: str = key(
        "arithmetic of attacks and training steps: float32, bfloat16, or auto, bfloat16 if this "
        "machine multiplies it fast; weights, validation and all accuracies are float32's",
        precision,
        ATTACK,
        (TRAINING, ATTACK, EVALUATION),
    )
    store_adv_path: str = key(
        "attack file that is written or scored", path, EVALUATION, (ATTACK_FILE, SCORING)
    )

    def to_json(self):
        """The settings as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


# Settings that do not change a training's numbers; it may resume with other values of them.
NOT_OF_TRAINING = frozenset(
    {
        "model_dir",
        "data_dir",
        "max_num_training_steps",
        "distribute",
        "num_devices",
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
    """The settings in a config file, under our names.

    Raises:
        InputError: the file cannot be read, is not a JSON object, or holds a name twice.
    """
    path = pathlib.Path(path)
    values = files.read_json(path, repeatable=("_comment",))
    if not isinstance(values, dict):
        raise InputError(f"expected a JSON object in {path}, got {type(values).__name__}")
    if "a" in values and "step_size" in values:
        # In the config files of some published MNIST networks step_size is Adam's learning rate.
        values["step_size_schedule"] = [[0, values.pop("step_size")]]
    if "data_path" in values:
        # The originals keep their data beside the config file, where it may be missing.
        folder = values.pop("data_path")
        with contextlib.suppress(InputError, OSError):
            if (path.parent / files.expand_path(str(folder))).is_dir():
                values["data_dir"] = folder
    return {
        OLD_NAMES.get(name, name): value
        for name, value in values.items()
        if name not in UNUSED_NAMES
    }


def parsed(challenge, values):
    """Parses settings as `make_config` does, so that two spellings of a value become equal.

    Args:
        challenge: a `common.challenge.Challenge`.
        values: {name: value}. A setting that is unknown, or refused, is left unchanged.

    Returns:
        A new dict.
    """
    fields = {field.name: field for field in dataclasses.fields(challenge.config_class)}
    pixel_range = challenge.bounds[1] - challenge.bounds[0]
    values = dict(values)
    for name in fields.keys() & values.keys():
        with contextlib.suppress(ValueError, InputError):
            values[name] = fields[name].metadata["parse"](values[name], pixel_range)
    return values


def make_config(challenge, *layers, norm="linf"):
    """Makes the challenge's config from its own config.json and `layers`; later layers win.

    Args:
        challenge: a `common.challenge.Challenge`.
        *layers: pairs (source, {name: value}); an error begins with the source.
        norm: the ball's norm, "linf" or "l2"; an L2 radius may exceed the pixel range.

    Raises:
        InputError: a name is unknown, a value is of the wrong kind, or the norm does not allow
            epsilon or step_size; the message says what was expected.
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
