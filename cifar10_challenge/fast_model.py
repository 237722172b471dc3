"""The CIFAR-10 networks of `model.py` in the form that a CPU runs fastest, for attacks.

Weights, logits and gradients are the same, up to the rounding of float32 or bfloat16, in inference
mode, in which batch norm is a multiplication and an addition. It is faster by these changes:

- A normalisation between two convolutions is folded into the kernel and bias of the first. In the
  gradient the multiplication of the other normalisation is folded into the kernel of the
  convolution after it.
- Bias, activation and the addition of the shortcut happen as a convolution writes its results.
- A shortcut that changes its number of channels is a convolution with a fixed kernel.
- The wide network uses Winograd's convolutions, in float32.
"""

import tensorflow as tf

from cifar10_challenge.model import SLOPE
from cifar10_challenge.winograd import WinogradConv
from common.attack.fast import fused

WINOGRAD_CHANNELS = 128  # with so many or more it is faster than a direct convolution


def fast_logits(model, precision="float32"):
    """The network's logits, in inference mode.

    It prepares the weights: call it once an attack, within the graph.

    Args:
        model: keras.Model of `model.build_model`.
        precision: "float32" computes in the dtype of the weights, "bfloat16" in bfloat16 between
            the first convolution and the mean.

    Returns:
        A function from float32 images (batch, 32, 32, 3) to float32 logits (batch, 10), with a
        gradient for the images and none for the weights.
    """
    weights = tf.as_dtype(model.get_layer("stem").kernel.dtype)
    dtype = tf.bfloat16 if precision == "bfloat16" else weights
    units = [
        _residual_unit(model, layer.name.removesuffix("_conv1"), dtype)
        for layer in model.layers
        if layer.name.endswith("_conv1")
    ]
    stem = tf.convert_to_tensor(model.get_layer("stem").kernel)
    last = _normalise(*_scale_and_offset(model.get_layer("last_norm")), dtype)
    kernel, bias = (tf.convert_to_tensor(weight) for weight in model.get_layer("logits").weights)

    def logits(image):
        x = tf.cast(tf.nn.conv2d(_standardise(image), stem, 1, "SAME"), dtype)
        for unit in units:
            x = unit(x)
        x = tf.reduce_mean(tf.cast(last(x), kernel.dtype), axis=(1, 2))
        return tf.nn.bias_add(tf.matmul(x, kernel), bias)

    return logits


def _residual_unit(model, name, dtype):
    def layer(part):
        return model.get_layer(f"{name}_{part}")

    scale1, offset1 = _scale_and_offset(layer("pre_norm"))
    scale2, offset2 = _scale_and_offset(layer("mid_norm"))
    kernel1, kernel2 = (tf.convert_to_tensor(layer(f"conv{i}").kernel) for i in (1, 2))
    stride = layer("conv1").strides[0]
    normalise1 = _normalise(scale1, offset1, dtype)
    conv1 = _conv(tf.cast(kernel1 * scale2, dtype), stride)
    conv2 = _conv(tf.cast(kernel2, dtype))
    conv1_back = _conv_back(tf.cast(kernel1 * scale1[:, None] * scale2, dtype), stride)
    conv2_back = _conv_back(tf.cast(kernel2, dtype))
    resize = _shortcut_kernel(*kernel1.shape[2:], stride, dtype)
    scale1, offset2 = tf.cast(scale1, dtype), tf.cast(offset2, dtype)
    # TensorFlow fuses an addition with a convolution only after a bias, and drops a bias that it
    # knows to be zero; it does not know it of this one.
    no_bias = tf.minimum(tf.abs(offset2), 0.0)
    # Only the network's first unit activates before its shortcut.
    activates_before_shortcut = name == "unit1_0"

    @tf.custom_gradient
    def unit(x):
        y = normalise1(x)
        z = conv1(y, _bias_activate, offset2)
        shortcut = y if activates_before_shortcut else x
        if resize is not None:
            shortcut = tf.nn.conv2d(shortcut, resize, stride, "SAME")

        def gradient(d):
            dz = conv2_back(z, d, _activate_gradient, z)
            if resize is not None:
                d = _back(shape_of=x, kernel=resize, stride=stride, d=d)
            if activates_before_shortcut:
                return conv1_back(y, dz, _activate_gradient_of_sum, y, d * scale1)
            return conv1_back(y, dz, _activate_gradient_and_add, y, d)

        return conv2(z, _bias_add, no_bias, shortcut), gradient

    return unit


