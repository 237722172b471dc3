import numpy as np
import pytest
import tensorflow as tf

from mnist_challenge.challenge import MNIST
from mnist_challenge.model import build_model
from tests.helpers import digits, input_gradient, sum_xent
from tests.originals import mnist_logits, mnist_variables

tf1 = tf.compat.v1


@pytest.mark.parametrize(
    "scale, count", [(1, 13514), (2, 52506), (4, 206954), (8, 821706), (16, 3274634)]
)
def test_number_of_parameters(scale, count):
    model = build_model(scale)
    assert model.count_params() == count
    assert sum(np.prod(variable.shape) for variable in model.trainable_variables) == count
    assert not model.losses  # no weight decay


def test_the_very_large_network_has_twice_the_filters():
    model = build_model(very_large=True)
    assert model.count_params() == 6640394
    shapes = [tuple(weight.shape) for weight in model.weights]
    assert shapes[0] == (5, 5, 1, 64) and shapes[2] == (5, 5, 64, 128) and shapes[4][1] == 1024
    assert MNIST.size_of(shapes) == {"network": "very_large", "scale": 16}
    assert MNIST.paper({"adversary": "none", "network": "very_large", "scale": 16}) == {}


def test_initial_weights_are_truncated_normals_and_positive_biases():
    kernels, biases = [], []
    for weight in build_model(scale=4, seed=3).get_weights():
        (kernels if weight.ndim > 1 else biases).append(weight.ravel())
    assert len(kernels) == len(biases) == 4
    np.testing.assert_array_equal(np.concatenate(biases), np.float32(0.1))
    for kernel in kernels:
        assert abs(kernel.mean()) < 5 * 0.1 / kernel.size**0.5
        assert abs(kernel).max() <= 0.2
        # A normal of deviation 1 that is cut at 2 has the deviation 0.8796.
        assert kernel.std() == pytest.approx(0.08796, rel=4 / kernel.size**0.5)


def test_the_seed_decides_the_initial_weights():
    def weights(seed):
        model = build_model(scale=1, seed=seed)
        return np.concatenate([kernel.ravel() for kernel in model.get_weights()[::2]])

    np.testing.assert_array_equal(weights(1), weights(1))
    assert np.mean(weights(1) == weights(2)) < 0.01
    assert np.mean(weights(None) == weights(None)) < 0.01


@pytest.mark.parametrize("scale", [0, -1, 2.5, "16"])
def test_wrong_scale(scale):
    with pytest.raises(ValueError) as error:
        build_model(scale)
    assert (
        str(error.value) == f"scale: expected a positive int (the paper has 1 to 16), got {scale!r}"
    )


@pytest.mark.parametrize("scale", [1, 16])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_logits_and_gradients_are_the_originals(scale, noise):
    x, y = digits(8)
    x = np.clip(x + np.random.default_rng(1).uniform(-noise, noise, x.shape), 0, 1)
    model = build_model(scale, seed=2)
    weights = model.get_weights()
    exact = build_model(scale, dtype="float64")
    exact.set_weights(weights)

    with tf.Graph().as_default(), tf1.Session() as session:
        flat = tf.constant(x.reshape(-1, 784), tf.float64)
        variables = mnist_variables([weight.astype("f8") for weight in weights])
        logits = mnist_logits(flat, variables)
        gradient = tf.gradients(sum_xent(logits, y), flat)[0]
        session.run(tf1.global_variables_initializer())
        logits, gradient = session.run([logits, gradient])

    assert np.abs(gradient).max() > 0.01
    np.testing.assert_allclose(exact(x), logits, atol=1e-12)
    actual = input_gradient(exact, tf.constant(x, tf.float64), y)
    np.testing.assert_allclose(actual, gradient.reshape(x.shape), atol=1e-12)
    np.testing.assert_allclose(model(x), logits, rtol=1e-5, atol=1e-5)
