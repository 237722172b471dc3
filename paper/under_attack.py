"""Accuracies of networks under attack: read from a card that has them, or computed."""

import dataclasses
import functools
import math
import types

from common import cards
from common.config import make_config
from common.evaluation import suites
from common.evaluation.presets import make_evaluator
from common.evaluation.results import Trial
from paper import ascent
from paper.item import Part
from paper.networks import Network

NATURAL_IMAGES = "natural"
# "Targeted" of Table 1, which the paper does not define: PGD towards the class after the label.
TARGETED = "pgd_next_class"
TARGETED_SETTINGS = {"num_steps": 40, "step_size": 0.01}
FEWEST = 1000  # images of a card's row that is used
# Images times steps of a part, which are a few minutes on two cores.
_MOST = {"MNIST": 1_600_000, "CIFAR-10": 100_000}


@dataclasses.dataclass(frozen=True)
class Cell:
    """An accuracy of a table.

    Attributes:
        name: its name in the results.
        target: the `Network` that is attacked.
        row: `NATURAL_IMAGES`, a preset of its challenge or `TARGETED`.
        source: the `Network` that the examples are made on; None for the target itself.
    """

    name: str
    target: Network
    row: str
    source: Network | None = None

    @property
    def networks(self):
        """The networks that it needs."""
        return (self.target,) if self.source is None else (self.target, self.source)


def parts(cells, num_images, from_cards=True):
    """Returns the `Part`s of cells: one for each, or several for one that takes long.

    Args:
        cells: `Cell`s.
        num_images: how many test images are attacked, from the first.
        from_cards: whether to take accuracies from the networks' cards.
    """
    found = []
    for cell in cells:
        entry = card_row(cell, num_images) if from_cards else None
        if entry is not None:
            known = {
                "accuracy": round(entry["accuracy"], 4),
                "num_examples": entry["num_examples"],
                "card": True,
                "card_seconds": round(entry["seconds"], 1),
            }
            computed = tuple(parts([cell], num_images, from_cards=False))
            found.append(
                Part(
                    name=cell.name,
                    networks=cell.networks,
                    weight=0.01,
                    known=known,
                    otherwise=computed,
                )
            )
            continue
        size = math.ceil(num_images / _num_parts(cell, num_images))
        for first in range(0, num_images, size):
            last = min(first + size, num_images)
            compute = functools.partial(accuracy, row=cell.row, first=first, of=num_images)
            weight = 1.0 * (last - first) * (1 + _num_passes(cell))
            name = cell.name if size == num_images else f"{cell.name}, images {first} to {last - 1}"
            networks = cell.networks
            found.append(
                Part(
                    name=name,
                    networks=networks,
                    compute=compute,
                    num_images=last,
                    weight=weight,
                    attack=_attack_of(cell),
                )
            )
    return found


def _num_parts(cell, num_images):
    return math.ceil(num_images * _num_passes(cell) / _MOST[cell.target.challenge.name]) or 1


def _num_passes(cell):
    """The largest number of gradients for an image."""
    if cell.row == NATURAL_IMAGES:
        return 0
    attack = _attack_of(cell)
    return attack["num_steps"] * attack.get("num_restarts", 1)


def _attack_of(cell):
    """The settings of a cell's attack; None of natural images."""
    if cell.row == NATURAL_IMAGES:
        return None
    return cell.target.challenge.presets.get(cell.row, TARGETED_SETTINGS)


def card_row(cell, num_images):
    """Returns a card's entry of the cell on as many test images or more, or None."""
    if num_images < FEWEST or not all(network.exists() for network in cell.networks):
        return None
    card = cell.target.card()
    source = None if cell.source is None else cell.source.name
    entry = cards.find(card, cell.row, source)
    if entry is None or entry["num_examples"] < num_images:
        return None
    attack = _attack_of(cell) or {}
    if not attack.items() <= {**attack, **(entry["attack"] or {})}.items():
        return None  # the preset has changed since
    if cell.source is not None and entry.get("source_digest") != cell.source.digest():
        return None
    return entry


