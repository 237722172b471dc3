"""A model under one of its challenge's presets: evaluated, resumed, kept once finished."""

import json
import pathlib
import sys

from common import json_shapes
from common.errors import InputError, one_line, reason_of
from common.evaluation import suites
from common.evaluation.evaluator import Evaluator
from common.evaluation.report import warn_of_gradients
from common.evaluation.state import State, digest_of
from common.files import check_writable, write_json
from common.json_shapes import ANYTHING, COUNT, NUMBER, Nullable
from common.provenance import provenance


def make_evaluator(challenge, config, trials, loaded, **options):
    """An `Evaluator` of a `LoadedModel` under `trials`; `options` are further ones of it."""
    return Evaluator(
        loaded.logits,
        trials,
        to_pixels=challenge.to_pixels,
        batch_size=config.eval_batch_size,
        seed=config.random_seed,
        **options,
    )


def key_of(config, loaded, images, trials, source=None):
    """What decides the result of `trials` beside their settings, for the key of a `State`."""
    depends_on_batch = any(trial.attack.depends_on_batch for trial in trials)
    return {
        "model_digest": loaded.digest(),
        **({} if source is None else {"source_digest": source.digest()}),
        "seed": config.random_seed,
        "data_sha256": images.digest(),
        "num_examples": len(images.images),
        **({"batch_size": config.eval_batch_size} if depends_on_batch else {}),
    }


def run_with_state(evaluator, images, state, name, report=None):
    """`Evaluator.run`, which goes on from a `State` and says so; `name` is for people.

    All that was found is in the state then, for the caller to remove once a result is written.

    Raises:
        KeyboardInterrupt: it was ended.
    """
    if state.path.exists():
        print(one_line(f"{name}: going on with {state.path}"), flush=True)
    try:
        result = evaluator.run(images.images, images.labels, state, report)
    except KeyboardInterrupt:
        line = f"stopped; the same command goes on from there, with {state.path}"
        print(one_line(line), flush=True)
        raise
    try:
        state.keep_last()
    except InputError as error:  # the result can be shown all the same
        print(f"note: {error}", file=sys.stderr, flush=True)
    return result


def record_of(config, loaded, images, source=None):
    """What was evaluated and on what, as a dict for JSON; `source` was attacked in its place."""
    names = {} if source is None else {"source": source.name, "source_digest": source.digest()}
    return {
        "model": loaded.name,
        "model_digest": loaded.digest(),
        **names,
        "step": loaded.step,
        "data": images.name,
        "seed": config.random_seed,
        **provenance(),
    }


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
        model = suites.with_gradient((source or loaded).logits)
        trials = [suites.preset_trial(name, model, config, challenge)]
        attack = trials[0].settings()
    key = {**key_of(config, loaded, images, trials, source), "attack": attack}
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
        evaluator = make_evaluator(challenge, config, trials, loaded)
        result = run_with_state(evaluator, images, state, name)
        warn_of_gradients(result)
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
