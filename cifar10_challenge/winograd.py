"""3x3 convolutions with a quarter of the multiplications (Lavin and Gray 2016, F(4x4, 3x3)).

A tile of 4x4 results comes from 6x6 pixels: pixels and kernel are transformed to 36 numbers each,
which are multiplied, and the products are transformed back. Over the channels each of the 36 is a
matrix product. From about 100 channels on, that is faster on a CPU than the direct convolution.
"""

import functools

import numpy as np
import tensorflow as tf

from common.attack.fast import fused

TILE = 4

# The one-dimensional transforms, with the interpolation points 0, 1, -1, 2, -2 and infinity.
PIXELS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
RESULT = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]
)


class WinogradConv:
    """A 3x3 convolution of stride 1, zero-padded, without bias.

    Args:
        kernel: float32 (3, 3, channels in, channels out).
    """

    def __init__(self, kernel):
        self.kernels = _transform_kernel(kernel)

    def __call__(self, x, then, *args):
        """`then(convolution of x, *args)`.

        Args:
            x: float32 (batch, height, width, channels in), height and width multiples of 4.
            then: function of tensors, elementwise; it is compiled into the last transform.
            *args: further arguments of `then`.
        """
        products = [a @ b for a, b in zip(_transform_pixels(x), self.kernels, strict=True)]
        return _transform_back(then, x.shape[1], x.shape[2])(products, *args)


@fused
def _transform_kernel(kernel):
    rows = _combine(KERNEL, [kernel[row] for row in range(3)])
    return [u for row in rows for u in _combine(KERNEL, [row[column] for column in range(3)])]


@fused
def _transform_pixels(x):
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    size = PIXELS.shape[1]
    ends = [[start - size + dimension + 1 for dimension in x.shape[1:3]] for start in range(size)]
    rows = _combine(PIXELS, [x[:, i : ends[i][0] : TILE] for i in range(size)])
    return [
        tf.reshape(v, (-1, x.shape[3]))
        for row in rows
        for v in _combine(PIXELS, [row[:, :, j : ends[j][1] : TILE] for j in range(size)])
    ]


@functools.cache
def _transform_back(then, height, width):
    @fused
    def transform(products, *args):
        size, channels = RESULT.shape[1], products[0].shape[1]
        shape = (-1, height // TILE, width // TILE, channels)
        products = [tf.reshape(product, shape) for product in products]
        columns = [_combine(RESULT, products[j::size]) for j in range(size)]
        rows = [_combine(RESULT, [column[i] for column in columns]) for i in range(TILE)]
        x = tf.stack([tf.stack(row, axis=3) for row in rows], axis=2)
        return then(tf.reshape(x, (-1, height, width, channels)), *args)

    return transform


def _combine(matrix, parts):
    """The matrix times the vector of `parts`, which are tensors; its zeros cost nothing."""
    return [sum(float(a) * part for a, part in zip(row, parts, strict=True) if a) for row in matrix]
