"""The rules of a training's directory: what may lie in it, and what is written there first."""

import dataclasses
import json
import pathlib

from common import checkpoint_files
from common import config as config_lib
from common.errors import InputError, reason_of
from common.files import Lock, keep_aside, write_atomically
from common.original_checkpoints import is_original
from common.training import runs, validation


def _check_directory(directory, config, challenge):
    """Refuses a `model_dir` that holds anything but a training with these settings."""
    try:
        if directory.exists() and not directory.is_dir():
            raise InputError(f"--model_dir: expected a directory, got the file {directory}")
        names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    except OSError as error:
        raise InputError(f"--model_dir: cannot read {directory}: {reason_of(error)}") from None
    if is_original(directory):
        raise InputError(
            f"--model_dir: expected a new directory or one of a training, got {directory}, which "
            "holds a TensorFlow 1 checkpoint: eval.py takes it, but no training can resume from it"
        )
    is_training = "config.json" in names and bool(checkpoint_files.steps_in(directory))
    others = [name for name in names if not is_training and not _is_of_training(name, names)]
    if others:
        raise InputError(
            f"--model_dir: expected a new directory or one of a training, got {directory}, "
            f"which holds other files, such as {min(others)}"
        )
    if not is_training:
        return
    try:
        old = config_lib.read_json(directory / "config.json")
    except InputError:  # it is kept aside when the new one is written
        return
    # A setting that came later had the value that config.json has now.
    old = {**config_lib.read_json(challenge.directory / "config.json"), **old}
    differing = [
        f"{name} ({json.dumps(old.get(name))} there, {json.dumps(value)} now)"
        for name, value in json.loads(config.to_json()).items()
        if name not in config_lib.NOT_OF_TRAINING and old.get(name) != value
    ]
    if differing:
        raise InputError(
            f"--model_dir: expected a training with the same settings in {directory}, "
            f"got other {', '.join(differing)}; give another directory"
        )


def _is_of_training(name, names):
    """Whether a training that ended before its first checkpoint, or `eval.py --watch`, left it."""
    return (
        name in (Lock.NAME, "eval", "config.json", runs.FILE, validation.FILE)
        or name.startswith("events.out.tfevents.")
        or checkpoint_files.is_left_over(name)
        # Without its settings a checkpoint tells nothing of its training.
        or ("config.json" in names and checkpoint_files.is_of_checkpoint(name))
    )


def _write_config(directory, config):
    data_dir = None if config.data_dir is None else str(pathlib.Path(config.data_dir).resolve())
    # Paths in a config file are relative to it.
    config = dataclasses.replace(config, model_dir=".", data_dir=data_dir)
    path = directory / "config.json"
    if path.exists():
        try:
            config_lib.read_json(path)
        except InputError as error:
            aside = keep_aside(path).name
            print(f"note: {error}; it is kept as {aside}, and this command's settings count")
    write_atomically(path, config.to_json().encode())
