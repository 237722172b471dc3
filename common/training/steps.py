"""The two sides of the min-max (paper, equation 2.1):

    min over weights of E[max over |delta| <= epsilon of loss(weights, x + delta, y)]

A training step runs one after the other:

    x_adv = perturb(x_nat, y, step)           # inner maximisation
    xent, accuracy = update(x_nat, x_adv, y)  # outer minimisation
"""

import dataclasses

import tensorflow as tf

from common import checkpoints
from common.attack import is_misclassified, make_attack, xent_loss
from common.attack.fast import compiles_with_xla
from common.errors import InputError
from common.training.losses import make_loss
from common.training.optimizers import average_weights, copy_weights


def make_adversary(config, challenge, model, batch_statistics=False):
    """Makes the inner maximisation, a function (x_nat, y, step, seed) to x_adv.

    x_nat: float32 images (batch, height, width, channels), pixels in the challenge's bounds; the
    first `num_natural` are returned unchanged. y: int labels (batch,). step: int, or a tensor if
    the training has one attack. seed: int, by default the config's.

    Args:
        config: the challenge's config; `adversary` is "pgd", "fgsm" or "none".
        challenge: a `common.challenge.Challenge`.
        model: keras.Model of its network.
        batch_statistics: see `PGD`.
    """
    if config.adversary == "none":
        return lambda x_nat, y, step, seed=None: x_nat
    attack_at = make_attacks(config, challenge, model, batch_statistics)
    natural = num_natural(config)

    def perturb(x_nat, y, step, seed=config.random_seed):
        warmup = config.epsilon_warmup_steps
        x_adv = ascend(attack_at(step), x_nat[natural:], y[natural:], step, seed, warmup)
        return tf.concat([x_nat[:natural], x_adv], axis=0) if natural else x_adv

    return perturb


def make_attacks(config, challenge, model, batch_statistics=False):
    """Makes the attacks of `attack_schedule`; returns the function from a step to its `PGD`.

    A step is an int, or a tensor if there is one attack.

    Args:
        config, challenge, model, batch_statistics: see `make_adversary`.
    """
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

    return lambda step: attacks[max(first for first in attacks if not first or first <= step)]


def ascend(attack, x_nat, y, step, seed, epsilon_warmup_steps=0, index=None):
    """The inner maximisation of one step: x_adv.

    Args:
        attack: a `common.attack.Attack`; a `PGD` if epsilon is to grow.
        x_nat: float32 images.
        y: int labels (batch,).
        step: the number of the training's steps so far, an int or an int32 tensor.
        seed: int within int32, which decides the random starts together with `step`.
        epsilon_warmup_steps: steps over which epsilon and step_size grow to their values.
        index: int (batch,), the images' positions in the batch of all devices; None: 0, 1, ...

    Returns:
        float32 images, the shape of `x_nat`, in the ball and in the attack's bounds.

    Raises:
        InputError: see `common.attack.Attack.perturb`.
    """
    options = {} if index is None else {"index": index}
    if epsilon_warmup_steps:
        options["scale"] = warmup_scale(step, epsilon_warmup_steps)
    return attack.perturb(x_nat, y, seed=(seed, step), **options)


def warmup_scale(step, epsilon_warmup_steps):
    """The fraction of epsilon and step_size that `step`, an int or an int32 tensor, uses."""
    scale = (step + 1) / epsilon_warmup_steps
    is_tensor = tf.is_tensor(scale)
    return tf.minimum(tf.cast(scale, tf.float32), 1.0) if is_tensor else min(1.0, scale)


