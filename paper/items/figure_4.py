"""Figure 4: accuracy and loss over the network's capacity, by training."""

import itertools

import numpy as np

from cifar10_challenge.challenge import CIFAR10
from mnist_challenge.challenge import MNIST
from paper import style, under_attack
from paper.item import Item, published, verdict_of
from paper.items.table_5 import NETWORKS as OF_TABLE_5
from paper.networks import (
    FGSM_TRAINED,
    FGSM_TRAINED_B,
    NATURAL,
    NATURAL_B,
    ROBUST,
    ROBUST_B,
    SIMPLE,
    Network,
)
from paper.under_attack import Cell

SCALES = (1, 2, 4, 8, 16)
SEEDS = {1: (0, 1, 2), 2: (0, 1, 2), 4: (0, 1, 2), 8: (0,), 16: (0,)}
# By training: what it is called, its panel and its loss's name in `published.json`, its attack.
TRAININGS = {
    "natural": ("natural training", "a_natural_training", "natural", "natural"),
    "fgsm": ("FGSM training", "b_fgsm_training", "fgsm", "paper_fgsm"),
    "pgd": ("PGD training, rise of epsilon", "c_pgd_training", "pgd", "paper_pgd_40"),
    "pgd_constant_epsilon": (
        "PGD training, constant epsilon",
        "c_pgd_training",
        "pgd",
        "paper_pgd_40",
    ),
}
# By attack: its name in `published.json`, and as people write it.
ATTACKS = {
    "natural": ("natural", "none"),
    "paper_fgsm": ("fgsm", "FGSM"),
    "paper_pgd_40": ("pgd", "PGD"),
}
# The shipped networks of the main experiments are of scale 16, too.
OF_SCALE_16 = {
    "natural": (NATURAL, NATURAL_B),
    "fgsm": (FGSM_TRAINED, FGSM_TRAINED_B),
    "pgd": (ROBUST, ROBUST_B),
    "pgd_constant_epsilon": (),
}
_TITLES = {"natural": "natural", "fgsm": "FGSM-trained"}
# mnist_challenge/capacity.py names its trainings like this.
NETWORKS = {
    (training, scale): (
        *(
            Network(
                MNIST,
                f"{training}_scale_{scale}_seed_{seed}",
                f"{_TITLES.get(training, 'robust')}, {training}, scale {scale}, seed {seed}",
            )
            for seed in SEEDS[scale]
            if scale < 16 or training == "pgd_constant_epsilon"
        ),
        *(OF_SCALE_16[training] if scale == 16 else ()),
    )
    for training in TRAININGS
    for scale in SCALES
}
WIDTHS = (1, 2, 4, 10)
CIFAR10_ROWS = ("natural", "paper_fgsm", "paper_pgd_20")
CIFAR10_NETWORKS = {
    1: OF_TABLE_5[:3],
    2: (Network(CIFAR10, "width_2_adv_trained", "robust, width 2", SIMPLE.replace("ten", "5")),),
    4: (Network(CIFAR10, "width_4_adv_trained", "robust, width 4", SIMPLE.replace("ten", "2.5")),),
    10: OF_TABLE_5[3:],
}


def mnist_cells(training, scale):
    """Returns the `Cell`s of each network of a training and scale: a list by attack."""
    return {
        network: [Cell(f"{network.label}, {row}", network, row) for row in ATTACKS]
        for network in NETWORKS[training, scale]
    }


def cifar10_cells():
    """Returns the `Cell`s of CIFAR-10's networks: a list by attack, for each network."""
    return {
        network: [Cell(f"{network.label}, {row}", network, row) for row in CIFAR10_ROWS]
        for networks in CIFAR10_NETWORKS.values()
        for network in networks
    }


def parts(settings):
    """A part a network and attack. MNIST's are computed, since cards do not have the losses."""
    of_mnist = [
        cell
        for training in TRAININGS
        for scale in SCALES
        if scale <= settings["max_scale"]
        for cells in mnist_cells(training, scale).values()
        for cell in cells
    ]
    every, widths = cifar10_cells(), [w for w in WIDTHS if w <= settings["max_width"]]
    of_cifar10 = [cell for w in widths for n in CIFAR10_NETWORKS[w] for cell in every[n]]
    return [
        *under_attack.parts(of_mnist, settings["num_images"], from_cards=False),
        *under_attack.parts(of_cifar10, settings["num_cifar10_images"]),
    ]


