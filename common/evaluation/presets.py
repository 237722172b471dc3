"""Evaluates a model under a preset of its challenge; resumes, and keeps finished rows."""

import contextlib
import json
import pathlib

from common import json_shapes, messages
from common.errors import InputError, reason_of
from common.evaluation import pitfalls, suites
from common.evaluation.evaluator import Evaluator
from common.evaluation.report import warn
from common.evaluation.state import State, digest_of
from common.evaluation.subject import key_of
from common.files import check_writable, write_json
from common.json_shapes import ANYTHING, COUNT, NUMBER, Nullable, Optional
from common.messages import tell


def make_evaluator(challenge, config, trials, loaded, **options):
    """Returns an `Evaluator` of a `LoadedModel` under `trials`; `options` are further arguments."""
    return Evaluator(
        loaded.logits,
        trials,
        to_pixels=challenge.to_pixels,
        batch_size=config.eval_batch_size,
        seed=config.random_seed,
        **options,
    )


@contextlib.contextmanager
def resumable(state, name):
    """Within its context an `Evaluator` runs with a `State`; it tells where it resumes or stops.

    Afterwards the state holds all that was found; the caller removes it once a result is written.

    Args:
        state: the `State`.
        name: what is evaluated, for people.
    """
    if state.path.exists():
        tell(f"{name}: resuming from {state.path}")
    try:
        yield
    except KeyboardInterrupt:
        tell(f"stopped; the same command resumes there, from {state.path}")
        raise
    try:
        state.keep_last()
    except InputError as error:  # the result can still be shown
        messages.warn(f"note: {error}")


_FINISHED = {
    "key": ANYTHING,
    "found": {
        "accuracy": NUMBER,
        "attack": Nullable({}),
        "num_attacks": COUNT,
        "num_undefined": Optional(COUNT),  # earlier versions kept rows without it
        "seconds": NUMBER,
    },
}


def evaluate_row(challenge, config, name, loaded, images, state_dir, source=None, record=None):
    """Returns a model's accuracy under a preset or suite, from `state_dir` if it was finished.

    Ctrl-C ends it after the current batch, and the next call resumes there.

    Args:
        challenge: a `common.challenge.Challenge`.
        config: its config; the preset's settings replace those of the attack.
        name: "natural", a preset of the challenge, or one of `suites.ANY_MODEL`.
        loaded: a `LoadedModel`.
        images: the `common.data.Split` to evaluate on.
        state_dir: a directory from `make_state_dir`.
        source: the `LoadedModel` whose examples are tried on `loaded`; None attacks `loaded`.
        record: function that writes the row elsewhere, called with the row before its state is
            removed. None keeps the finished row in `state_dir`.

    Returns:
        A dict: accuracy in percent, attack (its settings, or None), num_attacks, seconds;
        num_undefined, see `TrialResult`, unless an earlier version finished the row; for a suite
        its attacks, a list of name, settings and the accuracy that the attack left.

    Raises:
        KeyboardInterrupt: the evaluation was ended.
    """
    trials, each_alone, is_suite = [], None, name in suites.ANY_MODEL
    if name != "natural":
        model = suites.with_gradient((source or loaded).logits)
        if is_suite:
            trials, each_alone = suites.suite_trials(name, model, config, challenge), False
        else:
            trials = [suites.preset_trial(name, model, config, challenge)]
    key = key_of(config, loaded, images, trials, source, each_alone)
    path = state_dir / f"{name}-{digest_of(key)}"
    finished, state = path.with_suffix(".json"), State(path.with_suffix(".npz"), key)
    found = json_shapes.read_or_keep_aside(
        finished,
        _FINISHED,
        "the row is evaluated anew",
        lambda kept: kept["key"] == json.loads(json.dumps(key)),
    )
    found = None if found is None else found["found"]
    if found is None:
        evaluator = make_evaluator(challenge, config, trials, loaded, spare_misclassified=is_suite)
        with resumable(state, name):
            result = evaluator.run(images.images, images.labels, state)
        warn(pitfalls.undefined_gradients_in(result))
        summary = result.summary()
        which = "adversarial_accuracy" if trials else "natural_accuracy"
        found = {
            "accuracy": summary[which],
            "attack": key.get("attack"),
            **({"attacks": _attacks_of(key, result)} if is_suite else {}),
            "num_attacks": summary["num_attacks"],
            "num_undefined": sum(done.num_undefined for done in result.trials),
            "seconds": summary["seconds"],
        }
        if record is None:
            write_json(finished, {"key": key, "found": found})
    if record is not None:
        record(found)
    # An earlier run may have ended just before this line.
    state.remove()
    return found


def _attacks_of(key, result):
    """A suite's attacks, and the accuracy in the worst case over each and those before it."""
    return [
        {**named, "accuracy": done.accuracy}
        for named, done in zip(key["attacks"], result.trials, strict=True)
    ]


def make_state_dir(path, flag="--state_dir"):
    """Returns the directory `path` for `evaluate_row`, and makes it if there is none.

    Raises:
        InputError: it cannot be made or written to; the message begins with `flag`.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{flag}: cannot make {path}: {reason_of(error)}") from None
    check_writable(flag, path / "row")
    return path
