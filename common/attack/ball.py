"""The balls that attacks stay in: projection, random start, direction of a step, radius.

L-infinity: max|delta| <= epsilon. L2: the root of the sum of delta**2 over an image's pixels and
channels <= epsilon. Both are intersected with the pixel range, which contains the images.
"""

import numpy as np
import tensorflow as tf

from common.attack import draws
from common.attack.inputs import LARGEST, SMALLEST, pixel_range, to_float
from common.errors import InputError

NORMS = ("linf", "l2")


def step(x, gradient, x_nat, epsilon, step_size, bounds, norm="linf"):
    """One step of projected gradient ascent (paper, Sec. 2.1).

        x <- project(x + step_size * direction(gradient))

    Args:
        x, x_nat, epsilon, bounds, norm: see `project`.
        gradient: float32, the shape of `x`.
        step_size: length of the step, in the units of `bounds`; float, or a tensor that multiplies
            images.

    Returns:
        float32, the shape of `x`.
    """
    x = x + step_size * direction(gradient, norm)
    return project(x, x_nat, epsilon, bounds, norm)


def project(x, x_nat, epsilon, bounds, norm="linf"):
    """Projects `x` onto {x : |x - x_nat| <= epsilon} within `bounds` (paper, Sec. 2.1).

    In L2 it projects onto the ball and then onto the pixel range, which stays in the ball.

    Args:
        x, x_nat: float32 images (batch, height, width, channels), `x_nat` within `bounds`.
        epsilon: radius in the units of `bounds`: 0.3 on MNIST's [0, 1], 8 on CIFAR-10's [0, 255].
        bounds: (lowest, highest) pixel value.
        norm: "linf" or "l2".

    Returns:
        float32, the shape of `x`.
    """
    if norm == "linf":
        x = tf.clip_by_value(x, x_nat - epsilon, x_nat + epsilon)
    else:
        delta = x - x_nat
        distance = per_image(length(delta, "l2"), x)
        x = x_nat + delta * tf.where(distance > epsilon, epsilon / distance, 1.0)
    return tf.clip_by_value(x, bounds[0], bounds[1])


def length(delta, norm):
    """The norm of each example of `delta` (batch, ...), as float32 (batch,)."""
    axes = list(range(1, len(delta.shape)))
    if norm == "linf":
        return tf.reduce_max(tf.abs(delta), axis=axes)
    return tf.sqrt(tf.reduce_sum(tf.square(delta), axis=axes))


def direction(gradient, norm):
    """The direction of steepest ascent: sign(gradient), or in L2 gradient / |gradient|.

    Args:
        gradient: float32 images (batch, height, width, channels).
        norm: "linf" or "l2".

    Returns:
        float32, the shape of `gradient`, each example of norm 1, or 0 if its gradient is 0. An
        infinite gradient has the direction of its infinite pixels.
    """
    if norm == "linf":
        return tf.sign(gradient)
    gradient = tf.clip_by_value(gradient, tf.float32.min, tf.float32.max)  # infinity over itself
    # The squares of a confident network's gradient are less than float32 can hold.
    gradient = tf.math.divide_no_nan(gradient, per_image(length(gradient, "linf"), gradient))
    return tf.math.divide_no_nan(gradient, per_image(length(gradient, "l2"), gradient))


def per_image(values, x):
    """`values` (batch,) in a shape that multiplies the images `x`."""
    return tf.reshape(values, [-1] + [1] * (len(x.shape) - 1))


def select(condition, x, y):
    """`x` where `condition` holds, else `y`; it copies whole images, `tf.where` pixel by pixel.

    Args:
        condition: bool, or bool (batch,).
        x, y: tensors (batch, ...) of one shape.
    """
    return tf.raw_ops.Select(condition=condition, x=x, y=y)


def uniform_start(
    x_nat, epsilon, bounds, seed, index, norm="linf", stream=None, side_by_side=False
):
    """A uniform point of the ball around each image, clipped to the pixel range.

    An example's noise depends only on its seed and its entry of `index`, not on its batch.

    Args:
        x_nat: float32 images (batch, height, width, channels).
        epsilon, bounds, norm: see `project`.
        seed: int tensor (2,), or (batch, 2), one for each example.
        index: int tensor (batch,), the number of each example.
        stream, side_by_side: see `draw`; normal numbers are drawn in turn in any case.

    Returns:
        float32, the shape of `x_nat`.
    """
    shape = tf.shape(x_nat)
    if norm == "linf":
        noise = draw(shape[1:], seed, index, stream, side_by_side=side_by_side)
    else:
        # The first n coordinates of a uniform point of the sphere in n + 2 dimensions are uniform
        # in the n-dimensional ball.
        noise = draw(tf.reduce_prod(shape[1:])[None] + 2, seed, index, stream, is_normal=True)
        noise = tf.math.l2_normalize(noise, axis=1)[:, :-2]
    # The original code clips the start to the pixel range since 2019, after the published numbers;
    # this changes them by less than 0.1 points.
    x = x_nat + epsilon * tf.reshape(noise, shape)
    return tf.clip_by_value(x, bounds[0], bounds[1])


