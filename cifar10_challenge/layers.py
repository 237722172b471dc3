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
    """Keras's batch normalisation of the last axis, in training mode as one op of TensorFlow."""

    def call(self, x, training=False):
        """Normalises float32 (batch, height, width, channels)."""
        if not (training and self.trainable) or x.dtype == tf.float64:  # which the op lacks
            return super().call(x, training=training)
        x, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
        )
        # The op returns the unbiased variance (a division by count - 1); Keras's and the original's
        # moving averages are of the biased one (a division by count).
        count = ops.cast(ops.size(x) // x.shape[-1], variance.dtype)
        variance *= (count - 1) / count
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * self.momentum + value * (1.0 - self.momentum))
        return x
