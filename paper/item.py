"""What an item of the paper is: a table, a figure or a claim, as a file of `paper/items/` has it.

An item's work is a list of parts. A part is what is computed in one go and kept at once, so that
interrupted work loses no more than the part in hand: an attack on one network, say. From the parts'
numbers the item draws its picture, makes its table and reaches its verdict.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from common.challenge import Challenge
from common.checkpoints import LoadedModel
from common.data import Split
from common.files import read_json
from paper.networks import Network

HERE = pathlib.Path(__file__).resolve().parent
REPRODUCED, IN_PART, NOT_REPRODUCED = "reproduced", "in part", "not reproduced"
QUESTIONS = {
    "RQ1": "Can first-order methods solve the inner problem?",
    "RQ2": "How does capacity matter?",
    "RQ3": "How do adversarial examples transfer?",
    "RQ4": "What do other adversaries find?",
    "RQ5": "How robust are the networks, and how do they look?",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a part is computed from.

    Attributes:
        challenge: the `common.challenge.Challenge` of the part's networks; None without any.
        models: a `LoadedModel` for each of the part's networks, in their order.
        images: the `common.data.Split` of the part's test images; None if it takes none.
        settings: the item's settings, as a dict.
    """

    challenge: Challenge | None
    models: tuple[LoadedModel, ...]
    images: Split | None
    settings: dict

    @property
    def x_nat(self):
        """The images as float32 pixels (n, height, width, channels) in `challenge.bounds`."""
        return np.asarray(self.challenge.to_pixels(self.images.images), np.float32)

    @property
    def y(self):
        """The labels, int32 (n,)."""
        return np.asarray(self.images.labels, np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of an item's work.

    Attributes:
        name: its name in the results, for people, such as "MNIST, adv_trained".
        networks: the `Network`s that it needs, of one challenge; () for none.
        compute: function from `Work` to the part's numbers: a dict for JSON.
        num_images: how many test images it takes, from the first; None for none.
        weight: what it costs, relative to the item's other parts.
    """

    name: str
    networks: tuple[Network, ...]
    compute: Callable
    num_images: int | None = None
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether our numbers show what the paper claims.

    Attributes:
        word: `REPRODUCED`, `IN_PART` or `NOT_REPRODUCED`.
        criteria: whether each criterion of the rule holds, with the numbers that decide:
            "holds: 4 live filters (at most 6)".
    """

    word: str
    criteria: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A table, a figure or a claim of the paper.

    Attributes:
        name: its name on the command line, which is its file's: "figure_1".
        title: what it is, for people: "Figure 1: loss along PGD".
        question: a key of `QUESTIONS`.
        claim: what the paper says with it, in a sentence.
        minutes: about how long it takes on two cores, until it was measured.
        settings: its settings by name: ints, floats and texts. Each has a flag of that name.
        sample: the settings that `--sample` replaces, for a test of a few seconds.
        parts: function from settings to the list of its `Part`s.
        needs: what it needs beside networks, in words.
        rule: by what rule the verdict is reached, as a sentence. It follows from the paper's
            numbers and statements, and is fixed before ours are known.
        verdict: function from a `paper.results.Result` to a `Verdict`. It is called once all parts
            are computed whose networks exist.
        draw: function from a `Result` to a matplotlib Figure; None without a picture.
        table: function from a `Result` to lines of Markdown; None without a table.
        caption: what the picture shows, as sentences; "" without a picture.
        version: raised by one if `compute` changes its numbers: earlier results are stale then.
    """

    name: str
    title: str
    question: str
    claim: str
    minutes: float
    settings: dict
    sample: dict
    parts: Callable
    rule: str
    verdict: Callable
    draw: Callable | None = None
    table: Callable | None = None
    caption: str = ""
    needs: str = ""
    version: int = 1


def verdict_of(*criteria):
    """Returns the `Verdict` of several criteria: reproduced if all hold, in part if some do.

    Args:
        *criteria: pairs of whether a criterion holds, and its sentence with both numbers.
    """
    held = [holds for holds, _ in criteria]
    word = REPRODUCED if all(held) else IN_PART if any(held) else NOT_REPRODUCED
    return Verdict(word, tuple(f"{'holds' if h else 'fails'}: {reason}" for h, reason in criteria))


def published(name):
    """Returns the paper's numbers of an item, from `published.json`, which says where from."""
    return read_json(HERE / "published.json")[name]
