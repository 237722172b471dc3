"""Figure 1: the loss along PGD from 20 starts, for one image and each of four networks."""

import dataclasses
import itertools

import numpy as np

from paper import ascent, style
from paper.item import Item, Part, published, verdict_of
from paper.networks import NATURAL, ROBUST, SIMPLE_NATURAL, SIMPLE_ROBUST

# Each network with the name of its panel in `published.json`.
PANELS = {
    NATURAL: "mnist_nat",
    ROBUST: "mnist_adv",
    SIMPLE_NATURAL: "cifar_nat",
    SIMPLE_ROBUST: "cifar_adv",
}
TRIED = (
    "The ends on our natural networks are far below the paper's. These networks are trained for 4 "
    "epochs (MNIST) and 8 epochs (CIFAR-10), and the paper does not state how its natural networks "
    "were trained. Longer trainings were not tried."
)
PAIRS = ((NATURAL, ROBUST), (SIMPLE_NATURAL, SIMPLE_ROBUST))
PLATEAU = 0.6  # of the steps
LEAST = 0.01  # nats, the lowest loss in a picture


def parts(settings):
    """One part a network."""
    return parts_of(settings, losses)


def parts_of(settings, compute):
    """One part a network, with the robust network that the images are chosen by."""
    return [
        Part(
            name=network.label,
            networks=(network, robust),
            num_images=settings["num_candidates"],
            compute=compute,
        )
        for natural, robust in PAIRS
        for network in (natural, robust)
    ]


def losses(work):
    """The losses on one image: a list for each run, from its start to its end."""
    settings = {**work.settings, "num_images": 1}
    model, robust = work.models
    (number,) = ascent.examples(dataclasses.replace(work, settings=settings), robust)
    along = ascent.losses_along_pgd(
        *(model, work.challenge, work.x_nat[number], work.y[number], settings["seed"]),
        num_restarts=settings["num_restarts"],
        num_steps=settings["num_steps"],
    )
    return {"image": number, "losses": [ascent.rounded(run) for run in along.T]}


def draw(result):
    """A panel a network: our runs, and behind them the mean and the range of the paper's."""
    figure, axes = style.subplots(1, 4, 10, 3.2)
    there = [network for network in PANELS if network.label in result.numbers]
    for axis, network in zip(axes[0], there, strict=False):
        theirs, ours = published("figure_1")[PANELS[network]], result.numbers[network.label]
        draw_paper(axis, theirs)
        for number, run in enumerate(ours["losses"]):
            label = f"ours, {network.title}: each run" if not number else None
            axis.plot(run, color=style.colour_of(network), linewidth=0.6, label=label)
        axis.set_title(f"{network.label}, test image {ours['image']}")
        axis.set_xlabel("steps of PGD")
        axis.set_xlim(0, len(ours["losses"][0]) - 1)
        scale_losses(axis, theirs["lowest"], theirs["highest"], ours["losses"])
    axes[0, 0].set_ylabel("cross-entropy, nats")
    style.title(
        figure,
        there,
        f"{result.settings['num_restarts']} starts of "
        + ascent.settings_text(there, result.settings["num_steps"]),
    )
    style.legend_below(figure, *axes[0])
    return figure


def draw_paper(axis, theirs):
    """Draws the mean of the paper's runs and the band of their range."""
    steps = np.arange(len(theirs["mean"]))
    low, high = (np.maximum(theirs[name], LEAST) for name in ("lowest", "highest"))
    axis.fill_between(steps, low, high, **style.BAND, label="paper: range of its runs")
    mean = np.maximum(theirs["mean"], LEAST)
    axis.plot(steps, mean, **style.PAPER, label="paper: mean of its runs")


def scale_losses(axis, *losses):
    """Makes the axis of losses logarithmic, from `LEAST` at the least to above the highest.

    Args:
        axis: the axis.
        *losses: lists of any shape, all that the axis shows.
    """
    every = np.concatenate([np.ravel(part) for part in losses])
    axis.set_yscale("log")
    axis.set_ylim(max(0.7 * every.min(), LEAST), 1.5 * every.max())


def shapes(result):
    """How the curves of each panel that is there end, the paper's and ours.

    Returns:
        dict by `Network` of pairs of dicts: "rise", the share of the rise by `PLATEAU`; "spread"
        of the ends over their mean; "end", the mean loss.
    """
    found = {}
    for network, panel in PANELS.items():
        if network.label in result.numbers:
            theirs = published("figure_1")[panel]
            runs = np.array(result.numbers[network.label]["losses"])
            ours = {"mean": runs.mean(0), "lowest": runs.min(0), "highest": runs.max(0)}
            found[network] = _shape(theirs), _shape(ours)
    return found