def draw(shape, seed, index, stream=None, is_normal=False, side_by_side=False):
    """Random numbers for each example, uniform in [-1, 1) or standard normal.

    Args:
        shape: int tensor, the shape of one example's numbers.
        seed: int tensor (2,), or (batch, 2), one for each example.
        index: int tensor (batch,), the number of each example.
        stream: int that distinguishes the draws of an attack, or None for an attack with one draw.
        is_normal: whether the numbers are normal.
        side_by_side: True computes uniform numbers for all examples at once, for a GPU and XLA;
            False for one example after another, by TensorFlow's ops. Both are the same bit for bit.

    Returns:
        float32 (batch, *shape).
    """
    seeds = tf.broadcast_to(seed, (tf.size(index), 2))
    if side_by_side and not is_normal:
        seeds = draws.fold_in(seeds, index)
        if stream is not None:
            seeds = draws.fold_in(seeds, stream)
        numbers = draws.uniform(seeds, tf.reduce_prod(shape)) * 2.0 - 1.0
        return tf.reshape(numbers, tf.concat([[tf.size(index)], shape], axis=0))

    def numbers(seed_and_index):
        # These ops give the same numbers on every device, though not under XLA.
        example_seed = tf.random.fold_in(*seed_and_index, alg="philox")
        if stream is not None:
            example_seed = tf.random.fold_in(example_seed, stream, alg="philox")
        if is_normal:
            return tf.random.stateless_normal(shape, example_seed, alg="philox")
        return tf.random.stateless_uniform(shape, example_seed, -1.0, 1.0, alg="philox")

    return tf.map_fn(numbers, (seeds, index), fn_output_signature=tf.float32, parallel_iterations=1)


def check_radius(epsilon, step_size, bounds, norm="linf"):
    """Raises InputError if epsilon or step_size cannot be in the units of `bounds`."""
    low, high = pixel_range(bounds)
    width = high - low
    unit = f"pixels are in [{low:g}, {high:g}]"
    most = width if norm == "linf" else np.inf
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        value = to_float(name, value)
        if not (np.isfinite(value) and 0 <= value <= most):
            is_byte = width == 1 < value < 256
            hint = f"; did you mean {value / 255:.4g} ({value:g}/255)?" if is_byte else ""
            raise InputError(f"{name}: expected 0 to {most:g} ({unit}), got {value:g}{hint}")
        if value > LARGEST or 0 < value < SMALLEST:  # float32 squares to infinity, or rounds to 0
            raise InputError(
                f"{name}: expected 0, or {SMALLEST:g} to {LARGEST:g} ({unit}), got {value:g}"
            )
    if 254 <= width <= 256:
        # Numbers for pixels in [0, 1], such as 0.031 for 8/255, or 0.5 in L2.
        for name, value, least in (
            ("epsilon", epsilon, 0.2 if norm == "linf" else width / 100),
            ("step_size", step_size, epsilon / 500),
        ):
            if 0 < value < least:
                raise InputError(
                    f"{name}: expected 0, or {least:g} to {most:g} ({unit}), got {value:g}; "
                    f"did you mean {value * width:.3g}?"
                )


def round_to_8_bits(x_adv, x_nat, epsilon, bounds):
    """The nearest images with 256 levels a pixel that stay within the L-infinity ball.

    Args:
        x_adv, x_nat: float32 images; `x_nat` has 256 levels itself, as the data sets do.
        epsilon, bounds: see `project`.

    Returns:
        float32, the shape of `x_adv`.
    """
    level = (bounds[1] - bounds[0]) / 255.0
    reach = np.floor(epsilon / level + 1e-4)
    steps = tf.clip_by_value(tf.round((x_adv - x_nat) / level), -reach, reach)
    return tf.clip_by_value(x_nat + steps * level, bounds[0], bounds[1])
