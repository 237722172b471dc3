import numpy as np
import pytest
import tensorflow as tf

from benchmarks import plain
from common.attack import PGD
from common.checkpoints import fast_model, load_model
from mnist_challenge.challenge import MNIST
from mnist_challenge.fast_model import _live_filters
from mnist_challenge.model import build_model
from tests.helpers import digits, input_gradient

# Black backgrounds are full of equal pixels, where pooling must choose the first as TensorFlow
# does; noise leaves none.
NOISE = pytest.mark.parametrize("noise", [0.0, 0.3])


def noisy_digits(count, noise):
    x, y = digits(count)
    noise = np.random.default_rng(1).uniform(-noise, noise, x.shape)
    return np.clip(x + noise, 0, 1).astype(np.float32), y


def compiled(model):
    """The fast logits of a keras.Model as one graph, as attacks use them."""
    prepare = fast_model(model, MNIST).prepare
    return tf.function(lambda x: prepare("float32")(x), autograph=False)


@NOISE
@pytest.mark.parametrize("scale", [1, 16])
def test_exact_arithmetic_gives_the_plain_networks_gradients(scale, noise):
    x, y = noisy_digits(5, noise)
    model = build_model(scale, seed=2, dtype="float64")
    x = tf.constant(x, tf.float64)
    np.testing.assert_allclose(compiled(model)(x), model(x), rtol=1e-12, atol=1e-12)
    expected = input_gradient(model, x, y).numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(input_gradient(compiled(model), x, y), expected, atol=1e-12)


@NOISE
def test_float32_gives_logits_and_gradients_to_rounding(noise):
    x, y = noisy_digits(5, noise)
    model = build_model(16, seed=2)
    reference = plain.mnist_model(model.get_weights())
    x = tf.constant(x)
    np.testing.assert_allclose(compiled(model)(x), reference(x), rtol=1e-5, atol=1e-5)
    expected = input_gradient(reference, x, y).numpy()
    actual = input_gradient(compiled(model), x, y)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_pgd_finds_what_the_plain_loop_finds(count):
    x, y = digits(count)
    model = build_model(4, seed=3)
    settings = {"epsilon": 0.3, "step_size": 0.05, "num_steps": 10, "bounds": (0.0, 1.0)}
    expected = plain.pgd(plain.mnist_model(model.get_weights()), **settings)(x, y)
    fast = PGD(fast_model(model, MNIST), random_start=False, **settings)
    actual = fast.perturb(x, y)
    assert np.abs(actual - x).max() == pytest.approx(0.3, abs=1e-6)
    # Where a gradient is all but zero, rounding decides its sign, and with it a whole step.
    assert np.mean(np.abs(actual - expected) > 1e-6) < 0.005


def test_the_attack_follows_weights_that_change():
    x, y = digits(4)
    model, other = (build_model(1, seed=seed) for seed in (3, 4))
    settings = {"epsilon": 0.3, "step_size": 0.05, "num_steps": 3}
    attack = PGD(fast_model(model, MNIST), **settings)
    before = attack.perturb(x, y).numpy()
    model.set_weights(other.get_weights())
    after = attack.perturb(x, y).numpy()
    assert np.mean(after != before) > 0.1
    np.testing.assert_array_equal(after, PGD(fast_model(other, MNIST), **settings).perturb(x, y))


def with_biases(values, dtype="float32"):
    """A network whose 8 first filters come to that much at most."""
    model = build_model(4, seed=3, dtype=dtype)
    kernel, bias = model.get_layer("conv1").weights
    bias.assign(values - np.maximum(kernel, 0).sum(axis=(0, 1, 2)))
    return model


@pytest.mark.parametrize(
    "highest, live",
    [
        ([0.5] * 8, range(8)),
        ([-0.5, 0.5, -0.5, 0.5, -0.5, -0.5, 1e-7, -1e-7], [1, 3, 6, 7]),
        ([-0.5, -0.4, -0.3, -0.2, -0.3, -0.4, -0.5, -0.6], [3]),
    ],
)
def test_filters_that_no_image_brings_above_zero_are_left_out(highest, live):
    kernel, bias = with_biases(np.float32(highest)).get_layer("conv1").weights
    actual = tf.function(_live_filters)(kernel, bias)
    np.testing.assert_array_equal(actual, live)


@NOISE
@pytest.mark.parametrize("highest", [[-0.5, 0.5, 0.4, -0.5, 0.8, -0.5, 0.3, -0.1], [-0.5] * 8])
def test_leaving_filters_out_changes_nothing(highest, noise):
    x, y = noisy_digits(5, noise)
    model = with_biases(np.float64(highest), dtype="float64")
    x = tf.constant(x, tf.float64)
    np.testing.assert_allclose(compiled(model)(x), model(x), rtol=1e-12, atol=1e-12)
    expected = input_gradient(model, x, y)
    np.testing.assert_allclose(input_gradient(compiled(model), x, y), expected, atol=1e-12)


@pytest.mark.parametrize("other", [np.nan, 0.5])
def test_a_diverged_network_keeps_its_filters(other):
    model = with_biases(np.float32([np.nan, *[other] * 6, np.nan]))
    assert len(tf.function(_live_filters)(*model.get_layer("conv1").weights)) == 8


def test_an_attack_on_other_pixels_runs_the_plain_network():
    x, y = digits(4)
    model = build_model(4, seed=3)
    kernel, bias = model.get_layer("conv1").weights
    kernel.assign(-tf.abs(kernel))  # pixels below zero alone bring a filter above it
    bias.assign(tf.fill(bias.shape, -0.1))
    assert len(_live_filters(kernel, bias)) == 1
    settings = {"epsilon": 0.2, "step_size": 0.05, "num_steps": 3, "bounds": (-1.0, 1.0)}
    attack = PGD(fast_model(model, MNIST), random_start=False, **settings)
    actual = attack.perturb(x - 0.5, y)
    expected = plain.pgd(plain.mnist_model(model.get_weights()), **settings)(x - 0.5, y)
    assert np.abs(expected - (x - 0.5)).max() > 0.1
    assert np.mean(np.abs(actual - expected) > 1e-6) < 0.005


def test_shipped_robust_network_is_attacked_with_few_filters_and_the_same_gradients():
    x, y = noisy_digits(50, 0.3)
    model = load_model(MNIST, "adv_trained").model
    kernel, bias = model.get_layer("conv1").weights
    assert len(_live_filters(kernel, bias)) == 13
    natural = load_model(MNIST, "natural").model.get_layer("conv1").weights
    assert len(_live_filters(*natural)) == 32
    x = tf.constant(x)
    np.testing.assert_allclose(compiled(model)(x), model(x), rtol=1e-4, atol=1e-4)
    expected = input_gradient(model, x, y).numpy()
    actual = input_gradient(compiled(model), x, y)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
