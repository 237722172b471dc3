"""Figure 7: the loss along the directions of FGSM and PGD, a network's own and its copy's."""

import functools

import numpy as np

from common.attack import FGSM
from paper import ascent, style
from paper.item import Item, Part, published, verdict_of
from paper.networks import (
    ROBUST,
    ROBUST_B,
    SIMPLE_NATURAL,
    SIMPLE_NATURAL_B,
    SIMPLE_ROBUST,
    SIMPLE_ROBUST_B,
)

# Each network with its copy: the same training from another seed.
COPIES = {
    SIMPLE_NATURAL: SIMPLE_NATURAL_B,
    SIMPLE_ROBUST: SIMPLE_ROBUST_B,
    ROBUST: ROBUST_B,
}
PANELS = {SIMPLE_NATURAL: "simple natural", SIMPLE_ROBUST: "wide robust"}
ATTACKS = ("FGSM", "PGD")
NUM_POINTS = 26  # from the image to the perturbed one


def parts(settings):
    """Two parts a network: its own directions, and its copy's."""
    count = settings["num_images"]
    return [
        Part(
            name=f"{network.label}: {whose}",
            networks=networks,
            num_images=count,
            compute=losses,
        )
        for network, copy in COPIES.items()
        for whose, networks in (("own", (network,)), ("copy's", (network, copy)))
    ]


def losses(work):
    """The first network's losses along the last one's perturbations: by attack, image, run."""
    target, source = work.models[0], work.models[-1]
    settings, epsilon = work.settings, work.challenge.epsilon
    fgsm = FGSM(source.logits, epsilon=epsilon, bounds=work.challenge.bounds, precision="float32")
    ends = {"FGSM": [fgsm.perturb(work.x_nat, work.y).numpy()], "PGD": []}
    pgd = ascent.pgd(source, work.challenge, settings["num_steps"])
    for run in range(settings["num_restarts"]):
        ends["PGD"].append(pgd.perturb(work.x_nat, work.y, (settings["seed"], run)).numpy())
    along = functools.partial(losses_along, target, work.x_nat, work.y)
    return {
        attack: [[ascent.rounded(curve) for curve in runs] for runs in along(np.array(of_attack))]
        for attack, of_attack in ends.items()
    }


def losses_along(target, x_nat, y, ends):
    """The losses (images, runs, NUM_POINTS) from the images to the `ends` (runs, images, ...)."""
    shares = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)
    found = []
    for number, image in enumerate(x_nat):
        delta = ends[:, number] - image
        x = image + shares[:, None, None, None] * delta[:, None]  # (runs, NUM_POINTS, ...)
        labels = np.full(len(ends) * NUM_POINTS, y[number])
        losses = ascent.losses_at(target, x.reshape(-1, *image.shape), labels)
        found.append(losses.reshape(len(ends), NUM_POINTS))
    return np.array(found)


def draw(result):
    """A row a network, a panel an image, with logarithmic losses; grey: the paper's ends."""
    there = [n for n in COPIES if f"{n.label}: own" in result.numbers]
    count = result.settings["num_images"]
    size = 1.9 * count, 1.7 * len(there) + 0.6
    figure, axes = style.subplots(len(there), count, *size, sharex=True, sharey="row")
    shares = np.linspace(0, 1, NUM_POINTS)
    for row, network in zip(axes, there, strict=True):
        for image, axis in enumerate(row):
            for whose, options in _LINES.items():
                numbers = result.numbers.get(f"{network.label}: {whose}")
                colour = style.colour_of(network if whose == "own" else COPIES[network])
                for attack in ATTACKS if numbers else ():
                    line = {"linestyle": style.line_of(attack)["linestyle"], **options}
                    for run, curve in enumerate(numbers[attack][image]):
                        label = f"{network.title}: {whose} {attack}" if not run else None
                        axis.plot(shares, curve, color=colour, label=label, **line)
                _draw_ends_of_paper(axis, network, image, whose)
            axis.set_yscale("log")
            axis.set_xlim(0, 1)
            axis.set_title(f"test image {image}")
        row[0].set_ylabel(f"{network.label}\ncross-entropy, nats")
    for axis in axes[-1]:
        axis.set_xlabel("share of the perturbation")
    style.title(
        figure,
        there,
        f"FGSM, and {result.settings['num_restarts']} runs of "
        + ascent.settings_text(there, result.settings["num_steps"]),
    )
    style.legend_below(figure, *axes[:, 0], columns=5)
    return figure


# Our lines by whose attack it is, and the paper's ends, which are hollow for the copy's.
_LINES = {
    "own": {"linewidth": 1.5},
    "copy's": {"linewidth": 0.7, "marker": "x", "markevery": 5},
}
_MARK = {"color": "0.6", "markersize": 6, "clip_on": False, "zorder": 0, "linestyle": "none"}


