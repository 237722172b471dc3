"""Losses, on numbers that can be checked in the head."""

import numpy as np
import pytest
import tensorflow as tf

from common.attack import (
    cw_loss,
    dlr_loss,
    is_misclassified,
    margin,
    targeted_dlr_loss,
    targeted_margin_loss,
    targeted_xent_loss,
    xent_loss,
)
from common.attack.losses import (
    finite_logits,
    least_likely_wrong_class,
    likely_wrong_classes,
    scale_of,
    wrong_class_at,
)


@pytest.mark.parametrize(
    "logits, y, expected",
    [([0, 0], 0, np.log(2)), ([0, np.log(3)], 0, np.log(4)), ([0, np.log(3)], 1, np.log(4 / 3))],
)
def test_xent_on_numbers_done_in_the_head(logits, y, expected):
    loss = xent_loss(np.float32([logits, logits]), [y, y])
    np.testing.assert_allclose(loss, [expected, expected], rtol=1e-6)


@pytest.mark.parametrize(
    "logits, y, cw_plus, cw",
    [
        ([2, 5, 1], 1, -53, -3),
        ([2, 5, 1], 0, -47, 0),  # misclassified
        ([60, 5, 1], 1, 0, 0),  # by more than 50
        ([1, -3, -7], 0, -54, -4),  # all others negative: their best is -3, not a masked 0
        ([-3, -9, -7], 0, -54, -4),  # all negative
    ],
)
def test_cw_on_numbers_done_in_the_head(logits, y, cw_plus, cw):
    logits = np.float32([logits])
    assert cw_loss(logits, [y]).numpy() == [cw_plus]
    assert cw_loss(logits, [y], kappa=0.0).numpy() == [cw]


@pytest.mark.parametrize("kappa, moves", [(0.0, False), (50.0, True)])
def test_the_gradient_of_cw_vanishes_once_it_leads_by_kappa(kappa, moves):
    logits = tf.constant([[2.0, 5.0, 1.0]])  # classified as 1
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        right, wrong = cw_loss(logits, [1], kappa), cw_loss(logits, [0], kappa)
    np.testing.assert_array_equal(tape.gradient(right, logits), [[1, -1, 0]])
    np.testing.assert_array_equal(tape.gradient(wrong, logits), [[-moves, moves, 0]])


LOGITS = np.float32([[7, 5, 3, -1, 1]])  # largest first: 7, 5, 3, 1


@pytest.mark.parametrize("y, expected", [(0, -2 / 4), (1, 2 / 4), (2, 4 / 4), (3, 8 / 4)])
def test_dlr_on_numbers_done_in_the_head(y, expected):
    np.testing.assert_allclose(dlr_loss(LOGITS, [y]), [expected])


@pytest.mark.parametrize("y, target, expected", [(0, 1, -2 / 5), (0, 3, -8 / 5), (2, 0, 4 / 5)])
def test_targeted_dlr_on_numbers_done_in_the_head(y, target, expected):
    np.testing.assert_allclose(targeted_dlr_loss(LOGITS, [y], [target]), [expected])


def test_dlr_changes_neither_with_a_shift_nor_with_a_scale():
    other = 3 * LOGITS + 11
    np.testing.assert_allclose(dlr_loss(other, [0]), dlr_loss(LOGITS, [0]), rtol=1e-6)
    np.testing.assert_allclose(
        targeted_dlr_loss(other, [0], [3]), targeted_dlr_loss(LOGITS, [0], [3]), rtol=1e-6
    )


