"""The MNIST network of `model.py` in the form that a CPU runs fastest, for attacks.

Weights, logits and gradients are the same, up to the rounding of float32 or bfloat16. It is faster
by these changes:

- The first convolution's input gradient has one channel, but vector units have sixteen lanes. Here
  a 2x2 block of pixels is four channels, and the three blocks of a row that depend on one gradient
  are twelve.
- Pooling and ReLU are one kernel each way, which keeps one byte of each 2x2 window: the position
  that its gradient goes to.
- The dense layer's kernel is transposed once an attack instead of once a step.
- Filters of the first convolution that no image brings above zero are left out. In a robust network
  few others remain: 13 of the 32 of `adv_trained` (3 in the paper, Sec. C).
"""

import numpy as np
import tensorflow as tf

from common.attack.fast import fused

CLOSED = 4  # instead of a position if the ReLU's gradient is 0
ROUNDING = 1e-5  # more than the relative error of a sum over a filter's 26 terms


def fast_logits(model, precision="float32"):
    """The network's logits, in inference mode.

    It prepares the weights: call it once an attack, within the graph.

    Args:
        model: keras.Model of `model.build_model`.
        precision: "float32" computes in the dtype of the weights, "bfloat16" in bfloat16 between
            the first convolution and the last layer. Two elements of a window of the second pooling
            that differ in float32 may then be equal; the gradient goes to the first.

    Returns:
        A function from float32 images (batch, 28, 28, 1), pixels in [0, 1], to float32 logits
        (batch, 10), with a gradient for the images and none for the weights.
    """
    (kernel1, bias1), (kernel2, bias2), (kernel3, bias3), (kernel4, bias4) = (
        [tf.convert_to_tensor(weight) for weight in model.get_layer(name).weights]
        for name in ("conv1", "conv2", "dense", "logits")
    )
    dtype = tf.bfloat16 if precision == "bfloat16" else kernel1.dtype
    live = live_filters(kernel1, bias1)
    kernel1, bias1 = tf.gather(kernel1, live, axis=3), tf.gather(bias1, live)
    kernel2 = tf.gather(kernel2, live, axis=2)
    kernel2, bias2, kernel3, bias3 = (
        tf.cast(weight, dtype) for weight in (kernel2, bias2, kernel3, bias3)
    )
    block_kernel = _block_kernel(kernel1)
    transposed3 = tf.transpose(kernel3)

    @tf.custom_gradient
    def block1(image):
        x = tf.nn.bias_add(tf.nn.conv2d(image, kernel1, 1, "SAME"), bias1)
        x, position = _pool_relu(x)

        def gradient(dy):
            return _fold(tf.nn.conv2d(_to_blocks(position, dy), block_kernel, 1, "SAME"))

        return x, gradient

    @tf.custom_gradient
    def pool_relu2(x):
        x, position = _pool_relu(x)
        return x, lambda dy: _to_windows(position, dy)

    @tf.custom_gradient
    def dense(x):
        y = tf.nn.relu(tf.nn.bias_add(tf.matmul(x, kernel3), bias3))
        return y, lambda dy: tf.matmul(tf.raw_ops.ReluGrad(gradients=dy, features=y), transposed3)

    def logits(image):
        x = tf.cast(block1(image), dtype)
        x = pool_relu2(tf.nn.bias_add(tf.nn.conv2d(x, kernel2, 1, "SAME"), bias2))
        x = dense(tf.reshape(x, (-1, kernel3.shape[0])))
        return tf.nn.bias_add(tf.matmul(tf.cast(x, kernel4.dtype), kernel4), bias4)

    return logits


def live_filters(kernel, bias):
    """The filters that pixels in [0, 1] can bring above zero; if none can, the nearest one.

    Args:
        kernel: float (height, width, 1, filters).
        bias: float (filters,).

    Returns:
        int64, increasing numbers of filters.
    """
    highest = bias + tf.reduce_sum(tf.nn.relu(kernel), axis=(0, 1, 2))
    highest += ROUNDING * (tf.abs(bias) + tf.reduce_sum(tf.abs(kernel), axis=(0, 1, 2)))
    # Filters with NaN, of a diverged network, stay.
    highest = tf.where(tf.math.is_nan(highest), tf.constant(np.inf, highest.dtype), highest)
    return tf.where(highest >= tf.minimum(tf.reduce_max(highest), 0.0))[:, 0]


