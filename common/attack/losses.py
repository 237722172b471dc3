"""Losses that attacks ascend, one number for each example."""

import tensorflow as tf


def xent_loss(logits, y):
    """Cross-entropy of each example.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).

    Returns:
        float32 (batch,).
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)


def cw_loss(logits, y, kappa=50.0):
    """Carlini-Wagner loss of each example: -max(z_y - max_{i != y} z_i + kappa, 0).

    It grows as the best wrong logit overtakes the correct one and stops at a lead of `kappa`.
    kappa=50 is the original code's `cw` and the paper's CW+; kappa=0 is the paper's CW, whose
    gradient vanishes once an example is misclassified. The correct class is masked out of the
    maximum, so that it holds when all other logits are negative.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).
        kappa: the confidence, in logits.

    Returns:
        float32 (batch,).
    """
    return -tf.nn.relu(margin(logits, y) + kappa)


def margin(logits, y):
    """How far the correct logit is ahead of the best wrong one: z_y - max_{i != y} z_i.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).

    Returns:
        float32 (batch,); negative where an example is misclassified.
    """
    return _logit(logits, y) - tf.reduce_max(_wrong_logits(logits, y), axis=-1)


def dlr_loss(logits, y):
    """Difference of logits ratio (Croce & Hein 2020, "Reliable evaluation ...", Eq. 6).

        -(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3)        pi sorts the logits, largest first

    Unlike cross-entropy it changes neither with a shift nor with a positive scale of the logits.

    Args:
        logits: float32 (batch, classes), 3 classes or more.
        y: int labels (batch,).

    Returns:
        float32 (batch,).
    """
    largest = tf.math.top_k(logits, 3).values
    return -margin(logits, y) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_dlr_loss(logits, y, target):
    """The DLR loss towards a class (Croce & Hein 2020, "Reliable evaluation ...", Eq. 7).

        -(z_y - z_target) / (z_pi1 - (z_pi3 + z_pi4) / 2)

    Args:
        logits: float32 (batch, classes), 4 classes or more.
        y, target: int classes (batch,).

    Returns:
        float32 (batch,).
    """
    largest = tf.math.top_k(logits, 4).values
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2.0
    return targeted_margin_loss(logits, y, target) / (scale + _TINY)


def targeted_xent_loss(logits, y, target):
    """Minus the cross-entropy of the class `target`; `y` plays no part.

    Args:
        logits: float32 (batch, classes).
        y, target: int classes (batch,).

    Returns:
        float32 (batch,).
    """
    return -xent_loss(logits, target)


def targeted_margin_loss(logits, y, target):
    """How far the logit of `target` is ahead of the correct one: z_target - z_y.

    Args:
        logits: float32 (batch, classes).
        y, target: int classes (batch,).

    Returns:
        float32 (batch,).
    """
    return _logit(logits, target) - _logit(logits, y)


def is_misclassified(logits, y):
    """Whether the prediction is another class than `y`, or a logit is no finite number.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).

    Returns:
        bool (batch,).
    """
    is_number = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return (tf.argmax(logits, axis=-1, output_type=tf.int32) != y) | ~is_number


def likely_wrong_classes(logits, y, count):
    """The `count` wrong classes of the largest logits, the largest first.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).
        count: how many, fewer than classes.

    Returns:
        int32 (batch, count).
    """
    return tf.math.top_k(_wrong_logits(logits, y), count).indices


_TINY = 1e-12  # where all logits are equal


def _logit(logits, y):
    is_class = tf.one_hot(y, tf.shape(logits)[-1], dtype=logits.dtype)
    return tf.reduce_sum(is_class * logits, axis=-1)


def _wrong_logits(logits, y):
    """The logits with that of `y` below all others."""
    is_correct = tf.one_hot(y, tf.shape(logits)[-1], on_value=True, off_value=False)
    return tf.where(is_correct, tf.float32.min, logits)
