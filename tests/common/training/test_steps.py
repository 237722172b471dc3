import dataclasses
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import cifar10_challenge.model
import cifar10_challenge.train
import mnist_challenge.model
import mnist_challenge.train
from cifar10_challenge.challenge import CIFAR10
from common import data
from common.config import make_config
from common.training import loop, optimizers, steps
from mnist_challenge.challenge import MNIST
from tests.helpers import digits, pictures, sum_xent
from tests.originals import mnist_logits, mnist_variables

tf1 = tf.compat.v1

ORIGINAL_RATES = ((0, 0.1), (40000, 0.01), (60000, 0.001))


def config_of(challenge, **settings):
    return make_config(challenge, ("test", settings))


@pytest.fixture
def recipe(monkeypatch):
    """Returns a function from a challenge to what its train.py hands to `training.train`."""

    def recipe_of(challenge):
        script = mnist_challenge.train if challenge is MNIST else cifar10_challenge.train
        images = data.Split(
            np.zeros((1, *challenge.image_shape), "u1"), np.zeros(1, "i4"), "", "", True
        )
        fake = dataclasses.replace(challenge, load=lambda split, data_dir: images)
        monkeypatch.setattr(script, "MNIST" if challenge is MNIST else "CIFAR10", fake)
        monkeypatch.setattr(loop, "train", lambda config, challenge, images, **recipe: recipe)
        return types.SimpleNamespace(**script.train(config_of(challenge)))

    return recipe_of


# The outer minimisation, as the two train.py set it up.


def test_mnist_steps_are_tensorflow_1s_adam_on_the_summed_loss(recipe):
    x, y = digits(16)
    model = mnist_challenge.model.build_model(scale=1, seed=5)
    start = model.get_weights()
    mnist = recipe(MNIST)
    update = steps.make_update(config_of(MNIST), model, mnist.optimizer, mnist.reduce_loss)
    means = [float(update(x, x, y)[0]) for _ in range(10)]

    with tf.Graph().as_default(), tf1.Session() as session:
        variables = mnist_variables(start)
        loss = sum_xent(mnist_logits(tf.constant(x.reshape(-1, 784)), variables), y)
        minimise = tf1.train.AdamOptimizer(1e-4).minimize(loss)
        session.run(tf1.global_variables_initializer())
        losses = [session.run([loss, minimise])[0] for _ in range(10)]
        expected = session.run(variables)

    np.testing.assert_allclose(means, np.array(losses) / 16, rtol=1e-5)
    for weight, its, before in zip(model.get_weights(), expected, start, strict=True):
        assert np.abs(its - before).max() > 9e-4  # ten steps of about 1e-4
        np.testing.assert_allclose(weight, its, atol=1e-6)


def test_cifar10_step_is_momentum_on_the_mean_loss_and_weight_decay(recipe, two_units):
    x, y = pictures(4)
    model = cifar10_challenge.model.build_model("simple", weight_decay=0.5, seed=6)
    start = [variable.numpy() for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        mean_xent = sum_xent(model(x, training=True), y) / 4
    gradients = tape.gradient(mean_xent, model.trainable_variables)

    cifar10 = recipe(CIFAR10)
    update = steps.make_update(config_of(CIFAR10), model, cifar10.optimizer, cifar10.reduce_loss)
    assert float(update(x, x, y)[0]) == pytest.approx(float(mean_xent), rel=1e-5)
    for variable, before, gradient in zip(model.trainable_variables, start, gradients, strict=True):
        decay = 0.5 * before if variable.name == "kernel" else 0.0
        expected = before - 0.1 * (gradient + decay)
        np.testing.assert_allclose(variable, expected, atol=2e-5, err_msg=variable.path)


def test_recipes_are_the_originals(recipe):
    mnist, cifar10 = recipe(MNIST), recipe(CIFAR10)
    adam, momentum = mnist.optimizer, cifar10.optimizer
    assert isinstance(adam, keras.optimizers.Adam)
    assert mnist.reduce_loss is tf.reduce_sum and cifar10.reduce_loss is tf.reduce_mean
    assert (adam.beta_1, adam.beta_2, adam.epsilon) == (0.9, 0.999, 1e-8)
    assert isinstance(momentum, optimizers.Momentum) and not momentum.nesterov
    assert momentum.momentum == 0.9 and cifar10.batch_statistics
    assert config_of(CIFAR10).step_size_schedule == ORIGINAL_RATES
    assert config_of(CIFAR10).weight_decay == 2e-4


# The inner maximisation.


@pytest.fixture
def linear():
    """Two logits of a 2x2 image; the loss of class 0 rises along (1, -1, 1, -1)."""
    model = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False)]
    )
    model.set_weights([np.array([[0, 1], [0, -2], [0, 3], [0, -4]], "f4")])
    return model


IMAGE = np.array([0.5, 0.5, 0.9, 0.1], "f4").reshape(1, 2, 2, 1)
LABEL = np.array([0], "i4")


def adversary(model, **settings):
    challenge = dataclasses.replace(MNIST, fast_logits=lambda model, precision: model)
    return steps.make_adversary(config_of(MNIST, **settings), challenge, model)


