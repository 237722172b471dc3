"""Files of every kind: read or refused in one line, and written whole or not at all."""

import collections
import json
import math
import os
import pathlib
import tempfile

from common.errors import InputError, one_line, reason_of


def write_json(path, values):
    """Writes `values` as indented JSON to a file, whole or not at all.

    Numbers that are not finite become null, as JSON has no other word for them.

    Args:
        path: of the file.
        values: dicts with text as keys, lists, tuples, text, numbers, bools and None.

    Raises:
        InputError: the file cannot be written.
    """
    text = json.dumps(_finite(values), indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def write_atomically(path, data):
    """Writes bytes to a file so that it is there whole or not at all.

    Args:
        path: of the file; one that is there is replaced.
        data: bytes.

    Raises:
        InputError: the file cannot be written; one that was there is as before.
    """
    path = pathlib.Path(path)
    try:
        handle, scratch = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except (OSError, RuntimeError) as error:  # resolve() tells of a loop of links by the latter
        raise InputError(f"cannot write {path}: {reason_of(error)}") from error


def expand_path(path):
    """A path as somebody named it, with the home directory in the place of a leading `~`.

    Args:
        path: text or os.PathLike.

    Returns:
        str.

    Raises:
        InputError: it is empty, cannot be a path (it holds NUL, or bytes that are not UTF-8, which
            TensorFlow refuses), or begins with `~` if the home directory is not known.
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
    """What a JSON file holds.

    Args:
        path: of the file; a byte order mark before the text is skipped.
        repeatable: names that an object may give more than once, of which the last one counts.

    Returns:
        A dict, list, str, float, int, bool or None.

    Raises:
        InputError: it cannot be read, is not JSON, or gives a name twice in one object.
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
        path: of the file.

    Returns:
        The new pathlib.Path: NAME.damaged, or NAME.damaged-2 and so on if that is taken.

    Raises:
        InputError: it cannot be renamed.
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
        name: of the flag or argument that gave the path; the message begins with it.
        path: of the file.
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{name}: expected a file, got the directory {path}")
        tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{name}: cannot write {path}: {reason_of(error)}") from None


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
