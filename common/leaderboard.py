"""Leaderboards of the original challenges and of shipped networks, and places on them.

A shipped robust network has its own leaderboard, the file `BOARD` beside its card. `made_by` is a
command for this project's entries, and the sha256 of the attack file for others.
"""

import csv
import dataclasses
import io

from common.errors import InputError, one_line, reason_of

BOARD = "leaderboard.csv"
BOARDS = ("white-box", "black-box")
OURS = "this project"  # the submitter of our own entries
NUM_TEST_IMAGES = 10000  # test images that the leaderboards count, on MNIST and on CIFAR-10
HEADER = (
    "board",
    "attack",
    "submitted_by",
    "accuracy_pct",
    "num_examples",
    "command_or_sha256",
    "date",
    "links",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a leaderboard; `accuracy` is in percent, spaces separate `links`.

    `accuracy` is on the first `num_examples` test images. `made_by` is the command that makes the
    attack, or the sha256 of the attack file, if it is known.
    """

    board: str
    attack: str
    submitted_by: str
    accuracy: float
    date: str
    links: str
    num_examples: int = NUM_TEST_IMAGES
    made_by: str = ""

    def __str__(self):
        by = "" if self.submitted_by in ("(initial entry)", OURS) else f" by {self.submitted_by}"
        on = "" if self.num_examples == NUM_TEST_IMAGES else f" on {self.num_examples:,} images"
        return f"{self.attack}{by} ({self.accuracy:.2f}{on})"


def read_leaderboard(challenge):
    """Returns the original challenge's boards, as `read_boards`.

    Raises:
        InputError: as `read_boards`.
    """
    return read_boards(challenge.directory / BOARD)


def read_boards(path):
    """Returns the boards in a file, a dict from names to entries.

    Entries on the most images come first, and of these the lowest accuracy.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    boards = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for line in csv.DictReader(file):
                entry = Entry(
                    accuracy=float(line.pop("accuracy_pct")),
                    num_examples=int(line.pop("num_examples", NUM_TEST_IMAGES)),
                    made_by=line.pop("command_or_sha256", ""),
                    **line,
                )
                if entry.board not in BOARDS:
                    name = one_line(entry.board)
                    raise ValueError(f"expected a board {' or '.join(BOARDS)}, got {name}")
                texts = [value for value in vars(entry).values() if not _is_number(value)]
                if (
                    not 0 <= entry.accuracy <= 100
                    or not 0 < entry.num_examples <= NUM_TEST_IMAGES
                    or not all(map(str.isprintable, texts))
                ):
                    raise ValueError(f"expected an attack and its accuracy, got {one_line(entry)}")
                boards.setdefault(entry.board, []).append(entry)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason_of(error)}") from None
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    if not boards:
        raise InputError(f"{path} is damaged: expected entries, got none")
    return {
        board: sorted(entries, key=lambda entry: (-entry.num_examples, entry.accuracy))
        for board, entries in boards.items()
    }


def to_csv(entries, header=True):
    """Returns entries as the text of a `BOARD`.

    Args:
        entries: iterable of `Entry`.
        header: whether the first line is `HEADER`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(HEADER)
    for entry in entries:
        writer.writerow(
            (
                entry.board,
                entry.attack,
                entry.submitted_by,
                f"{entry.accuracy:.2f}",
                entry.num_examples,
                entry.made_by,
                entry.date,
                entry.links,
            )
        )
    return text.getvalue()


def ranked(entries):
    """The entries on all test images; the first images may be harder or easier than these."""
    return [entry for entry in entries if entry.num_examples == NUM_TEST_IMAGES]


def rank(entries, accuracy):
    """Returns the place on a board, from 1; lower is better, and the older of two equals is first.

    Args:
        entries: list of `Entry`, lowest accuracy first.
        accuracy: the accuracy in percent; two decimals count, as on the boards.
    """
    return 1 + sum(entry.accuracy <= round(accuracy, 2) for entry in entries)


def standing(board, entries, accuracy):
    """Returns the place on a board in words, among the entries on all test images.

    Args:
        board: the board's name.
        entries: list of `Entry`.
        accuracy: see `rank`.
    """
    entries = ranked(entries)
    place = rank(entries, accuracy)
    text = f"would be {_ordinal(place)} of {len(entries) + 1} on the {board} board"
    if place > 1:
        text += f", after {entries[place - 2]}"
    if place <= len(entries):
        text += f", before {entries[place - 1]}"
    return text


def _is_number(value):
    return isinstance(value, (int, float))


def _ordinal(number):
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
