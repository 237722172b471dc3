"""Figure 11: the loss along PGD from 20 starts, for five images and each of four networks."""

import numpy as np

from paper import ascent, style
from paper.item import Item, published
from paper.items.figure_1 import (
    LEAST,
    PAIRS,
    PANELS,
    TRIED,
    draw_paper,
    held_in_words,
    parts_of,
    scale_losses,
    verdict_by_statements,
)
from paper.networks import NATURAL, ROBUST, SIMPLE_NATURAL, SIMPLE_ROBUST

# Which of the paper's five images, from 0, is that of Figure 1, whose curves are digitised.
OF_FIGURE_1 = {NATURAL: 0, ROBUST: 3, SIMPLE_NATURAL: 1, SIMPLE_ROBUST: 1}
LATE = 0.8  # of the steps, from which on the paper's ends are drawn


def parts(settings):
    """One part a network."""
    return parts_of(settings, losses)


def losses(work):
    """For each image the mean, lowest and highest loss of its runs at every step."""
    settings, found = work.settings, []
    model, robust = work.models
    for number in ascent.examples(work, robust):
        along = ascent.losses_along_pgd(
            *(model, work.challenge, work.x_nat[number], work.y[number], settings["seed"]),
            num_restarts=settings["num_restarts"],
            num_steps=settings["num_steps"],
        )
        curves = {"mean": along.mean(1), "lowest": along.min(1), "highest": along.max(1)}
        curves = {name: ascent.rounded(curve) for name, curve in curves.items()}
        found.append({"image": number, **curves})
    return {"images": found}


def draw(result):
    """A row a network, a panel an image; grey: where the paper's runs end, or all of them."""
    there = [network for network in PANELS if network.label in result.numbers]
    count = result.settings["num_images"]
    size = 1.9 * count, 1.5 * len(there) + 0.7
    figure, axes = style.subplots(len(there), count, *size, sharex=True, sharey="row")
    for row, network in zip(axes, there, strict=True):
        theirs, shown = published("figure_11")[network.label], []
        images = result.numbers[network.label]["images"]
        for number, (axis, curves) in enumerate(zip(row, images, strict=False)):
            steps = np.arange(len(curves["mean"]))
            shown += [curves["lowest"], curves["highest"]]
            if number < len(theirs):
                end = theirs[number]
                shown += [[end["lowest"]], [end["highest"]]]
                late = steps[-1] * np.array([LATE, 1])
                label = "paper: range of the ends of its runs"
                edge = {**style.BAND, "alpha": 1, "linewidth": 1.5}  # visible if it is narrow
                axis.fill_between(late, end["lowest"], end["highest"], **edge, label=label)
            if OF_FIGURE_1[network] == number:
                draw_paper(axis, published("figure_1")[PANELS[network]])
            colour = style.colour_of(network)
            low, high = (np.maximum(curves[name], LEAST) for name in ("lowest", "highest"))
            axis.fill_between(steps, low, high, color=colour, alpha=0.3)
            label = f"ours, {network.title}: mean and range"
            axis.plot(steps, np.maximum(curves["mean"], LEAST), color=colour, label=label)
            axis.set_xlim(0, steps[-1])
            axis.set_title(f"test image {curves['image']}")
        scale_losses(row[0], *shown)
        row[0].set_ylabel(f"{network.label}\ncross-entropy, nats")
    for axis in axes[-1]:
        axis.set_xlabel("steps of PGD")
    style.title(
        figure,
        there,
        f"{result.settings['num_restarts']} starts of "
        + ascent.settings_text(there, result.settings["num_steps"]),
    )
    style.legend_below(figure, *axes.flat, columns=3)
    return figure


def ends_of(result, network):
    """The mean, lowest and highest end loss of each image."""
    return [
        {name: curves[name][-1] for name in ("mean", "lowest", "highest")}
        for curves in result.numbers[network.label]["images"]
    ]


