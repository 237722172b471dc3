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
        f"{ROBUST.label}: PGD in L2 of {settings['num_steps']} steps, "
        f"epsilon {settings['epsilon']:g}",
    )
    return figure


def table(result):
    """Each example's labels, beside the paper's."""
    (numbers,) = result.numbers.values()
    lines = [
        "| | test image | network sees | L2 distance | other robust network sees | natural one |",
        "|---|---|---|---|---|---|",
        f"| paper | unknown | {', '.join(published('figure_12')['labels'])} | at most 4 | | |",
    ]
    return lines + [
        f"| ours | {e['image']} | {e['label']} to {e['class']} | {e['distance']:.2f} | "
        f"{e['class of other robust']} | {e['class of natural']} |"
        for e in numbers["examples"]
    ]


def verdict(result):
    """By the item's rule."""
    (numbers,), settings = result.numbers.values(), result.settings
    found, count = numbers["examples"], settings["num_images"]
    epsilon = published("figure_12")["epsilon"]
    farthest = max((example["distance"] for example in found), default=0.0)
    fooled = sum(example["class of natural"] != example["label"] for example in found)
    return verdict_of(
        (
            len(found) == count,
            f"{len(found)} of {count} examples found among {numbers['candidates']} images",
        ),
        (farthest <= epsilon + 1e-3, f"the farthest lies at {farthest:.2f} (at most {epsilon})"),
        (
            2 * fooled > count,
            f"the natural network gets {fooled} of them wrong, too (needed: over half)",
        ),
    )


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
    caption="The first test images that the attack breaks, and their adversarial examples. The "
    "paper does not name the attack; this is PGD with the steps of Figure 6, in total 2.5 epsilon.",
    rule="Five examples are found within the paper's distance, which PGD keeps by its projection, "
    "and over half of them also fool the natural network, which was not attacked. The paper has no "
    "number here, and the second limit is ours. What people see is for the reader to judge.",
    verdict=verdict,
)
