"""Figure 8: transfer between MNIST networks of two seeds, and the angles of their gradients."""

import numpy as np
import tensorflow as tf

from common.attack import FGSM, xent_loss
from common.attack.gradient import value_and_gradient
from paper import ascent, style, under_attack
from paper.item import Item, Part, published, verdict_of
from paper.networks import (
    FGSM_TRAINED,
    FGSM_TRAINED_B,
    NATURAL,
    NATURAL_B,
    ROBUST,
    ROBUST_B,
    VERY_LARGE_FGSM,
    VERY_LARGE_FGSM_B,
    VERY_LARGE_NATURAL,
    VERY_LARGE_NATURAL_B,
)
from paper.under_attack import Cell

# The paper's rows and the two networks of each; the last is ours.
PAIRS = {
    "large, natural": (NATURAL, NATURAL_B),
    "very large, natural": (VERY_LARGE_NATURAL, VERY_LARGE_NATURAL_B),
    "large, FGSM": (FGSM_TRAINED, FGSM_TRAINED_B),
    "very large, FGSM": (VERY_LARGE_FGSM, VERY_LARGE_FGSM_B),
    "large, PGD": (ROBUST, ROBUST_B),
}
ROWS = ("natural", "paper_fgsm", "paper_pgd_40")
ALONG = np.linspace(0, 5, 26)  # multiples of the perturbation, as in the paper
NUM_ALONG = 50  # images


def cells(pair):
    """Returns six `Cell`s of a pair, for each attack on the source and of the other network."""
    source, target = PAIRS[pair]
    return [
        cell
        for row in ROWS
        for cell in (
            Cell(f"{pair}, {row}, source", source, row),
            Cell(
                f"{pair}, {row}, transfer",
                target,
                row,
                None if row == under_attack.NATURAL_IMAGES else source,
            ),
        )
    ]


def parts(settings):
    """A part a cell of the tables, and one a pair for gradients and directions."""
    return [
        *under_attack.parts(
            [cell for pair in PAIRS for cell in cells(pair)], settings["num_images"]
        ),
        *(
            Part(
                name=f"{pair}, gradients",
                networks=networks,
                num_images=settings["num_gradients"],
                compute=gradients,
                weight=20.0 * settings["num_gradients"],
            )
            for pair, networks in PAIRS.items()
        ),
    ]


def gradients(work):
    """Angles between the two networks' gradients, and losses along the source's directions."""
    source, target = work.models
    own, other = (gradients_of(model, work.x_nat, work.y) for model in work.models)
    same = angles(own, other)
    random = np.random.default_rng(work.settings["seed"])
    shift = random.integers(1, max(len(own), 2))  # another image's, never the same one's
    apart = angles(own, np.roll(other, shift, axis=0))
    few = slice(0, min(NUM_ALONG, len(work.y)))
    x_nat, y = work.x_nat[few], work.y[few]
    epsilon = work.challenge.epsilon
    options = {"epsilon": epsilon, "bounds": work.challenge.bounds, "precision": "float32"}
    ends = {
        "FGSM": FGSM(source.logits, **options).perturb(x_nat, y).numpy(),
        "PGD": ascent.pgd(source, work.challenge, 40)
        .perturb(x_nat, y, work.settings["seed"])
        .numpy(),
    }
    along = {
        f"{attack}, {who}": ascent.rounded(
            [
                np.mean(ascent.losses_at(model, x_nat + np.float32(share) * (end - x_nat), y))
                for share in ALONG
            ]
        )
        for attack, end in ends.items()
        for who, model in (("source", source), ("transfer", target))
    }
    counts, _ = np.histogram(same, bins=np.arange(0, 181, 5))
    counts_apart, _ = np.histogram(apart, bins=np.arange(0, 181, 5))
    return {
        "angles": counts.tolist(),
        "angles of random pairs": counts_apart.tolist(),
        "mean": round(float(np.mean(same)), 2),
        "deviation": round(float(np.std(same)), 2),
        "mean of random pairs": round(float(np.mean(apart)), 2),
        "deviation of random pairs": round(float(np.std(apart)), 2),
        "without a gradient": int(len(own) - len(same)),
        "along": along,
    }


def gradients_of(loaded, x_nat, y):
    """The gradient of the loss at each image, float32 (n, pixels)."""
    logits, found = ascent.logits_of(loaded), []

    @tf.function(reduce_retracing=True, autograph=False)
    def gradient(x, labels):
        return value_and_gradient(lambda z: xent_loss(z, labels), logits, x)[2]

    for first in range(0, len(y), ascent.BATCH):
        batch = slice(first, first + ascent.BATCH)
        found.append(gradient(tf.constant(x_nat[batch]), tf.constant(y[batch])).numpy())
    return np.concatenate(found).reshape(len(y), -1)


def angles(first, second):
    """The angles in degrees between rows; rows whose gradient underflowed are left out."""
    lengths = [np.abs(rows).max(axis=1) for rows in (first, second)]
    there = (lengths[0] > 0) & (lengths[1] > 0)
    first, second = (
        rows[there].astype(np.float64) / length[there, None]
        for rows, length in zip((first, second), lengths, strict=True)
    )
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = np.sum(first * second, axis=1) / norms
    found = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    return found if len(found) else np.array([90.0])