def _shape(curves):
    mean, plateau = curves["mean"], int(PLATEAU * (len(curves["mean"]) - 1))
    return {
        "rise": (mean[plateau] - mean[0]) / (mean[-1] - mean[0]),
        "spread": (curves["highest"][-1] - curves["lowest"][-1]) / mean[-1],
        "end": mean[-1],
    }


def table(result):
    """The shape of each panel's curves beside the paper's."""
    lines = [
        f"| network | test image | | rise by {PLATEAU:.0%} of the steps | spread of the ends "
        "over their mean | mean end |",
        "|---|---|---|---|---|---|",
    ]
    for network, pair in shapes(result).items():
        number = result.numbers[network.label]["image"]
        for who, image, shape in zip(("paper", "ours"), ("not named", number), pair, strict=True):
            lines.append(
                f"| {network.label} | {image} | {who} | {shape['rise']:.0%} | "
                f"{shape['spread']:.2f} | {shape['end']:.3g} |"
            )
    return [*lines, "", held_in_words(statements(result))]


def held_in_words(found):
    """Returns how many of some `statements` hold in all of their panels, as a sentence."""
    held = [all(holds for holds, _ in criteria) for criteria in found.values()]
    return f"{sum(held)} of the rule's {len(held)} statements hold in all panels."


def verdict_by_statements(found):
    """Returns the `Verdict` of `statements`, each of which has to hold in all of its panels.

    Its criteria are those of each panel.
    """
    held = [all(holds for holds, _ in criteria) for criteria in found.values()]
    word = verdict_of(*((holds, "") for holds in held)).word
    return dataclasses.replace(verdict_of(*itertools.chain(*found.values())), word=word)


def verdict(result):
    """By the item's rule."""
    return verdict_by_statements(statements(result))


def statements(result):
    """Returns the criteria of each of the rule's statements, lists of pairs by its name."""
    pairs = shapes(result)
    theirs = {network: of_paper for network, (of_paper, _) in pairs.items()}
    ours = {network: own for network, (_, own) in pairs.items()}
    least = 1 - 1.25 * (1 - min(shape["rise"] for shape in theirs.values()))
    widest = 1.25 * max(shape["spread"] for shape in theirs.values())
    found = {"plateau": [], "spread": [], "ratio": []}
    for network, shape in ours.items():
        plateau = f"{network.label}: {shape['rise']:.0%} of the rise by then (needed {least:.0%})"
        spread = f"{network.label}: spread {shape['spread']:.2f} (at most {widest:.2f})"
        found["plateau"].append((shape["rise"] >= least, plateau))
        found["spread"].append((shape["spread"] <= widest, spread))
    there = [pair for pair in PAIRS if set(pair) <= set(ours)]
    needed = min(theirs[a]["end"] / theirs[b]["end"] for a, b in there) / 1.25
    for natural, robust in there:
        ratio = ours[natural]["end"] / ours[robust]["end"]
        words = f"{natural.challenge.name}: ends {ratio:.0f} times as high on the natural network"
        found["ratio"].append((ratio >= needed, f"{words} (needed {needed:.0f})"))
    return {name: criteria for name, criteria in found.items() if criteria}


ITEM = Item(
    name="figure_1",
    title="Figure 1: loss along PGD",
    question="RQ1",
    claim="From random starts the loss rises steadily and quickly reaches a plateau; runs end at "
    "similar values, which are far lower on robust networks.",
    minutes=6,
    settings={"num_candidates": 200, "num_restarts": 20, "num_steps": 100, "seed": 0},
    sample={"num_candidates": 3, "num_restarts": 2, "num_steps": 3},
    parts=parts,
    draw=draw,
    table=table,
    caption="Each line is a run from a uniform point of the ball around one image. The axes of the "
    "losses are logarithmic and begin at 0.01 or above. The paper does not name its images. On "
    "MNIST ours is the first test image that PGD breaks on the robust network, because the paper's "
    "loss there is that of a broken image; on CIFAR-10 ours is the first test image. The paper "
    "does not state the length of the steps: 0.01 is Table 1's, and 0.3 is Figure 7's. On CIFAR-10 "
    "our curves rise more slowly than the paper's.",
    tried=TRIED,
    rule="The share of the rise after 60 % of the steps, the spread of the ends, and the ratio of "
    "the natural network's mean end to the robust one's are as good as in the paper's worst panel, "
    "with a tolerance of a quarter. Each of these three statements has to hold in all panels; the "
    "criteria below are those of single panels. All this was fixed before our numbers were known.",
    verdict=verdict,
)
