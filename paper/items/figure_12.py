"""Figure 12: digits that PGD in L2 changes until the robust network misclassifies them."""

import numpy as np

from common.attack import PGD
from paper import ascent, style
from paper.item import Item, Part, published, verdict_of
from paper.networks import NATURAL, ROBUST, ROBUST_B

STEPS = 2.5  # length of all steps together, in epsilons: the rule of Figure 6


def parts(settings):
    """One part: the robust network, and two that were not attacked."""
    networks = (ROBUST, ROBUST_B, NATURAL)
    count = settings["num_candidates"]
    return [Part(name=ROBUST.label, networks=networks, num_images=count, compute=examples)]


def examples(work):
    """The first images that the robust network classifies correctly only before the attack."""
    settings, epsilon = work.settings, work.settings["epsilon"]
    robust, other, natural = work.models
    attack = PGD(
        robust.logits,
        norm="l2",
        epsilon=epsilon,
        step_size=STEPS * epsilon / settings["num_steps"],
        num_steps=settings["num_steps"],
        bounds=work.challenge.bounds,
        precision="float32",
    )
    x_adv = attack.perturb(work.x_nat, work.y, settings["seed"]).numpy()
    before, after = ascent.predictions(robust, work.x_nat), ascent.predictions(robust, x_adv)
    found = np.flatnonzero((before == work.y) & (after != work.y))[: settings["num_images"]]
    distances = np.sqrt(np.sum((x_adv - work.x_nat) ** 2, axis=(1, 2, 3)))
    return {
        "examples": [
            {
                "image": number,
                "label": int(work.y[number]),
                "class": int(after[number]),
                "distance": float(f"{distances[number]:.5g}"),
                "class of other robust": int(ascent.predictions(other, x_adv[[number]])[0]),
                "class of natural": int(ascent.predictions(natural, x_adv[[number]])[0]),
                "natural pixels": ascent.rounded(work.x_nat[number]),
                "adversarial pixels": ascent.rounded(x_adv[number]),
            }
            for number in found.tolist()
        ],
        "candidates": len(work.y),
    }


def draw(result):
    """Above the digits, below their adversarial examples."""
    (numbers,), settings = result.numbers.values(), result.settings
    count = max(len(numbers["examples"]), 1)
    figure, axes = style.subplots(2, count, max(1.5 * count, 4), 3.4)
    for column, example in zip(axes.T, numbers["examples"], strict=False):
        labels = (f"label {example['label']}", f"robust: {example['class']}")
        for axis, kind, label in zip(column, ("natural", "adversarial"), labels, strict=True):
            pixels = np.reshape(example[f"{kind} pixels"], (28, 28))
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            axis.set_title(label)
    for axis in axes.flat:
        axis.set_axis_off()
    style.title(
        figure,
        (ROBUST,),
        f"{ROBUST.label}: PGD in L2, {settings['num_steps']} steps of "
        f"{STEPS * settings['epsilon'] / settings['num_steps']:g}, epsilon {settings['epsilon']:g}",
    )
    return figure


def table(result):
    """Each example's labels, beside the paper's."""
    (numbers,) = result.numbers.values()
    paper, found = published("figure_12"), numbers["examples"]
    lines = [
        "| | test image | network sees | L2 distance | other robust network sees | natural one |",
        "|---|---|---|---|---|---|",
        f"| paper | not named | {', '.join(paper['labels'])} | at most {paper['epsilon']} | | |",
    ]
    lines += [
        f"| ours | {e['image']} | {e['label']} to {e['class']} | {e['distance']:.2f} | "
        f"{e['class of other robust']} | {e['class of natural']} |"
        for e in found
    ]
    farthest = max((example["distance"] for example in found), default=0.0)
    return [
        *lines,
        "",
        f"The attack found {len(found)} examples among the first {numbers['candidates']} test "
        f"images. The farthest lies at a distance of {farthest:.2f}; PGD's projection keeps all "
        f"within {result.settings['epsilon']:g}.",
    ]


def verdict(result):
    """By the item's rule."""
    (numbers,), count = result.numbers.values(), result.settings["num_images"]
    criteria = []
    for name in ("other robust", "natural"):
        fooled = sum(e[f"class of {name}"] != e["label"] for e in numbers["examples"])
        words = f"the {name} network misclassifies {fooled} of {count} (needed: over half)"
        criteria.append((2 * fooled > count, words))
    return verdict_of(*criteria)


ITEM = Item(
    name="figure_12",
    title="Figure 12: examples in L2",
    question="RQ1",
    claim="Within an L2 distance of 4 a robust network's adversarial examples are changed so much "
    "that people may take them for another digit, too.",
    minutes=1,
    settings={
        "num_images": 5,
        "num_candidates": 50,
        "epsilon": 4.0,
        "num_steps": 100,
        "seed": 0,
    },
    sample={"num_images": 2, "num_candidates": 10, "num_steps": 2},
    parts=parts,
    draw=draw,
    table=table,
    caption="The upper row has the first test images that the attack breaks, the lower row their "
    "adversarial examples. The paper does not name its attack. Ours is PGD with the steps of "
    "Figure 6, which are 2.5 epsilon long together.",
    tried="Other images, other starts and longer attacks were not tried.",
    rule="If people take the examples for other digits, networks that were not attacked do so, "
    "too: the other robust network misclassifies over half of them, and so does the natural one. "
    "The paper has no number here, and the limit is ours. The criterion of the other robust "
    "network was added after our numbers were known. What people see is for the reader to judge.",
    verdict=verdict,
)
