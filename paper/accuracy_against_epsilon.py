"""Draws accuracy under PGD against epsilon, the paper's Figure 6, one curve a network.

    python paper/accuracy_against_epsilon.py mnist --model_dir=adv_trained,natural --num_steps=100

Steps are of 2.5 epsilon / num_steps, as in the paper. An example broken at one epsilon counts as
broken at all larger ones, whose balls hold that of the smaller, and is not attacked there. Shaded:
the 95 % confidence interval. Dashed: the paper's networks.
"""

import dataclasses
import functools
import pathlib
import sys
import types

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from common import checkpoints, commands
from common.attack import PGD
from common.errors import InputError
from common.evaluation import Trial, wilson_interval
from paper import challenges

# Figure 6 (a) and (c), PGD, read off the plots; the epsilons are 0, 0.03, ... and 0, 1, ...
PAPER = {
    "MNIST": {
        "paper, robust": (
            *(98.53, 98.23, 97.76, 97.40, 97.05, 96.51, 96.07, 95.67),
            *(95.01, 94.26, 93.22, 75.16, 28.16, 4.14, 0.22),
        ),
        "paper, natural": (
            *(99.17, 94.08, 69.40, 22.92, 2.48, 0.12, 0, 0.01),
            *(0, 0, 0, 0, 0, 0, 0),
        ),
    },
    "CIFAR-10": {
        "paper, robust": (
            *(87.3, 83.7, 79.1, 74.0, 68.4, 63.2, 57.9, 52.6, 47.3, 42.6, 38.0, 34.2, 30.6, 27.7),
            *(24.9, 22.7, 20.7, 18.8, 17.1, 15.6, 14.1, 13.1, 12.0, 11.1, 10.1, 9.5, 8.7, 8.1),
            *(7.4, 6.6, 6.1),
        ),
    },
}
PAPER_STEP = {"MNIST": 0.03, "CIFAR-10": 1.0}


def accuracies(challenge, config, loaded, images, epsilons):
    """Accuracy in percent at each of `epsilons`, which rise from 0."""
    largest = epsilons[-1]
    pgd = PGD(
        loaded.logits,
        epsilon=largest,
        step_size=2.5 * largest / config.num_steps,
        num_steps=config.num_steps,
        bounds=challenge.bounds,
        jit_compile=config.jit_compile,
    )
    # One attack, compiled once, scaled to each ball.
    trials = [
        Trial(
            types.SimpleNamespace(perturb=functools.partial(pgd.perturb, scale=epsilon / largest)),
            name=f"epsilon {epsilon:g}",
        )
        for epsilon in epsilons[1:]
    ]
    evaluator = commands.make_evaluator(challenge, config, trials, loaded, spare_misclassified=True)
    result = evaluator.run(images.images, images.labels)
    natural = 100 * float(np.mean(result.natural_correct))
    return [natural, *(trial.accuracy for trial in result.trials)]


def draw(challenge, config, flag_values):
    """Writes the figure to --output."""
    output = pathlib.Path(flag_values.output)
    commands.check_writable("--output", output)
    if config.num_steps < 1:
        raise InputError(f"--num_steps: expected 1 or more, got {config.num_steps}")
    step, paper = PAPER_STEP[challenge.name], PAPER[challenge.name]
    of_paper = step * np.arange(len(next(iter(paper.values()))))
    epsilons = of_paper
    if flag_values.epsilons:
        try:
            epsilons = np.array([0.0, *map(float, flag_values.epsilons)])
        except ValueError:
            raise InputError(f"--epsilons: expected numbers, got {flag_values.epsilons}") from None
        if (np.diff(epsilons) <= 0).any():
            raise InputError(f"--epsilons: expected rising numbers, got {flag_values.epsilons}")
    images = commands.load_test_images(config, challenge)
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for number, name in enumerate(config.model_dir.split(",")):
        path = commands.model_path(dataclasses.replace(config, model_dir=name), challenge)
        loaded = checkpoints.load_model(challenge, path)
        ours = accuracies(challenge, config, loaded, images, epsilons)
        count, title = len(images.images), pathlib.Path(name).name
        low, high = zip(*(wilson_interval(accuracy * count / 100, count) for accuracy in ours))
        axes.fill_between(epsilons, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        axes.plot(epsilons, ours, "o-", ms=3, color=f"C{number}", label=title)
        for epsilon, accuracy in zip(epsilons, ours):
            print(f"{title}, epsilon {epsilon:g}: {accuracy:.2f}%", flush=True)
    for number, (label, accuracy) in enumerate(paper.items()):
        axes.plot(of_paper, accuracy, "--", color=f"C{number}", label=label, linewidth=1)
    axes.axvline(config.epsilon, color="grey", linewidth=0.8)
    axes.set_xlabel(f"epsilon (grey: {config.epsilon:g})")
    axes.set_ylabel(f"accuracy on {len(images.images):,} images, %")
    axes.set_ylim(0, 100)
    axes.set_xlim(0, epsilons[-1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    print(f"figure in {output}")


def define_flags(challenge, flag_values):
    """Declares --output and --epsilons."""
    flags.DEFINE_string("output", "accuracy_against_epsilon.png", "image to write", flag_values)
    flags.DEFINE_list(
        "epsilons", None, "rising, in pixel units (default: those of the paper)", flag_values
    )


if __name__ == "__main__":
    challenges.run(draw, define_flags)
