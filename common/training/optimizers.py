"""The original code's learning rates and optimizer, and averages of weights."""

import itertools

import keras
import tensorflow as tf


def learning_rate(points, interpolation="constant"):
    """A learning rate schedule through some points.

    Args:
        points: ((0, rate), (step, rate), ...) with rising steps.
        interpolation: "constant" keeps each rate up to and including the next point's step, as
            TensorFlow 1's piecewise_constant does; "linear" is `PiecewiseLinear`.

    Returns:
        A keras LearningRateSchedule.
    """
    if interpolation == "constant" and len(points) > 1:  # Keras's needs two rates
        steps, rates = zip(*points, strict=True)
        return keras.optimizers.schedules.PiecewiseConstantDecay(list(steps[1:]), list(rates))
    return PiecewiseLinear(points)


@keras.saving.register_keras_serializable("common")
class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that changes linearly between its points, and then keeps the last rate.

    Args:
        points: ((0, rate), (step, rate), ...) with rising steps.
    """

    def __init__(self, points):
        self.points = tuple((int(step), float(rate)) for step, rate in points)

    def __call__(self, step):
        """The float32 rate at `step`."""
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.points[0][1], tf.float32)
        for (start, before), (end, after) in itertools.pairwise(self.points):
            part = tf.clip_by_value((step - start) / (end - start), 0.0, 1.0)
            rate = tf.where(step > start, before + part * (after - before), rate)
        return rate

    def get_config(self):
        """The arguments that make this schedule again."""
        return {"points": self.points}


class Momentum(keras.optimizers.SGD):
    """TensorFlow 1's momentum: v <- momentum * v + gradient; w <- w - rate * v.

    Keras's SGD keeps the rate inside v instead, so that the two differ for some steps after each
    change of the rate.

    Args:
        learning_rate: float or schedule.
        momentum: float.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Updates `variable` and its velocity."""
        if not self.momentum:  # Keras has no velocities then
            return super().update_step(gradient, variable, learning_rate)
        velocity = self.momentums[self._get_variable_index(variable)]
        rate = keras.ops.cast(learning_rate, variable.dtype)
        self.assign(velocity, self.momentum * velocity + gradient)
        return self.assign_sub(variable, rate * velocity)


def average_weights(result, model, decay, step):
    """Moves `result` towards `model`: its weights a become d a + (1 - d) w after step t.

    d = min(decay, (1 + t) / (10 + t)), as in tf.train.ExponentialMovingAverage with `num_updates`.

    Args:
        result, model: keras.Models of one network; batch norm's averages are among the weights.
        decay: float between 0 and 1.
        step: int tensor, the number of steps that `model` has taken.
    """
    count = tf.cast(step, tf.float32)
    decay = tf.minimum(decay, (1.0 + count) / (10.0 + count))
    for average, weight in zip(result.weights, model.weights, strict=True):
        average.assign(decay * average + (1.0 - decay) * weight)


def copy_weights(result, model):
    """Gives `result` the weights of `model`, which is the same network in another precision."""
    for copy, weight in zip(result.weights, model.weights, strict=True):
        copy.assign(weight)
