"""Trains a CIFAR-10 network against an adversary, as the paper does (Sec. 4 and 5).

    python cifar10_challenge/train.py --model_dir=/tmp/robust [--width=simple] ...

The attack takes 7 steps of 2, as in the paper and for its published networks; the original
config.json has 10.
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import tensorflow as tf

from common.attack.draws import uniform
from common.errors import one_line
from common.scripts.train import run_script
from common.training import loop, optimizers

# isort: split
from cifar10_challenge.challenge import CIFAR10


def train(config):
    """Trains with momentum on the mean cross-entropy and weight decay; 50,000 augmented images.

    Returns:
        The trained keras.Model.
    """
    images = CIFAR10.load("train", data_dir=config.data_dir)
    # No training image is held out; the original also monitored the test images.
    validation_images = CIFAR10.load("test", data_dir=config.data_dir)
    print(one_line(images.source))

    return loop.train(
        config, CIFAR10, images, validation_images=validation_images, **experiment(config)
    )


def experiment(config):
    """The experiment's arguments of `common.training.train`, as a dict."""
    rate = optimizers.learning_rate(config.step_size_schedule, config.step_size_interpolation)
    return {
        "optimizer": optimizers.Momentum(rate, momentum=config.momentum),
        "reduce_loss": tf.reduce_mean,
        "augment": augment,
        "batch_statistics": config.batch_statistics,
    }


def augment(images, seeds):
    """A random crop of each image padded by 2 zeros a side (not the common 4), and a random flip.

    Args:
        images: uint8 (batch, 32, 32, 3).
        seeds: int (batch, 2).

    Returns:
        uint8 (batch, 32, 32, 3).
    """
    row, column, flip = (draw[:, None] for draw in tf.unstack(uniform(seeds, 3), axis=1))
    row, column = tf.cast(row * 5.0, tf.int32), tf.cast(column * 5.0, tf.int32)
    images = tf.pad(images, [[0, 0], [2, 2], [2, 2], [0, 0]])
    place = tf.range(32)
    images = tf.gather(images, row + place, axis=1, batch_dims=1)
    columns = column + tf.where(flip < 0.5, 31 - place, place)
    return tf.gather(images, columns, axis=2, batch_dims=1)


if __name__ == "__main__":
    run_script(train, CIFAR10)
