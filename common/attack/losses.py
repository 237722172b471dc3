"""Losses that attacks ascend, one number for each example.

A logit of minus infinity rules its class out: the losses are then the other classes'.
"""

import numpy as np
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
    gradient vanishes once an example is misclassified. The correct class is excluded from the
    maximum, also if all other logits are negative.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).
        kappa: the confidence, a difference of logits.

    Returns:
        float32 (batch,).
    """
    return -tf.nn.relu(margin(logits, y) + kappa)


def margin(logits, y):
    """The lead of the correct logit over the best wrong one: z_y - max_{i != y} z_i.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).

    Returns:
        float32 (batch,), negative for a misclassified example.
    """
    return _logit(logits, y) - tf.reduce_max(_wrong_logits(logits, y), axis=-1)


def dlr_loss(logits, y):
    """Difference of logits ratio (Croce & Hein 2020, "Reliable evaluation ...", Eq. 6).

        -(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3)        pi sorts the logits, largest first

    Unlike cross-entropy it does not change if the logits are shifted or scaled.

    Args:
        logits: float32 (batch, classes), 3 classes or more.
        y: int labels (batch,).

    Returns:
        float32 (batch,).
    """
    logits = finite_logits(logits)
    largest = tf.math.top_k(logits, 3).values
    return -margin(logits, y) / (largest[:, 0] - largest[:, 2] + _TINY)


def scale_of(logits):
    """The factor that makes the largest logit of each example 10 larger than the third largest.

    If logits are far apart, cross-entropy saturates and its gradient vanishes. With logits times
    this factor it does not depend on their scale.

    Args:
        logits: float32 (batch, classes), 2 classes or more; of two the lower one counts as third.

    Returns:
        float32 (batch,).
    """
    largest = tf.math.top_k(finite_logits(logits), min(3, logits.shape[-1])).values
    return 10.0 / tf.maximum(largest[:, 0] - largest[:, -1], 1e-30)


def targeted_dlr_loss(logits, y, target):
    """The DLR loss towards a class (Croce & Hein 2020, "Reliable evaluation ...", Eq. 7).

        -(z_y - z_target) / (z_pi1 - (z_pi3 + z_pi4) / 2)

    Args:
        logits: float32 (batch, classes), 4 classes or more.
        y, target: int classes (batch,).

    Returns:
        float32 (batch,).
    """
    logits = finite_logits(logits)
    largest = tf.math.top_k(logits, 4).values
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2.0
    return (_logit(logits, target) - _logit(logits, y)) / (scale + _TINY)


def targeted_xent_loss(logits, y, target):
    """Minus the cross-entropy of the class `target`; `y` is not used.

    Args:
        logits: float32 (batch, classes).
        y, target: int classes (batch,).

    Returns:
        float32 (batch,).
    """
    return -xent_loss(finite_logits(logits), target)


def targeted_margin_loss(logits, y, target):
    """The lead of the logit of `target` over the correct one: z_target - z_y.

    Args:
        logits: float32 (batch, classes).
        y, target: int classes (batch,).

    Returns:
        float32 (batch,).
    """
    logits = finite_logits(logits)
    return _logit(logits, target) - _logit(logits, y)


# By the names of `loss_func`.
LOSSES = {"xent": xent_loss, "cw": cw_loss, "dlr": dlr_loss}
TARGETED_LOSSES = {
    "xent": targeted_xent_loss,
    "cw": targeted_margin_loss,
    "dlr": targeted_dlr_loss,
}


def is_misclassified(logits, y):
    """Whether the prediction is another class than `y`, or there is no prediction.

    The prediction is the class of the largest logit. Minus infinity only excludes its class; there
    is no prediction if a logit is NaN or plus infinity, or if that of `y` is not finite.

    Args:
        logits: floating (batch, classes).
        y: int labels (batch,).

    Returns:
        bool (batch,).
    """
    logits = tf.convert_to_tensor(logits)
    is_prediction = tf.reduce_all(logits < np.inf, axis=-1)  # NaN is not
    # The logit of `y` matters only if it is the largest, which is therefore the one to check.
    is_prediction &= tf.reduce_max(logits, axis=-1) > -np.inf
    predicted = tf.argmax(logits, axis=-1, output_type=tf.int32)
    # The operator != would leave the rank unknown if one of the sizes is.
    return tf.math.not_equal(predicted, tf.cast(y, tf.int32)) | ~is_prediction


def leads_by(logits, y, share):
    """Whether the best wrong class leads `y` by more than `share` of the largest logit's size.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).
        share: float.

    Returns:
        bool (batch,).
    """
    sizes = tf.where(tf.equal(logits, -np.inf), 0.0, tf.abs(logits))
    return -margin(logits, y) > share * tf.reduce_max(sizes, axis=-1)


def likely_wrong_classes(logits, y, count):
    """The `count` wrong classes of the largest logits, the largest first.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).
        count: number of classes to return, less than all.

    Returns:
        int32 (batch, count); the others are repeated in place of those that are ruled out.
    """
    above = tf.maximum(logits, tf.float32.min / 2.0)  # that of `y`
    order = tf.math.top_k(_wrong_logits(above, y), count).indices
    num_possible = tf.math.count_nonzero(
        _is_possible(logits, order), axis=1, keepdims=True, dtype=tf.int32
    )
    return tf.gather(order, tf.range(count) % tf.maximum(num_possible, 1), batch_dims=1)


def least_likely_wrong_class(logits, y):
    """The wrong class of the lowest logit; a class that is ruled out only if all wrong ones are.

    Args:
        logits: float32 (batch, classes).
        y: int labels (batch,).

    Returns:
        int32 (batch,).
    """
    order = likely_wrong_classes(logits, y, _num_classes(logits) - 1)
    # Of equal ones the last, as if they were sorted.
    lowest = tf.gather(logits, order, batch_dims=1)[:, ::-1]
    place = tf.argmin(lowest, axis=1, output_type=tf.int32)
    return tf.gather(order[:, ::-1], place, batch_dims=1)


def wrong_class_at(share, logits, y):
    """The wrong class at a share of the list of those that are not ruled out, from `y` on.

    Args:
        share: float32 (batch,), from 0 to 1.
        logits: float32 (batch, classes).
        y: int32 labels (batch,).

    Returns:
        int32 (batch,); a class that is ruled out if all wrong ones are.
    """
    num_classes = _num_classes(logits)
    classes = (y[:, None] + tf.range(1, num_classes)) % num_classes
    is_possible = _is_possible(logits, classes)
    is_possible |= ~tf.reduce_any(is_possible, axis=1, keepdims=True)
    count = tf.cumsum(tf.cast(is_possible, tf.int32), axis=1)
    number = tf.cast(share * tf.cast(count[:, -1], tf.float32), tf.int32)
    number = tf.minimum(number, count[:, -1] - 1)
    place = tf.argmax(count > number[:, None], axis=1, output_type=tf.int32)
    return tf.gather(classes, place, batch_dims=1)


@tf.custom_gradient
def finite_logits(z):
    """Logits in which a class that is ruled out, at minus infinity, has a finite one.

    It is so far below all others of its row that its probability is still 0, and has no gradient. A
    row that rules out every class becomes NaN.

    Args:
        z: float32 (batch, classes).

    Returns:
        float32 (batch, classes).
    """
    is_out = tf.equal(z, -np.inf)
    lowest = tf.reduce_min(tf.where(is_out, np.inf, z), axis=1, keepdims=True)
    # exp(-104) is 0 in float32; the multiple is for logits whose last digit is more than 128.
    below = lowest - (128.0 + tf.abs(lowest))
    return tf.where(is_out, below, z), lambda dz: tf.where(is_out, 0.0, dz)


_TINY = 1e-12  # keeps a quotient finite if all logits are equal


def _num_classes(logits):
    return logits.shape[-1] or tf.shape(logits)[-1]


def _is_possible(logits, classes):
    return tf.gather(logits, classes, batch_dims=1) > -np.inf


def _logit(logits, y):
    return tf.reduce_sum(tf.where(_is_class(logits, y), logits, 0.0), axis=-1)


def _wrong_logits(logits, y):
    """The logits with that of `y` below all others."""
    return tf.where(_is_class(logits, y), tf.float32.min, logits)


def _is_class(logits, y):
    return tf.one_hot(y, tf.shape(logits)[-1], on_value=True, off_value=False)
