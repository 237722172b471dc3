import keras
import numpy as np
import pytest
import tensorflow as tf

from common.training import optimizers

tf1 = tf.compat.v1

ORIGINAL_RATES = ((0, 0.1), (40000, 0.01), (60000, 0.001))


# Learning rates.


def test_constant_schedule_changes_after_the_boundary_as_tensorflow_1():
    schedule = optimizers.learning_rate(ORIGINAL_RATES)
    steps = [0, 1, 39999, 40000, 40001, 59999, 60000, 60001, 80000]
    with tf.Graph().as_default(), tf1.Session() as session:
        step = tf1.placeholder(tf.int64, [])
        rate = tf1.train.piecewise_constant(step, [40000, 60000], [0.1, 0.01, 0.001])
        expected = [session.run(rate, {step: value}) for value in steps]
    assert [float(schedule(tf.constant(step))) for step in steps] == expected
    assert expected == [np.float32(rate) for rate in 4 * [0.1] + 3 * [0.01] + 2 * [0.001]]


def test_linear_schedule_interpolates_and_keeps_the_last_rate():
    schedule = optimizers.learning_rate(((0, 0.0), (10, 1.0), (30, 0.2)), "linear")
    rates = [float(schedule(step)) for step in (0, 5, 10, 15, 20, 30, 31, 1000)]
    np.testing.assert_allclose(rates, [0.0, 0.5, 1.0, 0.8, 0.6, 0.2, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize("interpolation", ["constant", "linear"])
def test_schedule_of_one_rate(interpolation):
    assert float(optimizers.learning_rate(((0, 0.5),), interpolation)(7)) == 0.5


# Optimizers.


def least_squares(weights):
    """A loss of two weights with very different curvatures."""
    return 0.5 * (weights[0] - 1.0) ** 2 + 2.0 * (weights[1] + weights[0]) ** 2


def path_of(optimizer, num_steps):
    """The weights after each step on `least_squares` from zero."""
    weights = tf.Variable([0.0, 0.0])
    path = []
    for _ in range(num_steps):
        with tf.GradientTape() as tape:
            loss = least_squares(weights)
        optimizer.apply([tape.gradient(loss, weights)], [weights])
        path.append(weights.numpy())
    return np.array(path)


def test_momentum_is_tensorflow_1s_across_a_change_of_rate():
    schedule = optimizers.learning_rate(((0, 0.1), (5, 0.01)))
    with tf.Graph().as_default(), tf1.Session() as session:
        step = tf1.train.get_or_create_global_step()
        rate = tf1.train.piecewise_constant(step, [5], [0.1, 0.01])
        weights = tf1.Variable([0.0, 0.0])
        minimise = tf1.train.MomentumOptimizer(rate, 0.9).minimize(least_squares(weights), step)
        session.run(tf1.global_variables_initializer())
        expected = []
        for _ in range(12):
            session.run(minimise)
            expected.append(session.run(weights))

    ours = path_of(optimizers.Momentum(schedule, momentum=0.9), 12)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    kerass = path_of(keras.optimizers.SGD(schedule, momentum=0.9), 12)
    np.testing.assert_allclose(kerass[:6], expected[:6], rtol=1e-5, atol=1e-6)
    assert np.abs(kerass - expected)[6:].max() > 0.01


def test_momentum_by_hand():
    optimizer = optimizers.Momentum(0.5, momentum=0.9)
    weight = tf.Variable([1.0])
    optimizer.apply([tf.constant([2.0])], [weight])  # v = 2
    assert weight.numpy() == [0.0]
    optimizer.apply([tf.constant([1.0])], [weight])  # v = 0.9 * 2 + 1
    np.testing.assert_allclose(weight, [-1.4])


# Averages of the weights.


@pytest.fixture
def models():
    """Two models of one weight, 8.0 in the first one and 2.0 in the second."""
    models = []
    for value in (8.0, 2.0):
        layer = keras.layers.Dense(1, use_bias=False)
        models.append(keras.Sequential([keras.Input((1,)), layer]))
        models[-1].set_weights([np.array([[value]], "f4")])
    return models


@pytest.mark.parametrize(("step", "decay"), [(1, 2 / 11), (8, 0.5), (1000, 0.9)])
def test_the_average_of_the_weights_by_hand(models, step, decay):
    result, model = models
    optimizers.average_weights(result, model, 0.9, tf.constant(step, tf.int64))
    assert result.weights[0].numpy().item() == pytest.approx(decay * 8.0 + (1 - decay) * 2.0)
    assert model.weights[0].numpy().item() == 2.0


def test_copied_weights_are_the_models(models):
    optimizers.copy_weights(*models)
    assert [model.weights[0].numpy().item() for model in models] == [2.0, 2.0]
