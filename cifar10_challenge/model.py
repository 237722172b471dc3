"""The paper's CIFAR-10 networks, from pixels to logits."""

import keras
from keras import layers

from cifar10_challenge.layers import BatchNorm, PadChannels, Standardise

WIDTHS = {"simple": (16, 16, 32, 64), "wide": (16, 160, 320, 640)}
UNITS_PER_GROUP = 5
SLOPE = 0.1  # the leaky ReLU's, for negative values


def build_model(
    width="wide",
    weight_decay=2e-4,
    seed=None,
    precision=None,
    dtype="float32",
    synchronized=True,
):
    """A pre-activation residual network of 31 convolutions (paper, Sec. 4; original model.py).

        standardise - conv 3x3 - 3 groups of 5 residual units - norm, leaky ReLU - mean - dense

    If a unit changes the number of channels, its shortcut is an average pool and channels of
    zeros, half on each side, instead of a 1x1 convolution. Batch norm has decay 0.9 and epsilon
    0.001, leaky ReLU the slope 0.1. Keras's global settings (floatx, dtype policy, image data
    format) change nothing.

    Args:
        width: "simple" (464,154 trainable parameters) or "wide" (45,901,914, ten times as wide).
        weight_decay: `model.losses` add up to weight_decay times half the squared sum of every
            kernel, the dense one too; batch norm and bias are left out.
        seed: int that decides the initial weights; None draws them.
        precision: Keras's dtype policy for the layers between first convolution and mean, such as
            "mixed_bfloat16": float32 weights, and bfloat16 for what is computed with them. None is
            `dtype`.
        dtype: the dtype of everything else, such as images and logits; float64, without a
            `precision`, for a reference without rounding.
        synchronized: whether batch norm, in training on several devices, takes the statistics of
            the whole batch, see `BatchNorm`.

    Returns:
        A keras.Model from float32 images (batch, 32, 32, 3), pixels in [0, 255], to float32
        logits (batch, 10).

    Raises:
        ValueError: `width` is not known.
    """
    if width not in WIDTHS:
        raise ValueError(f"width: expected one of {', '.join(WIDTHS)}, got {width!r}")
    stem, *groups = WIDTHS[width]
    precision = precision or dtype
    images = {"data_format": "channels_last"}
    seeds = keras.random.SeedGenerator(seed)

    def conv(x, filters, stride, name, dtype=precision):
        # Deviation sqrt(2 / fan-out), not truncated.
        start = keras.initializers.RandomNormal(stddev=(2 / (9 * filters)) ** 0.5, seed=seeds)
        return layers.Conv2D(
            filters,
            3,
            strides=stride,
            padding="same",
            use_bias=False,
            **images,
            kernel_initializer=start,
            kernel_regularizer=keras.regularizers.L2(weight_decay / 2),
            dtype=dtype,
            name=name,
        )(x)

    def normalise(x, name):
        options = {"synchronized": synchronized, "dtype": precision, "name": f"{name}_norm"}
        x = BatchNorm(momentum=0.9, epsilon=1e-3, **options)(x)
        return layers.LeakyReLU(negative_slope=SLOPE, dtype=precision, name=f"{name}_relu")(x)

    def residual_unit(x, filters, stride, name, activate_before_residual):
        shortcut, x = x, normalise(x, f"{name}_pre")
        if activate_before_residual:
            shortcut = x
        x = conv(x, filters, stride, f"{name}_conv1")
        x = normalise(x, f"{name}_mid")
        x = conv(x, filters, 1, f"{name}_conv2")
        if shortcut.shape[-1] != filters:
            if stride > 1:
                shortcut = layers.AveragePooling2D(
                    stride, **images, dtype=precision, name=f"{name}_pool"
                )(shortcut)
            shortcut = PadChannels(filters, dtype=precision, name=f"{name}_pad")(shortcut)
        return layers.Add(dtype=precision, name=f"{name}_add")([shortcut, x])

    image = keras.Input((32, 32, 3), dtype=dtype, name="image")
    x = Standardise(dtype=dtype, name="standardise")(image)
    x = conv(x, stem, 1, "stem", dtype)
    for group, (filters, stride) in enumerate(zip(groups, (1, 2, 2), strict=True), start=1):
        for unit in range(UNITS_PER_GROUP):
            first = group == 1 and unit == 0
            x = residual_unit(x, filters, stride if unit == 0 else 1, f"unit{group}_{unit}", first)
    x = normalise(x, "last")
    x = layers.GlobalAveragePooling2D(**images, dtype=dtype, name="mean")(x)
    # TensorFlow 1's uniform_unit_scaling with factor 1.
    limit = (3 / groups[-1]) ** 0.5
    logits = layers.Dense(
        10,
        kernel_initializer=keras.initializers.RandomUniform(-limit, limit, seed=seeds),
        kernel_regularizer=keras.regularizers.L2(weight_decay / 2),
        dtype=dtype,
        name="logits",
    )(x)
    return keras.Model(image, logits, name=f"cifar10_{width}")


def size_of(shapes):
    """The setting `width` of a network with weights of these shapes, or None if it is another.

    Args:
        shapes: tuples of ints, in the order of `keras.Model.weights`.
    """
    for width, (*_, last) in WIDTHS.items():
        if shapes[-2:] == [(last, 10), (10,)]:
            return {"width": width}
    return None


def original_names(model):
    """The names of the weights in the original's checkpoints.

    Args:
        model: keras.Model of `build_model`.

    Returns:
        List of str, in the order of `keras.Model.weights`.
    """
    paths = [weight.path.split("/") for weight in model.weights]
    kinds = {"kernel": "DW", "bias": "biases"}
    return [f"{_original_scope(layer)}/{kinds.get(kind, kind)}" for layer, kind in paths]


def _original_scope(layer):
    scopes = {
        "stem": "input/init_conv",
        "unit1_0_pre_norm": "unit_1_0/shared_activation/BatchNorm",
        "last_norm": "unit_last/BatchNorm",
        "logits": "logit",
    }
    if layer in scopes:
        return scopes[layer]
    group, unit, part = layer.removeprefix("unit").split("_", 2)
    parts = {
        "pre_norm": "residual_only_activation/BatchNorm",
        "conv1": "sub1/conv1",
        "mid_norm": "sub2/BatchNorm",
        "conv2": "sub2/conv2",
    }
    return f"unit_{group}_{unit}/{parts[part]}"
