"""Models as they come: under any of Keras's settings, of any dtype, size and batch."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from cifar10_challenge.model import build_model as build_cifar10
from common import checkpoints, training
from common.attack import FastModel
from common.config import make_config
from mnist_challenge.challenge import MNIST

CHALLENGES = pytest.mark.parametrize("challenge", [MNIST, CIFAR10], ids=lambda c: c.name)
SIZES = {"MNIST": {"scale": 1}, "CIFAR-10": {"width": "simple"}}


def images_of(challenge, count=4):
    """Float32 pixels of the sample, and their labels."""
    sample = challenge.load("sample").head(count)
    return tf.constant(challenge.to_pixels(sample.images)), sample.labels


# Keras's global settings. See https://github.com/keras-team/keras/issues/7176 , .../10964 and
# .../20414 : what a model is depends on keras.json and on settings made elsewhere in a program.

SETTINGS = {
    "floatx float64": lambda: keras.config.set_floatx("float64"),
    "floatx float16": lambda: keras.config.set_floatx("float16"),
    "channels_first": lambda: keras.config.set_image_data_format("channels_first"),
    "mixed_float16": lambda: keras.config.set_dtype_policy("mixed_float16"),
    "mixed_bfloat16": lambda: keras.config.set_dtype_policy("mixed_bfloat16"),
    "policy float64": lambda: keras.config.set_dtype_policy("float64"),
}


@contextlib.contextmanager
def keras_setting(name):
    """One of `SETTINGS` while it lasts."""
    before = keras.config.floatx(), keras.config.image_data_format(), keras.config.dtype_policy()
    try:
        SETTINGS[name]()
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_image_data_format(before[1])
        keras.config.set_dtype_policy(before[2])


def what_it_does(challenge, folder, **options):
    """Numbers of a new network: logits, a training step, and what its files give."""
    x, y = images_of(challenge)
    config = make_config(challenge, ("here", SIZES[challenge.name]))
    model = challenge.build_model(config)
    if options:
        model = build_cifar10("simple", seed=config.random_seed, **options)
    before = model(x, training=False).numpy()
    rate = training.PiecewiseSchedule(((0, 0.01),))
    if challenge is MNIST:
        optimizer = keras.optimizers.Adam(rate, epsilon=1e-8)
    else:
        optimizer = training.Momentum(rate, momentum=0.9)
    update = training.make_update(config, model, optimizer, tf.reduce_mean)
    numbers = [before, *(value.numpy() for _ in range(2) for value in update(x, y))]
    numbers += [weight.numpy() for weight in model.weights]
    numbers += [np.asarray(variable) for variable in optimizer.variables]
    if options:
        return numbers
    checkpoints.export(model, folder / "saved")
    model.save(folder / "model.keras")
    checkpoints.TrainingRun(folder, model, optimizer).save(3)
    (folder / "config.json").write_text(config.to_json())
    for path in (folder / "saved", folder / "model.keras", folder):
        loaded = checkpoints.load_model(challenge, path)
        assert isinstance(loaded.logits, FastModel)
        assert loaded.logits(x).dtype == tf.float32
        fast = tf.function(lambda x, logits=loaded.logits: logits.prepare()(x))
        numbers += [loaded.logits(x).numpy(), fast(x).numpy()]
        numbers += [w.numpy() for w in checkpoints.load_keras_model(challenge, path).weights]
        digest = loaded.digest()
        assert digest == checkpoints.LoadedModel(model, model.weights, path).digest()
    return [*numbers, np.frombuffer(digest.encode(), np.uint8)]


@pytest.fixture(scope="module")
def as_ever(tmp_path_factory):
    """`what_it_does` by challenge and options, without a setting."""
    found = {}

    def get(challenge, **options):
        key = challenge.name, *options.items()
        if key not in found:
            folder = tmp_path_factory.mktemp("as_ever")
            found[key] = what_it_does(challenge, folder, **options), folder
        return found[key]

    return get


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for found, wanted in zip(actual, expected):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


@CHALLENGES
@pytest.mark.parametrize("name", SETTINGS)
def test_keras_settings_change_nothing(challenge, name, as_ever, tmp_path):
    expected, folder = as_ever(challenge)
    with keras_setting(name):
        assert_same(what_it_does(challenge, tmp_path), expected)
        # Nor do they for what was written without them, and the other way round.
        for path in (folder / "saved", folder / "model.keras", folder):
            assert isinstance(checkpoints.load_model(challenge, path).logits, FastModel)
    for path in (tmp_path / "saved", tmp_path / "model.keras", tmp_path):
        assert isinstance(checkpoints.load_model(challenge, path).logits, FastModel)


@pytest.mark.parametrize("name", ["floatx float64", "mixed_float16", "channels_first"])
def test_keras_settings_leave_the_precision_of_a_network_alone(name, as_ever, tmp_path):
    expected, _ = as_ever(CIFAR10, precision="mixed_bfloat16")
    with keras_setting(name):
        assert_same(what_it_does(CIFAR10, tmp_path, precision="mixed_bfloat16"), expected)


@pytest.mark.parametrize("name", ["floatx float64", "channels_first", "mixed_float16"])
@pytest.mark.parametrize("challenge, shipped", [(MNIST, "natural"), (CIFAR10, "simple_natural")])
def test_a_shipped_network_loads_under_keras_settings(challenge, shipped, name):
    with keras_setting(name):
        model = checkpoints.load_keras_model(challenge, shipped)
    assert {weight.dtype for weight in model.weights} == {"float32"}
