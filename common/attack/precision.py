"""The arithmetic in which attacks compute gradients and queries: float32 or bfloat16.

bfloat16 has float32's range and 8 significant bits. Matrix units multiply it 2 to 8 times as fast,
and add up in float32. Weights, pixels, steps and the decision whether an example is misclassified
stay float32.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from common.attack.fast import FastModel
from common.attack.gradient import as_logits, value_and_gradient
from common.attack.softmax import WithoutSoftmax, last_operation, without_softmax
from common.errors import InputError, one_line

PRECISIONS = ("auto", "float32", "bfloat16")
_CPUINFO = pathlib.Path("/proc/cpuinfo")
_CPU_UNITS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16"}
_FIRST_GPU = (8, 0)  # the lowest compute capability with fast bfloat16
# Between the effect of rounding on logits, as a share of the largest, and that of an unfit model.
_MOST_ROUNDING = 0.1
_NUM_CHECKED = 2  # images


@dataclasses.dataclass(frozen=True)
class Precision:
    """The arithmetic of an attack.

    Attributes:
        name: "float32" or "bfloat16".
        reason: the reason for it, in words.
        logits: in bfloat16, a keras.Model's logits in it, a function of float32 images; else None.
    """

    name: str
    reason: str
    logits: Callable | None = dataclasses.field(default=None, repr=False, compare=False)

    def __str__(self):
        return f"{self.name} ({self.reason})"


def check_precision(precision):
    """Raises InputError if `precision` is not one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")


@contextlib.contextmanager
def without_tf32():
    """Within its context a GPU multiplies in float32.

    Otherwise TensorFlow rounds the factors to TF32's 11 significant bits there.
    """
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


