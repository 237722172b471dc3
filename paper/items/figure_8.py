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
    epsilon = ascent.epsilon_of(work.challenge)
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
    figure, axes = style.subplots(2, len(there), 2.6 * len(there), 4.2)
    papers = published("figure_8")
    for column, pair in zip(axes.T, there, strict=True):
        numbers = result.records[f"{pair}, gradients"]["numbers"]
        colour = style.colour_of(PAIRS[pair][0])
        edges = np.arange(0, 181, 5)
        for name, options in (
            ("angles of random pairs", {"color": "black", "linestyle": ":"}),
            ("angles", {"color": colour}),
        ):
            shares = np.array(numbers[name]) / max(sum(numbers[name]), 1)
            label = {"angles": "same image"}.get(name, "random pairs")
            column[0].stairs(100 * shares, edges, label=label, **options)
        if pair in papers:
            column[0].axvline(papers[pair][6], label="paper: mean", **style.PAPER)
        column[0].set_title(pair)
        column[0].set_xlabel("angle of the gradients, degrees")
        column[0].set_xlim(30, 150)
        for attack in ("FGSM", "PGD"):
            for who, shade in (("source", colour), ("transfer", "black")):
                line = {"linestyle": style.line_of(attack)["linestyle"], "color": shade}
                losses = numbers["along"][f"{attack}, {who}"]
                column[1].plot(ALONG, losses, label=f"{attack}, {who}", **line)
        column[1].axvline(1, color="0.5", linewidth=0.7)
        column[1].set_xlabel("multiple of the perturbation")
        column[1].set_ylim(0, None)
        column[1].set_xlim(0, 5)
    axes[0, 0].set_ylabel("images, %")
    axes[1, 0].set_ylabel("cross-entropy, nats")
    axes[0, 0].legend(fontsize=5.5)
    axes[1, -1].legend(fontsize=5.5, loc="upper left")  # where robust networks have no loss yet
    style.title(
        figure,
        [network for pair in there for network in PAIRS[pair]],
        f"angles on {result.settings['num_gradients']:,} test images, losses on the first "
        f"{min(NUM_ALONG, result.settings['num_gradients'])}; PGD: 40 steps of 0.01",
    )
    return figure


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
    criteria = []
    for pair in PAIRS:
        theirs = published("figure_8").get(pair)
        found = [under_attack.found(result, cell) for cell in cells(pair)]
        if theirs is None or None in found:
            continue
        for name, source, transfer in (("FGSM", 2, 3), ("PGD", 4, 5)):
            ours = found[source].value, found[transfer].value
            words = f"{pair}: {name} leaves {ours[0]:.1f} of the source, {ours[1]:.1f} of the other"
            same_side = (ours[0] < ours[1]) == (theirs[source] < theirs[transfer])
            paper = f"paper {theirs[source]} and {theirs[transfer]}"
            criteria.append((same_side, f"{words} ({paper})"))
        record = result.records.get(f"{pair}, gradients")
        if record is not None:
            numbers = record["numbers"]
            words = f"{pair}: the angle is {numbers['mean']:.0f} degrees (paper {theirs[6]})"
            criteria.append((abs(numbers["mean"] - theirs[6]) <= 10, words))
    return verdict_of(*criteria) if criteria else verdict_of((False, "no second networks yet"))


ITEM = Item(
    name="figure_8",
    title="Figure 8: transfer between MNIST networks",
    question="RQ3",
    claim="Between two initialisations FGSM transfers better than PGD on natural networks, the "
    "gradients of the two are nearly orthogonal, and larger networks transfer less.",
    minutes=15,
    settings={"num_images": 10000, "num_gradients": 1000, "seed": 0},
    sample={"num_images": 3, "num_gradients": 3},
    parts=parts,
    draw=draw,
    table=table,
    caption="Left and solid: the network that the examples are made on; black: the other one of "
    "the pair. The last pair, trained against PGD, is not in the paper. In the table: accuracy of "
    "the source / of the other network, in percent.",
    rule="For each available pair of the paper, FGSM and PGD each harm the same one of the two "
    "networks more as in the paper, and the mean angle of the gradients is within 10 degrees of "
    "the paper's.",
    verdict=verdict,
)
