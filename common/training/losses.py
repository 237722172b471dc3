"""The losses that trainings minimise, from each example's natural and adversarial image.

Every loss is a function (x_nat, x_adv, y, model):

    x_nat, x_adv: float32 images (batch, height, width, channels).
    y: int labels (batch,).
    model: keras.Model to logits, called in training mode.

and returns the loss of each example, float32 (batch,), and the logits of the adversarial images,
float32 (batch, classes). If a loss calls the model twice, batch norm sees two batches: it
normalises each by its own statistics, and updates its averages twice, as in TRADES's public code.
"""

import functools

import tensorflow as tf

from common.attack.gradient import as_logits
from common.attack.inputs import real_number
from common.attack.losses import finite_logits, xent_loss
from common.errors import InputError

LOSSES = ("adversarial", "natural_and_adversarial", "trades")


def adversarial(x_nat, x_adv, y, model):
    """The cross-entropy of the adversarial images (paper, equation 2.1).

    Args:
        x_nat, x_adv, y, model: see the module.

    Returns:
        float32 losses (batch,) and logits (batch, classes).
    """
    logits = as_logits(model(x_adv, training=True), x_adv)
    return xent_loss(logits, y), logits


def natural_and_adversarial(x_nat, x_adv, y, model, natural_weight=0.5):
    """Both images' cross-entropies: w xent(x_nat) + (1 - w) xent(x_adv) (Goodfellow et al. 2015).

    Args:
        x_nat, x_adv, y, model: see the module.
        natural_weight: w, from 0 to 1.

    Returns:
        float32 losses (batch,), and logits (batch, classes) of `x_adv`.
    """
    natural = xent_loss(as_logits(model(x_nat, training=True), x_nat), y)
    losses, logits = adversarial(x_nat, x_adv, y, model)
    return natural_weight * natural + (1.0 - natural_weight) * losses, logits


def trades(x_nat, x_adv, y, model, beta=6.0):
    """TRADES: xent(x_nat) + beta KL(p(x_nat) || p(x_adv)) (Zhang et al. 2019).

    TRADES's own adversary maximises that divergence, from a small normal noise. Here the adversary
    is the same as for the other losses, such as PGD on the cross-entropy.

    Args:
        x_nat, x_adv, y, model: see the module.
        beta: the weight of the divergence, 0 or more.

    Returns:
        float32 losses (batch,), and logits (batch, classes) of `x_adv`.
    """
    natural = as_logits(model(x_nat, training=True), x_nat)
    logits = as_logits(model(x_adv, training=True), x_adv)
    return xent_loss(natural, y) + beta * divergence(natural, logits), logits


def divergence(first, second):
    """The Kullback-Leibler divergence KL(p || q) of two predictions.

    Args:
        first, second: float32 logits (batch, classes) of p and q.

    Returns:
        float32 (batch,).
    """
    log_p, log_q = (tf.nn.log_softmax(finite_logits(logits)) for logits in (first, second))
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def make_loss(name, natural_weight=0.5, trades_beta=6.0):
    """Returns the loss of a name, a function (x_nat, x_adv, y, model).

    Args:
        name: one of `LOSSES`.
        natural_weight: see `natural_and_adversarial`.
        trades_beta: `beta` of `trades`.

    Returns:
        The function.

    Raises:
        InputError: there is no such loss, or a weight is out of its range.
    """
    natural_weight = real_number("natural_weight", natural_weight, 0.0, 1.0)
    trades_beta = real_number("trades_beta", trades_beta, 0.0)
    if name == "adversarial":
        return adversarial
    if name == "natural_and_adversarial":
        return functools.partial(natural_and_adversarial, natural_weight=natural_weight)
    if name == "trades":
        return functools.partial(trades, beta=trades_beta)
    raise InputError(f"loss: expected one of {', '.join(LOSSES)}, got {name!r}")
