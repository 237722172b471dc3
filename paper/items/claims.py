"""The headline claims of the paper, each with our number from the other items' results."""

import dataclasses
import itertools

from paper import under_attack
from paper.item import IN_PART, REPRODUCED, Item, verdict_of
from paper.items import figure_4, figure_8, figure_11, maxima, table_1, table_2, table_4, table_5
from paper.networks import FGSM_TRAINED, SIMPLE_FGSM_TRAINED, SIMPLE_ROBUST, WIDE_ROBUST
from paper.results import STALE, Result
from paper.transfer import cells as transfer_cells

SOURCES = (figure_11, maxima, figure_4, figure_8, table_1, table_2, table_4, table_5)
MARGIN = 1.0  # points below a number of the paper that it gives as "about", or for one network


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim with both numbers.

    Attributes:
        words: what is claimed.
        paper: the paper's number.
        ours: our number, or None while it is open.
        holds: whether the claim holds with our number.
    """

    words: str
    paper: str
    ours: str | None = None
    holds: bool = False


def claims(result):
    """Returns the `Claim`s, with the numbers of the other items in the same directory.

    A stale item has none.
    """
    results = {}
    for source in SOURCES:
        found = Result.read(source.ITEM, result.directory, result.source)
        is_stale = found.state() == STALE
        results[source.ITEM.name] = dataclasses.replace(found, records={}) if is_stale else found
    return [
        *_white_box(results),
        *_transfer(results),
        _concentration(results["figure_11"]),
        _distinct(results["maxima"]),
        _capacity(results["figure_4"]),
        _larger_transfer_less(results["figure_8"]),
        *_leaking(results),
    ]


def _of_accuracy(words, paper, least, accuracy):
    """The `Claim` that an `Accuracy`, or None, is at least a number."""
    if accuracy is None:
        return Claim(words, paper)
    ours = f"{accuracy.value:.1f} % of {accuracy.num_examples:,} images"
    return Claim(words, paper, ours, accuracy.value >= least)


def _of_table_1(results, name):
    (cell,) = (cell for row, cell in table_1.cells() if table_1.name_of(row) == name)
    return under_attack.found(results["table_1"], cell)


def _of_table_2(results, target, row, place=0):
    """The `Accuracy` of a target's cell with that preset, at `place` among several sources."""
    cells = [cell for _, cell in table_2.cells(target) if cell.row == row]
    return under_attack.found(results["table_2"], cells[place])


def _white_box(results):
    yield _of_accuracy(
        "MNIST: accuracy under the strongest white-box attack, PGD of 100 steps and 20 restarts",
        "over 89 %",
        89,
        _of_table_1(results, "PGD, 100 steps, 20 restarts, A"),
    )
    for target, name, paper, number in (
        (WIDE_ROBUST, "wide", "about 46 %", 46),
        (SIMPLE_ROBUST, "simple", "43.7 %", 43.7),
    ):
        words = f"CIFAR-10, {name} network: accuracy under PGD of 20 steps"
        accuracy = _of_table_2(results, target, "paper_pgd_20")
        yield _of_accuracy(words, paper, number - MARGIN, accuracy)


def _transfer(results):
    yield _of_accuracy(
        "MNIST: accuracy under the same attack, made on an independent copy",
        "over 95 %",
        95,
        _of_table_1(results, "PGD, 100 steps, 20 restarts, A'"),
    )
    words = "CIFAR-10, wide network: accuracy under PGD of 7 steps, made on an independent copy"
    accuracy = _of_table_2(results, WIDE_ROBUST, "paper_pgd_7", 1)
    yield _of_accuracy(words, "64 %", 64 - MARGIN, accuracy)
    accuracy = under_attack.found(results["table_4"], transfer_cells("paper_pgd_7")[2][2])
    words = words.replace("wide", "simple")
    yield _of_accuracy(words, "57.7 %", 57.7 - MARGIN, accuracy)


def _concentration(result):
    words = "PGD from random starts ends at losses that lie close together: spread over their mean"
    widest = figure_11.widest_of_paper()
    claim = Claim(words, f"at most {widest:.2f}")
    if not result.is_whole():
        return claim
    spreads = figure_11.spreads_of(result)
    shown = ", ".join(f"{spread:.2f} ({label})" for label, spread in spreads.items())
    return dataclasses.replace(claim, ours=shown, holds=max(spreads.values()) <= 1.25 * widest)


def _distinct(result):
    claim = Claim("The maxima lie in distant places: Section 3's statements", "without numbers")
    if not result.is_whole():
        return claim
    verdict = result.verdict()
    held = sum(criterion.startswith("holds") for criterion in verdict.criteria)
    ours = f"{held} of {len(verdict.criteria)} criteria hold, see {result.item.title}"
    return dataclasses.replace(claim, ours=ours, holds=verdict.word == REPRODUCED)