def _draw_ends_of_paper(axis, network, image, whose):
    """Marks where the paper's curves of the image of that number end; a bar is a range."""
    paper = published("figure_7").get(PANELS.get(network), {})
    for attack in ATTACKS:
        of_attack = paper.get(f"{whose} {attack}", ())
        if image < len(of_attack):
            ends = np.atleast_1d(of_attack[image])
            mark = {**_MARK, "marker": style.line_of(attack)["marker"]}
            mark |= {"markerfacecolor": "none"} if whose == "copy's" else {}
            label = f"paper: {whose} {attack}"
            axis.plot([1.0], [np.mean(ends)], label=label, **mark)
            bar = {"color": _MARK["color"], "linewidth": 2, "clip_on": False, "zorder": 0}
            axis.plot([1.0, 1.0], [ends.min(), ends.max()], **bar)


def ends_of(result, network, whose):
    """The mean loss at the end, by attack, a list over images; None if it is not there."""
    numbers = result.numbers.get(f"{network.label}: {whose}")
    if numbers is None:
        return None
    return {
        attack: np.array([np.mean([run[-1] for run in runs]) for runs in numbers[attack]])
        for attack in ATTACKS
    }


def table(result):
    """The ends by image, beside the paper's."""
    count = result.settings["num_images"]
    columns = " | ".join(f"example {number + 1}" for number in range(count))
    lines = [f"| network | direction | | {columns} |", "|---" * (3 + count) + "|"]
    for network in COPIES:
        paper = published("figure_7").get(PANELS.get(network), {})
        for whose in ("own", "copy's"):
            ours = ends_of(result, network, whose)
            for attack in ATTACKS:
                theirs = paper.get(f"{whose} {attack}", ())[:count]
                if len(theirs):
                    cells = [f"{np.mean(end):.3g}" for end in theirs]
                    cells += [""] * (count - len(cells))
                    where = f"{PANELS[network]} | {whose} {attack} | paper"
                    lines.append(f"| {where} | {' | '.join(cells)} |")
                if ours is not None:
                    cells = " | ".join(f"{end:.3g}" for end in ours[attack])
                    lines.append(f"| {network.label} | {whose} {attack} | ours | {cells} |")
    return lines


def verdict(result):
    """By the item's rule."""
    criteria = []
    for network, panel in PANELS.items():
        paper = published("figure_7")[panel]
        own, copy = (ends_of(result, network, whose) for whose in ("own", "copy's"))
        if own is None:
            continue
        count = len(own["PGD"])
        higher = int(np.sum(own["PGD"] > own["FGSM"]))
        words = f"{network.label}: own PGD ends above own FGSM for {higher} of {count} images"
        criteria.append((higher == count, f"{words} (all)"))
        if network is SIMPLE_NATURAL:
            theirs = zip(paper["own FGSM"], paper["own PGD"], strict=True)
            most = 1.25 * max(fgsm / np.mean(pgd) for fgsm, pgd in theirs)
            share = float(np.max(own["FGSM"] / np.maximum(own["PGD"], 1e-12)))
            words = f"{network.label}: FGSM's end is {share:.2f} of PGD's at most"
            criteria.append((share <= most, f"{words} (needed {most:.2f})"))
        if copy is not None:
            higher = int(np.sum(own["PGD"] > copy["PGD"]))
            words = f"{network.label}: own PGD ends above the copy's for {higher} of {count} images"
            criteria.append((higher == count, f"{words} (all)"))
    return verdict_of(*criteria)


ITEM = Item(
    name="figure_7",
    title="Figure 7: loss along attack directions",
    question="RQ1",
    claim="PGD finds higher losses than FGSM, and far higher ones on the natural network. PGD on a "
    "copy raises the loss less than PGD on the network itself.",
    minutes=19,
    settings={"num_images": 5, "num_restarts": 5, "num_steps": 100, "seed": 0},
    sample={"num_images": 2, "num_restarts": 1, "num_steps": 2},
    parts=parts,
    draw=draw,
    table=table,
    caption="Each curve runs from the image (0) to the perturbed image (1). Dashed curves are "
    "FGSM's, solid ones PGD's. Thick curves are made on the network itself. Thin and darker curves "
    "with crosses are made on its copy, which is trained the same way from another seed. Grey "
    "marks and bars are where the paper's curves end. Our examples 1 to 5 are test images 0 to 4. "
    "The paper's are others, which it does not name, and its robust network is the wide one. It "
    "has no MNIST row, and ours does not count.",
    shows_parts=True,
    rule="On both of the paper's networks own PGD ends above own FGSM and above the copy's PGD for "
    "every image, as in the paper. On the natural network the ratio of FGSM's end to PGD's is at "
    "most that of the paper's worst image, with a tolerance of a quarter.",
    verdict=verdict,
)