def curves(result, training):
    """The accuracies and losses of a training's networks.

    Returns:
        dict by attack, and by "loss" under the training's own: lists over `SCALES` of the seeds'
        numbers, which are empty where there is no network.
    """
    attacks = list(ATTACKS)
    of_training = attacks.index(TRAININGS[training][3])
    found = {name: [[] for _ in SCALES] for name in (*attacks, "loss")}
    for number, scale in enumerate(SCALES):
        for cells in mnist_cells(training, scale).values():
            for attack, cell in zip(attacks, cells, strict=True):
                accuracy = under_attack.found(result, cell)
                if accuracy is not None:
                    found[attack][number].append(accuracy.value)
            loss = under_attack.loss(result, cells[of_training])
            if loss is not None:
                found["loss"][number].append(loss)
    return found


def draw(result):
    """The panels of MNIST: accuracies of each training, and the losses."""
    figure, axes = style.subplots(1, 5, 11.5, 2.7)
    theirs = published("figure_4")["MNIST"]
    for axis, (training, (title, panel, loss, _)) in zip(axes[0], TRAININGS.items(), strict=False):
        ours = curves(result, training)
        for attack, (name, words) in ATTACKS.items():
            axis.plot(SCALES, theirs[panel][name], **style.PAPER)
            line = style.line_of(words)
            colour = style.colour_of(NETWORKS[training, 1][0])
            label = {"none": "natural images", "PGD": "PGD, 40 steps"}.get(words, words)
            _plot(axis, ours[attack], color=colour, label=label, **line)
        axis.set_title(title)
        axis.set_ylim(-3, 103)
        line = {"natural": "none", "fgsm": "FGSM", "pgd": "PGD"}[loss]
        axes[0, 4].plot(SCALES, theirs["d_avg_loss"][loss], **style.PAPER)
        colour = style.colour_of(NETWORKS[training, 1][0])
        options = {**style.line_of(line), "color": colour}
        if training == "pgd_constant_epsilon":
            options |= {"linestyle": ":", "marker": "x"}
        _plot(axes[0, 4], ours["loss"], label=title, **options)
    axes[0, 4].set_yscale("log")
    axes[0, 4].set_title("loss under the training's attack")
    axes[0, 4].set_ylabel("cross-entropy, nats")
    axes[0, 0].set_ylabel(f"accuracy on {result.settings['num_images']:,} images, %")
    for axis in axes[0]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(SCALES, map(str, SCALES))
        axis.set_xlabel("capacity scale")
    axes[0, 0].legend(loc="center left")
    axes[0, 4].legend(loc="upper right", fontsize=5)
    return figure


def _plot(axis, values, **line):
    """The mean over seeds at each scale that has some, with bars of their standard deviation."""
    there = [number for number, of_seeds in enumerate(values) if of_seeds]
    means = [np.mean(values[number]) for number in there]
    bars = [np.std(values[number], ddof=1) if len(values[number]) > 1 else 0 for number in there]
    axis.errorbar([SCALES[number] for number in there], means, bars, capsize=2, **line)


def table(result):
    """The numbers beside the paper's, MNIST by scale and CIFAR-10 by width."""
    theirs = published("figure_4")
    lines = [
        f"| training | attack | | {' | '.join(f'scale {scale}' for scale in SCALES)} |",
        "|---" * (3 + len(SCALES)) + "|",
    ]
    for training, (title, panel, loss, _) in TRAININGS.items():
        ours = curves(result, training)
        rows = {
            words: (theirs["MNIST"][panel][name], ours[attack])
            for attack, (name, words) in ATTACKS.items()
        }
        rows["loss"] = (theirs["MNIST"]["d_avg_loss"][loss], ours["loss"])
        for words, (papers, values) in rows.items():
            lines.append(f"| {title} | {words} | paper | {' | '.join(map(str, papers))} |")
            lines.append(f"| {title} | {words} | ours | {' | '.join(map(_shown, values))} |")
    lines += ["", "CIFAR-10:", "", "| training | width | | natural | FGSM | PGD, 20 steps |"]
    lines += ["|---" * 6 + "|"]
    cells = cifar10_cells()
    for place, training in enumerate(("natural", "fgsm", "pgd")):
        for width in WIDTHS:
            name = {1: "simple", 10: "wide"}.get(width)
            title = TRAININGS[training][0].partition(",")[0]
            if name is not None:
                papers = " | ".join(map(str, theirs["CIFAR-10"][name][training]))
                lines.append(f"| {title} | {width} | paper | {papers} |")
            networks = CIFAR10_NETWORKS[width]
            if len(networks) == 1 and training != "pgd":
                continue
            network = networks[place] if len(networks) > 1 else networks[0]
            found = [under_attack.found(result, cell) for cell in cells[network]]
            shown = " | ".join(str(accuracy or "open") for accuracy in found)
            lines.append(f"| {title} | {width} | ours | {shown} |")
    return lines


