import keras
import numpy as np
import pytest
import tensorflow as tf

import mnist_challenge.model
from common.config import make_config
from common.errors import InputError
from common.training import losses, optimizers, steps
from mnist_challenge.challenge import MNIST
from tests.helpers import digits


@pytest.fixture
def linear():
    """Three logits of an image of two pixels."""
    model = keras.Sequential(
        [keras.Input((1, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3, use_bias=False)]
    )
    model.set_weights([np.array([[1, -2, 0.5], [0, 3, -1]], "f4")])
    return model


X_NAT = np.array([[0.5, 0.2], [0.1, 0.9], [0.3, 0.3]], "f4").reshape(3, 1, 2, 1)
X_ADV = np.array([[0.3, 0.6], [0.4, 0.7], [0.3, 0.3]], "f4").reshape(3, 1, 2, 1)
Y = np.array([0, 1, 2], "i4")


def log_softmax(model, x):
    z = x.reshape(3, 2).astype("f8") @ model.get_weights()[0].astype("f8")
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def test_each_loss_is_its_formula(linear):
    natural, attacked = log_softmax(linear, X_NAT), log_softmax(linear, X_ADV)
    xent_nat, xent_adv = -natural[range(3), Y], -attacked[range(3), Y]
    divergence = np.sum(np.exp(natural) * (natural - attacked), axis=1)
    assert divergence[2] == 0 and divergence[0] > 0.05
    for name, expected in (
        ("adversarial", xent_adv),
        ("natural_and_adversarial", 0.25 * xent_nat + 0.75 * xent_adv),
        ("trades", xent_nat + 4 * divergence),
    ):
        loss_of = losses.make_loss(name, natural_weight=0.25, trades_beta=4)
        found, logits = loss_of(X_NAT, X_ADV, Y, linear)
        assert found.dtype == logits.dtype == tf.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(logits, linear(X_ADV))


def test_trades_learns_from_both_predictions(linear):
    # A step along the gradient by finite differences, which goes through both images.
    loss_of = losses.make_loss("trades", trades_beta=2)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss_of(X_NAT, X_ADV, Y, linear)[0])
    gradient = tape.gradient(total, linear.trainable_variables)[0].numpy()
    kernel, step = linear.get_weights()[0], 1e-2
    for place in np.ndindex(kernel.shape):
        found = []
        for sign in (1, -1):
            moved = kernel.copy()
            moved[place] += sign * step
            linear.set_weights([moved])
            found.append(float(tf.reduce_sum(loss_of(X_NAT, X_ADV, Y, linear)[0])))
        np.testing.assert_allclose((found[0] - found[1]) / (2 * step), gradient[place], atol=2e-3)


def test_a_class_that_is_ruled_out_leaves_the_divergence_finite():
    first, second = [[0.0, 1.0, -np.inf]], [[1.0, 0.0, -np.inf]]
    found = losses.divergence(tf.constant(first), tf.constant(second))
    p = 1 / (1 + np.e)
    np.testing.assert_allclose(found, [(1 - 2 * p) * 1.0], rtol=1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_an_update_descends_the_loss_that_the_config_names(name):
    x, y = digits(6)
    x_adv = np.clip(x + 0.2, 0, 1)
    config = make_config(MNIST, ("test", {"loss": name, "natural_weight": 0.3, "trades_beta": 2}))
    model = mnist_challenge.model.build_model(scale=1, seed=5)
    with tf.GradientTape() as tape:
        found = losses.make_loss(name, 0.3, 2.0)(x, x_adv, y, model)[0]
        total = tf.reduce_mean(found)
    gradients = tape.gradient(total, model.trainable_variables)
    expected = [
        weight.numpy() - 0.1 * gradient
        for weight, gradient in zip(model.trainable_variables, gradients, strict=True)
    ]
    xent_adv = keras.losses.sparse_categorical_crossentropy(y, model(x_adv), from_logits=True)
    update = steps.make_update(config, model, optimizers.Momentum(0.1), tf.reduce_mean)
    xent, _ = update(x, x_adv, y)
    # The reported numbers are of the adversarial images, whatever the loss.
    np.testing.assert_allclose(xent, np.mean(xent_adv), rtol=1e-5)
    for weight, its in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(weight, its, atol=1e-6)


def test_an_unknown_loss_is_refused():
    with pytest.raises(InputError, match="loss: expected one of adversarial, .* got 'mart'"):
        losses.make_loss("mart")
    with pytest.raises(InputError, match="natural_weight: expected 0 to 1, got 2"):
        losses.make_loss("natural_and_adversarial", natural_weight=2)
    with pytest.raises(InputError, match="trades_beta: expected 0 to"):
        losses.make_loss("trades", trades_beta=-1)
