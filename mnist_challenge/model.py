"""The paper's MNIST network, from pixels to logits."""

import keras
from keras import layers


def build_model(scale=16, seed=None, dtype="float32"):
    """Two convolutions with max-pooling and two dense layers (paper, Sec. 4; original model.py).

        conv 5x5 x 2s, pool - conv 5x5 x 4s, pool - dense 64s - dense 10

    Weights start as a normal of deviation 0.1 cut at two deviations, biases at 0.1. Keras's global
    settings (floatx, dtype policy, image data format) change nothing.

    Args:
        scale: the paper's capacity s: 1, 2, 4, 8 or 16. 16 is its main network (3,274,634
            parameters), 1 the smallest (13,514).
        seed: int that decides the initial weights; None draws them.
        dtype: the weights', images' and logits' dtype; float64 for a reference without rounding.

    Returns:
        A keras.Model from float32 images (batch, 28, 28, 1), pixels in [0, 1], to float32 logits
        (batch, 10).

    Raises:
        ValueError: `scale` is not a positive int.
    """
    if not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale: expected a positive int (the paper has 1 to 16), got {scale!r}")
    seeds = keras.random.SeedGenerator(seed)
    images = {"data_format": "channels_last"}

    def start():
        return {
            "dtype": dtype,
            "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.1, seed=seeds),
            "bias_initializer": keras.initializers.Constant(0.1),
        }

    # ReLU follows the pooling: max and ReLU commute, and there it has a quarter of the work.
    image = x = keras.Input((28, 28, 1), dtype=dtype, name="image")
    x = layers.Conv2D(2 * scale, 5, padding="same", **images, name="conv1", **start())(x)
    x = layers.MaxPooling2D(2, **images, dtype=dtype, name="pool1")(x)
    x = layers.ReLU(dtype=dtype, name="relu1")(x)
    x = layers.Conv2D(4 * scale, 5, padding="same", **images, name="conv2", **start())(x)
    x = layers.MaxPooling2D(2, **images, dtype=dtype, name="pool2")(x)
    x = layers.ReLU(dtype=dtype, name="relu2")(x)
    x = layers.Flatten(**images, dtype=dtype, name="flatten")(x)
    x = layers.Dense(64 * scale, activation="relu", name="dense", **start())(x)
    logits = layers.Dense(10, name="logits", **start())(x)
    return keras.Model(image, logits, name="mnist")


def size_of(shapes):
    """The setting `scale` of a network with weights of these shapes, or None if it is another.

    Args:
        shapes: tuples of ints, in the order of `keras.Model.weights`.
    """
    first = shapes[0] if shapes else ()
    scale = first[3] // 2 if len(first) == 4 else 0
    return {"scale": scale} if scale and shapes[-2:] == [(64 * scale, 10), (10,)] else None


def original_names(model):
    """The names of the weights in the original's checkpoints.

    Args:
        model: keras.Model of `build_model`.

    Returns:
        List of str, in the order of `keras.Model.weights`.
    """
    # The original named none, so that TensorFlow 1 counted them.
    return ["Variable", *(f"Variable_{i}" for i in range(1, len(model.weights)))]
