"""The original challenges' leaderboards, and where an accuracy would stand on them."""

import csv
import dataclasses

from common.errors import InputError, one_line, reason_of


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of an original leaderboard; `accuracy` is in percent, spaces separate `links`."""

    board: str
    attack: str
    submitted_by: str
    accuracy: float
    date: str
    links: str

    def __str__(self):
        by = "" if self.submitted_by == "(initial entry)" else f" by {self.submitted_by}"
        return f"{self.attack}{by} ({self.accuracy:.2f})"


def read_leaderboard(challenge):
    """Returns the original challenge's boards, a dict from names to entries, lowest accuracy first.

    Raises:
        InputError: leaderboard.csv cannot be read, or is damaged.
    """
    boards, path = {}, challenge.directory / "leaderboard.csv"
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for line in csv.DictReader(file):
                entry = Entry(accuracy=float(line.pop("accuracy_pct")), **line)
                texts = [value for name, value in vars(entry).items() if name != "accuracy"]
                if not 0 <= entry.accuracy <= 100 or not all(map(str.isprintable, texts)):
                    raise ValueError(f"expected an attack and its accuracy, got {one_line(entry)}")
                boards.setdefault(entry.board, []).append(entry)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason_of(error)}") from None
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    if not boards:
        raise InputError(f"{path} is damaged: expected entries, got none")
    return {
        board: sorted(entries, key=lambda entry: entry.accuracy)
        for board, entries in boards.items()
    }


def rank(entries, accuracy):
    """Returns the place on a board, from 1; lower is better, and the older of two equals is first.

    Args:
        entries: list of `Entry`, lowest accuracy first.
        accuracy: the accuracy in percent; two decimals count, as on the boards.
    """
    return 1 + sum(entry.accuracy <= round(accuracy, 2) for entry in entries)


def standing(board, entries, accuracy):
    """Returns the place on a board in words."""
    place = rank(entries, accuracy)
    text = f"would be {_ordinal(place)} of {len(entries) + 1} on the {board} board"
    if place > 1:
        text += f", after {entries[place - 2]}"
    if place <= len(entries):
        text += f", before {entries[place - 1]}"
    return text


def _ordinal(number):
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
