"""The common part of Tables 3 and 4: accuracies of six networks under each other's examples."""

import functools

from paper import under_attack
from paper.item import Item, published, verdict_of
from paper.items.table_5 import NETWORKS
from paper.networks import (
    SIMPLE_FGSM_TRAINED_B,
    SIMPLE_NATURAL_B,
    SIMPLE_ROBUST_B,
    WIDE_FGSM_TRAINED_B,
    WIDE_NATURAL_B,
    WIDE_ROBUST_B,
)
from paper.under_attack import Cell

# The second network of each training, whose examples the first one gets on the diagonal.
SECOND = (
    SIMPLE_NATURAL_B,
    SIMPLE_FGSM_TRAINED_B,
    SIMPLE_ROBUST_B,
    WIDE_NATURAL_B,
    WIDE_FGSM_TRAINED_B,
    WIDE_ROBUST_B,
)
MARGIN = 5.0  # points
PAPER = "rows are targets, columns sources"


def cells(row):
    """Returns the matrix of `Cell`s under an attack: rows are targets, columns are sources."""
    names = published("table_3")["networks"]
    return [
        [
            Cell(
                f"{target_name} under {source_name}",
                target,
                row,
                second if source is target else source,
            )
            for source_name, source, second in zip(names, NETWORKS, SECOND, strict=True)
        ]
        for target_name, target in zip(names, NETWORKS, strict=True)
    ]


def parts(row, settings):
    """Returns a part a cell, or several for one that takes long."""
    every = [cell for line in cells(row) for cell in line]
    return under_attack.parts(every, settings["num_images"])


def table(name, row, result):
    """Returns the matrix, each cell as ours and, in brackets, the paper's."""
    theirs = published(name)
    names = theirs["networks"]
    lines = [f"| target | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for target, papers, line in zip(names, theirs[PAPER], cells(row), strict=True):
        shown = []
        for paper, cell in zip(papers, line, strict=True):
            accuracy = under_attack.found(result, cell)
            ours = "open" if accuracy is None else f"**{accuracy.value:.1f}**"
            mark = " *" if accuracy is not None and accuracy.num_examples == 10000 else ""
            shown.append(f"{ours}{mark} ({paper})")
        lines.append(f"| {target} | {' | '.join(shown)} |")
    return lines


def verdict(name, row, result):
    """By the rule of `RULE`."""
    theirs, criteria = published(name), []
    for target, papers, line in zip(theirs["networks"], theirs[PAPER], cells(row), strict=True):
        there = [
            (paper, accuracy)
            for paper, cell in zip(papers, line, strict=True)
            if (accuracy := under_attack.found(result, cell)) is not None
        ]
        if not there:
            continue
        near = sum(accuracy.is_near(paper, MARGIN) for paper, accuracy in there)
        farthest = max((accuracy.value - paper for paper, accuracy in there), key=abs)
        words = f"{target}: {near} of {len(there)} within {MARGIN:.0f} points and two errors"
        criteria.append((near == len(there), f"{words} (largest difference {farthest:+.1f})"))
        if len(there) == len(line):
            papers_worst = min(there, key=lambda pair: pair[0])
            ours_worst = min(there, key=lambda pair: pair[1].value)
            words = f"{target}: the same source is the worst"
            criteria.append((papers_worst is ours_worst, words))
    return verdict_of(*criteria)


RULE = (
    "Every available cell is within 5 points and two standard errors of the paper's; in a row "
    "with all six sources, the source that harms the target most is the paper's."
)


def item(number, attack, row, minutes):
    """Returns the `Item` of Table `number`.

    Args:
        attack: its name in the title.
        row: the preset of the attack.
        minutes: see `Item`.
    """
    name = f"table_{number}"
    return Item(
        name=name,
        title=f"Table {number}: transfer of {attack} between CIFAR-10 networks",
        question="RQ3",
        claim="Examples from networks trained on natural images, or against FGSM, hardly harm "
        "robust networks; examples from other robust networks harm them most.",
        minutes=minutes,
        settings={"num_images": 1000, "seed": 0},
        sample={"num_images": 2},
        parts=functools.partial(parts, row),
        table=functools.partial(table, name, row),
        rule=RULE,
        note="S is the simple network and W the wide one, trained on natural images (n), against "
        "FGSM (F) or against PGD (P). Rows are the networks under attack, columns those that the "
        "examples are made on; on the diagonal that is a second network from another seed. In "
        "brackets: the paper's accuracy. Ours are on the first "
        "1,000 test images, those with * on all 10,000.",
        tried="Our networks are trained for 5 to 15 epochs, the paper's for 205: they are less "
        "accurate on natural images too, and the one trained against FGSM does not leak labels "
        "yet. [RECIPE.md](../cifar10_challenge/RECIPE.md) lists what was tried.",
        shows_parts=True,
        verdict=functools.partial(verdict, name, row),
    )
