"""Figure 1: the loss along PGD from 20 starts, for one image and each of four networks."""

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
PAIRS = ((NATURAL, ROBUST), (SIMPLE_NATURAL, SIMPLE_ROBUST))
PLATEAU = 0.6  # of the steps


def parts(settings):
    """One part a network."""
    return [
        Part(name=network.label, networks=(network,), num_images=1, compute=losses)
        for network in PANELS
    ]


def losses(work):
    """The losses of the first test image: a list for each run, from its start to its end."""
    settings = work.settings
    along = ascent.losses_along_pgd(
        *(work.models[0], work.challenge, work.x_nat[0], work.y[0], settings["seed"]),
        num_restarts=settings["num_restarts"],
        num_steps=settings["num_steps"],
        step_size=ascent.STEP_SIZES[work.challenge.name],
    )
    return {"losses": [ascent.rounded(run) for run in along.T]}


def draw(result):
    """A panel a network: our runs, and behind them the mean and the range of the paper's."""
    figure, axes = style.subplots(1, 4, 10, 2.8)
    for axis, (network, panel) in zip(axes[0], PANELS.items()):
        if network.label not in result.numbers:
            continue
        theirs, ours = published("figure_1")[panel], result.numbers[network.label]["losses"]
        steps = np.arange(len(theirs["mean"]))
        band = {"color": style.PAPER["color"], "alpha": 0.4, "linewidth": 0, "zorder": 0}
        axis.fill_between(steps, theirs["lowest"], theirs["highest"], **band)
        axis.plot(steps, theirs["mean"], **style.PAPER, label="paper: mean and range of its runs")
        for number, run in enumerate(ours):
            label = f"ours: {len(ours)} runs" if not number else None
            axis.plot(run, color=style.colour_of(network), linewidth=0.6, label=label)
        axis.set_title("\n".join(filter(None, (network.label, network.note))))
        axis.set_xlabel("steps of PGD")
        axis.set_xlim(0, len(ours[0]) - 1)
        axis.set_ylim(0, None)
        axis.legend(loc="lower right")
    axes[0, 0].set_ylabel("cross-entropy, nats")
    step_sizes = " and ".join(f"{size:g} ({name})" for name, size in ascent.STEP_SIZES.items())
    figure.suptitle(
        f"1 test image, {result.settings['num_restarts']} starts, "
        f"{result.settings['num_steps']} steps of {step_sizes}",
        fontsize=8,
    )
    return figure


def shape_of(lowest, mean, highest):
    """How a panel's curves end: (rise by the plateau, spread of the ends over their mean, end)."""
    rise = (mean[int(PLATEAU * (len(mean) - 1))] - mean[0]) / (mean[-1] - mean[0])
    return rise, (highest[-1] - lowest[-1]) / mean[-1], mean[-1]


def verdict(result):
    """By the item's rule."""
    ours, theirs = {}, {}
    for network, panel in PANELS.items():
        of_paper = published("figure_1")[panel]
        theirs[network] = shape_of(of_paper["lowest"], of_paper["mean"], of_paper["highest"])
        if network.label in result.numbers:
            runs = np.array(result.numbers[network.label]["losses"])
            ours[network] = shape_of(runs.min(0), runs.mean(0), runs.max(0))
    least = 1 - 1.25 * (1 - min(rise for rise, _, _ in theirs.values()))
    widest = 1.25 * max(spread for _, spread, _ in theirs.values())
    ratio = min(theirs[natural][2] / theirs[robust][2] for natural, robust in PAIRS) / 1.25
    rise = min(rise for rise, _, _ in ours.values())
    spread = max(spread for _, spread, _ in ours.values())
    ratios = [ours[a][2] / ours[b][2] for a, b in PAIRS if a in ours and b in ours]
    return verdict_of(
        (
            rise >= least,
            f"by {PLATEAU:.0%} of the steps {rise:.0%} of the rise is done in every panel "
            f"(needed: {least:.0%})",
        ),
        (
            spread <= widest,
            f"the ends lie within {spread:.2f} of their mean in every panel (at most {widest:.2f})",
        ),
        (
            min(ratios) >= ratio,
            f"the natural network's end is {min(ratios):.0f} times the robust one's or more "
            f"(needed: {ratio:.0f})",
        ),
    )


ITEM = Item(
    name="figure_1",
    title="Figure 1: loss along PGD",
    question="RQ1",
    claim="From random starts the loss rises steadily and quickly reaches a plateau; runs end at "
    "similar values, which are far lower on robust networks.",
    minutes=1,
    settings={"num_restarts": 20, "num_steps": 100, "seed": 0},
    sample={"num_restarts": 2, "num_steps": 3},
    parts=parts,
    draw=draw,
    caption="Each line is a run from a uniform point of the ball around the first test image; the "
    "paper's images are not known. Step sizes are not stated in the paper; 0.01 and 0.3 are where "
    "its curves reach their plateaus.",
    rule="In every panel 60 % of the steps make the rise, the ends lie as close together, and the "
    "natural network's end is as many times the robust one's, as in the paper's worst panel, with "
    "a quarter to spare.",
    verdict=verdict,
)