def table(result):
    """The end losses beside the paper's."""
    lines = ["| network | | image 1 | 2 | 3 | 4 | 5 |", "|---|---|---|---|---|---|---|"]
    for network in PANELS:
        rows = {"paper": published("figure_11")[network.label]}
        if network.label in result.numbers:
            rows["ours"] = ends_of(result, network)
        for who, entries in rows.items():
            cells = [f"{e['mean']:.3g} ({e['lowest']:.3g} to {e['highest']:.3g})" for e in entries]
            lines.append(f"| {network.label} | {who} | {' | '.join(cells)} |")
    return [*lines, "", held_in_words(statements(result))]


def _spread(ends):
    """The largest range of an image's ends, over their mean."""
    return max((end["highest"] - end["lowest"]) / end["mean"] for end in ends)


def spreads_of(result):
    """Returns that of each network that is there, by its label."""
    return {n.label: _spread(ends_of(result, n)) for n in PANELS if n.label in result.numbers}


def widest_of_paper():
    """Returns the largest of the paper's networks."""
    return max(map(_spread, published("figure_11").values()))


def verdict(result):
    """By the item's rule."""
    return verdict_by_statements(statements(result))


def statements(result):
    """Returns the criteria of each of the rule's statements, lists of pairs by its name."""
    theirs = published("figure_11")
    ours = {n: ends_of(result, n) for n in PANELS if n.label in result.numbers}

    def level(ends):
        return float(np.mean([end["mean"] for end in ends]))

    widest, found = 1.25 * widest_of_paper(), {"spread": [], "level": [], "ratio": []}
    for network, ends in ours.items():
        own, factor = _spread(ends), level(ends) / level(theirs[network.label])
        words = f"{network.label}: spread {own:.2f} of the mean (at most {widest:.2f})"
        found["spread"].append((own <= widest, words))
        words = f"{network.label}: mean end {factor:.2f} times the paper's (needed 0.5 to 2)"
        found["level"].append((0.5 <= factor <= 2, words))
    pairs = [pair for pair in PAIRS if set(pair) <= set(ours)]
    needed = min(level(theirs[a.label]) / level(theirs[b.label]) for a, b in pairs) / 1.25
    for natural, robust in pairs:
        ratio = level(ours[natural]) / level(ours[robust])
        words = f"{natural.challenge.name}: ends {ratio:.0f} times as high on the natural network"
        found["ratio"].append((ratio >= needed, f"{words} (needed {needed:.0f})"))
    return {name: criteria for name, criteria in found.items() if criteria}


ITEM = Item(
    name="figure_11",
    title="Figure 11: loss along PGD, five images",
    question="RQ1",
    claim="Figure 1 holds for other images: the ends of the runs are concentrated, and far lower "
    "on robust networks.",
    minutes=22,
    settings={
        "num_images": 5,
        "num_candidates": 200,
        "num_restarts": 20,
        "num_steps": 100,
        "seed": 0,
    },
    sample={"num_images": 2, "num_candidates": 3, "num_restarts": 2, "num_steps": 3},
    parts=parts,
    draw=draw,
    table=table,
    caption="The steps and images are chosen as for Figure 1. The images are on MNIST the first "
    "five that PGD breaks on the robust network, and on CIFAR-10 the first five. The paper's five "
    "images are others, which it does not name: the first panel has its first image, and so on. "
    "Grey bars at the right are the range of its ends. In the four panels of its Figure 1 its "
    "whole curves are known. The axes of the losses are logarithmic.",
    tried=TRIED,
    rule="The spread of an image's ends is at most that of the paper's most scattered image, and "
    "the ratio of the natural network's mean end to the robust one's is at least the paper's, both "
    "with a tolerance of a quarter. Each network's mean end is half to twice the paper's. Each "
    "of these three statements has to hold for all networks; the criteria below are those of "
    "single networks. All this was fixed before our numbers were known.",
    verdict=verdict,
)
