"""Draws images, adversarial examples and perturbations, with a network's predictions.

    python paper/adversarial_images.py mnist --model_dir=natural,adv_trained --output=digits.png

The models are side by side. Each has the same natural images, the examples that PGD (by default
with the settings of the challenge's config.json) or another --attack finds on it, and the
perturbations: grey is no change, black and white are epsilon (in L2 the largest change). Above an
image is the predicted class with its probability, bold and red if it is wrong. Below are the
labels.
"""

import dataclasses
import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from absl import flags

from common import cards, checkpoints, files
from common.attack import ATTACKS, make_attack
from common.errors import one_line
from common.evaluation.subject import model_path
from common.evaluation.suites import with_gradient
from common.scripts.flags import define_path, refuse_unused_settings
from paper import challenges, style


def draw(challenge, config, flag_values):
    """Writes the figure to --output."""
    output = pathlib.Path(flag_values.output)
    files.check_writable("--output", output)
    refuse_unused_settings(flag_values)
    test = challenge.load("test", data_dir=config.data_dir, allow_sample=True)
    test = test.head(flag_values.num_images)
    print(one_line(test.source))
    x_nat, y = challenge.to_pixels(test.images), test.labels
    names, count = config.model_dir.split(","), len(test.images)
    figure = plt.figure(figsize=(1.12 * count * len(names) + 0.8, 4.3))
    panels = figure.subfigures(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        path = model_path(dataclasses.replace(config, model_dir=name), challenge)
        logits = checkpoints.load_model(challenge, path).logits
        attacked = with_gradient(logits)
        attack = make_attack(flag_values.attack, attacked, config, challenge.bounds)
        x_adv = attack.perturb(x_nat, y, seed=config.random_seed).numpy()
        panel.suptitle(_title(challenge, name, attack), y=0.995, fontsize=9)
        axes = panel.subplots(3, count, squeeze=False)
        low, high = challenge.bounds
        for row, (title, images) in zip(
            axes[:2],
            (("natural", x_nat), ("adversarial", x_adv)),
            strict=True,
        ):
            _show(row, title, (images - low) / (high - low))
            _tell(row, logits(tf.constant(images)), y, challenge.class_names)
        largest = config.epsilon if attack.norm == "linf" else np.abs(x_adv - x_nat).max() or 1.0
        _show(axes[2], "difference", 0.5 + (x_adv - x_nat) / (2 * largest))
        for axis, label in zip(axes[2], y, strict=True):
            axis.set_xlabel(challenge.class_names[label], fontsize=7, labelpad=3)
        panel.subplots_adjust(
            left=0.6 / count, right=0.99, top=0.86, bottom=0.06, wspace=0.06, hspace=0.22
        )
    figure.savefig(output, dpi=110)
    print(one_line(f"figure in {output}"))


def _title(challenge, model_dir, attack):
    """The network's name, and below it the attack with its radius and steps."""
    network = style.known_network(challenge, model_dir)
    name = pathlib.Path(model_dir).name if network is None else network.label
    return f"{name}\n{_words(attack)}"


def _words(attack):
    """The attack, its steps if it has some, and its radius."""
    settings = attack.settings()
    if attack.name == "pgd":
        words = cards.title(settings)
    else:
        words = attack.name.replace("_", " ")
        words += f", {settings['num_steps']:,} steps" if "num_steps" in settings else ""
    return f"{words}, epsilon {attack.epsilon:g} in {style.NORMS[attack.norm]}"


def _show(row, title, images):
    row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    for axis, image in zip(row, images, strict=True):
        axis.imshow(np.clip(image.squeeze(), 0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])


def _tell(row, logits, y, class_names):
    for axis, confidence, label in zip(row, tf.nn.softmax(logits).numpy(), y, strict=True):
        guess = int(np.argmax(confidence))
        look = {} if guess == label else {"color": "firebrick", "fontweight": "bold"}
        text = f"{class_names[guess]} {100 * confidence[guess]:.0f} %"
        axis.set_title(text, fontsize=6.5, pad=3, **look)


def define_flags(challenge, flag_values):
    """Declares --output, --attack and --num_images."""
    define_path("output", "adversarial_images.png", "image to write", flag_values)
    flags.DEFINE_string("attack", "pgd", f"one of {', '.join(ATTACKS)}", flag_values)
    flags.DEFINE_integer(
        "num_images", 5, "of the test set, from the first", lower_bound=1, flag_values=flag_values
    )


if __name__ == "__main__":
    challenges.run(draw, define_flags)
