"""L-infinity attacks: the inner maximisation of the paper's saddle-point problem (Sec. 2.1).

    max over |delta|_inf <= epsilon of loss(model(x + delta), y)

PGD takes signed gradient steps from a random point of the ball and projects after each; FGSM is
one step of size epsilon from the image itself.

    attack = PGD(model, epsilon=0.3, step_size=0.01, num_steps=40, bounds=(0.0, 1.0))
    x_adv = attack.perturb(x_nat, y, seed=1)
"""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from common.errors import InputError

LOSSES = ("xent", "cw")


def xent_loss(logits, y):
    """Cross-entropy of each example.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).

    Returns:
        float32 (batch,).
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)


def cw_loss(logits, y, kappa=50.0):
    """Carlini-Wagner loss of each example: -max(z_y - max_{i != y} z_i + kappa, 0).

    It grows as the best wrong logit overtakes the correct one and stops at a lead of `kappa`.
    kappa=50 is the original code's `cw` and the paper's CW+; kappa=0 is the paper's CW, whose
    gradient vanishes once an example is misclassified. The correct class is masked out of the
    maximum, so that it holds when all other logits are negative.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).
        kappa: the confidence, in logits.

    Returns:
        float32 (batch,).
    """
    is_correct = tf.one_hot(y, tf.shape(logits)[-1], dtype=logits.dtype)
    correct = tf.reduce_sum(is_correct * logits, axis=-1)
    wrong = tf.reduce_max((1.0 - is_correct) * logits - 1e4 * is_correct, axis=-1)
    return -tf.nn.relu(correct - wrong + kappa)


def project(x, x_nat, epsilon, bounds):
    """Projects `x` onto {x : max|x - x_nat| <= epsilon} within `bounds` (paper, Sec. 2.1).

    Args:
        x, x_nat: float32 images (batch, height, width, channels), `x_nat` within `bounds`.
        epsilon: radius in the units of `bounds`: 0.3 on MNIST's [0, 1], 8 on CIFAR-10's [0, 255].
        bounds: (lowest, highest) pixel value.

    Returns:
        float32, the shape of `x`.
    """
    x = tf.clip_by_value(x, x_nat - epsilon, x_nat + epsilon)
    return tf.clip_by_value(x, bounds[0], bounds[1])


def uniform_start(x_nat, epsilon, bounds, seed, index):
    """A uniform point of the ball around each image, clipped to the pixel range.

    The noise of an example depends on its seed and on its own entry of `index` only, so it is the
    same however the examples are batched.

    Args:
        x_nat: float32 images (batch, height, width, channels).
        epsilon, bounds: as in `project`.
        seed: int tensor (2,), or (batch, 2), one for each example.
        index: int tensor (batch,), the number of each example.

    Returns:
        float32, the shape of `x_nat`.
    """
    shape = tf.shape(x_nat)[1:]

    def uniform(seed_and_index):
        # Philox gives the same numbers on every device, though not under XLA.
        example_seed = tf.random.fold_in(*seed_and_index, alg="philox")
        return tf.random.stateless_uniform(shape, example_seed, -1.0, 1.0, alg="philox")

    seeds = tf.broadcast_to(seed, (tf.size(index), 2))
    noise = tf.map_fn(
        uniform, (seeds, index), fn_output_signature=tf.float32, parallel_iterations=1
    )
    # The original code clips the start to the pixel range since 2019, after the published numbers;
    # that moves them by less than 0.1 points.
    x = x_nat + epsilon * tf.reshape(noise, tf.shape(x_nat))
    return tf.clip_by_value(x, bounds[0], bounds[1])


@dataclasses.dataclass(frozen=True)
class FastModel:
    """A model, and the same function in a form that `PGD` runs faster on a CPU.

    Attributes:
        model: callable from float32 images to float32 logits.
        prepare: function without arguments to such a callable, which agrees with `model` to
            float32 rounding, gradients for the images included. `PGD` calls it once an attack,
            before the first step, so that what depends on the weights alone is computed once.
    """

    model: Callable
    prepare: Callable

    def __call__(self, x):
        """The model's logits."""
        return self.model(x)


def compiles_with_xla(jit_compile):
    """Whether to compile with XLA: "yes", "no", or "auto", which does so on a GPU or TPU.

    On a CPU TensorFlow's own convolutions are about four times as fast as XLA's.

    Raises:
        InputError: it is another word.
    """
    if jit_compile not in ("auto", "yes", "no"):
        raise InputError(f"jit_compile: expected auto, yes or no, got {jit_compile!r}")
    if jit_compile == "auto":
        return any(tf.config.list_physical_devices(kind) for kind in ("GPU", "TPU"))
    return jit_compile == "yes"


