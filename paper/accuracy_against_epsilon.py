"""Draws accuracy against epsilon, the paper's Figure 6, one curve a network and attack.

    python paper/accuracy_against_epsilon.py mnist --model_dir=adv_trained,natural --num_steps=100
    python paper/accuracy_against_epsilon.py mnist --attack=pgd_l2,boundary --num_steps=100

PGD's steps are of 2.5 epsilon / num_steps, as in the paper. An example broken at one epsilon counts
as broken at all larger ones, whose balls contain the smaller one, and is not attacked again. The
boundary attack finds one distance for each example; its 25,000 steps are Foolbox's default, the
paper has 2,000 of another implementation. Shaded: the 95 % confidence interval. Dashed: the paper's
networks.
"""

import dataclasses
import functools
import pathlib
import sys
import types

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from tqdm import tqdm

from common import checkpoints, files
from common.attack import PGD, Boundary
from common.attack.registry import maker
from common.errors import InputError, one_line
from common.evaluation.presets import make_evaluator
from common.evaluation.results import Trial, wilson_interval
from common.evaluation.subject import load_test_images, model_path
from common.evaluation.suites import with_gradient
from common.scripts.flags import define_path, refuse_attack_settings, split
from paper import challenges

# Figure 6, read off the plots, by data, attack and network.
PAPER = {
    "MNIST": {
        "pgd": {
            "robust": (
                *(98.53, 98.23, 97.76, 97.40, 97.05, 96.51, 96.07, 95.67),
                *(95.01, 94.26, 93.22, 75.16, 28.16, 4.14, 0.22),
            ),
            "natural": (
                *(99.17, 94.08, 69.40, 22.92, 2.48, 0.12, 0, 0.01),
                *(0, 0, 0, 0, 0, 0, 0),
            ),
        },
        "pgd_l2": {
            "robust": (
                *(98.53, 96.01, 94.25, 92.25, 89.49, 86.39, 82.34),
                *(73.66, 56.57, 33.05, 14.87, 5.34, 1.68),
            ),
            "natural": (
                *(99.17, 93.47, 64.14, 27.74, 18.47, 15.15, 12.22),
                *(9.78, 7.11, 6.03, 4.41, 3.11, 2.31),
            ),
        },
        "boundary": {
            "robust": (98.53, 96.03, 83.10, 43.12, 10.65, 1.22, 0.05, 0, 0, 0, 0, 0, 0),
            "natural": (99.17, 65.40, 43.49, 18.31, 5.43, 1.57, 0.14, 0.03, 0, 0, 0, 0, 0),
        },
    },
    "CIFAR-10": {
        "pgd": {
            "robust": (
                *(87.3, 83.7, 79.1, 74.0, 68.4, 63.2, 57.9, 52.6, 47.3, 42.6, 38.0),
                *(34.2, 30.6, 27.7, 24.9, 22.7, 20.7, 18.8, 17.1, 15.6, 14.1),
                *(13.1, 12.0, 11.1, 10.1, 9.5, 8.7, 8.1, 7.4, 6.6, 6.1),
            ),
        },
        "pgd_l2": {
            "robust": (
                *(87.3, 82.0, 73.6, 63.2, 55.5, 45.7, 36.8, 30.1, 25.7, 21.9),
                *(18.6, 15.9, 13.5, 11.4, 9.6, 8.0, 7.3, 6.1, 5.2, 5.0),
            ),
        },
        "boundary": {},
    },
}
# The paper's epsilons: how many, from 0 on, and how far apart.
EPSILONS = {
    "MNIST": {"linf": (15, 0.03), "l2": (13, 0.5)},
    "CIFAR-10": {"linf": (31, 1.0), "l2": (20, 5.0)},
}


def accuracies(challenge, config, loaded, images, epsilons, attack, **boundary_options):
    """Accuracy in percent at each of `epsilons`, which rise from 0, under an attack of `PAPER`."""
    options = {
        "bounds": challenge.bounds,
        "jit_compile": config.jit_compile,
        "precision": config.precision,
    }
    if attack == "boundary":
        options |= boundary_options
        distances = boundary_distances(challenge, config, loaded, images, options)
        return [100 * float(np.mean(distances > epsilon)) for epsilon in epsilons]
    largest = epsilons[-1]
    pgd = PGD(
        with_gradient(loaded.logits),
        epsilon=largest,
        step_size=2.5 * largest / config.num_steps,
        num_steps=config.num_steps,
        norm=maker(attack).norm,
        **options,
    )
    # One attack, compiled once, scaled to each ball.
    trials = [
        Trial(
            types.SimpleNamespace(perturb=functools.partial(pgd.perturb, scale=epsilon / largest)),
            name=f"epsilon {epsilon:g}",
        )
        for epsilon in epsilons[1:]
    ]
    evaluator = make_evaluator(challenge, config, trials, loaded, spare_misclassified=True)
    result = evaluator.run(images.images, images.labels)
    natural = 100 * float(np.mean(result.natural_correct))
    return [natural, *(trial.accuracy for trial in result.trials)]


