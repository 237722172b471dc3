import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from cifar10_challenge.model import build_model
from cifar10_challenge.train import augment
from common.config import make_config
from tests.helpers import input_gradient, pictures, sum_xent
from tests.originals import cifar10_logits

tf1 = tf.compat.v1


def weights_by_path(model):
    return {weight.path: weight.numpy() for weight in model.weights}


@pytest.fixture(scope="module")
def wide():
    return build_model("wide", seed=1)


@pytest.fixture
def simple():
    """The simple network with batch norms and biases that are not the identity."""
    model = build_model("simple", seed=2)
    random = np.random.default_rng(3)
    for weight in model.weights:
        if not weight.path.endswith("kernel"):
            positive = weight.path.endswith(("gamma", "moving_variance"))
            low, high = (0.5, 1.5) if positive else (-0.5, 0.5)
            weight.assign(random.uniform(low, high, weight.shape))
    return model


def count_trainable(model):
    return sum(np.prod(variable.shape) for variable in model.trainable_variables)


def kernels_of(model):
    return {path: w for path, w in weights_by_path(model).items() if path.endswith("/kernel")}


def test_number_of_parameters(simple, wide):
    assert count_trainable(simple) == 464154
    assert count_trainable(wide) == 45901914
    assert sum(kernel.size for kernel in kernels_of(wide).values()) == 45879472
    for model in (simple, wide):
        kinds = [type(layer) for layer in model.layers]
        assert kinds.count(keras.layers.Conv2D) == 31 and kinds.count(keras.layers.Dense) == 1


@pytest.mark.parametrize("width", ["narrow", 0, -1, 69, 2.0, True, "", "1e1", None])
def test_wrong_width(width):
    expected = f"expected simple (1) or wide (10) or an integer from 1 to 68, got {width!r}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        build_model(width)


@pytest.mark.parametrize("width, number", [("simple", 1), ("wide", 10), ("4", 4), (2, 2)])
def test_a_width_is_a_number_or_the_papers_name_for_it(width, number):
    config = make_config(CIFAR10, ("test", {"width": width}))
    assert config.width == number
    assert make_config(CIFAR10).width == 10


def test_the_width_multiplies_the_filters_and_is_read_off_the_weights():
    model = build_model(2, seed=1)
    assert count_trainable(model) == 1844826
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions[::10]] == [16, 32, 64, 128]
    shapes = [tuple(weight.shape) for weight in model.weights]
    assert CIFAR10.size_of(shapes) == {"width": 2}
    # The largest width is the last one whose weights int32 counts.
    assert 68**2 * 458752 < 2**31 < 69**2 * 458752


@pytest.mark.parametrize("last", [(100, 10), (64, 9), (0, 10), (64,)])
def test_weights_of_another_network_have_no_width(last):
    assert CIFAR10.size_of([(3, 3, 3, 16), last, (10,)]) is None
    assert CIFAR10.size_of([]) is None


def test_initial_convolutions_are_normals_without_truncation():
    standard = []
    for path, kernel in kernels_of(build_model("simple", seed=4)).items():
        if path != "logits/kernel":
            deviation = (2 / (9 * kernel.shape[-1])) ** 0.5
            assert kernel.std() == pytest.approx(deviation, rel=4 / (2 * kernel.size) ** 0.5), path
            assert abs(kernel.mean()) < 4 * deviation / kernel.size**0.5, path
            standard.append(kernel.ravel() / deviation)
    standard = np.concatenate(standard)
    assert np.mean(abs(standard) > 2) == pytest.approx(0.0455, rel=0.05)
    assert abs(standard).max() > 4


def test_initial_dense_layer_is_uniform_and_the_rest_neutral():
    weights = weights_by_path(build_model("simple", seed=4))
    kernel, limit = weights["logits/kernel"], (3 / 64) ** 0.5
    assert 0.98 * limit < abs(kernel).max() <= limit
    assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.1)
    for path, weight in weights.items():
        if not path.endswith("kernel"):
            assert np.all(weight == path.endswith(("gamma", "moving_variance"))), path


