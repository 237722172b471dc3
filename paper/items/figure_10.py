"""Figure 10: the biases of the last layer by class, of natural and robust MNIST networks."""

import numpy as np

from paper import ascent, style
from paper.item import Item, Part, published, verdict_of
from paper.networks import NATURAL, ROBUST, ROBUST_B

# Each network, and the paper's network beside it.
NETWORKS = {NATURAL: "natural", ROBUST: "public", ROBUST_B: "secret"}


def parts(settings):
    """One part a network."""
    return [Part(name=n.label, networks=(n,), compute=biases) for n in NETWORKS]


def biases(work):
    """The biases of the ten classes."""
    return {"biases": ascent.rounded(np.asarray(work.models[0].model.weights[-1]))}


def draw(result):
    """A panel a network: bars by class, and behind them the paper's."""
    figure, axes = style.subplots(1, len(NETWORKS), 9, 2.2, sharey=True)
    classes = np.arange(10)
    for axis, (network, name) in zip(axes[0], NETWORKS.items(), strict=True):
        paper = {"color": style.PAPER["color"], "width": 0.9, "zorder": 1}
        axis.bar(classes, published("figure_10")[name], label=f"paper, {name}", **paper)
        ours = {"color": style.colour_of(network), "width": 0.4, "zorder": 2}
        axis.bar(classes, result.numbers[network.label]["biases"], label="ours", **ours)
        axis.axhline(0.1, color="black", linewidth=0.8, linestyle=":", label="before training")
        axis.set_title(network.label)
        axis.set_xticks(classes)
        axis.set_xlabel("class")
        axis.set_ylim(-0.05, 0.32)
        axis.legend(loc="upper right")
    axes[0, 0].set_ylabel("bias of the class, nats")
    return figure


def verdict(result):
    """By the item's rule."""
    paper = {name: np.array(published("figure_10")[name]) for name in NETWORKS.values()}
    ours = {NETWORKS[n]: np.array(result.numbers[n.label]["biases"]) for n in NETWORKS}

    def spread(biases, name):
        return biases[name].std() / max(biases["natural"].std(), 1e-12)

    def alike(biases):
        first, second = (biases[name] - biases[name].mean() for name in ("public", "secret"))
        return float(first @ second / max(np.sqrt((first @ first) * (second @ second)), 1e-12))

    least = min(spread(ours, "public"), spread(ours, "secret"))
    needed, correlation = spread(paper, "public") / 2, alike(paper) / 2
    return verdict_of(
        *(
            (
                ours[name].std() >= paper[name].std() / 2,
                f"{network.title}: standard deviation over classes {ours[name].std():.3f} "
                f"(needed: {paper[name].std() / 2:.3f})",
            )
            for network, name in NETWORKS.items()
            if name != "natural"
        ),
        (
            least >= needed,
            f"each deviates {least:.1f} times as much as the natural network's or more (needed: "
            f"{needed:.1f})",
        ),
        (
            alike(ours) >= correlation,
            f"the robust networks' biases correlate by {alike(ours):.2f} (needed: "
            f"{correlation:.2f})",
        ),
    )


ITEM = Item(
    name="figure_10",
    title="Figure 10: biases by class of MNIST networks",
    question="RQ5",
    claim="The last layer's biases are far from uniform in robust networks, and similar in two of "
    "them; in the natural network they hardly differ from their initial value.",
    minutes=0.1,
    settings={"seed": 0},
    sample={},
    parts=parts,
    draw=draw,
    caption="The robust networks are trained by the recipe of `adv_trained` from two seeds; the "
    "paper compares its challenge's public network with the secret one.",
    rule="The standard deviation of each robust network's biases, also as a multiple of the "
    "natural network's, and the correlation of two robust networks are at least half the paper's.",
    verdict=verdict,
)
