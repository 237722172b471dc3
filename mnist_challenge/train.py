"""Trains the MNIST network against an adversary, as the paper does (Sec. 4 and 5).

    python mnist_challenge/train.py --model_dir=/tmp/robust [--adversary=pgd|fgsm|none] ...

The attack takes 40 steps of 0.01, as in the paper and the original config.json.
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import keras
import tensorflow as tf

from common.errors import one_line
from common.scripts.train import run_script
from common.training import loop, optimizers

# isort: split
from mnist_challenge.challenge import MNIST


def train(config):
    """Trains with Adam on the sum of the cross-entropies; 55,000 images, no augmentation.

    Returns:
        The trained keras.Model.
    """
    images = MNIST.load("train", data_dir=config.data_dir)
    validation_images = MNIST.load("validation", data_dir=config.data_dir)
    print(one_line(images.source))

    return loop.train(
        config, MNIST, images, validation_images=validation_images, **experiment(config)
    )


def experiment(config):
    """The experiment's arguments of `common.training.train`, as a dict."""
    rate = optimizers.learning_rate(config.step_size_schedule, config.step_size_interpolation)
    return {
        # TensorFlow 1's epsilon; Keras's own default is 1e-7.
        "optimizer": keras.optimizers.Adam(rate, epsilon=1e-8),
        "reduce_loss": tf.reduce_sum,
    }


if __name__ == "__main__":
    run_script(train, MNIST)