@fused
def _pool_relu(x):
    """2x2 max-pooling and ReLU.

    Returns:
        The result, and int8 of its shape: which of the window's four elements it came from, the
        first among equals as in TensorFlow's max_pool, or CLOSED.
    """
    a, b, c, d = _windows(x)
    y = tf.nn.relu(tf.maximum(tf.maximum(a, b), tf.maximum(c, d)))
    position = tf.where(
        a == y, _int8(0), tf.where(b == y, _int8(1), tf.where(c == y, _int8(2), _int8(3)))
    )
    return y, tf.where(y > 0, position, _int8(CLOSED))


def _windows(x):
    batch, height, width, channels = _shape(x)
    x = tf.reshape(x, (batch, height // 2, 2, width // 2, 2, channels))
    return [x[:, :, row, :, column] for row in (0, 1) for column in (0, 1)]


@fused
def _to_windows(position, dy):
    """The gradient of `_pool_relu`, in its argument's shape."""
    batch, height, width, channels = _shape(dy)
    place = tf.reshape(_int8([0, 1, 2, 3]), (2, 1, 2, 1))
    dx = tf.where(position[:, :, None, :, None, :] == place, dy[:, :, None, :, None, :], _zero(dy))
    return tf.reshape(dx, (batch, 2 * height, 2 * width, channels))


@fused
def _to_blocks(position, dy):
    """`_to_windows` with a window's elements as channels: (batch, height, width, 4 channels)."""
    batch, height, width, channels = _shape(dy)
    place = _int8([[0], [1], [2], [3]])
    dx = tf.where(position[:, :, :, None, :] == place, dy[:, :, :, None, :], _zero(dy))
    return tf.reshape(dx, (batch, height, width, 4 * channels))


def _block_kernel(kernel):
    """The kernel (3, 1, 4 channels, 12) from blocks of gradients to blocks of pixels.

    Its entry for row tap r, window element e, channel c, block column k and pixel q is the tap of
    the 5x5 kernel that leads from that pixel to that element, or zero if there is none.
    """
    tap = np.full((3, 4, 3, 4), 25)  # r, e, k, q; 25 is a tap of zeros
    for r, e, k, q in np.ndindex(tap.shape):
        row = q // 2 - e // 2 - 2 * (r - 1) + 2
        column = q % 2 - e % 2 - 2 * (k - 1) + 2
        if 0 <= row < 5 and 0 <= column < 5:
            tap[r, e, k, q] = 5 * row + column
    channels = tf.shape(kernel)[3]
    taps = tf.pad(tf.reshape(kernel, (25, channels)), [[0, 1], [0, 0]])
    gathered = tf.transpose(tf.gather(taps, tap), (0, 1, 4, 2, 3))  # r, e, c, k, q
    return tf.reshape(gathered, (3, 1, 4 * channels, 12))


@fused
def _fold(x):
    """Sums the contributions of the three blocks of a row, and puts blocks back in the image.

    Args:
        x: float32 (batch, height, width, 12), from a convolution with `_block_kernel`.

    Returns:
        float32 (batch, 2 height, 2 width, 1).
    """
    batch, height, width, _ = _shape(x)
    x = tf.pad(x, [[0, 0], [0, 0], [1, 1], [0, 0]])
    x = sum(x[:, :, k : k + width, 4 * k : 4 * k + 4] for k in range(3))
    x = tf.transpose(tf.reshape(x, (batch, height, width, 2, 2)), (0, 1, 3, 2, 4))
    return tf.reshape(x, (batch, 2 * height, 2 * width, 1))


def _shape(x):
    """The shape of `x`, with tensors for batch and channels, which are known only at run time."""
    return tf.shape(x)[0], *x.shape[1:3], tf.shape(x)[3]


def _int8(value):
    return tf.constant(value, tf.int8)


def _zero(x):
    return tf.zeros((), x.dtype)