def descend(loss_of, reduce_loss, model, optimizer, x_nat, x_adv, y):
    """The outer minimisation of one step: the optimizer updates the model's weights.

    Within `tf.distribute` all arguments are one replica's, and the mean of the replicas' losses is
    minimised: `reduce_loss` must return an estimate of the whole batch's loss.

    Args:
        loss_of: function (x_nat, x_adv, y, model), see `common.training.losses`.
        reduce_loss: maps the losses of the examples to that of the batch.
        model: keras.Model to logits.
        optimizer: keras optimizer, which is built.
        x_nat, x_adv: float32 images.
        y: int labels (batch,).

    Returns:
        The batch's loss, and the float32 logits of `x_adv`, both from before the step.

    Raises:
        InputError: `loss_of` does not return what `common.training.losses` says.
    """
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    with tf.GradientTape() as tape:
        losses, logits = checked(loss_of(x_nat, x_adv, y, model))
        loss = reduce_loss(losses)
        loss += regularization(model, loss.dtype)
        share = loss / num_replicas if num_replicas > 1 else loss  # the optimizer adds gradients
        scaled = optimizer.scale_loss(share)  # by 1, except in float16
    variables = model.trainable_variables
    optimizer.apply(tape.gradient(scaled, variables), variables)
    return loss, logits


def checked(result):
    """Returns what a loss of `common.training.losses` returned, if its shapes are right.

    Raises:
        InputError: it is not (losses (batch,), logits (batch, classes)).
    """
    is_pair = isinstance(result, (tuple, list)) and len(result) == 2
    shapes = [tf.convert_to_tensor(part).shape for part in result] if is_pair else []
    is_right = is_pair and all(
        shape.rank in (rank, None) for shape, rank in zip(shapes, (1, 2), strict=True)
    )
    if is_right and all(shape.rank for shape in shapes):
        is_right = shapes[0].is_compatible_with(shapes[1][:1])
    if not is_right:
        got = " and ".join(str(shape) for shape in shapes) if is_pair else type(result).__name__
        raise InputError(
            "loss: expected (losses (batch,), logits (batch, classes)), got "
            + (f"shapes {got}" if is_pair else got)
        )
    return result


def regularization(model, dtype):
    """The sum of a model's own losses, such as its regularizers', as a scalar of `dtype`."""
    return tf.add_n([tf.cast(loss, dtype) for loss in model.losses] or [tf.zeros((), dtype)])


def num_natural(config):
    """How many images, the first of a batch, `natural_share` leaves unattacked."""
    if config.adversary == "none":
        return 0
    batch_size = config.training_batch_size
    return min(round(config.natural_share * batch_size), batch_size - 1)


def make_update(config, model, optimizer, reduce_loss, result=None):
    """Makes the outer minimisation, a function (x_nat, x_adv, y) to cross-entropy and accuracy.

    Both numbers are of the attacked images, before the weights' update.

    Args:
        config: the challenge's config; `loss` is one of `common.training.losses`.
        model: keras.Model whose weights the optimizer updates.
        optimizer: keras optimizer.
        reduce_loss: maps the examples' losses to the batch's: tf.reduce_sum or tf.reduce_mean.
        result: keras.Model of the same network that gets the weights after each step, averaged if
            `config.average_decay` is not 0; None if that is `model` itself.
    """
    result = model if result is None else result
    natural = num_natural(config)
    loss_of = make_loss(config.loss, config.natural_weight, config.trades_beta)
    optimizer.build(model.trainable_variables)
    jit_compile = compiles_with_xla(config.jit_compile)

    @tf.function(autograph=False, reduce_retracing=not jit_compile, jit_compile=jit_compile)
    def update(x_nat, x_adv, y):
        _, logits = descend(loss_of, reduce_loss, model, optimizer, x_nat, x_adv, y)
        if config.average_decay:
            average_weights(result, model, config.average_decay, optimizer.iterations)
        elif result is not model:
            copy_weights(result, model)
        xent = tf.reduce_mean(xent_loss(logits, y)[natural:])
        return xent, accuracy_of(logits[natural:], y[natural:])

    return update


def accuracy_of(logits, y):
    """The share of a batch whose float32 logits (batch, classes) give the class `y` (batch,)."""
    return tf.reduce_mean(tf.cast(~is_misclassified(logits, y), tf.float32))
