"""The paper's CIFAR-10 networks, from pixels to logits."""

import keras
from keras import layers

from cifar10_challenge.layers import BatchNorm, PadChannels, Standardise

WIDTHS = {"simple": 1, "wide": 10}  # the paper's
STEM, GROUPS = 16, (16, 32, 64)  # filters at width 1
MOST = 68  # up to it the network has fewer than 2**31 weights
UNITS_PER_GROUP = 5
SLOPE = 0.1  # the leaky ReLU's, for negative values


def build_model(
    width=10,
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
        width: int, the factor of the numbers of filters in all but the first convolution, or the
            paper's name for it: "simple" is 1 (464,154 trainable parameters), "wide" is 10
            (45,901,914).
        weight_decay: `model.losses` add up to weight_decay times half the squared sum of every
            kernel, the dense one too; batch norm and bias are left out.
        seed: int that decides the initial weights; None draws them.
        precision: Keras's dtype policy for the layers between first convolution and mean, such as
            "mixed_bfloat16": float32 weights, and computation in bfloat16. None is `dtype`.
        dtype: the dtype of everything else, such as images and logits; float64, without a
            `precision`, for a reference without rounding.
        synchronized: whether batch norm, in training on several devices, takes the statistics of
            the whole batch, see `BatchNorm`.

    Returns:
        A keras.Model from float32 images (batch, 32, 32, 3), pixels in [0, 255], to float32
        logits (batch, 10).

    Raises:
        ValueError: `width` is neither a known name nor an int in its range.
    """
    width = width_of(width)
    groups = [width * filters for filters in GROUPS]
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
    x = conv(x, STEM, 1, "stem", dtype)
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
    own_names = {number: word for word, number in WIDTHS.items()}
    return keras.Model(image, logits, name=f"cifar10_{own_names.get(width, width)}")


def width_of(value):
    """A width as a number.

    Args:
        value: a positive int, also as text, or one of the paper's names for it, `WIDTHS`.

    Raises:
        ValueError: it is something else; the message says what was expected.
    """
    number = WIDTHS.get(value) if isinstance(value, str) else value
    if isinstance(value, str) and value.isdecimal() and len(value) < 5:
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST:
        names = " or ".join(f"{name} ({width})" for name, width in WIDTHS.items())
        raise ValueError(f"expected {names} or an integer from 1 to {MOST}, got {value!r}")
    return number


def size_of(shapes):
    """The setting `width` of a network with weights of these shapes, or None if it is another.

    Args:
        shapes: tuples of ints, in the order of `keras.Model.weights`.
    """
    last = shapes[-2] if len(shapes) > 1 else ()
    width, rest = divmod(last[0], GROUPS[-1]) if len(last) == 2 else (0, 0)
    is_one = 1 <= width <= MOST and not rest and shapes[-2:] == [last[:1] + (10,), (10,)]
    return {"width": width} if is_one else None


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
