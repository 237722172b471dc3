"""Loss along PGD and at its end, from random starts, for several items."""

import numpy as np
import tensorflow as tf

from common.attack import PGD, FastModel, step, xent_loss
from common.attack.ball import uniform_start
from common.attack.gradient import value_and_gradient

BATCH = 200  # examples at a time
# By data set, in the units of its pixels. The paper has 0.01 in Table 1, and 0.3 under Figure 7.
STEP_SIZES = {"MNIST": 0.01, "CIFAR-10": 0.3}
_ORDERS = {}  # what `examples` found in this process
_KEPT = {}  # what `kept` has made


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


def losses_along_pgd(loaded, challenge, image, label, seed, num_restarts, num_steps):
    """Returns the cross-entropy before each step of PGD and after the last (paper, Figure 1).

    Args:
        loaded: a `LoadedModel`.
        challenge: its `Challenge`.
        image: float32 (height, width, channels), the ball's centre.
        label: its class.
        seed: int.
        num_restarts: number of starts, uniform points of the ball.
        num_steps: number of PGD's steps, each of length `STEP_SIZES`.

    Returns:
        float32 (num_steps + 1, num_restarts).
    """
    logits, epsilon = logits_of(loaded), challenge.epsilon
    step_size = STEP_SIZES[challenge.name]
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


def maxima(loaded, challenge, image, label, seed, index, num_steps, scale=1.0):
    """Returns where PGD ends from random starts, float32 (n, height, width, channels).

    Args:
        loaded, challenge, image, label, seed, num_steps: see `losses_along_pgd`.
        index: int (n,), the number of each start, which with `seed` decides it.
        scale: multiplies the ball's radius and the steps.
    """
    attack = pgd(loaded, challenge, num_steps)
    found = []
    for first in range(0, len(index), BATCH):
        numbers = np.asarray(index[first : first + BATCH])
        x_nat = np.repeat(image[None], len(numbers), axis=0)
        y = np.full(len(numbers), label)
        found.append(attack.perturb(x_nat, y, seed, numbers, scale).numpy())
    return np.concatenate(found)


def pgd(loaded, challenge, num_steps):
    """Returns PGD of `num_steps` steps of `STEP_SIZES` on a `LoadedModel`, in float32.

    The same model gets the same attack object, which is compiled once.
    """

    def make():
        return PGD(
            loaded.logits,
            epsilon=challenge.epsilon,
            step_size=STEP_SIZES[challenge.name],
            num_steps=num_steps,
            bounds=challenge.bounds,
            precision="float32",
        )

    return kept(("pgd", num_steps), loaded, make)


def kept(key, loaded, make):
    """Returns what `make` makes, which is made once for a key and a `LoadedModel`.

    An item's parts share what is compiled, which may take longer than a part.
    """
    key = id(loaded), key
    if key not in _KEPT:
        _KEPT[key] = loaded, make()  # the model too, so that no other one gets its id
    return _KEPT[key][1]


def settings_text(networks, num_steps):
    """Returns the settings of `pgd` in words, for a title.

    Args:
        networks: the networks that are attacked.
        num_steps: number of PGD's steps.
    """
    challenges = {network.challenge.name: network.challenge for network in networks}
    by_data = (
        f"{name}: epsilon {challenge.epsilon:g} in L-infinity, steps of {STEP_SIZES[name]:g}"
        for name, challenge in challenges.items()
    )
    return f"PGD, {num_steps} steps ({'; '.join(by_data)})"


def examples(work, robust):
    """Returns the numbers of the test images that Figures 1, 2 and 11 are about, ints.

    All five of the paper's MNIST examples end at a loss above 1 on the robust network. PGD breaks
    only 7 % of the images there, so that the examples must be among these. On MNIST they are here
    the first images that one run of PGD breaks; if `work` has too few, other first images follow.
    The paper's CIFAR-10 examples show no such choice, and here they are the first images.

    Args:
        work: a `paper.item.Work`; its images are searched.
        robust: the robust network as a `LoadedModel`.
    """
    settings = work.settings
    key = robust.digest(), work.images.digest(), settings["num_steps"], settings["seed"]
    if key not in _ORDERS:
        _ORDERS[key] = _order(work, robust)
    return _ORDERS[key][: settings["num_images"]].tolist()


def _order(work, robust):
    """The numbers of all of `work`'s images, in the order in which `examples` takes them."""
    settings, number = work.settings, np.arange(len(work.y))
    if work.challenge.name == "MNIST":
        attack = pgd(robust, work.challenge, settings["num_steps"])
        x_adv = np.concatenate(
            [
                attack.perturb(work.x_nat[batch], work.y[batch], settings["seed"], batch).numpy()
                for batch in np.split(number, range(BATCH, len(number), BATCH))
            ]
        )
        natural, adversarial = (predictions(robust, x) for x in (work.x_nat, x_adv))
        is_broken = (natural == work.y) & (adversarial != work.y)
        number = np.concatenate([number[is_broken], number[~is_broken]])
    return number


def predictions(loaded, x):
    """Returns a `LoadedModel`'s predicted classes, int (n,); `x` as in `losses_at`."""
    batches = (x[first : first + BATCH] for first in range(0, len(x), BATCH))
    return np.concatenate([np.argmax(loaded.logits(tf.constant(b)), axis=1) for b in batches])


def rounded(values):
    """Returns numbers as a list of floats of 4 digits, for results."""
    return [float(f"{value:.4g}") for value in np.ravel(values)]
