"""The paper's MNIST networks, from pixels to logits."""

import keras
from keras import layers


def build_model(scale=16, seed=None, precision=None, dtype="float32", very_large=False):
    """Two convolutions with max-pooling and two dense layers (paper, Sec. 4; original model.py).

        conv 5x5 x 2s, pool - conv 5x5 x 4s, pool - dense 64s - dense 10

    Weights are drawn from a normal distribution of deviation 0.1, truncated at two deviations;
    biases start at 0.1. Keras's global settings (floatx, dtype policy, image data format) change
    nothing.

    Args:
        scale: the paper's capacity s: 1, 2, 4, 8 or 16. 16 is its main network (3,274,634
            parameters), 1 the smallest (13,514).
        seed: int that decides the initial weights; None draws them.
        precision: Keras's dtype policy for the second convolution and the first dense layer, such
            as "mixed_bfloat16": float32 weights, and computation in bfloat16. The first convolution
            stays exact: in a robust network it is a threshold, too fine for bfloat16's 8 bits.
            None is `dtype`.
        dtype: the dtype of everything else, such as images and logits; float64, without a
            `precision`, for a reference without rounding.
        very_large: whether the convolutions are twice as wide. At scale 16 that is the very large
            network of the paper's Figure 8: 64 and 128 filters, 1024 units (6,640,394 parameters).

    Returns:
        A keras.Model from float32 images (batch, 28, 28, 1), pixels in [0, 1], to float32 logits
        (batch, 10).

    Raises:
        ValueError: `scale` is not a positive int.
    """
    if not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale: expected a positive int (the paper has 1 to 16), got {scale!r}")
    seeds = keras.random.SeedGenerator(seed)
    filters = 4 * scale if very_large else 2 * scale
    images = {"data_format": "channels_last"}

    precision = precision or dtype

    def start(dtype):
        return {
            "dtype": dtype,
            "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.1, seed=seeds),
            "bias_initializer": keras.initializers.Constant(0.1),
        }

    def convolve(x, filters, number, dtype):
        options = {"padding": "same", "name": f"conv{number}", **images, **start(dtype)}
        x = layers.Conv2D(filters, 5, **options)(x)
        # ReLU follows the pooling: max and ReLU commute, and ReLU then has a quarter of the work.
        x = layers.MaxPooling2D(2, **images, dtype=dtype, name=f"pool{number}")(x)
        return layers.ReLU(dtype=dtype, name=f"relu{number}")(x)

    image = keras.Input((28, 28, 1), dtype=dtype, name="image")
    x = convolve(image, filters, 1, dtype)
    x = convolve(x, 2 * filters, 2, precision)
    x = layers.Flatten(**images, dtype=precision, name="flatten")(x)
    x = layers.Dense(64 * scale, activation="relu", name="dense", **start(precision))(x)
    logits = layers.Dense(10, name="logits", **start(dtype))(x)
    return keras.Model(image, logits, name="mnist")


def size_of(shapes):
    """The settings of a network with weights of these shapes, or None if it is another.

    Args:
        shapes: tuples of ints, in the order of `keras.Model.weights`.

    Returns:
        {"scale": its scale}, with "network": "very_large" if it is that one.
    """
    first = shapes[0] if shapes else ()
    filters = first[3] if len(first) == 4 else 0
    for scale, network in ((filters // 2, {}), (filters // 4, {"network": "very_large"})):
        if scale and shapes[-2:] == [(64 * scale, 10), (10,)]:
            return {**network, "scale": scale}
    return None


def original_names(model):
    """The names of the weights in the original's checkpoints.

    Args:
        model: keras.Model of `build_model`.

    Returns:
        List of str, in the order of `keras.Model.weights`.
    """
    # The original did not name them, so that TensorFlow 1 numbered them.
    return ["Variable", *(f"Variable_{i}" for i in range(1, len(model.weights)))]