def accuracy(work, row, first=0, of=None):
    """Computes the numbers of a `Part`: a cell, or the part of it from the image `first` on.

    An example's random start is that of an evaluation of all images by eval.py.

    Args:
        work: a `paper.item.Work` with the target and, if it is another, the source.
        row: see `Cell`.
        first: int.
        of: how many images all parts of the cell have together.

    Returns:
        dict: accuracy in percent, num_examples, of, card (False), and the mean loss of the images
        that the accuracy is of.
    """
    target, source = work.models[0], work.models[-1]
    evaluator = _evaluator(work, target)
    evaluator.trials = [] if row == NATURAL_IMAGES else [_trial(work, source, row, first)]
    images, labels = work.images.images[first:], work.images.labels[first:]
    summary = evaluator.run(images, labels).summary()
    kind = "natural" if row == NATURAL_IMAGES else "adversarial"
    return {
        "accuracy": round(summary[f"{kind}_accuracy"], 4),
        "num_examples": len(labels),
        "of": of or len(labels),
        "card": False,
        "loss": float(f"{summary[f'{kind}_loss']:.5g}"),
    }


def _trial(work, source, row, first):
    """The `Trial` of a row on a `LoadedModel`, for examples that are numbered from `first` on."""
    challenge, config = work.challenge, _config(work)

    def make():
        model = suites.with_gradient(source.logits)
        if row != TARGETED:
            return suites.preset_trial(row, model, config, challenge)
        return suites.named_trial(
            row, model, dataclasses.replace(config, **TARGETED_SETTINGS), challenge
        )

    trial = ascent.kept(("trial", row, config.random_seed), source, make)

    def perturb(x, y, seed, index):
        return trial.attack.perturb(x, y, seed=seed, index=index + first)

    return Trial(types.SimpleNamespace(perturb=perturb), trial.num_restarts, name=row)


def _evaluator(work, target):
    def make():
        return make_evaluator(work.challenge, _config(work), [], target, show_progress=False)

    return ascent.kept(("evaluator", work.settings["seed"]), target, make)


def _config(work):
    settings = {"random_seed": work.settings["seed"], "precision": "float32"}
    return make_config(work.challenge, ("item", settings))


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A cell's accuracy.

    Attributes:
        value: in percent.
        num_examples: the number of images.
        is_from_card: whether it is from the network's card.
    """

    value: float
    num_examples: int
    is_from_card: bool

    @property
    def sampling_error(self):
        """The standard error, in points, of Agresti and Coull 1998: above 0 also at 0 %."""
        count = self.num_examples + 4
        share = (self.value / 100 * self.num_examples + 2) / count
        return 100 * math.sqrt(share * (1 - share) / count)

    def is_near(self, paper, margin=2.0):
        """Whether it is the paper's number up to `margin` points and two standard errors."""
        return abs(self.value - paper) <= margin + 2 * self.sampling_error

    def __str__(self):
        count = "" if self.num_examples == 10000 else f" ({self.num_examples:,})"
        return f"{self.value:.2f}{count}"


def _entries(result, cell):
    """The numbers of a cell's parts, or [] while one of them is missing."""
    numbers = result.numbers
    if cell.name in numbers:
        return [numbers[cell.name]]
    own = [numbers[name] for name in numbers if name.startswith(f"{cell.name}, images ")]
    is_whole = own and sum(entry["num_examples"] for entry in own) == own[0]["of"]
    return own if is_whole else []


def loss(result, cell):
    """Returns the mean loss under a computed cell's attack, or None; arguments as in `found`."""
    entries = _entries(result, cell)
    if not entries or any("loss" not in entry for entry in entries):
        return None
    count = sum(entry["num_examples"] for entry in entries)
    return sum(entry["loss"] * entry["num_examples"] for entry in entries) / count


def found(result, cell):
    """Returns the `Accuracy` of a cell, or None while a part of it is missing.

    Args:
        result: the item's `paper.results.Result`.
        cell: one of the `Cell`s that its parts were made of.
    """
    entries = _entries(result, cell)
    if not entries:
        return None
    count = sum(entry["num_examples"] for entry in entries)
    mean = sum(entry["accuracy"] * entry["num_examples"] for entry in entries) / count
    return Accuracy(mean, count, all(entry["card"] for entry in entries))


def difference(accuracy, paper):
    """Returns an `Accuracy`'s difference from the paper's number as a cell, in points."""
    return f"{accuracy.value - paper:+.1f} ± {accuracy.sampling_error:.1f}"
