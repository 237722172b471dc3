"""Draws digits, their adversarial versions and what each network takes them for.

    python paper/adversarial_digits.py --model_dir=adv_trained,/tmp/natural --output=digits.png

One row of natural images, then a row for each model with the examples that PGD finds on it (the
settings of mnist_challenge/config.json unless flags say otherwise).
"""

import dataclasses
import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from absl import flags

from common import app, checkpoints, commands
from common.attack import make_attack
from mnist_challenge.challenge import MNIST


def draw(challenge, config, flag_values):
    """Writes the figure to --output."""
    output = pathlib.Path(flag_values.output)
    commands.check_writable("--output", output)
    test = challenge.load("test", data_dir=config.data_dir, allow_sample=True)
    print(test.source)
    first_of_class = [int(np.argmax(test.labels == label)) for label in range(10)]
    x_nat = challenge.to_pixels(test.images[first_of_class])
    y = test.labels[first_of_class]
    rows = []
    for name in config.model_dir.split(","):
        path = commands.model_path(dataclasses.replace(config, model_dir=name), challenge)
        loaded = checkpoints.load_model(challenge, path)
        attack = make_attack("pgd", loaded.logits, config, challenge.bounds)
        x_adv = attack.perturb(x_nat, y, seed=config.random_seed)
        if not rows:
            rows.append(("natural image", x_nat, loaded.logits(tf.constant(x_nat))))
        title = f"PGD on\n{pathlib.Path(name).name}"
        rows.append((title, x_adv.numpy(), loaded.logits(x_adv)))
    figure, axes = plt.subplots(len(rows), 10, figsize=(10, 1.25 * len(rows)), squeeze=False)
    for row, (title, images, logits) in zip(axes, rows):
        confidences = tf.nn.softmax(logits).numpy()
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for axis, image, label, confidence in zip(row, images, y, confidences):
            guess = int(np.argmax(confidence))
            colour = "black" if guess == label else "firebrick"
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"{guess}  {100 * confidence[guess]:.0f} %", fontsize=8, color=colour)
    figure.subplots_adjust(left=0.11, right=0.995, top=0.93, bottom=0.01, wspace=0.05, hspace=0.3)
    figure.savefig(output, dpi=110)
    print(f"figure in {output}")


def define_flags(challenge, flag_values):
    """Declares --output."""
    flags.DEFINE_string("output", "adversarial_digits.png", "image to write", flag_values)


if __name__ == "__main__":
    app.run(draw, MNIST, define_flags)