def _capacity(result):
    words = "MNIST: larger networks survive stronger adversaries (trained and attacked with PGD)"
    claim = Claim(words, "11.4, 11.4, 87.7, 91.5, 93.3 % at scales 1, 2, 4, 8, 16")
    curve = figure_4.curves(result, "pgd_constant_epsilon")["paper_pgd_40"]
    means = {
        scale: sum(values) / len(values)
        for scale, values in zip(figure_4.SCALES, curve, strict=True)
        if values
    }
    if len(means) < 2:
        return claim
    shown = ", ".join(f"{mean:.1f}" for mean in means.values())
    ours = f"{shown} % at scales {', '.join(map(str, means))}"
    *values, last = means.values()
    holds = last > values[0] and all(a <= b + 0.5 for a, b in itertools.pairwise((*values, last)))
    return dataclasses.replace(claim, ours=ours, holds=holds)


def _larger_transfer_less(result):
    words = "MNIST: PGD on a larger natural network harms its copy less (accuracy of the copy)"
    claim = Claim(words, "26.0 % large, 35.0 % very large")
    found = [
        under_attack.found(result, cell)
        for pair in ("large, natural", "very large, natural")
        for cell in figure_8.cells(pair)
        if cell.name == f"{pair}, paper_pgd_40, transfer"
    ]
    if None in found:
        return claim
    large, very_large = (accuracy.value for accuracy in found)
    ours = f"{large:.1f} % large, {very_large:.1f} % very large"
    return dataclasses.replace(claim, ours=ours, holds=very_large > large)


def _leaking(results):
    of_mnist = figure_4.mnist_cells([FGSM_TRAINED])[FGSM_TRAINED]
    of_cifar10 = [
        cell for *_, cells in table_5.rows() for cell in cells if cell.target is SIMPLE_FGSM_TRAINED
    ]
    for words, paper, result, cells, strongest in (
        ("MNIST", "93.7, 99.6, 0 %", results["figure_4"], of_mnist, "paper_pgd_40"),
        (
            "CIFAR-10, simple network",
            "87.4, 90.9, 0.0 %",
            results["table_5"],
            of_cifar10,
            "paper_pgd_20",
        ),
    ):
        claim = Claim(
            f"{words}: FGSM training leaks labels and fails under PGD (natural, FGSM, PGD)", paper
        )
        rows = ("natural", "paper_fgsm", strongest)
        by_row = {cell.row: under_attack.found(result, cell) for cell in cells}
        found = [by_row[row] for row in rows]
        if None in found:
            yield claim
            continue
        natural, fgsm, pgd = (accuracy.value for accuracy in found)
        ours = f"{natural:.1f}, {fgsm:.1f}, {pgd:.1f} %"
        yield dataclasses.replace(claim, ours=ours, holds=fgsm > natural and pgd <= 1)


def table(result):
    """The claims with both numbers."""
    lines = ["| claim | paper | ours | |", "|---|---|---|---|"]
    for claim in claims(result):
        word = "holds" if claim.holds else "open" if claim.ours is None else "does not hold"
        lines.append(f"| {claim.words} | {claim.paper} | {claim.ours or ''} | {word} |")
    return lines


def verdict(result):
    """By the item's rule."""
    every = claims(result)
    known = [claim for claim in every if claim.ours is not None]
    found = verdict_of(
        *((claim.holds, f"{claim.words}: {claim.ours} (paper: {claim.paper})") for claim in known)
    )
    left = len(every) - len(known)
    if not left:
        return found
    word = IN_PART if found.word == REPRODUCED else found.word
    return dataclasses.replace(
        found, word=word, criteria=(*found.criteria, f"open: {left} of {len(every)} claims")
    )


ITEM = Item(
    name="claims",
    title="The headline claims",
    question="RQ5",
    claim="Adversarial training solves the min-max problem well enough for networks that withstand "
    "every first-order attack within epsilon.",
    minutes=0,
    settings={"seed": 0},
    sample={},
    parts=None,
    table=table,
    rule="An accuracy holds if it is at least the paper's limit; a point below is allowed for the "
    "paper's about 46 % and 64 % and for its simple network. The spread may be a quarter above the "
    "paper's widest. Leaking means that FGSM examples are classified better than natural images, "
    "and at most 1 % under PGD. Larger networks survive stronger adversaries if no scale has over "
    "half a point less than the one before it, and they transfer less if the copy of the larger "
    "one keeps more. The maxima lie in distant places if all criteria of Section 3 hold.",
    note="The networks withstand the attacks of the paper. Stronger ones leave less: see the "
    "suites on the networks' cards.",
    verdict=verdict,
)
