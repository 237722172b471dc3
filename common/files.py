"""Files are read or refused in one line, and written whole or not at all."""

import collections
import contextlib
import json
import math
import os
import pathlib
import re
import socket
import tempfile

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

from common.errors import InputError, one_line, reason_of
from common.messages import tell


def write_json(path, values):
    """Writes `values` as indented JSON to a file, whole or not at all.

    Numbers that are not finite become null, since JSON has none.

    Args:
        path: the file's path.
        values: dicts with text as keys, lists, tuples, text, numbers, bools and None.

    Raises:
        InputError: the file cannot be written.
    """
    text = json.dumps(_finite(values), indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def write_atomically(path, data):
    """Writes bytes to a file so that it is there whole or not at all.

    Args:
        path: the file's path; an earlier file is replaced.
        data: bytes.

    Raises:
        InputError: the file cannot be written; an earlier one is as before.
    """
    try:
        path = pathlib.Path(path).resolve()  # a link stays a link
        if path.exists() and not path.is_file():
            raise InputError(f"expected a file, got {path}")
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except (OSError, RuntimeError) as error:  # resolve() raises RuntimeError for a loop of links
        raise InputError(f"cannot write {path}: {reason_of(error)}") from error


def expand_path(path):
    """Returns a path that somebody named, with the home directory in place of a leading `~`.

    Args:
        path: text or os.PathLike.

    Returns:
        str.

    Raises:
        InputError: the path is empty, cannot be a path (it holds NUL, or bytes that are not UTF-8,
            which TensorFlow refuses), or begins with `~` and the home directory is not known.
    """
    text = os.fspath(path)
    try:
        is_path = isinstance(text, str) and text and "\0" not in text and text.encode()
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise InputError(f"expected a path, got {text!r}")
    expanded = os.path.expanduser(text)
    has_home = text.partition("/")[0] != "~" or os.environ.get("HOME") != ""
    if text.startswith("~") and (expanded == text or not has_home):
        raise InputError(f"expected a path, got {text!r}, whose home directory is not known")
    return expanded


def read_json(path, repeatable=()):
    """Returns what a JSON file holds.

    Args:
        path: the file's path; a byte order mark before the text is skipped.
        repeatable: names that an object may give more than once; the last one counts.

    Returns:
        A dict, list, str, float, int, bool or None.

    Raises:
        InputError: the file cannot be read, is not JSON, or gives a name twice in one object.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, repeatable))
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason_of(error)}") from None
    except RecursionError:
        raise InputError(f"{path} is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {one_line(error)}") from None


def keep_aside(path):
    """Renames a damaged file so that a new one can be written in its place.

    Args:
        path: the file's path.

    Returns:
        The new pathlib.Path: NAME.damaged, or NAME.damaged-2 and so on if that is taken.

    Raises:
        InputError: the file cannot be renamed.
    """
    path, number = pathlib.Path(path), 1
    while True:
        aside = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            break
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise InputError(f"cannot rename {path} to {aside}: {reason_of(error)}") from error
    return aside


def check_writable(name, path):
    """Raises InputError, before any work is done, if a file could not be written.

    Args:
        name: the flag or argument that gave the path; the message begins with it.
        path: the file's path.
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{name}: expected a file, got the directory {path}")
        if path.exists() and not path.is_file():
            raise InputError(f"{name}: expected a file, got {path}, which is not a plain one")
        tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{name}: cannot write {path}: {reason_of(error)}") from None


@contextlib.contextmanager
def plain_path(directory):
    """Gives a path to `directory` that TensorFlow cannot take for a pattern, within the context.

    TensorFlow matches the paths of checkpoints and SavedModels as a shell does: for `run[1]` it
    opens the files of `run1`. Such a directory is reached by a link.

    Args:
        directory: path of a directory or file.

    Yields:
        pathlib.Path, the absolute path itself if it holds none of * ? [ ] and backslash.

    Raises:
        InputError: the link cannot be made.
    """
    directory = pathlib.Path(os.path.abspath(directory))
    if not _PATTERN.search(str(directory)):
        yield directory
        return
    with contextlib.ExitStack() as stack:
        try:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="link."))
            link = pathlib.Path(scratch) / "link"
            link.symlink_to(directory)
        except OSError as error:
            reason = reason_of(error)
            raise InputError(f"cannot make a link to {directory}: {reason}") from error
        if _PATTERN.search(scratch):
            raise InputError(
                f"TMPDIR: expected a path without * ? [ ] and backslash, got {scratch}"
            )
        yield link


class Lock:
    """Locks a directory for this process, until the context or the process ends.

    Args:
        directory: path of the directory.
        what: the flag or argument that gave the directory; messages begin with it.
        file: path of the lock's file, which is made (with the directories above it) and removed;
            None for `NAME` in the directory.
        noun: what is locked if it is not the whole directory, such as "shard".

    Attributes:
        is_held: whether no other process can enter the context; False if the system or file system
            has no locks.

    Raises:
        InputError: on entering, another process holds the lock, or the file cannot be written.
    """

    NAME = ".lock"

    def __init__(self, directory, what, file=None, noun="directory"):
        self._directory = pathlib.Path(directory)
        self._what, self._noun = what, noun
        self._path = self._directory / self.NAME if file is None else pathlib.Path(file)
        self._file = None

    @property
    def is_held(self):
        return self._file is not None

    def __enter__(self):
        self._file = self._locked()
        if self.is_held:
            with contextlib.suppress(OSError):  # only people read it; a full disk may refuse it
                self._file.truncate(0)
                self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
                self._file.flush()
        return self

    def __exit__(self, *error):
        if self.is_held:
            self._remove()  # before it is closed: then it may be another process's
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _locked(self):
        """Returns the open file that is locked, or None on a system without locks."""
        file = self._open()
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                        return file
            except BlockingIOError:
                file.seek(0)
                holder = one_line(file.read(200)) or "another process"
                file.close()
                raise InputError(
                    f"{self._what}: expected a {self._noun} that is not in use, got "
                    f"{self._directory}, which {holder} writes to"
                ) from None
            except OSError as error:  # a file system without locks
                reason = reason_of(error)
                tell(f"note: no lock on {self._directory} ({reason}); start nothing else in it")
                break
            file.close()  # its last holder removed it in between
            file = self._open()
        file.close()
        self._remove()
        return None

    def _open(self):
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return self._path.open("a+")
        except OSError as error:
            raise InputError(
                f"{self._what}: cannot write {self._path.parent}: {reason_of(error)}"
            ) from None

    def _remove(self):
        with contextlib.suppress(OSError):
            self._path.unlink()


_PATTERN = re.compile(r"[*?\[\]\\]")


def _finite(values):
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _object(pairs, repeatable):
    counts = collections.Counter(name for name, _ in pairs)
    twice = sorted(name for name in counts if counts[name] > 1 and name not in repeatable)
    if twice:
        raise ValueError(f"the name {twice[0]!r} is there twice")
    return dict(pairs)
