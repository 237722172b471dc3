"""Loss along PGD and at its end, from random starts: what several items need."""

import numpy as np
import tensorflow as tf

from common.attack import PGD, FastModel, step, xent_loss
from common.attack.ball import uniform_start
from common.attack.gradient import value_and_gradient

BATCH = 200  # examples at a time
# By data set, in the units of its pixels. The paper has 0.01 in Table 1, and 0.3 under Figure 7,
# and its other figures' curves end their rise where these do.
STEP_SIZES = {"MNIST": 0.01, "CIFAR-10": 0.3}


def logits_of(loaded):
    """Returns a `LoadedModel`'s float32 logits in the form that runs fastest."""
    logits = loaded.logits
    return logits.prepare("float32") if isinstance(logits, FastModel) else logits


def losses_at(loaded, x, y):
    """Returns the cross-entropy of images, float32 (n,).

    Args:
        loaded: a `LoadedModel`.
        x: float32 images (n, height, width, channels), in the model's pixel range.
        y: int labels (n,).
    """
    losses = [
        xent_loss(loaded.logits(tf.constant(x[first : first + BATCH])), y[first : first + BATCH])
        for first in range(0, len(y), BATCH)
    ]
    return np.concatenate(losses) if losses else np.zeros(0, np.float32)


def losses_along_pgd(loaded, challenge, image, label, seed, *, num_restarts, num_steps, step_size):
    """Returns the cross-entropy before each step of PGD and after the last (paper, Figure 1).

    Args:
        loaded: a `LoadedModel`.
        challenge: its `Challenge`.
        image: float32 (height, width, channels), the ball's centre.
        label: its class.
        seed: int.
        num_restarts: how many uniform points of the ball are started from.
        num_steps, step_size: of PGD, in the units of the pixels.

    Returns:
        float32 (num_steps + 1, num_restarts).
    """
    logits, epsilon = logits_of(loaded), epsilon_of(challenge)
    x_nat = tf.constant(np.repeat(image[None], num_restarts, axis=0))
    y = tf.fill([num_restarts], tf.constant(label, tf.int32))

    @tf.function(autograph=False)
    def ascend(x):
        _, losses, gradient, _ = value_and_gradient(lambda z: xent_loss(z, y), logits, x)
        return losses, step(x, gradient, x_nat, epsilon, step_size, challenge.bounds)

    index = tf.range(num_restarts)
    x = uniform_start(x_nat, epsilon, challenge.bounds, tf.constant([seed, 0]), index)
    along = []
    for _ in range(num_steps + 1):
        losses, x = ascend(x)
        along.append(losses.numpy())
    return np.array(along)


def maxima(loaded, challenge, image, label, seed, index, *, num_steps, step_size):
    """Returns where PGD ends from random starts, float32 (n, height, width, channels).

    Args:
        loaded, challenge, image, label, seed, num_steps, step_size: see `losses_along_pgd`.
        index: int (n,), the number of each start, which with `seed` decides it.
    """
    attack = PGD(
        loaded.logits,
        epsilon=epsilon_of(challenge),
        step_size=step_size,
        num_steps=num_steps,
        bounds=challenge.bounds,
        precision="float32",
    )
    found = []
    for first in range(0, len(index), BATCH):
        numbers = np.asarray(index[first : first + BATCH])
        x_nat = np.repeat(image[None], len(numbers), axis=0)
        found.append(attack.perturb(x_nat, np.full(len(numbers), label), seed, numbers).numpy())
    return np.concatenate(found)


def epsilon_of(challenge):
    """Returns the radius of the challenge's L-infinity ball: 0.3 on MNIST, 8 on CIFAR-10."""
    return challenge.presets[challenge.validation_preset]["epsilon"]


def rounded(values):
    """Returns numbers as a list of floats of 4 digits, for results."""
    return [float(f"{value:.4g}") for value in np.ravel(values)]
