"""Trains a CIFAR-10 network against an adversary, as the paper does (Sec. 4 and 5).

    python cifar10_challenge/train.py --model_dir=/tmp/robust [--width=simple] ...

The attack takes 7 steps of 2, as in the paper and for its published networks; the original
config.json says 10.
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import tensorflow as tf

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
    # Every training image is trained on; the original, too, watched the test images.
    validation_images = CIFAR10.load("test", data_dir=config.data_dir)
    print(one_line(images.source))

    rate = optimizers.learning_rate(config.step_size_schedule, config.step_size_interpolation)
    optimizer = optimizers.Momentum(rate, momentum=config.momentum)
    return loop.train(
        config,
        CIFAR10,
        images,
        optimizer=optimizer,
        reduce_loss=tf.reduce_mean,
        validation_images=validation_images,
        augment=augment,
        batch_statistics=config.batch_statistics,
    )


def augment(image, seed):
    """A random crop of the image padded by 2 zeros a side (not the common 4), and a random flip.

    Args:
        image: uint8 (32, 32, 3).
        seed: int (2,).

    Returns:
        uint8 (32, 32, 3).
    """
    # One draw and plain slicing: the random ops of tf.image take twice the time.
    row, column, flip = tf.unstack(tf.random.stateless_uniform([3], seed, alg="philox"))
    row, column = tf.cast(row * 5.0, tf.int32), tf.cast(column * 5.0, tf.int32)
    image = tf.pad(image, [[2, 2], [2, 2], [0, 0]])[row : row + 32, column : column + 32]
    image = tf.ensure_shape(image, (32, 32, 3))
    return tf.cond(flip < 0.5, lambda: tf.reverse(image, [1]), lambda: image)


if __name__ == "__main__":
    run_script(train, CIFAR10)