def _shown(values):
    if not values:
        return "open"
    mean = f"{np.mean(values):.3g}"
    return f"{mean} ± {np.std(values, ddof=1):.2g} ({len(values)})" if len(values) > 1 else mean


def verdict(result):
    """By the item's rule."""
    criteria, theirs = [], published("figure_4")["MNIST"]
    natural, fgsm, pgd, constant = (curves(result, training) for training in TRAININGS)
    for words, of_training, limit in (("natural", natural, 1.0), ("FGSM", fgsm, 5.0)):
        under = [value for values in of_training["paper_pgd_40"] for value in values]
        if under:
            highest = max(under)
            words = f"{words} training leaves {highest:.1f} under PGD at every scale"
            criteria.append((highest <= limit, f"{words} (at most {limit:.0f}; paper 0)"))
    leak = [
        np.mean(attacked) - np.mean(clean)
        for attacked, clean in zip(fgsm["paper_fgsm"], fgsm["natural"], strict=True)
        if attacked
    ]
    if leak:
        words = f"after FGSM training FGSM leaves {min(leak):.1f} points more than natural images"
        criteria.append((min(leak) > 0, f"{words} (or more; needed: above 0)"))
    rising = [np.mean(values) for values in pgd["paper_pgd_40"] if values]
    if len(rising) > 1:
        grows = all(a <= b + 1 for a, b in itertools.pairwise(rising))
        shown = ", ".join(f"{value:.1f}" for value in rising)
        criteria.append((grows, f"after PGD training accuracy under PGD grows with scale: {shown}"))
    for number, scale in enumerate(SCALES):
        values = constant["paper_pgd_40"][number]
        if values:
            paper = theirs["c_pgd_training"]["pgd"][number]
            words = f"scale {scale}, constant epsilon: {np.mean(values):.1f} under PGD"
            words += f" (paper {paper})"
            criteria.append((abs(np.mean(values) - paper) <= 3, f"{words}, within 3 points"))
    return verdict_of(*criteria)


ITEM = Item(
    name="figure_4",
    title="Figure 4: capacity",
    question="RQ2",
    claim="Capacity alone helps against FGSM and not against PGD; networks of scale 1 and 2 cannot "
    "be trained against PGD at all, and larger ones become more robust to it with scale; FGSM "
    "training leaks labels at every scale.",
    minutes=60,
    settings={
        "num_images": 10000,
        "num_cifar10_images": 1000,
        "max_scale": 16,
        "max_width": 10,
        "seed": 0,
    },
    sample={"num_images": 3, "num_cifar10_images": 1, "max_scale": 1, "max_width": 1},
    parts=parts,
    draw=draw,
    table=table,
    caption="Grey: the paper's. Bars: the standard deviation over several seeds. The recipes are "
    "those of mnist_challenge/capacity.json, much shorter than the paper's trainings; scale 16 "
    "also has the networks of the main experiments. Our loss is on test images, the paper's on "
    "training images.",
    rule="After natural and after FGSM training the accuracy under PGD is 0 at every scale (1 and "
    "5 points are allowed); after FGSM training FGSM examples are classified better than natural "
    "images; after PGD training accuracy under PGD does not fall by more than a point from scale "
    "to scale, and with constant epsilon, as the paper trained, it is within 3 points of the "
    "paper's.",
    verdict=verdict,
)
