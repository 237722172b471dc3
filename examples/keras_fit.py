"""Trains a small Keras network twice by `fit`, on natural images and against PGD, and evaluates
both by the fast suite.

    python examples/keras_fit.py                          # 1,000 digits that come with the project
    python examples/keras_fit.py --dataset=fashion_mnist  # from a TensorFlow Datasets directory

Two cores take less than five minutes.
"""

import argparse

import keras
import numpy as np

from common.attack import PGD
from common.robust import AdversarialModel, RobustAccuracy, evaluate
from mnist_challenge.challenge import MNIST

EPSILON = 0.1  # pixels are in [0, 1]


def attack(logits):
    """The attack of training: PGD of 7 steps."""
    return PGD(logits, epsilon=EPSILON, step_size=0.025, num_steps=7, bounds=(0, 1))


def load(name, data_dir, count):
    """Images and labels of a training and a test set; `count` and `count` / 5 of them at most."""
    if name == "sample":
        sample = MNIST.load("sample")
        images, labels = sample.images, sample.labels
        order = np.random.default_rng(0).permutation(len(images))
        parts = np.split(order, [len(order) * 4 // 5])
        sets = [(images[part], labels[part]) for part in parts]
    else:
        import tensorflow_datasets as tfds

        splits = [f"train[:{count}]", f"test[:{count // 5}]"]
        options = {"data_dir": data_dir, "batch_size": -1, "as_supervised": True}
        try:
            sets = tfds.load(name, split=splits, download=False, **options)
        except (AssertionError, ValueError):
            raise SystemExit(
                f"--dataset: expected a copy of {name!r} in the TensorFlow Datasets directory, "
                f'which this makes: python -c "import tensorflow_datasets as tfds; '
                f"tfds.load('{name}')\""
            ) from None
        sets = [(x.numpy(), y.numpy()) for x, y in sets]
    (x, y), (x_test, y_test) = sets
    x, x_test = (np.float32(images) / 255 for images in (x, x_test))
    return x[:count], y[:count], x_test[: count // 5], y_test[: count // 5]


def build_network(image_shape, num_classes):
    """An ordinary network; it could also end in a softmax."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Conv2D(16, 4, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 4, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(100, activation="relu"),
            keras.layers.Dense(num_classes),
        ]
    )


def main():
    """Trains and evaluates both networks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", default="sample", help="sample, or a name in TFDS")
    parser.add_argument("--data_dir", help="the directory of TensorFlow Datasets")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--images", type=int, default=4000, help="of the training set, at most")
    parser.add_argument("--suite", default="fast", help="see evaluate, or pgd, for a short try")
    parser.add_argument("--save", help="a .keras file for the network trained against PGD")
    flags = parser.parse_args()
    x, y, x_test, y_test = load(flags.dataset, flags.data_dir, flags.images)
    print(f"{len(x):,} training images, {len(x_test):,} test images, epsilon {EPSILON}")

    natural = build_network(x.shape[1:], int(y.max()) + 1)
    natural.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    natural.fit(x, y, epochs=flags.epochs, verbose=0)

    robust = build_network(x.shape[1:], int(y.max()) + 1)
    trainer = AdversarialModel(robust, attack, epsilon_warmup_steps=100)
    trainer.compile("adam", metrics=["accuracy"])
    watched = RobustAccuracy((x[-200:], y[-200:]), attack, every=5)
    trainer.fit(x[:-200], y[:-200], epochs=flags.epochs, verbose=2, callbacks=[watched])
    if flags.save:
        trainer.save(flags.save)

    suite = [attack] if flags.suite == "pgd" else flags.suite
    for name, network in (("natural", natural), ("trained against PGD", robust)):
        print(f"\n{name}:")
        print(evaluate(network, x_test, y_test, epsilon=EPSILON, bounds=(0, 1), suite=suite))


if __name__ == "__main__":
    main()