@pytest.mark.parametrize("scale", [1.0, 2.0**-60, 2.0**60])
def test_the_scale_of_logits_on_numbers_done_in_the_head(scale):
    logits = np.float32([[1, 4, 2, -9], [6, 5, 4, 3], [-1, -3, -21, -np.inf]]) * np.float32(scale)
    np.testing.assert_allclose(scale_of(logits) * scale, [10 / 3, 5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(scale_of(logits[:, :2]) * scale, [10 / 3, 10, 5], rtol=1e-6)


def test_the_scale_of_equal_logits_is_finite():
    scale = scale_of(np.full((1, 3), 50, np.float32))
    assert np.isfinite(scale * 50)


def test_dlr_of_equal_logits_is_zero():
    np.testing.assert_array_equal(dlr_loss(np.ones((1, 5), np.float32), [0]), [0])
    np.testing.assert_array_equal(targeted_dlr_loss(np.ones((1, 5), np.float32), [0], [1]), [0])


def test_targeted_losses_on_numbers_done_in_the_head():
    np.testing.assert_allclose(targeted_margin_loss(LOGITS, [0], [3]), [-8])
    np.testing.assert_allclose(margin(LOGITS, [2]), [-4])
    logits = np.log(np.float32([[1, 2, 5]]))
    np.testing.assert_allclose(targeted_xent_loss(logits, [0], [2]), [np.log(5 / 8)], rtol=1e-6)


def test_logits_that_are_not_numbers_are_misclassified():
    logits = np.float32([[3, 1], [1, 3], [3, np.nan], [np.inf, 1]])
    np.testing.assert_array_equal(is_misclassified(logits, [0] * 4), [False, True, True, True])


OUT = -np.inf  # a class that is ruled out


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize(
    ("logits", "y", "expected"),
    [
        ([3, 1, OUT], 0, False),
        ([3, 1, OUT], 1, True),
        ([3, 1, OUT], 2, True),
        ([3, OUT, OUT], 0, False),  # the only class
        ([OUT, OUT, OUT], 0, True),
        ([3, np.nan, OUT], 0, True),
        ([3, 1, np.inf], 0, True),
        ([np.inf, 1, OUT], 0, True),
    ],
)
def test_a_class_that_is_ruled_out_is_not_predicted_and_leaves_the_others(
    logits, y, expected, dtype
):
    """https://github.com/bethgelab/foolbox/issues/108 and 618."""
    assert is_misclassified(np.array([logits], dtype), [y]).numpy() == [expected]
    assert is_misclassified(np.array([logits], dtype), np.int64([y])).numpy() == [expected]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda z: xent_loss(z, [0]), np.log(1 + np.exp(-2))),
        (lambda z: margin(z, [0]), 2),
        (lambda z: cw_loss(z, [0], 0.0), -2),
        (lambda z: targeted_margin_loss(z, [0], [1]), -2),
        (lambda z: targeted_xent_loss(z, [0], [1]), -np.log(1 + np.exp(2))),
        (lambda z: dlr_loss(z, [0]), -2 / 131),  # ruled out is 128 + 1 below the lowest, 1
        (lambda z: targeted_dlr_loss(z, [0], [1]), -2 / 131),
    ],
)
def test_losses_are_those_of_the_classes_that_are_not_ruled_out(loss, expected):
    logits = tf.constant([[3, 1, OUT, OUT, OUT]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(logits)
    np.testing.assert_allclose(value, [expected], rtol=1e-5)
    gradient = tape.gradient(value, logits).numpy()[0]
    assert np.all(gradient[:2] != 0) and np.all(gradient[2:] == 0)


@pytest.mark.parametrize("loss", [targeted_margin_loss, targeted_xent_loss])
def test_towards_a_class_that_is_ruled_out_the_label_falls(loss):
    logits = tf.constant([[3, 1, OUT, 0, 0]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(logits, [0], [2])
    assert np.isfinite(value).all()
    gradient = tape.gradient(value, logits).numpy()[0]
    assert np.isfinite(gradient).all() and gradient[0] < 0 and gradient[2] == 0


@pytest.mark.parametrize("highest", [0.0, 5.0, -5.0, 1e10, -1e10, 1e30])
def test_finite_logits_keep_order_and_probabilities(highest):
    logits = np.float32([[highest, highest - 1, OUT], [highest] * 3])
    found = finite_logits(logits).numpy()
    assert np.isfinite(found).all() and found[0, 2] < found[0, 1]
    np.testing.assert_array_equal(found[:, :2], logits[:, :2])
    np.testing.assert_array_equal(tf.nn.softmax(found), tf.nn.softmax(logits))
    assert np.isnan(finite_logits(np.float32([[OUT, OUT]]))).all()


def test_targets_are_classes_that_are_not_ruled_out():
    logits = np.float32([[OUT, 5, 1, OUT, 3]])
    np.testing.assert_array_equal(likely_wrong_classes(logits, [1], 4), [[4, 2, 4, 2]])
    assert least_likely_wrong_class(logits, [1]).numpy() == [2]
    found = [
        int(wrong_class_at(np.float32([share]), logits, tf.constant([1]))[0])
        for share in (0.0, 0.49, 0.5, 0.99, 1.0)
    ]
    assert found == [2, 2, 4, 4, 4]
    # Without them it is one of all wrong ones, in turn.
    found = [
        int(wrong_class_at(np.float32([share]), LOGITS, tf.constant([3]))[0])
        for share in (0.0, 0.25, 0.5, 0.75)
    ]
    assert found == [4, 0, 1, 2]
    assert least_likely_wrong_class(LOGITS, [3]).numpy() == [4]
    # And if nothing else is left, one of these.
    only = np.float32([[OUT, 5, OUT, OUT, OUT]])
    assert 1 not in likely_wrong_classes(only, [1], 4).numpy()
    assert least_likely_wrong_class(only, [1]).numpy() != [1]
    assert wrong_class_at(np.float32([0.6]), only, tf.constant([1])).numpy() != [1]


def test_the_likeliest_wrong_classes_leave_out_the_label():
    np.testing.assert_array_equal(likely_wrong_classes(LOGITS, [1], 4), [[0, 2, 4, 3]])
    np.testing.assert_array_equal(likely_wrong_classes(-LOGITS, [3], 2), [[4, 2]])
