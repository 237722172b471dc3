"""Rows of a table: a model under one of its challenge's presets, kept where it was finished."""

import dataclasses
import hashlib
import json
import pathlib

from common import commands
from common.checkpoints import write_json
from common.errors import InputError
from common.evaluation import Evaluator, State


def evaluate_row(challenge, config, name, loaded, images, state_dir, source=None):
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

    Returns:
        A dict: accuracy in percent, attack (its settings, or None), num_attacks, seconds.

    Raises:
        KeyboardInterrupt: it was ended.
    """
    if name == "natural":
        evaluator = Evaluator(
            loaded.logits,
            attack=None,
            to_pixels=challenge.to_pixels,
            batch_size=config.eval_batch_size,
            num_restarts=0,
        )
        attack = None
    else:
        settings = {"round_to_8_bits": False, **challenge.presets[name]}
        config = dataclasses.replace(config, **settings)
        evaluator = commands.make_evaluator(challenge, config, "pgd", loaded, source)
        attack = commands.attack_settings(evaluator)
    key = {
        "model_digest": loaded.digest(),
        **({} if source is None else {"source_digest": source.digest()}),
        "attack": attack,
        "seed": config.random_seed,
        "data_sha256": _digest(images),
        "num_examples": len(images.images),
    }
    text = json.dumps(key, sort_keys=True)
    path = state_dir / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    finished, state = path.with_suffix(".json"), State(path.with_suffix(".npz"), key)
    found = _read_finished(finished, key)
    if found is None:
        if state.path.exists():
            print(f"{name}: going on with {state.path}", flush=True)
        try:
            result = evaluator.run(images.images, images.labels, state)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from there", flush=True)
            raise
        summary = result.summary()
        which = "natural_accuracy" if attack is None else "adversarial_accuracy"
        found = {
            "accuracy": summary[which],
            "attack": attack,
            "num_attacks": summary["num_attacks"],
            "seconds": summary["seconds"],
        }
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


def _digest(images):
    digest = hashlib.sha256(images.images.tobytes())
    digest.update(images.labels.tobytes())
    return digest.hexdigest()


def make_state_dir(path):
    """The directory `path`, made where there is none, for `evaluate_row`.

    Raises:
        InputError: it cannot be made or written to.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"--state_dir: cannot make {path}: {error.strerror}") from None
    commands.check_writable("--state_dir", path / "row")
    return path