def draw(result):
    """A column a pair: the angles' histogram, and below the losses along the directions."""
    there = [pair for pair in PAIRS if f"{pair}, gradients" in result.records]
    figure, axes = style.subplots(2, len(there), 2.6 * len(there), 5.0)
    for column, pair in zip(axes.T, there, strict=True):
        numbers = result.records[f"{pair}, gradients"]["numbers"]
        _draw_angles(column[0], pair, numbers)
        for attack in ("FGSM", "PGD"):
            for who, network in zip(_LINES, PAIRS[pair], strict=True):
                line = {"linestyle": style.line_of(attack)["linestyle"], **_LINES[who]}
                losses = numbers["along"][f"{attack}, {who}"]
                column[1].plot(ALONG, losses, color=style.colour_of(network), **line)
        column[1].axvline(1, color="0.5", linewidth=0.7)
        column[1].set_xlabel("multiple of the perturbation")
        column[1].set_yscale("log")
        column[1].set_xlim(0, 5)
    axes[0, 0].set_ylabel("images, %")
    axes[1, 0].set_ylabel("cross-entropy, nats")
    # Entries of the legend alone, as each column has its colours.
    axes[0, 0].plot([], [], color="black", linewidth=1.5, label="ours: same image")
    for who, words in (("source", "the examples' own network"), ("transfer", "the other network")):
        for attack in ("FGSM", "PGD"):
            line = {"linestyle": style.line_of(attack)["linestyle"], **_LINES[who]}
            axes[1, 0].plot([], [], color="black", label=f"{attack}, {words}", **line)
    style.legend_below(figure, axes[0, 0], axes[1, 0], columns=3)
    epsilon, count = NATURAL.challenge.epsilon, result.settings["num_gradients"]
    style.title(
        figure,
        [network for pair in there for network in PAIRS[pair]],
        f"epsilon {epsilon:g} in L-infinity; FGSM; PGD, 40 steps of 0.01",
        f"angles on {count:,} test images, losses on the first {min(NUM_ALONG, count)}",
    )
    return figure


# By network: that of the examples is thick, and the other one also has marks.
_LINES = {
    "source": {"linewidth": 2.0},
    "transfer": {"linewidth": 0.9, "marker": "o", "markevery": 3},
}


def _draw_angles(axis, pair, numbers):
    """Draws both histograms, and behind them the paper's mean and deviation."""
    edges, colour = np.arange(0, 181, 5), style.colour_of(PAIRS[pair][0])
    if pair in published("figure_8"):
        mean, deviation = published("figure_8")[pair][6:8]
        words = "paper: mean ± deviation, same image"
        axis.axvspan(mean - deviation, mean + deviation, **style.BAND, label=words)
        axis.axvline(mean, **style.PAPER)
    for name, options in (
        (
            "angles of random pairs",
            {"color": "black", "linestyle": ":", "label": "ours: random pairs"},
        ),
        ("angles", {"color": colour, "linewidth": 1.5}),
    ):
        shares = np.array(numbers[name]) / max(sum(numbers[name]), 1)
        axis.stairs(100 * shares, edges, **options)
    axis.set_title(pair)
    axis.set_xlabel("angle of the gradients, degrees")
    axis.set_xlim(0, 180)
    axis.set_xticks(range(0, 181, 30))


def table(result):
    """Accuracies and angles beside the paper's."""
    columns = "clean | FGSM | PGD | angle | random pairs"
    lines = [f"| networks | | {columns} |", "|---" * 7 + "|"]
    for pair in PAIRS:
        if (theirs := published("figure_8").get(pair)) is not None:
            shown = [f"{theirs[i]} / {theirs[i + 1]}" for i in (0, 2, 4)]
            shown += [f"{theirs[i]} (deviation {theirs[i + 1]})" for i in (6, 8)]
            lines.append(f"| {pair} | paper | {' | '.join(shown)} |")
        found = [under_attack.found(result, cell) for cell in cells(pair)]
        shown = [
            f"{found[i].value:.1f} / {found[i + 1].value:.1f}"
            if found[i] is not None and found[i + 1] is not None
            else "open"
            for i in (0, 2, 4)
        ]
        record = result.records.get(f"{pair}, gradients")
        for key in ("", " of random pairs"):
            numbers = record and record["numbers"]
            shown.append(
                f"{numbers[f'mean{key}']:.0f} (deviation {numbers[f'deviation{key}']:.0f})"
                if numbers
                else "open"
            )
        lines.append(f"| {pair} | ours | {' | '.join(shown)} |")
    return lines


