"""Figure 6: accuracy over epsilon, in L-infinity and L2, under several attacks."""

import dataclasses
import functools

import numpy as np

from cifar10_challenge.challenge import CIFAR10
from common.config import make_config
from common.evaluation import suites
from common.evaluation.presets import make_evaluator
from mnist_challenge.challenge import MNIST
from paper import ascent, style
from paper.accuracy_against_epsilon import EPSILONS, accuracies, boundary_distances
from paper.item import Item, Part, published, verdict_of
from paper.networks import NATURAL, ROBUST, SIMPLE_ROBUST

# The panels: their name in `published.json`, challenge, norm.
PANELS = {
    "mnist_linf": (MNIST, "linf"),
    "mnist_l2": (MNIST, "l2"),
    "cifar_linf": (CIFAR10, "linf"),
    "cifar_l2": (CIFAR10, "l2"),
}
NETWORKS = {MNIST.name: (ROBUST, NATURAL), CIFAR10.name: (SIMPLE_ROBUST,)}
# The suite's epsilons by panel, as numbers of the paper's; it takes longer than all else.
OF_SUITE = {
    "mnist_linf": (5, 10, 11, 12),
    "mnist_l2": (2, 4),
    "cifar_linf": (4, 8, 16),
    "cifar_l2": (4, 8),
}
PGD, BOUNDARY, SUITE = "PGD", "boundary attack", "AutoAttack"
# The paper's curves by attack and network.
CURVES = {
    (PGD, ROBUST): "PGD adv. trained",
    (PGD, NATURAL): "PGD standard",
    (PGD, SIMPLE_ROBUST): "PGD adv. trained",
    (BOUNDARY, ROBUST): "DBA adv. trained",
    (BOUNDARY, NATURAL): "DBA standard",
}


def parts(settings):
    """A part a panel, network and attack; of AutoAttack one an epsilon."""
    found = []
    for panel, (challenge, norm) in PANELS.items():
        is_mnist = challenge is MNIST
        count = settings["num_images" if is_mnist else "num_cifar10_images"]
        epsilons = epsilons_of(panel)
        for network in NETWORKS[challenge.name]:
            make = functools.partial(_part, panel, network)
            compute = functools.partial(under_pgd, norm=norm, epsilons=epsilons)
            cost = 1.0 if is_mnist else 9.0
            found.append(make(PGD, compute, count, cost * len(epsilons) * settings["num_steps"]))
            if norm == "l2":
                few = settings["num_boundary_images"]
                compute = functools.partial(under_boundary, epsilons=epsilons)
                found.append(make(BOUNDARY, compute, few, cost * settings["num_boundary_steps"]))
            if network is NATURAL:
                continue  # PGD breaks all
            for number in OF_SUITE[panel]:
                epsilon = epsilons[number]
                compute = functools.partial(under_suite, norm=norm, epsilon=epsilon)
                few = settings["num_suite_images"]
                found.append(make(f"{SUITE}, {epsilon:g}", compute, few, 3000 * cost))
    return found


def _part(panel, network, attack, compute, count, cost):
    return Part(
        name=name_of(panel, network, attack),
        networks=(network,),
        num_images=count,
        compute=compute,
        weight=cost * count,
    )


def name_of(panel, network, attack):
    """Returns a part's name."""
    return f"{network.label}, {panel.rpartition('_')[2]}, {attack}"


def epsilons_of(panel):
    """Returns the paper's epsilons of a panel, as a list that begins with 0."""
    challenge, norm = PANELS[panel]
    count, step = EPSILONS[challenge.name][norm]
    return [round(number * step, 6) for number in range(count)]


def _config(work, **settings):
    defaults = {"random_seed": work.settings["seed"], "precision": "float32"}
    config = make_config(work.challenge, ("item", {**defaults, **settings}))
    return dataclasses.replace(config, eval_batch_size=min(200, len(work.y)))


