"""The items of the paper, a table, a figure or a claim each, one for each file of `paper/items/`.

An item consists of parts, such as an attack on one network. Each part is computed and written in
one go, so that interrupted work loses only the current part. From the parts' numbers the item draws
its picture, makes its table and reaches its verdict.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np

from common.challenge import Challenge
from common.checkpoints import LoadedModel
from common.data import Split
from common.files import read_json
from paper.networks import Network

HERE = pathlib.Path(__file__).resolve().parent
REPRODUCED, IN_PART, NOT_REPRODUCED, OPEN = "reproduced", "in part", "not reproduced", "open"
QUESTIONS = {
    "RQ1": "Can first-order methods solve the inner problem?",
    "RQ2": "How does capacity matter?",
    "RQ3": "How do adversarial examples transfer?",
    "RQ4": "What do other adversaries find?",
    "RQ5": "How robust are the networks, and how do they look?",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """The input of a part's computation.

    Attributes:
        challenge: the `common.challenge.Challenge` of the part's networks; None without any.
        models: a `LoadedModel` for each of the part's networks, in their order.
        images: the `common.data.Split` of the part's test images; None if it needs none.
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
    """A part of an item's computation.

    Attributes:
        name: its name in the results, for people, such as "MNIST, adv_trained".
        networks: the `Network`s that it needs, of one challenge; () for none.
        compute: function from `Work` to the part's numbers: a dict for JSON; None if they are
            known.
        num_images: number of test images, from the first; None for none.
        weight: its cost relative to the item's other parts.
        attack: the settings of its attack as a dict for JSON, with which numbers become stale; None
            if only the item's version says so.
        known: the numbers if a shipped network's card has them, and nothing is computed.
        otherwise: the `Part`s that take its place if a network is not the shipped one.
    """

    name: str
    networks: tuple[Network, ...]
    compute: Callable | None = None
    num_images: int | None = None
    weight: float = 1.0
    attack: dict | None = None
    known: dict | None = None
    otherwise: tuple["Part", ...] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether our numbers show what the paper claims.

    Attributes:
        word: `REPRODUCED`, `IN_PART`, `NOT_REPRODUCED`, or `OPEN` without any criterion.
        criteria: a sentence for each criterion of the rule, with the deciding numbers:
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
        minutes: estimated minutes on two cores, shown until they are measured.
        settings: its settings by name: ints, floats and texts. Each has a flag of that name.
        sample: the settings that `--sample` replaces, for a test of a few seconds.
        parts: function from settings to the list of its `Part`s; None if it is made of the other
            items' results.
        needs: its requirements beside networks, in words.
        rule: the rule of the verdict, as a sentence. It follows from the paper's numbers and
            statements, and is fixed before ours are known.
        verdict: function from a `paper.results.Result` to a `Verdict`. It is called once all parts
            whose networks exist are computed; it leaves out the criteria whose numbers are missing.
        draw: function from a `Result` to a matplotlib Figure; None without a picture.
        table: function from a `Result` to lines of Markdown; None without a table.
        caption: a description of the picture, in sentences; "" without a picture.
        note: what a reader of the table has to know, in sentences.
        tried: why a criterion fails and what was tried, in sentences; "" if all hold.
        shows_parts: whether verdict, picture and table are made before that, of the parts that are
            there.
        version: increased if `compute` changes its numbers; earlier results are then stale.
    """

    name: str
    title: str
    question: str
    claim: str
    minutes: float
    settings: dict
    sample: dict
    parts: Callable | None
    rule: str
    verdict: Callable
    draw: Callable | None = None
    table: Callable | None = None
    caption: str = ""
    note: str = ""
    tried: str = ""
    needs: str = ""
    shows_parts: bool = False
    version: int = 1


def verdict_of(*criteria):
    """Returns the `Verdict` of several criteria: reproduced if all hold, in part if some do.

    Args:
        *criteria: pairs of whether a criterion holds, and its sentence with both numbers.
    """
    held = [holds for holds, _ in criteria]
    word = IN_PART if any(held) else NOT_REPRODUCED
    if all(held):
        word = REPRODUCED if held else OPEN
    return Verdict(word, tuple(f"{'holds' if h else 'fails'}: {reason}" for h, reason in criteria))


def published(name):
    """Returns the paper's numbers of an item, from `published.json`, which names their sources.

    They are read once: nobody may change them.
    """
    return _published()[name]


@functools.cache
def _published():
    return read_json(HERE / "published.json")
