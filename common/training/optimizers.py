"""The learning rates and the optimizer of the original code."""

import keras
import tensorflow as tf


class PiecewiseSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate given at some steps: kept in between, or changed linearly.

    Args:
        points: ((0, rate), (step, rate), ...) with rising steps.
        linear: False keeps each rate up to and including the next point's step, as TensorFlow 1's
            piecewise_constant does. True interpolates, and keeps the last rate.
    """

    def __init__(self, points, linear=False):
        self.points = tuple((int(step), float(rate)) for step, rate in points)
        self.linear = linear

    def __call__(self, step):
        """The float32 rate at `step`."""
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.points[0][1], tf.float32)
        for (start, before), (end, after) in zip(self.points, self.points[1:]):
            if self.linear:
                part = tf.clip_by_value((step - start) / (end - start), 0.0, 1.0)
                rate = tf.where(step > start, before + part * (after - before), rate)
            else:
                rate = tf.where(step > end, after, rate)
        return rate


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