def boundary_distances(challenge, config, loaded, images, options):
    """L2 distances (n,) to the closest points of another class that the boundary attack finds."""
    attack = Boundary(loaded.logits, epsilon=0.0, **options)
    found, size = [], config.eval_batch_size
    for first in tqdm(range(0, len(images.labels), size), desc="boundary", unit="batch"):
        numbers = np.arange(first, min(first + size, len(images.labels)))
        x_nat, y = challenge.to_pixels(images.images[numbers]), images.labels[numbers]
        found.append(attack.closest(x_nat, y, seed=config.random_seed, index=numbers)[1])
    return np.concatenate(found)


def draw(challenge, config, flag_values):
    """Writes the figure to --output."""
    output = pathlib.Path(flag_values.output)
    files.check_writable("--output", output)
    if config.num_steps < 1:
        raise InputError(f"--num_steps: expected 1 or more, got {config.num_steps}")
    names = split(flag_values.attack)
    paper = PAPER[challenge.name]
    for name in names:
        if name not in paper:
            raise InputError(f"--attack: expected some of {', '.join(paper)}, got {name!r}")
    allowed = ("epsilon",) if names == ["boundary"] else ("epsilon", "num_steps")
    refuse_attack_settings(flag_values, "the figure has its own", allowed)
    norm = maker(names[0]).norm
    count, step = EPSILONS[challenge.name][norm]
    epsilons = of_paper = step * np.arange(count)
    if flag_values.epsilons:
        try:
            epsilons = np.array([0.0, *map(float, flag_values.epsilons)])
        except ValueError:
            raise InputError(f"--epsilons: expected numbers, got {flag_values.epsilons}") from None
        if (np.diff(epsilons) <= 0).any():
            raise InputError(f"--epsilons: expected rising numbers, got {flag_values.epsilons}")
    images = load_test_images(config, challenge)
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    count, number = len(images.images), 0
    for model_dir in config.model_dir.split(","):
        path = model_path(dataclasses.replace(config, model_dir=model_dir), challenge)
        loaded = checkpoints.load_model(challenge, path)
        for attack in names:
            title = f"{pathlib.Path(model_dir).name}, {attack}"
            ours = accuracies(challenge, config, loaded, images, epsilons, attack)
            low, high = zip(
                *(wilson_interval(accuracy * count / 100, count) for accuracy in ours), strict=True
            )
            axes.fill_between(epsilons, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
            axes.plot(epsilons, ours, "o-", ms=3, color=f"C{number}", label=title)
            for epsilon, accuracy in zip(epsilons, ours, strict=True):
                print(one_line(f"{title}, epsilon {epsilon:g}: {accuracy:.2f}%"), flush=True)
            number += 1
    curves = [(kind, name) for name in names for kind in paper[name]]
    for number, (kind, name) in enumerate(sorted(curves, key=lambda curve: curve[0] == "natural")):
        label = f"paper's {kind}, {name}"
        axes.plot(of_paper, paper[name][kind], "--", color=f"C{number}", label=label, linewidth=1)
    if norm == "linf":
        axes.axvline(config.epsilon, color="grey", linewidth=0.8)
    axes.set_xlabel({"linf": f"epsilon (grey: {config.epsilon:g})", "l2": "epsilon, L2"}[norm])
    axes.set_ylabel(f"accuracy on {count:,} images, %")
    axes.set_ylim(0, 100)
    axes.set_xlim(0, epsilons[-1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    print(one_line(f"figure in {output}"))


def define_flags(challenge, flag_values):
    """Declares --output, --attack and --epsilons."""
    define_path("output", "accuracy_against_epsilon.png", "image to write", flag_values)
    flags.DEFINE_string(
        "attack", "pgd", "pgd; or pgd_l2, boundary, or both, apart by a comma", flag_values
    )
    flags.DEFINE_list(
        "epsilons", None, "rising, in pixel units (default: those of the paper)", flag_values
    )


if __name__ == "__main__":
    challenges.run(draw, define_flags)
