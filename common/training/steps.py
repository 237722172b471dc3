"""The two sides of the min-max (paper, equation 2.1):

    min over weights of E[max over |delta| <= epsilon of loss(weights, x + delta, y)]

A step of a training is its two sides, one after the other:

    x_adv = perturb(x_nat, y, step)    # inner maximisation
    xent, accuracy = update(x_adv, y)  # outer minimisation
"""

import dataclasses

import tensorflow as tf

from common import checkpoints
from common.attack import is_misclassified, make_attack, xent_loss
from common.attack.fast import compiles_with_xla
from common.training.optimizers import average_weights, copy_weights


def make_adversary(config, challenge, model, batch_statistics=False):
    """The inner maximisation, as function (x_nat, y, step) to x_adv.

    Args:
        config: the challenge's config: `adversary` is "pgd", "fgsm" or "none"; it leaves the
            first `num_natural` images of a batch as they are.
        challenge: a `common.challenge.Challenge`.
        model: keras.Model of its network.
        batch_statistics: see `PGD`.
    """
    if config.adversary == "none":
        return lambda x_nat, y, step: x_nat
    attacked = model if batch_statistics else checkpoints.fast_model(model, challenge)
    natural = num_natural(config)
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
        x_adv = attack.perturb(
            x_nat[natural:], y[natural:], seed=(config.random_seed, step), scale=scale
        )
        return tf.concat([x_nat[:natural], x_adv], axis=0) if natural else x_adv

    return perturb


def num_natural(config):
    """How many images of a batch, its first ones, are trained on as they are."""
    if config.adversary == "none":
        return 0
    batch_size = config.training_batch_size
    return min(round(config.natural_share * batch_size), batch_size - 1)


def make_update(config, model, optimizer, reduce_loss, result=None):
    """The outer minimisation, as function (x, y) to the cross-entropy and accuracy before its step.

    Both numbers are of the images that the adversary has changed.

    Args:
        config: the challenge's config.
        model: keras.Model whose weights the optimizer moves.
        optimizer: keras optimizer.
        reduce_loss: maps a batch's cross-entropies to its loss, as tf.reduce_sum.
        result: keras.Model of the same network that gets the weights after each step, averaged if
            `config.average_decay` says so; None if that is `model` itself.
    """
    result = model if result is None else result
    natural = num_natural(config)
    optimizer.build(model.trainable_variables)
    jit_compile = compiles_with_xla(config.jit_compile)

    @tf.function(reduce_retracing=not jit_compile, jit_compile=jit_compile)
    def update(x, y):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            xent = xent_loss(logits, y)
            loss = reduce_loss(xent) + tf.add_n(model.losses or [0.0])
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        if config.average_decay:
            average_weights(result, model, config.average_decay, optimizer.iterations)
        elif result is not model:
            copy_weights(result, model)
        return tf.reduce_mean(xent[natural:]), accuracy_of(logits[natural:], y[natural:])

    return update


def accuracy_of(logits, y):
    """The part of a batch that float32 logits (batch, classes) classify as `y` (batch,)."""
    return tf.reduce_mean(tf.cast(~is_misclassified(logits, y), tf.float32))