def under_pgd(work, norm, epsilons):
    """Accuracy at each epsilon under PGD of 100 steps of 2.5 epsilon / 100, as the paper has it."""
    config = _config(work, num_steps=work.settings["num_steps"])
    attack = {"linf": "pgd", "l2": "pgd_l2"}[norm]
    found = accuracies(
        *(work.challenge, config, work.models[0], work.images, np.array(epsilons), attack)
    )
    return {"epsilon": epsilons, "accuracy": ascent.rounded(found), "num_examples": len(work.y)}


def under_boundary(work, epsilons):
    """Accuracy at each epsilon under the boundary attack, which finds one distance an image."""
    options = {"bounds": work.challenge.bounds, "num_steps": work.settings["num_boundary_steps"]}
    distances = boundary_distances(
        *(work.challenge, _config(work), work.models[0], work.images, options)
    )
    found = [100 * float(np.mean(distances > epsilon)) for epsilon in epsilons]
    return {"epsilon": epsilons, "accuracy": ascent.rounded(found), "num_examples": len(work.y)}


def under_suite(work, norm, epsilon):
    """Accuracy at one epsilon in the worst case over AutoAttack's four attacks."""
    config = dataclasses.replace(_config(work), epsilon=epsilon)
    model = suites.with_gradient(work.models[0].logits)
    trials = suites.suite_trials("standard", model, config, work.challenge, norm)
    if work.settings["num_suite_attacks"] < len(trials):  # a sample's
        trials = trials[: work.settings["num_suite_attacks"]]
    evaluator = make_evaluator(
        *(work.challenge, config, trials, work.models[0]), spare_misclassified=True
    )
    summary = evaluator.run(work.images.images, work.images.labels).summary()
    return {
        "epsilon": [epsilon],
        "accuracy": ascent.rounded([summary["adversarial_accuracy"]]),
        "num_examples": len(work.y),
    }


def curve(result, panel, network, attack):
    """Returns our numbers: epsilons, accuracies and how many images, or None without any."""
    start = name_of(panel, network, attack)
    own = [
        result.records[part.name]["numbers"]
        for part in result.parts
        if (part.name == start or part.name.startswith(f"{start}, "))
        and part.name in result.records
    ]
    if not own:
        return None
    epsilons, accuracies_ = (sum((entry[key] for entry in own), []) for key in _KEYS)
    return epsilons, accuracies_, own[0]["num_examples"]


_KEYS = ("epsilon", "accuracy")


def curves(result):
    """Yields panel, network, attack and our `curve` for all that are there."""
    for panel, (challenge, _) in PANELS.items():
        for network in NETWORKS[challenge.name]:
            for attack in (PGD, BOUNDARY, SUITE):
                ours = curve(result, panel, network, attack)
                if ours is not None:
                    yield panel, network, attack, ours


def draw(result):
    """A panel a data set and norm; grey behind ours: the paper's."""
    figure, axes = style.subplots(1, 4, 11, 2.9)
    units = {"MNIST": "pixels in [0, 1]", "CIFAR-10": "pixels in [0, 255]"}
    for axis, (panel, (challenge, norm)) in zip(axes[0], PANELS.items(), strict=True):
        for (_, network), name in CURVES.items():
            theirs = published("figure_6")[panel].get(name)
            if network.challenge is challenge and theirs is not None:
                axis.plot(theirs["epsilon"], theirs["accuracy"], **style.PAPER)
        trained_at = ascent.epsilon_of(challenge)
        if norm == "linf":
            axis.axvline(trained_at, color="0.5", linewidth=0.7)
        words = {"linf": "L-infinity", "l2": "L2"}[norm]
        axis.set_title(f"{challenge.name}, {words}")
        axis.set_xlabel(f"epsilon, {units[challenge.name]}")
        axis.set_xlim(0, epsilons_of(panel)[-1])
        axis.set_ylim(0, 103)
    places = dict(zip(PANELS, axes[0], strict=True))
    for panel, network, attack, (epsilons, found, count) in curves(result):
        label = f"{network.title}, {attack} ({count:,})"
        line = style.line_of(attack)
        places[panel].plot(epsilons, found, color=style.colour_of(network), label=label, **line)
    axes[0, 0].set_ylabel("accuracy, %")
    for axis in axes[0]:
        axis.legend(fontsize=5.5)
    style.title(
        figure,
        [network for networks in NETWORKS.values() for network in networks],
        f"PGD: {result.settings['num_steps']} steps of 2.5 epsilon / "
        f"{result.settings['num_steps']}; in brackets: test images; grey: the paper's; "
        "vertical: the epsilon of the training",
    )
    return figure


