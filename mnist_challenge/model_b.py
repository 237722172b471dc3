"""Model B of Tramèr et al. (2018), Ensemble Adversarial Training, from pixels to logits.

In the paper's Table 1 it is a source of transfer attacks.
"""

import keras
import tensorflow as tf
from keras import layers

NAME = "model_b"
KERNELS = ((8, 8, 1, 64), (6, 6, 64, 128), (5, 5, 128, 128), (128, 10))
STRIDES, PADDINGS = (2, 2, 1), ("SAME", "VALID", "VALID")


def build_model(seed=None, precision=None, dtype="float32"):
    """Three convolutions without pooling, with dropout while it is trained.

        dropout 0.2 - conv 8x8 x 64, stride 2, same - conv 6x6 x 128, stride 2, valid -
        conv 5x5 x 128, valid - dropout 0.5 - dense 10

    A ReLU follows each convolution. Weights start from Keras's defaults: Glorot's uniform, and
    biases of zero. The paper does not state how it trained this network.

    Args:
        seed: int that decides the initial weights and the dropout; None draws it.
        precision: Keras's dtype policy for the layers between the first convolution and the last,
            such as "mixed_bfloat16". None is `dtype`.
        dtype: the dtype of everything else, such as images and logits.

    Returns:
        A keras.Model (710,218 parameters) from float32 images (batch, 28, 28, 1), pixels in
        [0, 1], to float32 logits (batch, 10).
    """
    seeds = keras.random.SeedGenerator(seed)
    precision = precision or dtype

    def start():
        return keras.initializers.GlorotUniform(seed=seeds)

    def convolve(x, number, dtype):
        *size, _, filters = KERNELS[number - 1]
        return layers.Conv2D(
            filters,
            size,
            strides=STRIDES[number - 1],
            padding=PADDINGS[number - 1].lower(),
            activation="relu",
            data_format="channels_last",
            kernel_initializer=start(),
            dtype=dtype,
            name=f"conv{number}",
        )(x)

    image = keras.Input((28, 28, 1), dtype=dtype, name="image")
    x = layers.Dropout(0.2, seed=seed, dtype=dtype, name="dropout1")(image)
    x = convolve(x, 1, dtype)
    x = convolve(x, 2, precision)
    x = convolve(x, 3, precision)
    x = layers.Dropout(0.5, seed=seed, dtype=precision, name="dropout2")(x)
    x = layers.Flatten(data_format="channels_last", dtype=precision, name="flatten")(x)
    logits = layers.Dense(10, kernel_initializer=start(), dtype=dtype, name="logits")(x)
    return keras.Model(image, logits, name=NAME)


def size_of(shapes):
    """{"network": "b"} if weights of these shapes are this network's, or None.

    Args:
        shapes: tuples of ints, in the order of `keras.Model.weights`.
    """
    expected = [shape for kernel in KERNELS for shape in (kernel, kernel[-1:])]
    return {"network": "b"} if list(shapes) == expected else None


def fast_logits(model, precision="float32"):
    """The network's logits, in inference mode; see `fast_model.fast_logits`.

    bfloat16 is used between the first convolution and the last layer.

    Args:
        model: keras.Model of `build_model`.
        precision: "float32", the dtype of the weights, or "bfloat16".

    Returns:
        A function from float32 images (batch, 28, 28, 1), pixels in [0, 1], to float32 logits
        (batch, 10), with a gradient for the images and none for the weights.
    """
    first, second, third, last = (
        [tf.stop_gradient(tf.convert_to_tensor(weight)) for weight in model.get_layer(name).weights]
        for name in ("conv1", "conv2", "conv3", "logits")
    )
    dtype = tf.bfloat16 if precision == "bfloat16" else first[0].dtype
    second, third = ([tf.cast(weight, dtype) for weight in pair] for pair in (second, third))

    def logits(image):
        x = image
        for (kernel, bias), stride, padding in zip(
            (first, second, third), STRIDES, PADDINGS, strict=True
        ):
            x = tf.nn.conv2d(tf.cast(x, kernel.dtype), kernel, stride, padding)
            x = tf.nn.relu(tf.nn.bias_add(x, bias))
        kernel, bias = last
        x = tf.reshape(tf.cast(x, kernel.dtype), (-1, kernel.shape[0]))
        return tf.nn.bias_add(tf.matmul(x, kernel), bias)

    return logits
