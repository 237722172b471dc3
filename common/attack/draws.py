"""Uniform random numbers for many seeds at once, bit for bit as TensorFlow draws them for one."""

import tensorflow as tf

from common import philox

_MANTISSA = 23  # bits of a word that make a float32 in [0, 1)


def uniform(seeds, count):
    """The numbers of tf.random.stateless_uniform([count], seed, alg="philox"), for each seed.

    They are the same within XLA, whose own ops draw other numbers.

    Args:
        seeds: int tensor (batch, 2).
        count: int or int tensor, the number of random numbers for each seed.

    Returns:
        float32 (batch, count) in [0, 1).
    """
    numbers = tf.range(-(-tf.cast(count, tf.int64) // 4))
    words = tf.stack(_block(seeds, numbers), axis=-1)
    words = tf.reshape(words, (tf.shape(words)[0], -1))[:, :count]
    mantissa = words & (2**_MANTISSA - 1)
    return tf.cast(mantissa, tf.float32) * 2.0**-_MANTISSA


def fold_in(seeds, data):
    """The result of tf.random.fold_in(seed, data, alg="philox"), for each seed.

    Args:
        seeds: int tensor (batch, 2).
        data: int32 tensor (batch,), or an int.

    Returns:
        int32 (batch, 2).
    """
    first = tf.cast(_block(seeds, tf.zeros([1], tf.int64))[0][:, 0], tf.int32)
    return tf.stack([first, tf.broadcast_to(data, tf.shape(first))], axis=1)


def _block(seeds, numbers):
    """Philox's four words, each int64 (batch, count), of the counters `numbers` (count,)."""
    pairs = tf.unstack(tf.cast(seeds, tf.int64)[:, :, None], axis=1)
    key, (third, fourth) = philox.generator(pairs)
    zeros = tf.zeros_like(numbers)
    shape = tf.broadcast_dynamic_shape(tf.shape(third), tf.shape(numbers))
    return [tf.broadcast_to(w, shape) for w in philox.block(key, (numbers, zeros, third, fourth))]