def table(result):
    """Ours beside the paper's at some epsilons."""
    lines = [
        "| data, norm | network | attack | images | ours (paper) by epsilon |",
        "|---" * 5 + "|",
    ]
    for panel, network, attack, (epsilons, found, count) in curves(result):
        theirs = published("figure_6")[panel].get(CURVES.get((attack, network)))
        every = 1 if attack == SUITE else 2 if len(epsilons) < 20 else 4
        cells = []
        for epsilon, accuracy in list(zip(epsilons, found, strict=True))[::every]:
            paper = _at(theirs, epsilon)
            shown = "" if paper is None else f" ({paper:.1f})"
            cells.append(f"{epsilon:g}: {accuracy:.1f}{shown}")
        challenge, norm = PANELS[panel]
        lines.append(
            f"| {challenge.name}, {norm} | {network.title} | {attack} | {count:,} | "
            f"{'; '.join(cells)} |"
        )
    return lines


def _at(curve_, epsilon):
    if curve_ is None:
        return None
    number = int(np.argmin(np.abs(np.array(curve_["epsilon"]) - epsilon)))
    close = abs(curve_["epsilon"][number] - epsilon) < 1e-6
    return curve_["accuracy"][number] if close else None


def verdict(result):
    """By the item's rule."""
    criteria = []
    for panel, network, attack, (epsilons, found, _) in curves(result):
        theirs = published("figure_6")[panel].get(CURVES.get((attack, network)))
        words = f"{panel}, {network.title}, {attack}"
        if theirs is not None:
            gaps = [
                accuracy - paper
                for epsilon, accuracy in zip(epsilons, found, strict=True)
                if (paper := _at(theirs, epsilon)) is not None
            ]
            mean = float(np.mean(np.abs(gaps)))
            criteria.append((mean <= 5, f"{words}: {mean:.1f} points from the paper's on average"))
    for panel, (challenge, norm) in PANELS.items():
        robust = NETWORKS[challenge.name][0]
        pgd, boundary = (curve(result, panel, robust, attack) for attack in (PGD, BOUNDARY))
        if challenge is MNIST and norm == "l2" and pgd is not None and boundary is not None:
            ours = min(b - p for p, b in zip(pgd[1], boundary[1], strict=True))
            words = f"{panel}: the boundary attack finds up to {-ours:.0f} points more than PGD"
            criteria.append((ours <= -20, f"{words} (needed: 20; paper 79)"))
    return verdict_of(*criteria)


ITEM = Item(
    name="figure_6",
    title="Figure 6: accuracy against epsilon",
    question="RQ4",
    claim="Networks are also robust in a norm that they were not trained in, and accuracy falls "
    "steeply just above the training's epsilon; in L2 on MNIST, PGD overestimates robustness, as "
    "the boundary attack shows.",
    minutes=540,
    settings={
        "num_images": 1000,
        "num_cifar10_images": 500,
        "num_steps": 100,
        "num_boundary_images": 200,
        "num_boundary_steps": 25000,
        "num_suite_images": 200,
        "num_suite_attacks": 4,
        "seed": 0,
    },
    sample={
        "num_images": 2,
        "num_cifar10_images": 2,
        "num_steps": 2,
        "num_boundary_images": 1,
        "num_boundary_steps": 3,
        "num_suite_images": 1,
        "num_suite_attacks": 0,
    },
    parts=parts,
    draw=draw,
    table=table,
    caption="The curve of AutoAttack, the worst case over its four attacks, is not in the paper. "
    "The boundary attack is only in L2 here, in the paper also in L-infinity; its 2,000 steps are "
    "of another implementation than our 25,000. An example broken at an epsilon counts as broken "
    "at all larger ones.",
    rule="Each of our curves is on average within 5 points of the paper's; in L2 on MNIST the "
    "boundary attack breaks at least 20 points more than PGD at some epsilon (the paper: 79).",
    verdict=verdict,
)
