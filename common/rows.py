"""Rows of a table: a model under one of its challenge's presets, kept where it was finished."""

import json
import pathlib

from common import commands, json_shapes, suite
from common.errors import InputError, reason_of
from common.evaluation import State, digest_of
from common.files import check_writable, write_json
from common.json_shapes import ANYTHING, COUNT, NUMBER, Nullable

_FINISHED = {
    "key": ANYTHING,
    "found": {"accuracy": NUMBER, "attack": Nullable({}), "num_attacks": COUNT, "seconds": NUMBER},
}


def evaluate_row(challenge, config, name, loaded, images, state_dir, source=None, record=None):
    """A model's accuracy under a preset, taken from `state_dir` where it was finished before.

    Ctrl-C ends it after the batch in hand, and the next call goes on from there.

    Args:
        challenge: a `common.challenge.Challenge`.
        config: its config; the preset's settings replace those of the attack.
        name: "natural", or a preset of the challenge.
        loaded: a `LoadedModel`.
        images: the `common.data.Split` to evaluate on.
        state_dir: from `make_state_dir`.
        source: the `LoadedModel` whose examples are tried on `loaded`; None attacks `loaded`.
        record: function that is called with the row to write it elsewhere, before what was kept of
            it is removed. None keeps the finished row in `state_dir`.

    Returns:
        A dict: accuracy in percent, attack (its settings, or None), num_attacks, seconds.

    Raises:
        KeyboardInterrupt: it was ended.
    """
    trials, attack = [], None
    if name != "natural":
        model = suite.with_gradient((source or loaded).logits)
        trials = [suite.preset_trial(name, model, config, challenge)]
        attack = trials[0].settings()
    key = {**commands.key_of(config, loaded, images, trials, source), "attack": attack}
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
        evaluator = commands.make_evaluator(challenge, config, trials, loaded)
        result = commands.run_with_state(evaluator, images, state, name)
        commands.warn_of_gradients(result)
        summary = result.summary()
        which = "natural_accuracy" if attack is None else "adversarial_accuracy"
        found = {
            "accuracy": summary[which],
            "attack": attack,
            "num_attacks": summary["num_attacks"],
            "seconds": summary["seconds"],
        }
        if record is None:
            write_json(finished, {"key": key, "found": found})
    if record is not None:
        record(found)
    # It may be there still where a run ended between the two.
    state.remove()
    return found


def make_state_dir(path, flag="--state_dir"):
    """The directory `path`, made where there is none, for `evaluate_row`.

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
