import numpy as np
import pytest
import tensorflow as tf

from benchmarks import plain
from common.attack import PGD
from common.checkpoints import fast_model
from mnist_challenge.challenge import MNIST
from mnist_challenge.model import build_model
from tests.mnist_challenge.test_model import digits, float64, input_gradient

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
    return tf.function(lambda x: prepare()(x))


@NOISE
@pytest.mark.parametrize("scale", [1, 16])
def test_exact_arithmetic_gives_the_plain_networks_gradients(scale, noise):
    x, y = noisy_digits(5, noise)
    with float64():
        model = build_model(scale, seed=2)
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