def _scale_and_offset(norm):
    scale = norm.gamma * tf.math.rsqrt(norm.moving_variance + norm.epsilon)
    return scale, norm.beta - norm.moving_mean * scale


def _normalise(scale, offset, dtype):
    """Batch norm and leaky ReLU, with the gradient for the images."""
    scale, offset = tf.cast(scale, dtype), tf.cast(offset, dtype)
    if scale.shape[0] >= WINOGRAD_CHANNELS:
        forward = _scale_bias_activate
    else:
        # TensorFlow fuses a bias and an activation only with a convolution. As a convolution, the
        # multiplication needs one pass instead of three.
        diagonal = tf.linalg.diag(scale)[None, None]

        def forward(x, scale, offset):
            return _bias_activate(tf.nn.conv2d(x, diagonal, 1, "SAME"), offset)

    @tf.custom_gradient
    def normalise(x):
        y = forward(x, scale, offset)
        return y, lambda d: _activate_gradient(d * scale, y)

    return normalise


def _conv(kernel, stride=1):
    """A function (x, then, *args) to `then(convolution of x, *args)`."""
    if _is_for_winograd(kernel, stride):
        return WinogradConv(kernel)
    return lambda x, then, *args: then(tf.nn.conv2d(x, kernel, stride, "SAME"), *args)


def _conv_back(kernel, stride=1):
    """A function (x, d, then, *args) to `then(gradient for x, *args)`, with d the result's."""
    if _is_for_winograd(kernel, stride):
        conv = WinogradConv(tf.transpose(kernel[::-1, ::-1], (0, 1, 3, 2)))
        return lambda x, d, then, *args: conv(d, then, *args)
    return lambda x, d, then, *args: then(_back(x, kernel, stride, d), *args)


def _is_for_winograd(kernel, stride):
    # Winograd's transforms would lose too many of bfloat16's 8 bits.
    is_wide = min(kernel.shape[2:]) >= WINOGRAD_CHANNELS
    return stride == 1 and is_wide and kernel.dtype != tf.bfloat16


def _back(shape_of, kernel, stride, d):
    return tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.shape(shape_of),
        filter=kernel,
        out_backprop=d,
        strides=[1, stride, stride, 1],
        padding="SAME",
    )


def _shortcut_kernel(channels, filters, stride, dtype):
    """A shortcut's average pool and channels of zeros as a kernel, or None if it has neither."""
    if channels == filters and stride == 1:
        return None
    before = (filters - channels) // 2
    kernel = tf.eye(channels, dtype=dtype) / stride**2
    kernel = tf.pad(kernel, [[0, 0], [before, filters - channels - before]])
    return tf.tile(kernel[None, None], (stride, stride, 1, 1))


# Functions that are fused with a convolution.


def _bias_activate(x, bias):
    return tf.nn.leaky_relu(tf.nn.bias_add(x, bias), SLOPE)


def _bias_add(x, bias, shortcut):
    return tf.nn.bias_add(x, bias) + shortcut


def _activate_gradient(d, y):
    return tf.raw_ops.LeakyReluGrad(gradients=d, features=y, alpha=SLOPE)


def _activate_gradient_and_add(d, y, shortcut):
    return _activate_gradient(d, y) + shortcut


def _activate_gradient_of_sum(d, y, shortcut):
    return _activate_gradient(d + shortcut, y)


@fused
def _scale_bias_activate(x, scale, bias):
    return tf.nn.leaky_relu(x * scale + bias, SLOPE)


@tf.custom_gradient
def _standardise(image):
    """Each image minus its mean, divided by its deviation; see `layers.Standardise`."""
    x, deviation, is_deviation = _standardise_forward(image)
    return x, lambda d: _standardise_gradient(d, x, deviation, is_deviation)


@fused
def _standardise_forward(image):
    least = (image.shape[1] * image.shape[2] * image.shape[3]) ** -0.5
    centred = image - _mean(image)
    deviation = tf.sqrt(_mean(tf.square(centred)))
    is_deviation = tf.cast(deviation > least, image.dtype)
    deviation = tf.maximum(deviation, least)
    return centred / deviation, deviation, is_deviation


@fused
def _standardise_gradient(d, x, deviation, is_deviation):
    return (d - _mean(d) - x * is_deviation * _mean(d * x)) / deviation


def _mean(x):
    return tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
