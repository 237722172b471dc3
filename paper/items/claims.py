"""The headline claims of the paper, each with our number from the other items' results."""

import dataclasses
import pathlib

from paper import under_attack
from paper.item import IN_PART, REPRODUCED, Item, Part, verdict_of
from paper.items import figure_4, figure_11, maxima, table_1, table_2, table_5
from paper.networks import ROBUST, SIMPLE_FGSM_TRAINED, SIMPLE_ROBUST, WIDE_ROBUST
from paper.results import Result

HERE = pathlib.Path(__file__).resolve().parents[1]
SOURCES = (figure_11, maxima, figure_4, table_1, table_2, table_5)


def parts(settings):
    """One part, which records the states of the other items; their numbers are read anew."""
    return [Part(name="other items", networks=(ROBUST,), compute=states)]


def states(work):
    """The state of each item whose numbers the claims rest on."""
    return {"states": {name: result.state() for name, result in _results().items()}}


def _results():
    return {source.ITEM.name: Result.read(source.ITEM, HERE) for source in SOURCES}


def _of_table(result, module, name):
    """The `Accuracy` of a row of Table 1 by its name, or None."""
    for row, cell in module.cells():
        if table_1.name_of(row) == name:
            return under_attack.found(result, cell)
    return None


def claims():
    """Returns the claims: dicts of claim, paper (its number), ours, and holds, or None if open."""
    results = _results()
    return [
        *_white_box(results),
        *_transfer(results),
        *_concentration(results["figure_11"]),
        *_distinct(results["maxima"]),
        *_capacity(results["figure_4"]),
        *_leaking(results["table_5"]),
    ]


def _claim(claim, paper, ours=None, holds=None):
    return {"claim": claim, "paper": paper, "ours": ours or "open", "holds": holds}


def _white_box(results):
    found = _of_table(results["table_1"], table_1, "PGD, 100 steps, 20 restarts, A")
    words = "MNIST: accuracy under the strongest white-box attack, PGD of 100 steps and 20 restarts"
    yield _claim(words, "over 89 %", _percent(found), found and found.value > 89)
    for target, name in ((WIDE_ROBUST, "wide"), (SIMPLE_ROBUST, "simple; the paper's is wide")):
        found = _of_cell(results["table_2"], table_2.cells(target), "paper_pgd_20")
        words = f"CIFAR-10, {name}: accuracy under PGD of 20 steps"
        yield _claim(words, "about 46 %", _percent(found), found and found.value >= 45)


def _transfer(results):
    found = _of_table(results["table_1"], table_1, "PGD, 100 steps, 20 restarts, A'")
    words = "MNIST: accuracy under transfer from an independent copy, the same attack"
    yield _claim(words, "over 95 %", _percent(found), found and found.value > 95)
    found = _of_cell(results["table_2"], table_2.cells(WIDE_ROBUST), "paper_pgd_7", 1)
    words = "CIFAR-10, wide: accuracy under transfer from an independent copy, PGD of 7 steps"
    yield _claim(words, "64 %", _percent(found), found and found.value >= 63)


def _of_cell(result, rows, row, place=0):
    """The `Accuracy` of the cell of that preset at `place` among those of several sources."""
    cells = [cell for _, cell in rows if cell.row == row]
    return under_attack.found(result, cells[place])


def _percent(accuracy):
    return accuracy and f"{accuracy.value:.1f} % of {accuracy.num_examples:,} images"


def _concentration(result):
    words = "PGD from random starts ends at losses that lie close together: spread over their mean"
    widest = figure_11.widest_of_paper()
    if not result.is_whole():
        yield _claim(words, f"at most {widest:.2f}")
        return
    spreads = figure_11.spreads_of(result)
    shown = ", ".join(f"{spread:.2f} ({label})" for label, spread in spreads.items())
    yield _claim(words, f"at most {widest:.2f}", shown, max(spreads.values()) <= 1.25 * widest)


def _distinct(result):
    words = "The maxima lie in distant places: Section 3's statements, without numbers"
    verdict = result.verdict() if result.is_whole() else None
    ours = verdict and f"{verdict.word}, see {result.item.title}"
    yield _claim(words, "all", ours, verdict and verdict.word == REPRODUCED)


def _capacity(result):
    curve = figure_4.curves(result, "pgd")["paper_pgd_40"]
    means = [sum(values) / len(values) for values in curve if values]
    there = [scale for scale, values in zip(figure_4.SCALES, curve, strict=True) if values]
    words = "MNIST: larger networks survive stronger adversaries (PGD-trained, under PGD, by scale)"
    paper = "11.4, 11.4, 87.7, 91.5, 93.3 %"
    if len(means) < 2:
        yield _claim(words, paper)
        return
    shown = ", ".join(f"{mean:.1f}" for mean in means)
    ours = f"{shown} % at scales {', '.join(map(str, there))}"
    yield _claim(words, paper, ours, means[-1] > means[0])


def _leaking(result):
    found = [
        under_attack.found(result, cell)
        for *_, cells in table_5.rows()
        for cell in cells
        if cell.target is SIMPLE_FGSM_TRAINED and cell.row in ("paper_fgsm", "paper_pgd_20")
    ]
    words = "CIFAR-10, simple: FGSM training leaks labels and fails under PGD (FGSM / PGD-20)"
    ours = holds = None
    if None not in found:
        fgsm, pgd = (accuracy.value for accuracy in found)
        ours, holds = f"{fgsm:.1f} / {pgd:.1f} %", pgd <= 1 and fgsm - pgd >= 50
    yield _claim(words, "90.9 / 0.0 %", ours, holds)


def table(result):
    """The claims with both numbers."""
    words = {True: "holds", False: "does not hold", None: "open"}
    lines = ["| claim | paper | ours | |", "|---|---|---|---|"]
    for claim in claims():
        cells = claim["claim"], claim["paper"], claim["ours"], words[claim["holds"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def verdict(result):
    """By the item's rule."""
    known = [claim for claim in claims() if claim["holds"] is not None]
    criteria = [(claim["holds"], f"{claim['claim']}: {claim['ours']}") for claim in known]
    verdict = verdict_of(*criteria)
    left = len(claims()) - len(known)
    if left and verdict.word == REPRODUCED:
        verdict = dataclasses.replace(verdict, word=IN_PART)
    is_open = [f"open: {left} claims, without a network or a result"] if left else []
    return dataclasses.replace(verdict, criteria=(*verdict.criteria, *is_open))


ITEM = Item(
    name="claims",
    title="The headline claims",
    question="RQ5",
    claim="Adversarial training solves the min-max problem well enough for networks that withstand "
    "every first-order attack within epsilon.",
    minutes=1,
    settings={"seed": 0},
    sample={},
    parts=parts,
    table=table,
    rule="A claim holds if our number is on the paper's side of the paper's limit (45 % for its "
    "about 46 %, 63 % for its 64 %); label leaking means at most 1 % under PGD and 50 points more "
    "under FGSM.",
    verdict=verdict,
)
