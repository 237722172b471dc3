"""eval.py --watch: waits for each checkpoint of a training, and writes its numbers."""

import contextlib
import pathlib
import sys
import time

import tensorflow as tf

from common import checkpoint_files, checkpoints, rounded_weights
from common.errors import InputError, one_line, reason_of
from common.original_checkpoints import is_original

POLL_SECONDS = 10


def training_directory(challenge, model_dir):
    """Returns the path of a training, which may not have begun.

    Raises:
        InputError: `model_dir` is a finished model.
    """
    path = pathlib.Path(model_dir)
    with contextlib.suppress(InputError):  # it may not exist yet
        path = checkpoints.find_model(challenge, path)
    is_model = (path / "saved_model.pb").exists() or rounded_weights.are_in(path)
    if path.is_file() or is_model or is_original(path):
        raise InputError(f"--watch: expected a training directory as --model_dir, got {path}")
    return path


def write_events(directory, writer, step, summary):
    """Writes the numbers of a checkpoint for TensorBoard, and says so if that fails.

    Args:
        directory: path of the directory to write to.
        writer: what the last call returned, or None.
        step: the checkpoint's step.
        summary: dict of its numbers.

    Returns:
        The writer for the next call, or None.
    """
    try:
        if writer is None or not directory.is_dir():
            writer = tf.summary.create_file_writer(str(directory))
        with writer.as_default(step=step):
            for kind, name in (("nat", "natural"), ("adv", "adversarial")):
                tf.summary.scalar(f"xent_{kind}", summary[f"{name}_loss"])
                tf.summary.scalar(f"accuracy_{kind}", summary[f"{name}_accuracy"] / 100)
        writer.flush()
        return writer
    except (OSError, tf.errors.OpError) as error:
        line = f"note: cannot write TensorBoard's events in {directory}: {reason_of(error)}"
        print(one_line(line), file=sys.stderr, flush=True)
        return None


def wait_for_checkpoint(challenge, path, loaded, seen):
    """Waits for the next checkpoint of a training, and loads it.

    It also waits if the directory is gone or a checkpoint is not whole: the training may begin
    anew, and the files may be on another machine's disk.

    Args:
        challenge: a `common.challenge.Challenge`.
        path: the training's directory, which need not exist yet.
        loaded: the `LoadedModel` of the last checkpoint, or None.
        seen: set of the earlier checkpoints, which are not loaded again; it is updated.

    Returns:
        A `LoadedModel`: `loaded` with other weights, or a new one if the directory now holds
        another network.

    Raises:
        InputError: a checkpoint that is whole cannot be loaded, not even at the second try.
    """
    said = failed = None
    while True:
        line, there = f"waiting for the next checkpoint in {path}", _checkpoints(path)
        newest = max(there, default=None)
        if newest is not None and newest not in seen:
            fault = checkpoint_files.fault_of(path, newest[0])
            if fault is None:
                try:
                    found = _load_newest(challenge, path, loaded)
                    if found.step == newest[0]:
                        seen.update(there)
                        return found
                    continue  # another one came or went meanwhile
                except InputError as error:
                    # The directory may be about to be removed, with this file as the last.
                    if failed == newest:
                        raise
                    failed, fault = newest, error
            line += f", as checkpoint-{newest[0]} cannot be taken: {fault}"
        elif newest is None and seen:
            line += ", which has none now"
        if line != said:
            print(one_line(f"{line} ..."), flush=True)
            said = line
        time.sleep(POLL_SECONDS)


def _load_newest(challenge, path, loaded):
    if loaded is not None:
        with contextlib.suppress(InputError):  # it may be of another network than before
            return loaded.restore_newest()
    return checkpoints.load_model(challenge, path)


def _checkpoints(path):
    """Returns a directory's checkpoints as pairs: the step, and what identifies its file."""
    found = []
    # A file may be removed meanwhile, and a disk may be unavailable for a while.
    with contextlib.suppress(InputError, OSError):
        for step in checkpoint_files.steps_in(path):
            status = (path / f"checkpoint-{step}.index").stat()
            found.append((step, (status.st_mtime_ns, status.st_ino)))
    return found
