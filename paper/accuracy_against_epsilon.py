"""Draws accuracy against epsilon, the paper's Figure 6, one curve a network and attack.

    python paper/accuracy_against_epsilon.py mnist --model_dir=adv_trained,natural --num_steps=100
    python paper/accuracy_against_epsilon.py mnist --attack=pgd_l2,boundary --num_steps=100

PGD's steps are of 2.5 epsilon / num_steps, as in the paper. An example broken at one epsilon counts
as broken at all larger ones, whose balls contain the smaller one, and is not attacked again. The
boundary attack finds one distance for each example, in 10,000 steps; the paper has 2,000. The shade
around a curve is its 95 % confidence interval; the grey curves behind are the paper's.
"""

import dataclasses
import functools
import itertools
import pathlib
import sys
import types

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

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
from paper import challenges, style
from paper.item import published
from paper.networks import NATURAL, ROBUST, SIMPLE_ROBUST

# The names of Figure 6's panels in `published.json`.
PANELS = {
    ("MNIST", "linf"): "mnist_linf",
    ("MNIST", "l2"): "mnist_l2",
    ("CIFAR-10", "linf"): "cifar_linf",
    ("CIFAR-10", "l2"): "cifar_l2",
}
# Its attacks, and what they are called there and in our pictures.
ATTACKS = {
    "pgd": ("PGD", "PGD"),
    "pgd_l2": ("PGD", "PGD"),
    "boundary": ("DBA", "boundary attack"),
}


def paper_curve(challenge, norm, attack, title):
    """Returns the paper's curve in Figure 6, "epsilon" and "accuracy" as lists, or None without.

    Args:
        challenge: a `common.challenge.Challenge`.
        norm: "linf" or "l2".
        attack: a key of `ATTACKS`.
        title: "robust" or "natural", the training of the network.
    """
    training = {"robust": "adv. trained", "natural": "standard"}[title]
    panel = published("figure_6")[PANELS[challenge.name, norm]]
    return panel.get(f"{ATTACKS[attack][0]} {training}")


def epsilons_of_paper(challenge, norm):
    """Returns the epsilons of a panel of Figure 6, a list that rises from 0."""
    return paper_curve(challenge, norm, "pgd", "robust")["epsilon"]


def pgd_evaluator(challenge, config, loaded, epsilons, attack, **options):
    """Returns an `Evaluator` of a model under PGD at each of `epsilons` but the first, which is 0.

    Its trials share one compiled attack, whose steps are scaled to each ball. `options` are further
    arguments of `Evaluator`.
    """
    largest = epsilons[-1]
    pgd = PGD(
        with_gradient(loaded.logits),
        epsilon=largest,
        step_size=2.5 * largest / config.num_steps,
        num_steps=config.num_steps,
        norm=maker(attack).norm,
        bounds=challenge.bounds,
        jit_compile=config.jit_compile,
        precision=config.precision,
    )
    trials = [
        Trial(
            types.SimpleNamespace(perturb=functools.partial(pgd.perturb, scale=epsilon / largest)),
            name=f"epsilon {epsilon:g}",
        )
        for epsilon in epsilons[1:]
    ]
    options = {"spare_misclassified": True, **options}
    return make_evaluator(challenge, config, trials, loaded, **options)


def pgd_accuracies(evaluator, images, examples=None):
    """Returns the accuracy in percent at each epsilon of a `pgd_evaluator`.

    Args:
        evaluator: what `pgd_evaluator` returned.
        images: a `common.data.Split`.
        examples: slice of the images that are evaluated; None for all.
    """
    result = evaluator.run(images.images, images.labels, examples=examples)
    natural = 100 * float(np.mean(result.natural_correct))
    return [natural, *(trial.accuracy for trial in result.trials)]


def accuracies(challenge, config, loaded, images, epsilons, attack, **boundary_options):
    """Accuracy in percent at each of `epsilons`, which rise from 0, under one of `ATTACKS`."""
    if attack != "boundary":
        evaluator = pgd_evaluator(challenge, config, loaded, epsilons, attack)
        return pgd_accuracies(evaluator, images)
    options = {
        "bounds": challenge.bounds,
        "jit_compile": config.jit_compile,
        "precision": config.precision,
        **boundary_options,
    }
    distances = boundary_distances(challenge, config, loaded, images, options)
    return [100 * float(np.mean(distances > epsilon)) for epsilon in epsilons]


