"""Layers of the CIFAR-10 networks that Keras lacks, or that are faster than Keras's."""

import keras
import tensorflow as tf
from keras import layers, ops


@keras.saving.register_keras_serializable("cifar10_challenge")
class Standardise(layers.Layer):
    """Computes (x - mean) / max(deviation, 1/sqrt(number of values)) for each image."""

    def call(self, x):
        """Standardises float32 images (batch, height, width, channels)."""
        count = x.shape[1] * x.shape[2] * x.shape[3]
        mean = ops.mean(x, axis=(1, 2, 3), keepdims=True)
        deviation = ops.std(x, axis=(1, 2, 3), keepdims=True)
        return (x - mean) / ops.maximum(deviation, count**-0.5)


@keras.saving.register_keras_serializable("cifar10_challenge")
class PadChannels(layers.Layer):
    """Adds channels of zeros, half on each side, up to `filters` channels."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def call(self, x):
        """Pads float32 (batch, height, width, channels)."""
        missing = self.filters - x.shape[-1]
        return ops.pad(x, [[0, 0], [0, 0], [0, 0], [missing // 2, missing - missing // 2]])

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("cifar10_challenge")
class BatchNorm(layers.BatchNormalization):
    """Keras's batch normalisation of the last axis, in training mode as one op of TensorFlow.

    On several devices (`tf.distribute`) each normalises its part of the batch by that part's own
    statistics; with `synchronized=True` all do by those of the whole batch, as one device would.
    """

    def __init__(self, *, synchronized=False, **kwargs):
        super().__init__(**kwargs)  # Keras's own `synchronized` rounds differently on one device
        self._is_synchronized = synchronized

    def call(self, x, training=False):
        """Normalises float32 (batch, height, width, channels)."""
        if not (training and self.trainable):
            return super().call(x, training=training)
        replica = tf.distribute.get_replica_context()
        if self._is_synchronized and replica is not None and replica.num_replicas_in_sync > 1:
            return self._synchronised(x, replica)
        if x.dtype == tf.float64:  # which the op does not support
            return super().call(x, training=training)
        x, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
        )
        # The op returns the unbiased variance (a division by count - 1); Keras's and the original's
        # moving averages are of the biased one (a division by count).
        count = ops.cast(ops.size(x) // x.shape[-1], variance.dtype)
        variance *= (count - 1) / count
        self._follow(mean, variance)
        return x

    def _synchronised(self, x, replica):
        """Normalises a replica's part of a batch by the statistics of the whole batch."""
        values = tf.cast(x, self.moving_mean.dtype)  # bfloat16 in mixed precision
        mean, variance = tf.nn.moments(values, axes=[0, 1, 2])
        count = tf.fill(mean.shape, tf.cast(tf.size(x) // x.shape[-1], mean.dtype))
        # One exchange for all three, since the number of exchanges decides the time.
        parts = tf.stack([count, count * mean, count * (variance + tf.square(mean))])
        count, total, squares = tf.unstack(replica.all_reduce(tf.distribute.ReduceOp.SUM, parts))
        mean = total / count
        variance = tf.maximum(squares / count - tf.square(mean), 0.0)
        self._follow(mean, variance)
        return tf.cast(
            tf.nn.batch_normalization(values, mean, variance, self.beta, self.gamma, self.epsilon),
            x.dtype,
        )

    def _follow(self, mean, variance):
        """Updates the stored averages by the statistics of a batch."""
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * self.momentum + value * (1.0 - self.momentum))

    def get_config(self):
        return {**super().get_config(), "synchronized": self._is_synchronized}
