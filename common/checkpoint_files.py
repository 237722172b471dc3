"""Lists, checks, writes and tidies up TensorFlow's checkpoint files in a directory.

A checkpoint is checkpoint-N.index and checkpoint-N.data-*. The file `checkpoint`, which names the
newest, is not read: it may come from another machine, or a kill may have left it out of date.
"""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import tempfile

import tensorflow as tf

from common.errors import InputError, one_line, reason_of
from common.files import keep_aside, plain_path, write_atomically

# What TensorFlow raises for a damaged file.
READ_ERRORS = (ValueError, IndexError, tf.errors.OpError)
_INDEX = re.compile(r"checkpoint-(\d{1,18})\.index")
_DATA = re.compile(r"checkpoint-(\d{1,18})\.data-\d+-of-\d+")
_SCRATCH = ".checkpoint."
# TensorFlow's errors for an index whose writing was cut off.
_CUT_OFF = re.compile(r"too short to be an sstable|not an sstable")
# The second line matches what TensorFlow's own CheckpointManager leaves.
_LEFT_OVER = re.compile(
    r"\.(checkpoint|saved_model|config\.json|runs\.json|validation\.json)\..*"
    r"|checkpoint-\d+_temp|checkpoint-\d+\.(data|index).*\.tempstate\d*|checkpoint\.tmp.*"
)


def steps_in(directory):
    """The rising numbers of the checkpoints in `directory`, whole or not.

    Raises:
        InputError: the directory cannot be listed.
    """
    try:
        names = [path.name for path in pathlib.Path(directory).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"cannot read the directory {directory}: {reason_of(error)}") from None
    matches = [_INDEX.fullmatch(name) for name in names]
    return sorted(int(match[1]) for match in matches if match)


class UnreadableError(InputError):
    """TensorFlow cannot read a checkpoint."""


@contextlib.contextmanager
def reader(directory, step):
    """Opens a checkpoint with TensorFlow's reader, within the context.

    Yields:
        What `tf.train.load_checkpoint` returns.

    Raises:
        UnreadableError: the checkpoint is damaged.
        InputError: TensorFlow cannot be given the directory's path.
    """
    path = pathlib.Path(directory) / f"checkpoint-{step}"
    with plain_path(directory) as place:
        try:
            yield tf.train.load_checkpoint(str(place / path.name))
        except READ_ERRORS as error:
            if isinstance(error, InputError):
                raise
            # The error may name the link.
            reason = one_line(error).replace(str(place), str(directory))
            raise UnreadableError(f"cannot read the checkpoint {path}: {reason}") from error


@dataclasses.dataclass(frozen=True)
class Fault:
    """The reason why a checkpoint cannot be read.

    Attributes:
        reason: one line.
        is_damage: True if it was whole once, False if its writing was cut off.
    """

    reason: str
    is_damage: bool

    def __str__(self):
        return f"{'damaged' if self.is_damage else 'unfinished'} ({self.reason})"


def fault_of(directory, step):
    """Reads all of a checkpoint, with its checksums.

    Returns:
        None if it is whole, else a `Fault`.

    Raises:
        InputError: as `reader`.
    """
    # TensorFlow writes the index after the data: a kill leaves the data whole and the index short.
    has_data = any(_DATA.fullmatch(path.name) for path in _files_of(directory, step))
    try:
        with reader(directory, step) as checkpoint:
            for name in checkpoint.get_variable_to_shape_map():
                checkpoint.get_tensor(name)
    except UnreadableError as error:
        return Fault(str(error), is_damage=has_data and not _CUT_OFF.search(str(error)))
    return None


@contextlib.contextmanager
def written(directory):
    """A place to write a checkpoint in; its files are moved to `directory` at the end.

    Yields:
        pathlib.Path of an empty directory.

    Raises:
        InputError: it cannot be written; the checkpoints in `directory` are unchanged.
    """
    directory = pathlib.Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(tempfile.mkdtemp(dir=directory, prefix=_SCRATCH))
        try:
            with plain_path(scratch) as place:
                yield place
            # The data come first, as their index makes them a checkpoint, and `checkpoint` last.
            for path in sorted(scratch.iterdir(), key=_order_of_writing):
                path.replace(directory / path.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"cannot write a checkpoint in {directory}: {reason_of(error)}") from error


def name_newest(directory, steps):
    """Writes the file `checkpoint`, by which TensorFlow's own tools find the newest of `steps`."""
    lines = [f'model_checkpoint_path: "checkpoint-{steps[-1]}"']
    lines += [f'all_model_checkpoint_paths: "checkpoint-{step}"' for step in steps]
    write_atomically(pathlib.Path(directory) / "checkpoint", ("\n".join(lines) + "\n").encode())


def remove(directory, step):
    """Removes a checkpoint, its index first: without one, data are not a checkpoint.

    Raises:
        InputError: it cannot be removed.
    """
    try:
        for path in sorted(_files_of(directory, step), key=_order_of_writing, reverse=True):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot remove {path}: {reason_of(error)}") from error


def tidy(directory):
    """Removes what a kill left half-written, and keeps damaged checkpoints aside.

    Only the process that trains in `directory` may call it.

    Raises:
        InputError: something cannot be removed.
    """
    directory = pathlib.Path(directory)
    try:
        for path in directory.iterdir():
            if not _LEFT_OVER.fullmatch(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for step in steps_in(directory):
            fault = fault_of(directory, step)
            if fault is None:
                continue
            if not fault.is_damage:
                remove(directory, step)
                continue
            for path in _files_of(directory, step):
                keep_aside(path)
        steps = steps_in(directory)
        for path in directory.iterdir():
            match = _DATA.fullmatch(path.name)
            if match and int(match[1]) not in steps:
                path.unlink()
    except OSError as error:
        raise InputError(f"cannot tidy up {directory}: {reason_of(error)}") from error


def is_of_checkpoint(name):
    """Whether a file belongs to a checkpoint, whole or not, or names the newest one."""
    return bool(name == "checkpoint" or _INDEX.fullmatch(name) or _DATA.fullmatch(name))


def is_left_over(name):
    """Whether a file was left over by a kill, or was kept aside as damaged."""
    return bool(_LEFT_OVER.fullmatch(name) or re.fullmatch(r".+\.damaged(-\d+)?", name))


def _files_of(directory, step):
    files = pathlib.Path(directory).glob(f"checkpoint-{step}.*")
    return [path for path in files if _INDEX.fullmatch(path.name) or _DATA.fullmatch(path.name)]


def _order_of_writing(path):
    return (path.name == "checkpoint", path.suffix == ".index", path.name)