@functools.cache
def bfloat16_unit():
    """The name of this machine's unit for fast bfloat16: GPU, TPU, or of the processor; or None."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        details = tf.config.experimental.get_device_details(gpu)
        if details.get("compute_capability", (0, 0)) >= _FIRST_GPU:
            return details.get("device_name", "the GPU")
    if gpus:  # attacks run there, and not on the processor
        return None
    if tf.config.list_physical_devices("TPU"):
        return "the TPU"
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return next((unit for flag, unit in _CPU_UNITS.items() if flag in flags), None)


def precision_of(asked, model, image_shape, bounds):
    """Decides the arithmetic of attacks on a model.

    Args:
        asked: one of `PRECISIONS`; "auto" is bfloat16 if this machine multiplies it fast. A model
            that cannot run in bfloat16 is always attacked in float32.
        model: see `Attack`.
        image_shape: (height, width, channels), or None, which is enough for a function.
        bounds: (lowest, highest) pixel value.

    Returns:
        A `Precision`; or None if `image_shape` is needed and None.
    """
    if asked == "float32":
        return Precision("float32", "as asked for")
    unit = bfloat16_unit()
    if asked == "auto" and unit is None:
        return Precision("float32", "no unit for bfloat16 is known here")
    reason = "as asked for" if asked == "bfloat16" else f"by {unit}"
    logits = None
    if not isinstance(model, FastModel):
        if not isinstance(model, keras.Model):
            return Precision("float32", "the attack sees a function, not a keras.Model")
        if image_shape is None:
            return None
        try:
            logits = _tried(model, image_shape, bounds)
        except Exception as error:  # whatever a layer does that bfloat16 is not made for
            name = "" if isinstance(error, _CannotError) else f"{type(error).__name__}: "
            (what, *_) = [*str(error).splitlines(), ""]
            return Precision("float32", one_line(f"the model cannot run in bfloat16: {name}{what}"))
    return Precision("bfloat16", reason, logits)


class _CannotError(Exception):
    """Why a model cannot run in bfloat16."""


def _tried(model, image_shape, bounds):
    """`in_bfloat16(model)`, after it has run on two images; raises anything if it cannot."""
    if not tf.executing_eagerly():
        raise _CannotError("the first call is within a tf.function, where it cannot be tried")
    noise = np.random.default_rng(0).uniform(*bounds, (_NUM_CHECKED, *image_shape))
    x = tf.constant(noise, tf.float32)
    exact = as_logits(model(x, training=False), x).numpy()  # which builds a model that is not yet
    logits = in_bfloat16(model)

    @tf.function(autograph=False)
    def check(x):
        z, _, gradient, _ = value_and_gradient(
            lambda z: tf.reduce_sum(z, axis=1), lambda x: as_logits(logits(x), x), x
        )
        return z, gradient

    rounded, gradient = (tensor.numpy() for tensor in check(x))
    known = np.isfinite(exact)
    scale = np.max(np.abs(exact[known]), initial=1e-6)
    difference = np.max(np.abs(rounded[known] - exact[known]), initial=0.0)
    if not (difference <= _MOST_ROUNDING * scale and np.all(np.isfinite(gradient))):
        raise _CannotError("bfloat16 changes the logits by more than rounding")
    return logits


def in_bfloat16(model):
    """The logits of a keras.Model with its own float32 weights, computed in bfloat16.

    A copy of the model computes them, with the model's current weights. In the copy, the layers
    between the first and the last layer with a kernel have Keras's policy mixed_bfloat16. The first
    one and the layers before it stay unchanged, since 8 bits are few for pixels, and so do the last
    one, which computes the logits, and layers of another policy than float32.

    Args:
        model: keras.Model, Sequential or functional, built; or one of these `WithoutSoftmax`.

    Returns:
        A function from float32 images to logits, in inference mode.

    Raises:
        Exception: it cannot be copied so, of any kind.
    """
    network = model.model if isinstance(model, WithoutSoftmax) else model
    if not _is_graph(network):
        raise _CannotError("it is neither Sequential nor functional")
    layers = _layers(network)
    kernels = [i for i, layer in enumerate(layers) if _has_kernel(layer)]
    between = layers[kernels[0] + 1 : kernels[-1]] if kernels else []
    changed = {id(layer) for layer in between if layer.dtype_policy.name == "float32"}
    if any(_has_kernel(layer) and layer.compute_dtype == "bfloat16" for layer in between):
        return lambda x: model(x, training=False)  # it computes so by itself
    if not any(_has_kernel(layer) and id(layer) in changed for layer in between):
        raise _CannotError("it has no float32 kernel between its first and its last")

    def copy(layer):
        if id(layer) not in changed:
            return layer.__class__.from_config(layer.get_config())
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_bfloat16")  # of what the layer itself makes
        try:
            settings = {**layer.get_config(), "dtype": "mixed_bfloat16"}
            return layer.__class__.from_config(settings)
        finally:
            keras.config.set_dtype_policy(before)

    rounded = keras.models.clone_model(network, clone_function=copy, recursive=True)
    if _shapes(network) != _shapes(rounded):
        raise _CannotError("its copy has other weights")

    softmax = contextlib.nullcontext
    if network is not model:
        softmax = functools.partial(without_softmax, last_operation(rounded))

    # Paired here, since a layer of the model may be frozen later.
    weight_of = dict(zip(map(id, rounded.variables), network.variables, strict=True))
    groups = [
        [weight_of[id(variable)] for variable in variables]
        for variables in (rounded.trainable_variables, rounded.non_trainable_variables)
    ]

    def logits(x):
        weights = ([tf.convert_to_tensor(variable) for variable in group] for group in groups)
        with softmax():
            return rounded.stateless_call(*weights, x, training=False)[0]

    return logits


def _has_kernel(layer):
    """Whether a layer multiplies by matrices, or a layer that it holds does."""
    return any(weight.name == "kernel" for weight in layer.weights)


def _shapes(model):
    variables = (*model.trainable_variables, *model.non_trainable_variables)
    return [tuple(variable.shape) for variable in variables]


def _layers(model):
    """The layers of a model and of the models within it, in the order in which they run."""
    parts = (_layers(layer) if _is_graph(layer) else [layer] for layer in model.layers)
    return list(dict.fromkeys(layer for part in parts for layer in part))


def _is_graph(layer):
    """Whether a layer is a model whose graph of layers Keras knows, and can copy."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "inputs", None))
