"""PGD in plain TensorFlow: Keras layers and a tf.function around the loop.

The benchmarks compare with it, and the tests use its numbers as the reference.
"""

import keras
import tensorflow as tf
from keras import layers

from cifar10_challenge.model import build_model as build_cifar10_model
from mnist_challenge.challenge import MNIST


def build_model(challenge, weights):
    """The challenge's network with these weights, which decide its size."""
    if challenge is MNIST:
        return mnist_model(weights)
    width = challenge.size_of([weight.shape for weight in weights])["width"]
    return cifar10_model(width, weights)


def mnist_model(weights):
    """The paper's MNIST network in Keras's common layers, with these weights."""
    width = weights[0].shape[-1]
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(width, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(2 * width, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(32 * width, activation="relu"),
            layers.Dense(10),
        ]
    )
    model.set_weights(weights)
    return model


def cifar10_model(width, weights):
    """The CIFAR-10 network with Keras's own batch normalisation, with these weights."""

    def clone(layer):
        if isinstance(layer, layers.BatchNormalization):
            return layers.BatchNormalization(
                momentum=layer.momentum, epsilon=layer.epsilon, name=layer.name
            )
        return layer.__class__.from_config(layer.get_config())

    model = keras.models.clone_model(build_cifar10_model(width), clone_function=clone)
    model.set_weights(weights)
    return model


def pgd(model, *, epsilon, step_size, num_steps, bounds, training=False):
    """PGD without a random start, as function (x_nat, y) to x_adv."""

    @tf.function
    def perturb(x_nat, y):
        x = x_nat
        for _ in tf.range(num_steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    y, model(x, training=training)
                )
            x = x + step_size * tf.sign(tape.gradient(loss, x))
            x = tf.clip_by_value(x, x_nat - epsilon, x_nat + epsilon)
            x = tf.clip_by_value(x, *bounds)
        return x

    return perturb


def update(model, optimizer, reduce_loss):
    """A step of the outer minimisation, as function (x, y) to the loss."""
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            xent = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
            loss = reduce_loss(xent) + sum(model.losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step
