"""Losses, on numbers done in the head."""

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
from common.attack.losses import likely_wrong_classes


@pytest.mark.parametrize(
    "logits, y, expected",
    [([0, 0], 0, np.log(2)), ([0, np.log(3)], 0, np.log(4)), ([0, np.log(3)], 1, np.log(4 / 3))],
)
def test_xent_in_the_head(logits, y, expected):
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
def test_cw_in_the_head(logits, y, cw_plus, cw):
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
def test_dlr_in_the_head(y, expected):
    np.testing.assert_allclose(dlr_loss(LOGITS, [y]), [expected])


@pytest.mark.parametrize("y, target, expected", [(0, 1, -2 / 5), (0, 3, -8 / 5), (2, 0, 4 / 5)])
def test_targeted_dlr_in_the_head(y, target, expected):
    np.testing.assert_allclose(targeted_dlr_loss(LOGITS, [y], [target]), [expected])


def test_dlr_changes_neither_with_a_shift_nor_with_a_scale():
    other = 3 * LOGITS + 11
    np.testing.assert_allclose(dlr_loss(other, [0]), dlr_loss(LOGITS, [0]), rtol=1e-6)
    np.testing.assert_allclose(
        targeted_dlr_loss(other, [0], [3]), targeted_dlr_loss(LOGITS, [0], [3]), rtol=1e-6
    )


def test_dlr_of_equal_logits_is_zero():
    np.testing.assert_array_equal(dlr_loss(np.ones((1, 5), np.float32), [0]), [0])
    np.testing.assert_array_equal(targeted_dlr_loss(np.ones((1, 5), np.float32), [0], [1]), [0])


def test_targeted_losses_in_the_head():
    np.testing.assert_allclose(targeted_margin_loss(LOGITS, [0], [3]), [-8])
    np.testing.assert_allclose(margin(LOGITS, [2]), [-4])
    logits = np.log(np.float32([[1, 2, 5]]))
    np.testing.assert_allclose(targeted_xent_loss(logits, [0], [2]), [np.log(5 / 8)], rtol=1e-6)


def test_what_is_no_number_is_misclassified():
    logits = np.float32([[3, 1], [1, 3], [3, np.nan], [np.inf, 1]])
    np.testing.assert_array_equal(is_misclassified(logits, [0] * 4), [False, True, True, True])


def test_the_likeliest_wrong_classes_leave_out_the_label():
    np.testing.assert_array_equal(likely_wrong_classes(LOGITS, [1], 4), [[0, 2, 4, 3]])
    np.testing.assert_array_equal(likely_wrong_classes(-LOGITS, [3], 2), [[4, 2]])
