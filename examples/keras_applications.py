"""Attacks a network of keras.applications at its own size, 224 x 224 pixels of [0, 255].

    python examples/keras_applications.py --weights=imagenet  # which Keras downloads
    python examples/keras_applications.py                     # initial weights, to try it out

The photographs are CIFAR-10's, enlarged, and have no ImageNet labels. The network's own predictions
are the labels here, and the accuracy is the share of predictions that PGD cannot change.
"""

import argparse

import keras
import numpy as np

from cifar10_challenge.challenge import CIFAR10
from common.attack import PGD
from common.robust import evaluate

SIZE = 224
EPSILON = 1.0  # of 255


def build_network(weights):
    """MobileNetV2, the smallest there is, with its preprocessing: pixels of [0, 255] to classes."""
    network = keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, weights=weights)
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Rescaling(
                1 / 127.5, offset=-1
            ),  # each family has its own, see preprocess_input
            network,  # `evaluate` bypasses its softmax
        ]
    )


def main():
    """Evaluates the network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", choices=["imagenet"], help="default: initial weights")
    parser.add_argument("--images", type=int, default=16)
    flags = parser.parse_args()
    photographs = CIFAR10.load("sample").images[: flags.images]
    x = keras.ops.image.resize(photographs, (SIZE, SIZE)).numpy()
    model = build_network(flags.weights)
    y = np.argmax(model.predict(x, verbose=0), axis=1)

    def attack(logits):
        return PGD(logits, epsilon=EPSILON, step_size=0.25, num_steps=10, bounds=(0, 255))

    report = evaluate(model, x, y, epsilon=EPSILON, bounds=(0, 255), suite=[attack], batch_size=8)
    print(report)


if __name__ == "__main__":
    main()