def test_no_adversary_leaves_the_images_alone(linear):
    perturb = adversary(linear, adversary="none")
    assert perturb(IMAGE, LABEL, 0) is IMAGE


def test_fgsm_moves_every_pixel_by_epsilon_within_the_pixel_range(linear):
    x_adv = adversary(linear, adversary="fgsm")(IMAGE, LABEL, 0)
    np.testing.assert_allclose(np.ravel(x_adv), [0.8, 0.2, 1.0, 0.0], rtol=1e-6)


def test_the_attack_follows_its_schedule(linear):
    schedule = [[0, 1, 0.05], [2, 3, 0.02], [5, 0, 0.1]]
    perturb = adversary(linear, attack_schedule=schedule, random_start=False, num_steps=40)
    for step, moved in ((0, 0.05), (1, 0.05), (2, 0.06), (4, 0.06), (5, 0), (900, 0)):
        expected = np.ravel(IMAGE) + moved * np.array([1, -1, 1, -1])
        np.testing.assert_allclose(np.ravel(perturb(IMAGE, LABEL, step)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_warm_up_shrinks_the_ball(linear, name):
    settings = {"step_size": 0.02, "random_start": False}
    perturb = adversary(linear, adversary=name, epsilon_warmup_steps=4, epsilon=0.08, **settings)
    for step, epsilon in ((0, 0.02), (1, 0.04), (2, 0.06), (3, 0.08), (4, 0.08), (100, 0.08)):
        expected = np.ravel(IMAGE) + epsilon * np.array([1, -1, 1, -1])
        np.testing.assert_allclose(np.ravel(perturb(IMAGE, LABEL, step)), expected, rtol=1e-5)


def test_the_natural_share_is_trained_on_unattacked(linear):
    settings = {"natural_share": 0.3, "training_batch_size": 10}
    images, labels = np.full((10, 2, 2, 1), 0.5, "f4"), np.zeros(10, "i4")
    x = adversary(linear, **settings)(images, labels, 0)
    np.testing.assert_array_equal(x[:3], images[:3])
    assert np.all(np.max(np.abs(x[3:] - images[3:]), axis=(1, 2, 3)) > 0.2)

    # The update learns from all ten, and reports the seven that were attacked.
    model = mnist_challenge.model.build_model(scale=1, seed=5)
    y = digits(10)[1]
    x = np.concatenate([np.zeros((3, 28, 28, 1), "f4"), digits(10)[0][3:]])
    logits = model(x)
    config = config_of(MNIST, **settings)
    update = steps.make_update(config, model, optimizers.Momentum(0.0), tf.reduce_sum)
    xent, accuracy = update(x, x, y)
    expected = tf.keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    np.testing.assert_allclose(xent, np.mean(expected[3:]), rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean(np.argmax(logits, 1)[3:] == y[3:]))


def test_a_natural_share_leaves_one_image_of_a_batch_to_attack():
    config = config_of(MNIST, natural_share=0.99, training_batch_size=3)
    assert steps.num_natural(config) == 2
    assert steps.num_natural(dataclasses.replace(config, adversary="none")) == 0


def test_random_starts_fill_the_warm_up_ball_and_follow_the_step(linear):
    perturb = adversary(linear, epsilon_warmup_steps=3, num_steps=0)
    image = np.full((200, 2, 2, 1), 0.5, "f4")
    label = np.zeros(200, "i4")
    starts = {step: perturb(image, label, step) - image for step in (0, 1, 2, 3)}
    for step, epsilon in ((0, 0.1), (1, 0.2), (2, 0.3), (3, 0.3)):
        assert 0.98 * epsilon < np.abs(starts[step]).max() <= epsilon + 1e-6
    assert np.mean(np.isclose(starts[2], starts[3])) < 0.01
    np.testing.assert_array_equal(perturb(image, label, 3) - image, starts[3])
    other_seed = adversary(linear, num_steps=0, random_seed=1)(image, label, 3) - image
    assert np.mean(np.isclose(other_seed, starts[3])) < 0.01


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_only_an_attack_with_batch_statistics_updates_the_averages(batch_statistics, two_units):
    x, y = pictures(4)
    model = cifar10_challenge.model.build_model("simple", seed=7)
    before = model.get_weights()
    if batch_statistics:
        twin = keras.models.clone_model(model)
        twin.set_weights(before)
        twin(x, training=True)
        expected = twin.get_weights()
    else:
        expected = before
    config = config_of(CIFAR10, random_start=False, num_steps=1)
    perturb = steps.make_adversary(config, CIFAR10, model, batch_statistics)
    x_adv = perturb(x, y, 0)

    assert np.abs(x_adv - x).max() == 2.0
    moved = 0
    for weight, old, new in zip(model.weights, before, expected, strict=True):
        np.testing.assert_allclose(weight, new, rtol=1e-5, atol=1e-6, err_msg=weight.path)
        moved += not np.array_equal(weight, old)
    assert moved == (2 * 13 if batch_statistics else 0)  # means and variances of 13 norms


def test_an_output_without_a_prediction_is_not_correct():
    logits = tf.constant([[3, 1, -np.inf], [3, 1, np.nan], [3, 1, np.inf], [1, 3, 0]], tf.float32)
    assert steps.accuracy_of(logits, tf.constant([0] * 4)).numpy() == 0.25