def test_the_seed_decides_the_initial_weights():
    one, same, other = (kernels_of(build_model("simple", seed=seed)) for seed in (1, 1, 2))
    for path, kernel in one.items():
        np.testing.assert_array_equal(kernel, same[path])
        assert np.mean(kernel == other[path]) < 0.01, path
    assert np.mean(one["unit1_1_conv1/kernel"] == one["unit1_1_conv2/kernel"]) < 0.01


def test_weight_decay_is_half_the_squared_sum_of_the_kernels(simple):
    half_squares = sum(
        0.5 * np.sum(kernel.astype("f8") ** 2) for kernel in kernels_of(simple).values()
    )
    assert float(sum(simple.losses)) == pytest.approx(2e-4 * half_squares, rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_logits_gradients_and_averages_are_the_originals(simple, training):
    x, y = pictures(4)
    weights = weights_by_path(simple)
    exact = build_model("simple", dtype="float64")
    exact.set_weights(simple.get_weights())

    with tf.Graph().as_default(), tf1.Session() as session:
        pixels = tf.constant(x, tf.float64)
        its_weights = {path: weight.astype("f8") for path, weight in weights.items()}
        logits, averages = cifar10_logits(pixels, its_weights, training)
        gradient = tf.gradients(sum_xent(logits, y), pixels)[0]
        logits, gradient, averages = session.run([logits, gradient, averages])

    actual = input_gradient(lambda x: exact(x, training=training), tf.constant(x, tf.float64), y)
    assert np.abs(gradient).max() > 0.001
    np.testing.assert_allclose(actual, gradient, rtol=1e-6, atol=1e-9)
    assert len(averages) == (2 * 31 if training else 0)
    for path, weight in weights_by_path(exact).items():
        np.testing.assert_allclose(weight, averages.get(path, weights[path]), rtol=1e-6)
    np.testing.assert_allclose(simple(x, training=training), logits, rtol=1e-4, atol=1e-4)


def test_wide_network_has_the_originals_logits(wide):
    x, _ = pictures(1)
    weights = weights_by_path(wide)
    with tf.Graph().as_default(), tf1.Session() as session:
        fed = {path: tf1.placeholder(tf.float32, w.shape) for path, w in weights.items()}
        logits, _ = cifar10_logits(tf.constant(x), fed, training=False)
        logits = session.run(logits, {fed[path]: weights[path] for path in fed})
    np.testing.assert_allclose(wide(x, training=False), logits, rtol=1e-4, atol=1e-4)


def test_images_are_standardised_as_tensorflow_does(simple):
    x, _ = pictures(4)
    x[2] = 7.0  # nothing to divide by
    x[3] = 7.0
    x[3, 0, 0, 0] = 7.5  # a deviation below 1/sqrt(3072)
    actual = simple.get_layer("standardise")(x)
    np.testing.assert_allclose(actual, tf.image.per_image_standardization(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(actual[2], 0.0)


def test_augmentation_draws_from_the_50_crops_and_flips():
    image = np.random.default_rng(1).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    crops = [padded[i : i + 32, j : j + 32] for i in range(5) for j in range(5)]
    possible = {crop.tobytes(): 0 for crop in crops} | {
        crop[:, ::-1].tobytes(): 0 for crop in crops
    }
    assert len(possible) == 50
    seeds = np.stack([np.arange(5000), np.full(5000, 6)], axis=1).astype("i4")

    results = augment(np.stack([image] * 5000), seeds).numpy()
    for result in results:
        possible[result.tobytes()] += 1  # a KeyError is a picture that should not be
    assert all(60 < count < 140 for count in possible.values())  # 100 expected, deviation 10
    # TensorFlow's own draws, and slices of one image.
    for seed, result in zip(seeds[:20], results, strict=False):
        row, column, flip = tf.random.stateless_uniform([3], seed, alg="philox").numpy()
        crop = padded[int(row * 5) :, int(column * 5) :][:32, :32]
        np.testing.assert_array_equal(result, crop[:, ::-1] if flip < 0.5 else crop)
