"""The arithmetic in which attacks compute gradients and queries: float32 or bfloat16.

bfloat16 has float32's range and 8 significant bits. Matrix units multiply it 2 to 8 times as fast,
and add up in float32. Weights, pixels, steps and every verdict stay float32.
"""

import contextlib
import dataclasses
import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf

from common.attack.fast import FastModel
from common.attack.gradient import as_logits, value_and_gradient
from common.errors import InputError, one_line

PRECISIONS = ("auto", "float32", "bfloat16")
_CPUINFO = pathlib.Path("/proc/cpuinfo")
_CPU_UNITS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16"}
_FIRST_GPU = (8, 0)  # the compute capability from which on a GPU multiplies bfloat16 fast
# More than rounding does to logits, as a share of the largest; less than an unfit model does.
_MOST_ROUNDING = 0.1
_NUM_CHECKED = 2  # images


@dataclasses.dataclass(frozen=True)
class Precision:
    """The arithmetic that an attack takes.

    Attributes:
        name: "float32" or "bfloat16".
        reason: why, in words.
    """

    name: str
    reason: str

    def __str__(self):
        return f"{self.name} ({self.reason})"


def check_precision(precision):
    """Raises InputError if `precision` is not one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")


@functools.cache
def bfloat16_unit():
    """What multiplies bfloat16 fast here: a GPU, a TPU or a unit of the processor; None if none."""
    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        if details.get("compute_capability", (0, 0)) >= _FIRST_GPU:
            return details.get("device_name", "the GPU")
    if tf.config.list_physical_devices("TPU"):
        return "the TPU"
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return next((unit for flag, unit in _CPU_UNITS.items() if flag in flags), None)


def precision_of(asked, model, image_shape, bounds):
    """Decides in which arithmetic a model is attacked.

    Args:
        asked: one of `PRECISIONS`; "auto" is bfloat16 where this machine multiplies it fast.
            A model that cannot run so is attacked in float32 in any case.
        model: see `Attack`.
        image_shape: (height, width, channels).
        bounds: (lowest, highest) pixel value.

    Returns:
        A `Precision`.
    """
    if asked == "float32":
        return Precision("float32", "as asked for")
    unit = bfloat16_unit()
    if asked == "auto" and unit is None:
        return Precision("float32", "no unit for bfloat16 is known here")
    is_fast = isinstance(model, FastModel)
    fault = None if is_fast else _fault_of(model, image_shape, bounds)
    if fault is not None:
        return Precision("float32", one_line(fault))
    return Precision("bfloat16", "as asked for" if asked == "bfloat16" else f"by {unit}")


def _fault_of(model, image_shape, bounds):
    """Why a model cannot run in bfloat16, in words, or None if it can."""
    if not isinstance(model, keras.Model):
        return "the model is a function, not a keras.Model"
    if not tf.executing_eagerly():
        return "the first call is within a tf.function, where the model cannot be tried"
    noise = np.random.default_rng(0).uniform(*bounds, (_NUM_CHECKED, *image_shape))

    @tf.function(autograph=False)
    def check(x):
        with in_bfloat16(model):
            z, _, gradient, _ = value_and_gradient(
                lambda z: tf.reduce_sum(z, axis=1),
                lambda x: as_logits(model(x, training=False), x),
                x,
            )
        return z, gradient

    x = tf.constant(noise, tf.float32)
    exact = as_logits(model(x, training=False), x).numpy()
    if len(_matrix_layers(model)) < 3:
        return "the model has no product of matrices between its first and its last"
    try:
        rounded, gradient = (tensor.numpy() for tensor in check(x))
    except Exception as error:  # whatever a layer does that bfloat16 is not made for
        return f"the model does not run in bfloat16: {type(error).__name__}: {error}"
    with np.errstate(invalid="ignore"):
        known = np.isfinite(exact)
        scale = np.max(np.abs(exact[known]), initial=1e-6)
        difference = np.max(np.abs(rounded[known] - exact[known]), initial=0.0)
    if not (difference <= _MOST_ROUNDING * scale and np.all(np.isfinite(gradient))):
        return "bfloat16 changes the model's logits by more than rounding"
    return None


@contextlib.contextmanager
def in_bfloat16(model):
    """Within it, a keras.Model is traced in bfloat16, with its own float32 weights.

    The layers between the first and the last with a kernel compute in Keras's policy
    mixed_bfloat16. The first and what is before it stay as they are, since 8 bits are few for
    pixels, and the last, since it makes the logits; so do layers of another policy than float32.
    """
    layers = _leaves(model)
    matrix_layers = _matrix_layers(model)
    first, last = (layers.index(layer) for layer in (matrix_layers[0], matrix_layers[-1]))
    changed = [layer for layer in layers[first + 1 : last] if layer.dtype_policy.name == "float32"]
    try:
        for layer in changed:
            layer.dtype_policy = "mixed_bfloat16"
        yield
    finally:
        for layer in changed:
            layer.dtype_policy = "float32"


def _leaves(layer):
    """The layers within a layer that hold none themselves, each once, in the order they are held.

    `keras.Model.layers` does not list what a layer that is no model holds, such as a block.
    """
    if not layer._layers:
        return [layer]
    return list(dict.fromkeys(leaf for part in layer._layers for leaf in _leaves(part)))


def _matrix_layers(model):
    """The layers with a kernel, in the order in which the model holds them."""
    return [
        layer for layer in _leaves(model) if any(len(weight.shape) >= 2 for weight in layer.weights)
    ]
