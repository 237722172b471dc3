"""Trains small networks of the challenges' kinds, on as many devices as it is told.

    python tests/common/training/distributed.py '[{"kind": "mnist", "model_dir": ..., ...}, ...]'

A script of test_distribution.py, as devices belong to a process. Beside settings a training has:
kind, "mnist" without batch norm, "cifar10" with it, or "resnet", the paper's simple network; dtype
of the network; parts: on one device batch norm takes the statistics of each such part of a batch,
as devices do that are not synchronised. The kind "fit" trains a user's keras.Model by `fit`.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[3])

import keras
import numpy as np
import tensorflow as tf

from cifar10_challenge import layers
from cifar10_challenge import model as cifar10_model
from cifar10_challenge import train as cifar10_train
from cifar10_challenge.challenge import CIFAR10
from common.attack import PGD, precision
from common.config import make_config
from common.errors import InputError
from common.interruption import Interrupted
from common.training import distribution, loop, losses, optimizers
from common.training.adversarial_model import AdversarialModel
from mnist_challenge.challenge import MNIST

SETTINGS = {
    "max_num_training_steps": 50,
    "training_batch_size": 8,
    "num_steps": 2,
    "num_output_steps": 10,
    "num_summary_steps": 100,
    "num_checkpoint_steps": 20,
    "num_validation_steps": 0,
    "random_seed": 3,
}


class PartsNorm(layers.BatchNorm):
    """Batch norm of every `parts`th image by their own statistics, on one device."""

    parts = 1

    def call(self, x, training=False):
        if not training:
            return super().call(x)
        count, axes = x.shape[0], [0, 1, 2]
        order = sorted(range(count), key=lambda row: row % self.parts)
        moments, outputs = [], []
        for part in range(self.parts):
            rows = x[part :: self.parts]
            mean, variance = tf.nn.moments(rows, axes)
            moments.append((mean, variance))
            outputs.append(
                tf.nn.batch_normalization(rows, mean, variance, self.beta, self.gamma, self.epsilon)
            )
        self._follow(*(tf.add_n(found) / self.parts for found in zip(*moments, strict=True)))
        places = [order.index(row) for row in range(count)]
        return tf.gather(tf.concat(outputs, axis=0), places)


def build_mnist(settings, precision=None, dtype="float64"):
    seeds = keras.random.SeedGenerator(settings.random_seed)
    options = {"dtype": dtype, "kernel_initializer": keras.initializers.GlorotNormal(seeds)}
    image = keras.Input((28, 28, 1), dtype=dtype)
    x = keras.layers.Conv2D(3, 5, strides=3, activation="relu", **options)(image)
    x = keras.layers.Flatten(dtype=dtype)(x)
    return keras.Model(image, keras.layers.Dense(10, **options)(x))


def build_cifar10(settings, precision=None, dtype="float64", parts=None):
    seeds = keras.random.SeedGenerator(settings.random_seed)
    decay = keras.regularizers.L2(settings.weight_decay / 2)
    start = keras.initializers.GlorotNormal(seeds)
    options = {"dtype": dtype, "kernel_initializer": start, "kernel_regularizer": decay}
    image = keras.Input((32, 32, 3), dtype=dtype)
    x = layers.Standardise(dtype=dtype)(image)
    for filters in (3, 4):
        x = keras.layers.Conv2D(filters, 3, strides=3, use_bias=False, **options)(x)
        if parts is None:
            is_synchronised = settings.batch_norm == "synchronized"
            norm = layers.BatchNorm(momentum=0.9, dtype=dtype, synchronized=is_synchronised)
        else:
            norm = PartsNorm(momentum=0.9, dtype=dtype)
            norm.parts = parts
        x = keras.layers.LeakyReLU(negative_slope=0.1, dtype=dtype)(norm(x))
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(image, keras.layers.Dense(10, **options)(x))


def build_resnet(settings, precision=None, dtype="float64"):
    return cifar10_model.build_model(
        cifar10_model.WIDTHS["simple"],
        settings.weight_decay,
        settings.random_seed,
        dtype=dtype,
        synchronized=settings.batch_norm == "synchronized",
    )


def train(kind, dtype="float64", parts=None, **settings):
    """Trains on the shipped sample with the optimizers of the challenges' train.py."""
    if dtype == "float64":  # the loss, too: float32 rounds differently by the size of a batch
        losses.as_logits = lambda logits, images=None: logits
        losses.finite_logits = lambda logits: logits
    is_cifar10 = kind != "mnist"
    challenge = CIFAR10 if is_cifar10 else MNIST
    config = make_config(challenge, ("test", {**SETTINGS, **settings}))
    builders = {
        "mnist": build_mnist,
        "cifar10": functools.partial(build_cifar10, parts=parts),
        "resnet": build_resnet,
    }
    challenge = dataclasses.replace(
        challenge,
        build_model=functools.partial(builders[kind], dtype=dtype),
        fast_logits=lambda model, precision: functools.partial(model, training=False),
    )
    with distribution.faults_as_lines(config):
        distribution.devices_of(config)  # before TensorFlow's first op
        sample = challenge.load("sample").head(50)
        points, interpolation = config.step_size_schedule, config.step_size_interpolation
        rate = optimizers.learning_rate(points, interpolation)
        loop.train(
            config,
            challenge,
            sample,
            optimizer=optimizers.Momentum(rate, momentum=0.9)
            if is_cifar10
            else keras.optimizers.Adam(rate, epsilon=1e-8),
            reduce_loss=tf.reduce_mean if is_cifar10 else tf.reduce_sum,
            augment=cifar10_train.augment if is_cifar10 else None,
            batch_statistics=is_cifar10 and config.batch_statistics,
            validation_images=sample,
        )


def fit(model_dir, num_devices=1):
    """Trains a Keras model of a user's by `fit`; keeps what it tells, and its weights."""
    scope = contextlib.nullcontext()
    if num_devices > 1:
        config = make_config(
            MNIST, ("test", {**SETTINGS, "distribute": "mirrored", "num_devices": num_devices})
        )
        scope = distribution.devices_of(config).strategy.scope()
    numbers = np.random.default_rng(0)
    x, y = numbers.uniform(size=(22, 6, 6, 1)).astype("f4"), np.arange(22) % 3
    with scope:
        decay = keras.regularizers.L2(0.01)
        model = keras.Sequential(
            [
                keras.Input((6, 6, 1)),
                keras.layers.Conv2D(4, 3, activation="relu", kernel_regularizer=decay),
                keras.layers.Flatten(),
                keras.layers.Dense(3, activation="softmax"),
            ]
        )
        model.set_weights([numbers.normal(size=w.shape) / 5 for w in model.get_weights()])
        trainer = AdversarialModel(
            model,
            lambda logits: PGD(logits, epsilon=0.1, step_size=0.05, num_steps=3),
            loss="trades",
        )
        trainer.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    told = trainer.fit(
        x,
        y,
        epochs=3,
        batch_size=8,  # the last batch has six
        shuffle=False,
        verbose=0,
        sample_weight=np.linspace(0.5, 1.5, len(x), dtype="f4"),
        validation_data=(x, y),
    ).history
    np.savez(model_dir, *model.get_weights(), **told)


if __name__ == "__main__":
    precision.bfloat16_unit = lambda: None
    try:
        for training in json.loads(sys.argv[1]):
            if training.get("kind") == "fit":
                del training["kind"]
                fit(**training)
            else:
                train(**training)
    except InputError as error:
        sys.exit(f"error: {error}")
    except Interrupted as error:
        sys.exit(128 + error.number)
