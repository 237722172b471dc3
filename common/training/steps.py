"""The two sides of the min-max: the inner maximisation and the outer minimisation."""

import dataclasses

import tensorflow as tf

from common import checkpoints
from common.attack import is_misclassified, make_attack, xent_loss
from common.attack.fast import compiles_with_xla


def make_adversary(config, challenge, model, batch_statistics=False):
    """The inner maximisation, as function (x_nat, y, step) to x_adv.

    Args:
        config: the challenge's config: `adversary` is "pgd", "fgsm" or "none".
        challenge: a `common.challenge.Challenge`.
        model: keras.Model of its network.
        batch_statistics: see `PGD`.
    """
    if config.adversary == "none":
        return lambda x_nat, y, step: x_nat
    attacked = model if batch_statistics else checkpoints.fast_model(model, challenge)
    schedule = config.attack_schedule or ((0, config.num_steps, config.step_size),)
    attacks = {
        first: make_attack(
            config.adversary,
            attacked,
            dataclasses.replace(config, num_steps=num_steps, step_size=step_size),
            challenge.bounds,
            batch_statistics,
        )
        for first, num_steps, step_size in schedule
    }

    def perturb(x_nat, y, step):
        attack = attacks[max(first for first in attacks if first <= step)]
        scale = min(1.0, (step + 1) / (config.epsilon_warmup_steps or 1))
        return attack.perturb(x_nat, y, seed=(config.random_seed, step), scale=scale)

    return perturb


def make_update(config, model, optimizer, reduce_loss, averaged=None):
    """The outer minimisation, as function (x, y) to the cross-entropy and accuracy before its step.

    Args:
        config: the challenge's config.
        model: keras.Model.
        optimizer: keras optimizer.
        reduce_loss: from the cross-entropies of a batch to its loss.
        averaged: keras.Model of the same network, whose weights a, with batch norm's averages,
            become d a + (1 - d) w after step t, with d = min(`average_decay`, (1 + t) / (10 + t));
            with no `average_decay` they are w.
    """
    optimizer.build(model.trainable_variables)
    jit_compile = compiles_with_xla(config.jit_compile)

    @tf.function(reduce_retracing=not jit_compile, jit_compile=jit_compile)
    def update(x, y):
        """One step of the outer minimisation; returns mean cross-entropy and accuracy before it."""
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            xent = xent_loss(logits, y)
            loss = reduce_loss(xent) + tf.add_n(model.losses or [0.0])
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        if averaged is not None:
            count = tf.cast(optimizer.iterations, tf.float32)
            decay = tf.minimum(config.average_decay, (1.0 + count) / (10.0 + count))
            for mean, weight in zip(averaged.weights, model.weights):
                mean.assign(decay * mean + (1.0 - decay) * weight)
        return tf.reduce_mean(xent), _accuracy(logits, y)

    return update


def _accuracy(logits, y):
    return tf.reduce_mean(tf.cast(~is_misclassified(logits, y), tf.float32))
