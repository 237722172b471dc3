"""The batches of a training: a reshuffled stream that can be resumed at any step."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from common.errors import InputError


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    to_pixels: Callable,
    start_step: int = 0,
    augment: Callable | None = None,
    rows: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Returns the batches of steps `start_step` to `num_steps` - 1 of a reshuffled stream.

    The stream joins one permutation of the examples per epoch and is cut into batches of exactly
    `batch_size`: a batch may straddle two epochs, and no example is dropped. An element depends
    only on `seed` and its position in the stream: a run that resumes at `start_step` gets the
    batches of an uninterrupted one, bit for bit.

    Args:
        images: uint8 images (n, height, width, channels).
        labels: integer classes (n,).
        batch_size: examples in a batch, at most n.
        seed: any integer of 64 bits.
        num_steps: the stream ends before this step, counted from 0.
        to_pixels: maps uint8 images to float32 pixels, such as `mnist_pixels`.
        start_step: the first step to return.
        augment: None, or a function from uint8 images and int64 seeds (batch, 2), made of `seed`
            and the position in the stream, to uint8 images of the same shape.
        rows: None, or an int array of the positions in each batch to return.

    Returns:
        A dataset of float32 images (batch_size, height, width, channels) and int32 labels
        (batch_size,), or as many as there are `rows`.

    Raises:
        InputError: images and labels do not match, or a number is out of its range.
    """
    n = len(images)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"expected uint8 images (n, h, w, c), got {images.dtype} {images.shape}")
    if labels.shape != (n,):
        raise InputError(f"expected {n} labels for {n} images, got labels of shape {labels.shape}")
    if not 1 <= batch_size <= n:
        raise InputError(f"expected a batch size from 1 to {n} (the examples), got {batch_size}")
    if not 0 <= start_step <= num_steps:
        raise InputError(f"expected start_step from 0 to {num_steps}, got {start_step}")

    # Captured eager tensors are passed by reference; arrays would be copied into the graph. On
    # the CPU, since tf.data runs there.
    with tf.device("CPU:0"):
        all_images = tf.constant(images)
        all_labels = tf.constant(labels, tf.int32)

    def shuffled(epoch):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(n, dtype=tf.int64), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        return tf.data.Dataset.from_tensor_slices(order)

    def batch_at(positions, indices):
        if rows is not None:
            positions, indices = tf.gather(positions, rows), tf.gather(indices, rows)
        x, y = tf.gather(all_images, indices), tf.gather(all_labels, indices)
        if augment is not None:
            x = augment(x, seeds_of(seed, positions))
        return to_pixels(x), y

    start, stop = start_step * batch_size, num_steps * batch_size
    first_epoch, past_epoch = start // n, -(-stop // n)
    stream = tf.data.Dataset.range(first_epoch, past_epoch).flat_map(shuffled)
    stream = stream.skip(start - first_epoch * n).take(stop - start).enumerate(start)
    batches = stream.batch(batch_size, drop_remainder=True)
    batches = batches.map(batch_at, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def seeds_of(seed, positions):
    """The seeds of augmentation: int64 (batch, 2), the training's and each position's.

    Args:
        seed: int, or an int tensor.
        positions: int64 tensor (batch,), places in the stream.
    """
    return tf.stack([tf.fill(tf.shape(positions), tf.cast(seed, tf.int64)), positions], axis=1)