class PGD:
    """Projected gradient descent on the loss, in L-infinity (paper, Sec. 2.1 and 4).

        x <- project(x + step_size * sign(grad_x loss(model(x), y)))     num_steps times

    Args:
        model: callable from float32 images to float32 logits (batch, classes): a keras.Model, a
            `FastModel`, such as the `logits` of a model loaded by `common.checkpoints`, or any
            function, such as `lambda x: layer(x)["logits"]` around a keras TFSMLayer.
        epsilon: radius of the ball, in the units of `bounds`.
        step_size: length of a step, in the same units.
        num_steps: number of steps; 0 returns the start.
        random_start: start at a uniform point of the ball; False starts at the image.
        loss_func: "xent", or "cw" with confidence `kappa`.
        kappa: see `cw_loss`.
        bounds: (lowest, highest) pixel value.
        batch_statistics: False attacks the model in inference mode. True calls it with
            training=True, as the original CIFAR-10 training does: batch norm then uses the
            statistics of the batch under attack (which couples its images) and every step
            moves the stored averages. The published networks were trained so, for the
            convenience of one graph; it is meant for training only.
        jit_compile: "yes", "no" or "auto": whether XLA compiles the attack, see
            `compiles_with_xla`.

    Raises:
        InputError: a number is out of range; the message says what was expected and what came.
    """

    def __init__(
        self,
        model,
        *,
        epsilon,
        step_size,
        num_steps,
        random_start=True,
        loss_func="xent",
        kappa=50.0,
        bounds=(0.0, 1.0),
        batch_statistics=False,
        jit_compile="auto",
    ):
        check_radius(epsilon, step_size, bounds)
        if num_steps < 0:
            raise InputError(f"num_steps: expected 0 or more, got {num_steps}")
        if loss_func not in LOSSES:
            raise InputError(f"loss_func: expected one of {', '.join(LOSSES)}, got {loss_func!r}")
        self.epsilon = float(epsilon)
        self.step_size = float(step_size)
        self.num_steps = int(num_steps)
        self.random_start = bool(random_start)
        self.loss_func = loss_func
        self.kappa = float(kappa)
        self.bounds = (float(bounds[0]), float(bounds[1]))
        loss = xent_loss if loss_func == "xent" else functools.partial(cw_loss, kappa=self.kappa)
        jit_compile = compiles_with_xla(jit_compile)
        is_fast = isinstance(model, FastModel) and not jit_compile

        def prepare():
            if batch_statistics:
                return functools.partial(model, training=True)
            if isinstance(model, keras.layers.Layer):  # plain functions have no such argument
                return functools.partial(model, training=False)
            return model.prepare() if is_fast else model

        def ascend(logits, x, x_nat, y, epsilon, step_size):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                total = tf.reduce_sum(loss(logits(x), y))
            gradient = tape.gradient(total, x)
            if gradient is None:
                raise ValueError("model: expected logits with a gradient for the images, got none")
            gradient = tf.ensure_shape(gradient, x.shape)
            return project(x + step_size * tf.sign(gradient), x_nat, epsilon, self.bounds)

        def climb(x, x_nat, y, epsilon, step_size):
            logits = prepare()
            # Two halves of the batch side by side keep the cores busy: while one waits for memory
            # or for an op of a single thread, the other one computes.
            count = x_nat.shape[0] or 0  # None where it is not known
            parts = [count // 2, count - count // 2] if is_fast and count > 1 else 1
            x, x_nat, y = (tf.split(tensor, parts) for tensor in (x, x_nat, y))
            for _ in tf.range(self.num_steps):
                tf.autograph.experimental.set_loop_options(maximum_iterations=self.num_steps)
                x = [ascend(logits, *part, epsilon, step_size) for part in zip(x, x_nat, y)]
            return tf.concat(x, axis=0)

        if jit_compile:
            climb = tf.function(climb, jit_compile=True)

        # The halves of a batch, and XLA, need its size.
        @tf.function(reduce_retracing=not (is_fast or jit_compile))
        def perturb(x_nat, y, seed, index, scale):
            epsilon, step_size = scale * self.epsilon, scale * self.step_size
            x = x_nat
            if self.random_start:
                x = uniform_start(x_nat, epsilon, self.bounds, seed, index)
            return climb(x, x_nat, y, epsilon, step_size)

        self._perturb = perturb

    def perturb(self, x_nat, y, seed=0, index=None, scale=1.0):
        """Adversarial examples for `x_nat`.

        Args:
            x_nat: images (batch, height, width, channels), pixels in `bounds`; NumPy or tf, any
                real dtype (integers are converted first, so that nothing wraps round).
            y: labels (batch,), any integer dtype.
            seed: for the random start: int, a pair of ints, or int (batch, 2), a pair for each
                example.
            index: int (batch,), the number of each example in its data set, which together with
                `seed` decides its random start; by default 0, 1, 2, ...
            scale: multiplies epsilon and step_size, for training that starts with a small ball.

        Returns:
            float32 tensor, the shape of `x_nat`.

        Raises:
            InputError: NumPy images are outside `bounds`.
        """
        if isinstance(x_nat, np.ndarray) and x_nat.size:
            self._check_pixels(x_nat)
        x_nat = tf.cast(x_nat, tf.float32)
        index = tf.range(tf.shape(x_nat)[0]) if index is None else tf.cast(index, tf.int32)
        return self._perturb(
            x_nat, tf.cast(y, tf.int32), _seed_pair(seed), index, tf.cast(scale, tf.float32)
        )

    def _check_pixels(self, x_nat):
        low, high = self.bounds
        if not (low - 1e-4 <= x_nat.min() and x_nat.max() <= high + 1e-4):
            raise InputError(
                f"x_nat: expected pixels in [{low:g}, {high:g}], "
                f"got [{x_nat.min():g}, {x_nat.max():g}]"
            )

    def settings(self):
        """The hyperparameters as a dict, for the files that record what was run."""
        names = ("epsilon", "step_size", "num_steps", "random_start", "loss_func", "kappa")
        settings = {name: getattr(self, name) for name in names}
        if self.loss_func != "cw":
            del settings["kappa"]
        return settings


def FGSM(model, *, epsilon, **kwargs):
    """Fast gradient sign method (Goodfellow et al. 2015): one PGD step of size epsilon.

    `kwargs` are PGD's, without step_size, num_steps and random_start.
    """
    return PGD(model, epsilon=epsilon, step_size=epsilon, num_steps=1, random_start=False, **kwargs)


def make_attack(name, model, config, bounds, batch_statistics=False):
    """The attack that a config describes.

    Args:
        name: "pgd", or "fgsm", which takes only epsilon and the loss from the config.
        model: see `PGD`.
        config: a `common.config.Config`.
        bounds, batch_statistics: see `PGD`.

    Raises:
        InputError: `name` is neither; as `PGD`.
    """
    settings = {
        "epsilon": config.epsilon,
        "loss_func": config.loss_func,
        "kappa": config.kappa,
        "bounds": bounds,
        "batch_statistics": batch_statistics,
        "jit_compile": config.jit_compile,
    }
    if name == "fgsm":
        return FGSM(model, **settings)
    if name == "pgd":
        return PGD(
            model,
            step_size=config.step_size,
            num_steps=config.num_steps,
            random_start=config.random_start,
            **settings,
        )
    raise InputError(f"--attack: expected pgd or fgsm, got {name!r}")


def check_radius(epsilon, step_size, bounds):
    """Raises InputError where epsilon or step_size cannot be in the units of `bounds`."""
    low, high = bounds
    width = high - low
    unit = f"pixels are in [{low:g}, {high:g}]"
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        if not (np.isfinite(value) and 0 <= value <= width):
            is_byte = width == 1 < value < 256
            hint = f"; did you mean {value / 255:.4g} ({value:g}/255)?" if is_byte else ""
            raise InputError(f"{name}: expected 0 to {width:g} ({unit}), got {value:g}{hint}")
    if width > 1:
        # Numbers for pixels in [0, 1], such as 0.031 for 8/255.
        for name, value, least in (
            ("epsilon", epsilon, 0.2),
            ("step_size", step_size, epsilon / 500),
        ):
            if 0 < value < least:
                raise InputError(
                    f"{name}: expected 0, or {least:g} to {width:g} ({unit}), got {value:g}; "
                    f"did you mean {value * width:.3g}?"
                )


def round_to_8_bits(x_adv, x_nat, epsilon, bounds):
    """The nearest images with 256 levels a pixel that stay within the ball.

    Args:
        x_adv, x_nat: float32 images; `x_nat` has 256 levels itself, as the data sets do.
        epsilon, bounds: as in `project`.

    Returns:
        float32, the shape of `x_adv`.
    """
    level = (bounds[1] - bounds[0]) / 255.0
    reach = np.floor(epsilon / level + 1e-4)
    steps = tf.clip_by_value(tf.round((x_adv - x_nat) / level), -reach, reach)
    return tf.clip_by_value(x_nat + steps * level, bounds[0], bounds[1])


def _seed_pair(seed):
    seed = tf.cast(seed, tf.int32)
    return tf.stack([seed, 0]) if seed.shape.rank == 0 else seed
