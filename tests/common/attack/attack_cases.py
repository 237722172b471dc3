"""Models and images that the tests of attacks share."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.attack import APGD, FAB, PGD, MultiTargeted, Square

SHAPE = (6, 6, 2)
NUM_CLASSES = 5


# Two classes of 2x2 images. An attack on label 0 raises pixels 0 and 2 and lowers the others; an
# attack on label 1 does the reverse.
KERNEL = np.float32([[0, 1], [0, -1], [0, 2], [0, -2]])


def linear(x):
    return tf.reshape(x, (-1, 4)) @ KERNEL


def image(*pixels, dtype=np.float32):
    return np.array(pixels, dtype).reshape(1, 2, 2, 1)


def linear_model(seed=0):
    """Weights (classes, 72), biases (classes,) and the float32 function that they make."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(NUM_CLASSES, np.prod(SHAPE))).astype(np.float32)
    biases = rng.normal(size=NUM_CLASSES).astype(np.float32)

    def model(x):
        x = tf.reshape(x, (-1, weights.shape[1]))
        # Sums within an image, whose rounding does not depend on the batch size.
        return tf.reduce_sum(x[:, None] * weights, axis=2) + biases

    return weights, biases, model


def images(count=12, seed=1):
    """Images, a third of the pixels at either end of [0, 1], so that the range is active."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.uniform(-0.5, 1.5, (count, *SHAPE)), 0, 1).astype(np.float32)


def labelled(model, count=12):
    """Images and the model's predicted classes."""
    x = images(count)
    return x, np.argmax(model(x), axis=1).astype(np.int32)


def lead_at_corner(weights, biases, x, y, target, epsilon):
    """The highest z_target - z_y of a linear model in the L-infinity ball within [0, 1]."""
    w = (weights[target] - weights[y]).astype(np.float64)
    x = x.reshape(-1).astype(np.float64)
    corner = np.clip(x + epsilon * np.sign(w), 0, 1)
    return w @ corner + float(biases[target] - biases[y])


def highest_leads(weights, biases, x, y, epsilon):
    """For each image, the highest lead of any wrong class."""
    return np.array(
        [
            max(
                lead_at_corner(weights, biases, image, label, t, epsilon)
                for t in range(NUM_CLASSES)
                if t != label
            )
            for image, label in zip(x, y, strict=True)
        ]
    )


def worst_point(image, direction, epsilon, norm):
    """The point of ball and pixel range that lies farthest in a direction; float64.

    In L-infinity it is a corner. In L2 the pixels follow the direction, each until it reaches the
    end of the range, so far that all of the radius is spent.

    Args:
        image, direction: arrays of one shape, pixels in [0, 1].
        epsilon: radius.
        norm: "linf" or "l2".
    """
    image, direction = np.asarray(image, np.float64), np.asarray(direction, np.float64)
    if norm == "linf":
        return np.clip(image + epsilon * np.sign(direction), 0, 1)

    def moved(length):
        return np.clip(image + length * direction, 0, 1)

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        is_within = np.linalg.norm(moved(middle) - image) < epsilon
        low, high = (middle, high) if is_within else (low, middle)
    return moved(high)


def small_network(seed=0):
    """A keras.Model with layers whose results may depend on the batch."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(6, 3, padding="same", activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(NUM_CLASSES, kernel_initializer=keras.initializers.HeNormal(seed)),
        ]
    )


EPSILON = {"linf": 0.02, "l2": 0.15}  # breaks some of the images, and not all
MAKERS = {
    "pgd": lambda model, **o: PGD(model, step_size=o["epsilon"] / 4, num_steps=8, **o),
    "targeted": lambda model, **o: PGD(
        model, step_size=o["epsilon"] / 4, num_steps=8, target="random", **o
    ),
    "odi_pgd": lambda model, **o: PGD(
        model, step_size=o["epsilon"] / 4, num_steps=8, odi_steps=2, **o
    ),
    "multi_targeted": lambda model, **o: MultiTargeted(
        model, step_size=o["epsilon"] / 4, num_steps=3, num_targets=3, **o
    ),
    "apgd_xent": lambda model, **o: APGD(model, num_steps=10, **o),
    "apgd_dlr": lambda model, **o: APGD(model, num_steps=10, loss_func="dlr", **o),
    "apgd_targeted": lambda model, **o: APGD(
        model, num_steps=10, loss_func="targeted_dlr", num_targets=3, **o
    ),
    "fab_targeted": lambda model, **o: FAB(model, num_steps=8, num_targets=3, **o),
    "square": lambda model, **o: Square(model, num_queries=40, **o),
}
# For what an attack's loss and target do not change: the others' classes are among these.
CLASSES = ("pgd", "multi_targeted", "apgd_xent", "fab_targeted", "square")
every_class = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in CLASSES else pytest.mark.slow) for name in MAKERS],
)


def make(name, model, norm, **options):
    options = {"epsilon": EPSILON[norm], "norm": norm, "jit_compile": False, **options}
    return MAKERS[name](model, **options)