def boundary_distances(challenge, config, loaded, images, options, first=0):
    """L2 distances to the closest points of another class that the boundary attack finds.

    Args:
        challenge, config, loaded: of the attacked network; the config has batch size and seed.
        images: a `common.data.Split`.
        options: further arguments of `Boundary`, as a dict.
        first: the number of the first attacked image.

    Returns:
        float32 (n,), for the images from `first` on.
    """
    attack = Boundary(loaded.logits, epsilon=0.0, **options)
    found, size, count = [], config.eval_batch_size, len(images.labels)
    for begin in tqdm(range(first, count, size), desc="boundary", unit="batch"):
        numbers = np.arange(begin, min(begin + size, count))
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
    for name in names:
        if name not in ATTACKS:
            raise InputError(f"--attack: expected some of {', '.join(ATTACKS)}, got {name!r}")
    allowed = ("epsilon",) if names == ["boundary"] else ("epsilon", "num_steps")
    refuse_attack_settings(flag_values, "the figure has its own", allowed)
    norm = maker(names[0]).norm
    epsilons = np.array(epsilons_of_paper(challenge, norm))
    if flag_values.epsilons:
        try:
            epsilons = np.array([0.0, *map(float, flag_values.epsilons)])
        except ValueError:
            raise InputError(f"--epsilons: expected numbers, got {flag_values.epsilons}") from None
        if (np.diff(epsilons) <= 0).any():
            raise InputError(f"--epsilons: expected rising numbers, got {flag_values.epsilons}")
    images = load_test_images(config, challenge)
    count, model_dirs = len(images.images), config.model_dir.split(",")
    figure, ((axis,),) = style.subplots(1, 1, 6.4, 4.2)
    looks = style.colours_and_titles(challenge, model_dirs)
    shown = [style.known_network(challenge, model_dir) for model_dir in model_dirs]
    fills = itertools.cycle(("full", "none", "left", "top"))  # for black and white
    for model_dir, (colour, title), fill in zip(model_dirs, looks, fills, strict=False):
        path = model_path(dataclasses.replace(config, model_dir=model_dir), challenge)
        loaded = checkpoints.load_model(challenge, path)
        for attack in names:
            words = ATTACKS[attack][1]
            ours = accuracies(challenge, config, loaded, images, epsilons, attack)
            low, high = zip(
                *(wilson_interval(accuracy * count / 100, count) for accuracy in ours), strict=True
            )
            axis.fill_between(epsilons, low, high, color=colour, alpha=0.2, linewidth=0)
            line = {**style.line_of(words), "color": colour, "fillstyle": fill}
            axis.plot(epsilons, ours, label=f"{title}, {words}", **line)
            for epsilon, accuracy in zip(epsilons, ours, strict=True):
                print(one_line(f"{title}, {words}, epsilon {epsilon:g}: {accuracy:.2f}%"))
            sys.stdout.flush()
    for network in _PAPERS[challenge.name]:
        for attack in names:
            theirs = paper_curve(challenge, norm, attack, network.title)
            if theirs is not None:
                line = style.paper_line(ATTACKS[attack][1], network)
                axis.plot(theirs["epsilon"], theirs["accuracy"], **line)
    if norm == "linf":
        label = f"epsilon of the training, {config.epsilon:g}"
        axis.axvline(config.epsilon, color="0.4", linewidth=0.8, label=label)
    axis.set_xlabel(f"epsilon, pixels in [0, {challenge.bounds[1]:g}]")
    axis.set_ylabel(f"accuracy on {count:,} test images, %")
    axis.set_ylim(0, 103)
    axis.set_xlim(0, epsilons[-1])
    settings = f": PGD of {config.num_steps} steps of 2.5 epsilon / {config.num_steps}"
    style.title(
        figure,
        [network for network in shown if network is not None],
        f"{challenge.name}, {style.NORMS[norm]}" + settings * (names != ["boundary"]),
    )
    style.legend_below(figure, axis, columns=2)
    style.save(figure, output)
    print(one_line(f"figure in {output}"))


# The networks whose curves the paper has.
_PAPERS = {"MNIST": (ROBUST, NATURAL), "CIFAR-10": (SIMPLE_ROBUST,)}


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
