"""Draws the loss along PGD from many random starts, the paper's Figure 1, one panel a network.

    python paper/loss_along_pgd.py mnist --model_dir=natural,adv_trained --num_steps=100

A colour is an image of the test set, a line a run from a uniform point of its ball. Settings are
those of the challenge's config.json unless flags say otherwise.
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

from common import checkpoints, files
from common.attack import step, xent_loss
from common.attack.ball import uniform_start
from common.errors import one_line
from common.evaluation.subject import model_path
from common.evaluation.suites import with_gradient
from common.scripts.flags import define_path
from paper import challenges


def losses_along_pgd(model, x_nat, y, config, bounds):
    """Cross-entropy before each step of PGD and after the last, from one random start an example.

    Args:
        model: callable from float32 images to logits.
        x_nat: float32 images (batch, height, width, channels) in `bounds`.
        y: int labels (batch,).
        config: a `common.config.Config`: epsilon, step_size, num_steps, random_seed.
        bounds: (lowest, highest) pixel value.

    Returns:
        float32 (num_steps + 1, batch).
    """

    @tf.function
    def ascend(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = xent_loss(model(x), y)
        gradient = tape.gradient(losses, x)
        return losses, step(x, gradient, x_nat, config.epsilon, config.step_size, bounds)

    seed = tf.constant([config.random_seed, 0])
    x = uniform_start(x_nat, config.epsilon, bounds, seed, tf.range(len(y)))
    along = []
    for _ in range(config.num_steps + 1):
        losses, x = ascend(x)
        along.append(losses.numpy())
    return np.array(along)


def draw(challenge, config, flag_values):
    """Writes the figure to --output."""
    output = pathlib.Path(flag_values.output)
    files.check_writable("--output", output)
    test = challenge.load("test", data_dir=config.data_dir, allow_sample=True)
    print(one_line(test.source))
    few = test.head(flag_values.num_images)
    # Each image as often as there are starts; an example's number decides its start.
    x_nat = tf.constant(np.repeat(challenge.to_pixels(few.images), config.num_restarts, axis=0))
    y = tf.constant(np.repeat(few.labels, config.num_restarts), tf.int32)
    names = config.model_dir.split(",")
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.3), squeeze=False)
    for axis, name in zip(axes[0], names):
        path = model_path(dataclasses.replace(config, model_dir=name), challenge)
        loaded = checkpoints.load_model(challenge, path)
        model = with_gradient(loaded.logits)
        along = losses_along_pgd(model, x_nat, y, config, challenge.bounds)
        for number, runs in enumerate(np.split(along, len(few.labels), axis=1)):
            axis.plot(runs, color=f"C{number}", linewidth=0.7, alpha=0.6)
            title = one_line(pathlib.Path(name).name)
            print(
                f"{title}, image {number}: mean loss {runs[0].mean():.3f} at the "
                f"start, {runs[-1].mean():.3f} after {config.num_steps} steps "
                f"({runs[-1].min():.3f} to {runs[-1].max():.3f})"
            )
        axis.set_title(pathlib.Path(name).name, fontsize=10)
        axis.set_xlabel("steps of PGD")
        axis.set_xlim(0, config.num_steps)
        axis.set_ylim(0, None)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("cross-entropy")
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    print(one_line(f"figure in {output}"))


def define_flags(challenge, flag_values):
    """Declares --output and --num_images."""
    define_path("output", "loss_along_pgd.png", "image to write", flag_values)
    flags.DEFINE_integer("num_images", 5, "test images, from the first", 1, None, flag_values)


if __name__ == "__main__":
    challenges.run(draw, define_flags)
