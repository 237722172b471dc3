"""Rows of a table: a model under one of its challenge's presets, kept where it was finished."""

import json
import pathlib

from common import commands, suite
from common.errors import InputError
from common.evaluation import State, digest_of
from common.files import check_writable, write_json


def evaluate_row(challenge, config, name, loaded, images, state_dir, source=None, keep=True):
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
        keep: whether a finished row stays in `state_dir`; an interrupted one does in any case.

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
    found = _read_finished(finished, key)
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
        if keep:
            write_json(finished, {"key": key, "found": found})
    # It may be there still where a run ended between the two.
    state.path.unlink(missing_ok=True)
    return found


def _read_finished(path, key):
    """What a row gave that was finished, or None."""
    try:
        kept = json.loads(path.read_text())
        return kept["found"] if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_state_dir(path, flag="--state_dir"):
    """The directory `path`, made where there is none, for `evaluate_row`.

    Raises:
        InputError: it cannot be made or written to; the message begins with `flag`.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: cannot make {path}: {error.strerror}") from None
    check_writable(flag, path / "row")
    return path
