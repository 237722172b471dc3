"""One pass through a model: its logits, the losses, and their gradient for the images."""

import functools

import keras
import tensorflow as tf

from common.attack.ball import select
from common.errors import InputError, one_line


def in_inference_mode(model):
    """A model as a function of images in inference mode, in which augmenting layers do nothing.

    Args:
        model: a keras layer or model, which is called with training=False; or any function.
    """
    is_layer = isinstance(model, keras.layers.Layer)
    return functools.partial(model, training=False) if is_layer else model


def graph_model(model):
    """`in_inference_mode`, for tf.functions without AutoGraph, which need less time to be traced.

    A function may have Python control flow over tensors; Keras does not allow it in layers.
    """
    call = in_inference_mode(model)
    return call if call is not model else tf.autograph.to_graph(lambda x: model(x))


def keras_model_of(model):
    """The keras.Model behind a function of `in_inference_mode`; any other model unchanged."""
    is_such = isinstance(model, functools.partial) and isinstance(model.func, keras.Model)
    if is_such and not model.args and model.keywords == {"training": False}:
        return model.func
    return model


def as_logits(z, x=None):
    """A model's output as float32 logits.

    Args:
        z: the output: logits (batch, classes) of any floating dtype.
        x: the images that the model was given, or None.

    Returns:
        float32 (batch, classes).

    Raises:
        InputError: it is not such a tensor, or has one class only.
    """
    if isinstance(z, dict) or (isinstance(z, (list, tuple)) and any(map(tf.is_tensor, z))):
        raise InputError(
            "model: expected a tensor of logits (batch, classes), got "
            f"{type(z).__name__} of {len(z)}; give a model or a function that returns one of them"
        )
    try:
        z = tf.convert_to_tensor(z)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"model: expected a tensor of logits (batch, classes), got {type(z).__name__}: "
            f"{one_line(error)}"
        ) from None
    if not z.dtype.is_floating:
        raise InputError(f"model: expected logits of a floating dtype, got {z.dtype.name}")
    if z.shape.rank is None:
        z = tf.ensure_shape(z, [None, None])
    counts = {z.shape[0], None if x is None else x.shape[0]} - {None} if z.shape.rank else set()
    if z.shape.rank != 2 or len(counts) > 1:
        count = "batch" if x is None or x.shape[0] is None else x.shape[0]
        raise InputError(f"model: expected logits ({count}, classes), got shape {tuple(z.shape)}")
    if z.shape[1] is not None and z.shape[1] < 2:
        hint = "; for the input z of a sigmoid give a function to tf.concat([0 * z, z], 1)"
        raise InputError(
            f"model: expected logits of 2 classes or more, got {z.shape[1]}"
            + (hint if z.shape[1] == 1 else "")
        )
    return tf.cast(z, tf.float32)


def value_and_gradient(loss, logits, x):
    """One pass: the model's logits, the loss of each example and its gradient for the images.

    Args:
        loss: function from logits (batch, classes) to float32 (batch,).
        logits: callable from float32 images to float32 logits.
        x: float32 images (batch, height, width, channels).

    Returns:
        float32 logits (batch, classes); losses (batch,); gradient of the shape of `x`, with 0 in
        place of NaN; bool (batch,), whether it had a NaN.

    Raises:
        InputError: the logits do not depend on the images, or not by a gradient.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        z = logits(x)
        losses = loss(z)
        total = tf.reduce_sum(losses)
    gradient = gradient_of(tape, total, x)
    if gradient is None:
        raise InputError(f"{_EXPECTED}, got none")
    return z, losses, *without_nan(tf.ensure_shape(gradient, x.shape))


def dtypes_of(model):
    """The floating dtypes that a keras layer or model computes in, a set; else empty."""
    if not isinstance(model, keras.layers.Layer):
        return set()
    layers = model._flatten_layers(include_self=True)
    # Layers of integers, such as one that casts labels, compute nothing that is rounded.
    return {layer.compute_dtype for layer in layers if "float" in str(layer.compute_dtype)}


def with_scaled_gradient(logits, model):
    """The logits of a model, whose gradient for the images does not vanish in float16.

    float16 rounds a number below 3e-8 to 0, such as the gradient of the cross-entropy for the
    logits of a confident prediction. Here the gradient of each example enters the model with 1 as
    its largest entry, and the gradient for the image is scaled back.

    Args:
        logits: function from float32 images to logits (batch, classes), each example for itself.
        model: what computes them.

    Returns:
        Function from float32 images to float32 logits; `logits` itself, if `model` is no keras
        layer or model that computes in float16.
    """
    if "float16" not in dtypes_of(model):
        return logits

    @tf.custom_gradient
    def scaled(x):
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(x)
            z = as_logits(logits(x), x)

        def gradient(upstream, variables=()):
            scale = tf.reduce_max(tf.abs(upstream), axis=1, keepdims=True)
            scale = tf.where(scale > 0.0, scale, 1.0)
            own = gradient_of(tape, z, x, output_gradients=upstream / scale)
            if own is not None:
                own *= tf.reshape(scale, [-1, *[1] * (x.shape.rank - 1)])
            return (own, [None] * len(variables)) if variables else own

        return z, gradient

    return scaled


def gradient_of(tape, total, x, **options):
    """`tape.gradient(total, x, **options)`.

    Raises:
        InputError: `total` depends on `x` by an op without a gradient in TensorFlow.
    """
    try:
        return tape.gradient(total, x, **options)
    except LookupError as error:
        raise InputError(f"{_EXPECTED}: {one_line(error)}") from None


def without_nan(gradient):
    """A gradient with 0 in place of NaN.

    The gradient of a norm at zero, for example, is NaN, and a step along it would make the image
    NaN.

    Args:
        gradient: float32 images (batch, height, width, channels).

    Returns:
        The gradient, and bool (batch,), whether it had a NaN.
    """
    is_nan = tf.math.is_nan(gradient)
    axes = list(range(1, gradient.shape.rank))
    return select(is_nan, tf.zeros_like(gradient), gradient), tf.reduce_any(is_nan, axis=axes)


_EXPECTED = "model: expected logits with a gradient for the images"