def verdict(result):
    """By the item's rule."""
    criteria, after_pair = [], {}
    for pair in PAIRS:
        theirs = published("figure_8").get(pair)
        found = [under_attack.found(result, cell) for cell in cells(pair)]
        if theirs is None or None in found:
            continue
        after_pair[pair] = theirs, [accuracy.value for accuracy in found]
        criteria += _accuracy_criteria(pair, theirs, found)
        record = result.records.get(f"{pair}, gradients")
        if record is not None:
            criteria += _angle_criteria(pair, theirs, record["numbers"])
    for training in ("natural", "FGSM"):
        large, larger = (after_pair.get(f"{size}, {training}") for size in ("large", "very large"))
        if large is not None and larger is not None:
            (theirs, ours), (theirs_larger, ours_larger) = large, larger
            for name, _, other in ATTACKS:
                rise = ours_larger[other] - ours[other]
                words = f"{training}: {name} leaves {rise:.1f} points more of the other network if "
                words += "both are very large"
                criteria.append(_at_least_half(rise, theirs_larger[other] - theirs[other], words))
    return verdict_of(*criteria)


# Each attack's places among `cells` and the paper's numbers: of the source, of the other network.
ATTACKS = (("FGSM", 2, 3), ("PGD", 4, 5))
MARGIN = 5.0  # points, as in Tables 3 and 4


def _at_least_half(ours, paper, words):
    """A criterion: a difference is at least half the paper's."""
    return ours >= paper / 2, f"{words} (needed: {paper / 2:.1f}; paper {paper:.1f})"


def _accuracy_criteria(pair, theirs, found):
    """What the attacks leave of both networks, and which of the attacks transfers better."""
    criteria = []
    for name, source, other in ATTACKS:
        near = [found[place].is_near(theirs[place], MARGIN) for place in (source, other)]
        words = f"{pair}: {name} leaves {found[source].value:.1f} of the source, "
        words += f"{found[other].value:.1f} of the other (paper {theirs[source]} and "
        words += f"{theirs[other]}, within {MARGIN:g} points and two standard errors)"
        criteria.append((all(near), words))
    ours = [accuracy.value for accuracy in found]
    words = f"{pair}: PGD leaves {ours[3] - ours[5]:.1f} points less of the other than FGSM"
    criteria.append(_at_least_half(ours[3] - ours[5], theirs[3] - theirs[5], words))
    if theirs[2] > theirs[3]:
        words = f"{pair}: FGSM leaves {ours[2] - ours[3]:.1f} points less of the other than of the "
        words += "source"
        criteria.append(_at_least_half(ours[2] - ours[3], theirs[2] - theirs[3], words))
    return criteria


def _angle_criteria(pair, theirs, numbers):
    """How near the mean angle is to the paper's, and how far below that of random pairs."""
    mean, random = numbers["mean"], numbers["mean of random pairs"]
    paper, deviation, paper_random = theirs[6:9]
    words = f"{pair}: the mean angle is {mean:.1f} degrees (paper {paper}, within half its "
    criteria = [(abs(mean - paper) <= deviation / 2, f"{words}deviation of {deviation})")]
    if paper < paper_random:
        words = f"{pair}: it is {random - mean:.1f} degrees below that of random pairs"
        criteria.append(_at_least_half(random - mean, paper_random - paper, words))
    return criteria


ITEM = Item(
    name="figure_8",
    title="Figure 8: transfer between MNIST networks",
    question="RQ3",
    claim="Examples that are made on one network also harm a network of another initialisation, "
    "and PGD's harm it more than FGSM's. FGSM's examples do not harm an FGSM-trained network "
    "itself, but they harm the other one. The gradients of the two networks are nearly orthogonal, "
    "though on natural networks less so than those of random pairs. Very large networks transfer "
    "less than large ones.",
    minutes=15,
    settings={"num_images": 10000, "num_gradients": 1000, "seed": 0},
    sample={"num_images": 3, "num_gradients": 3},
    parts=parts,
    draw=draw,
    table=table,
    caption="Thick lines are the network that the examples are made on. Thin and darker lines with "
    "marks are the other network of the pair. Solid lines are PGD, dashed ones FGSM. The losses "
    "are on a logarithmic axis. The last pair, trained against PGD, is not in the paper. The table "
    "has the accuracy of the source / of the other network, in percent. The paper's curves of the "
    "losses have no scale, and its mean angle on natural networks is biased towards 90 degrees, "
    "because its highest bars are cut off.",
    tried="The two natural networks are trained by different recipes: `natural` for 4 epochs with "
    "steps that fall once, and `natural_b` as one of the capacity family. They differ in more than "
    "their initialisation, and natural pairs of one recipe were not tried. The two networks of the "
    "FGSM-trained pair differ in the steps over which epsilon and the rate rise, 600 and 500.",
    shows_parts=True,
    rule="These are the criteria of each available pair of the paper's. What FGSM leaves, and what "
    "PGD leaves, of both networks is within 5 points, the tolerance of Tables 3 and 4, and two "
    "standard errors of the paper's. PGD leaves less of the other network than FGSM does, by at "
    "least half the paper's difference. Where FGSM leaves less of the other network than of the "
    "source in the paper, it does so by at least half the paper's difference. The mean angle is "
    "within half the paper's standard deviation of the paper's. Where it is below random pairs' in "
    "the paper, it is so by at least half the paper's difference. What is left of the other "
    "network rises from large to very large networks by at least half the paper's difference. "
    "This rule was written after our numbers of the large networks were known, with limits from "
    "the paper alone.",
    verdict=verdict,
)
