"""Reads the JSON lists that a training adds to, and keeps damaged ones aside."""

import math
import pathlib

from common.errors import InputError
from common.files import keep_aside, read_json


def read(path, numbers):
    """Reads the entries of a record.

    Args:
        path: the JSON file's path.
        numbers: the names of the finite numbers that every entry holds.

    Returns:
        A list of dicts, empty if there is no such file.

    Raises:
        InputError: the file is damaged, or holds anything else.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    entries = read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"expected a JSON list in {path}, got {type(entries).__name__}")
    for entry in entries:
        for name in numbers:
            value = entry.get(name) if isinstance(entry, dict) else None
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (is_number and math.isfinite(value)):
                raise InputError(f"expected a finite number as each {name} in {path}")
    return entries


def read_or_keep_aside(path, numbers):
    """Does as `read`, but renames a damaged file, prints that it did, and returns an empty list."""
    try:
        return read(path, numbers)
    except InputError as error:
        print(f"note: {error}; it is kept as {keep_aside(path).name}, and a new one begun")
        return []
