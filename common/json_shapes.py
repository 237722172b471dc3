"""JSON files whose shape the reader knows: a file of another shape is refused in one line.

A shape is a dict from names to the shapes of their values, a list of the shape of every entry
(followed by `...` if the list must not be empty), a tuple of the shapes of a list's entries,
`Values`, a `Nullable` or `Optional` shape, or a `Kind`. An object may have further names.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from common.errors import InputError, one_line
from common.files import keep_aside, read_json
from common.messages import tell

_DEEPEST = 50  # objects and lists within each other


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of scalar values.

    Attributes:
        words: what such a value is, for messages.
        includes: function from any JSON value to whether it is of this kind.
    """

    words: str
    includes: Callable


@dataclasses.dataclass(frozen=True)
class Nullable:
    """A value that may be null."""

    shape: Any


class Optional(Nullable):
    """A value that may be null, or missing in an object."""


@dataclasses.dataclass(frozen=True)
class Values:
    """An object of any names, whose values have one shape."""

    shape: Any


def one_of(values):
    """Returns the `Kind` of these texts."""
    return Kind(f"one of {', '.join(values)}", lambda v: isinstance(v, str) and v in values)


def whole(low, high=2**31):
    """Returns the `Kind` of the whole numbers from `low` to below `high`."""
    upper = "2**31" if high == 2**31 else high
    return Kind(
        f"a whole number of {low} or more and below {upper}",
        lambda v: _is_int(v) and low <= v < high,
    )


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


ANYTHING = Kind("anything", lambda value: True)
TEXT = Kind("text", lambda value: isinstance(value, str))
BOOL = Kind("true or false", lambda value: isinstance(value, bool))
# Wide enough for every seed, and never too large for a float.
INTEGER = Kind("a whole number", lambda value: _is_int(value) and abs(value) < 2**64)
COUNT = Kind("a count", lambda value: _is_int(value) and 0 <= value < 2**64)
NUMBER = Kind(
    "a finite number",
    lambda value: (_is_int(value) or isinstance(value, float)) and abs(value) < 2**64,
)


def read(path, shape):
    """Returns what a JSON file holds, if it has the given shape.

    Args:
        path: the file's path.
        shape: see above.

    Raises:
        InputError: the file cannot be read, is not JSON, or has another shape.
    """
    value = read_json(path)
    check(value, shape, path)
    return value


def check(value, shape, path):
    """Raises InputError, which names the file, unless `value` has the given shape."""
    if _depth(value) > _DEEPEST:
        raise InputError(f"{path}: expected at most {_DEEPEST} levels, got more")
    fault = _fault(value, shape, "")
    if fault is not None:
        raise InputError(f"{path}: {fault}")


def read_or_keep_aside(path, shape, consequence, is_own=None):
    """Reads a file as `read` does; a damaged file is renamed, and a printed line says so.

    Args:
        path: the file's path.
        shape: see above.
        consequence: what happens without the file, for the line that is printed.
        is_own: function from the value to whether it is what the caller looks for; a file with
            another value is renamed, too. None takes every value.

    Returns:
        What the file holds, or None if there is no file or it was renamed.

    Raises:
        InputError: the file cannot be renamed.
    """
    if not os.path.lexists(path):
        return None
    try:
        value = read(path, shape)
        if is_own is None or is_own(value):
            return value
        raise InputError(f"{path} is of something else")
    except InputError as error:
        tell(f"note: {error}; it is kept as {keep_aside(path).name}, and {consequence}")
        return None


def _depth(value):
    depth, level = 0, [value]
    while level and depth <= _DEEPEST:
        depth += 1
        inner = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))
        ]
        level = [v for values in inner for v in values]
    return depth


def _fault(value, shape, name):
    """Returns what has another shape, or None; `name` is where `value` lies in the file."""
    place = f" as {one_line(name)}" if name else ""
    if isinstance(shape, Nullable):
        return None if value is None else _fault(value, shape.shape, name)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"expected an object{place}, got {_words(value)}"
        for key, of_key in shape.items():
            if key not in value and not isinstance(of_key, Optional):
                return f"expected {key}{place}, got none"
        inner = [(value.get(key), of_key, key) for key, of_key in shape.items()]
    elif isinstance(shape, Values):
        if not isinstance(value, dict):
            return f"expected an object{place}, got {_words(value)}"
        inner = [(entry, shape.shape, key) for key, entry in value.items()]
    elif isinstance(shape, (list, tuple)):
        if not isinstance(value, list):
            return f"expected a list{place}, got {_words(value)}"
        if isinstance(shape, tuple) and len(value) != len(shape):
            return f"expected a list of {len(shape)}{place}, got one of {len(value)}"
        if not value and shape[-1:] == [...]:
            return f"expected a list with an entry{place}, got none"
        of_entries = shape if isinstance(shape, tuple) else [shape[0]] * len(value)
        inner = [(entry, of_entries[i], str(i)) for i, entry in enumerate(value)]
    else:
        return (
            None if shape.includes(value) else f"expected {shape.words}{place}, got {_words(value)}"
        )
    faults = (_fault(v, s, f"{name}.{key}" if name else key) for v, s, key in inner)
    return next((fault for fault in faults if fault is not None), None)


def _words(value):
    if value is None:
        return "none"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = one_line(repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= 60 else f"{text[:60]}..."
