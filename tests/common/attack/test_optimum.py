"""Attacks against a model whose worst point is known, some of its pixels at the range's end."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from common.attack import APGD, FAB, FGSM, PGD, MultiTargeted
from common.attack.ball import length
from tests.common.attack.attack_cases import worst_point

# The image, and the direction in which class 1 gains on class 0: in two pixels the pixel range
# ends before the ball does, in one it has no gradient.
IMAGE = np.float32([0.5, 0.45, 0.95, 0.1, 0.6, 0.5, 0.02, 0.5, 0.5]).reshape(1, 3, 3, 1)
DIRECTION = np.float32([1, -2, 3, -0.5, 2, 1.5, -3, 0, 0.5]).reshape(1, 3, 3, 1)
EPSILON = {"linf": 0.1, "l2": 0.25}
FAR = -10.0  # the logits of classes that are never predicted

ATTACKS = {
    "pgd": PGD,
    "pgd_cw": functools.partial(PGD, loss_func="cw", kappa=0),
    "pgd_cw+": functools.partial(PGD, loss_func="cw", kappa=50),
    "pgd_class_1": functools.partial(PGD, target=1),
    "pgd_class_1_cw": functools.partial(PGD, target=1, loss_func="cw"),
    "odi_pgd": functools.partial(PGD, odi_steps=2),
    "multi_targeted": MultiTargeted,
    "apgd_xent": APGD,
    "apgd_dlr": functools.partial(APGD, loss_func="dlr"),
    "apgd_targeted": functools.partial(APGD, loss_func="targeted_dlr"),
}


def make(name, norm, threshold, **options):
    options |= {"epsilon": EPSILON[norm], "norm": norm, "jit_compile": False}
    if not name.startswith("apgd"):
        # In L2 the part of a step that leaves the pixel range is lost, and a step turns the way
        # from the image by a hundredth at most.
        options |= {"step_size": EPSILON[norm] / 100, "num_steps": 1000}
    return ATTACKS[name](model(threshold), **options)


def model(threshold):
    """Logits (0, <DIRECTION, x> - threshold, FAR, FAR - 1, FAR - 2)."""

    def logits(x):
        lead = tf.reduce_sum(x * DIRECTION, axis=(1, 2, 3)) - threshold
        others = [tf.fill(tf.shape(lead), FAR - i) for i in range(3)]
        return tf.stack([tf.zeros_like(lead), lead, *others], axis=1)

    return logits


def score(x):
    """What class 1 has of DIRECTION."""
    return float(np.sum(np.asarray(x, np.float64) * DIRECTION))


def worst(norm):
    return worst_point(IMAGE, DIRECTION, EPSILON[norm], norm)


@pytest.mark.parametrize("norm", EPSILON)
def test_no_random_point_is_worse_than_the_worst(norm):
    point = worst(norm)
    assert length(tf.constant(point - IMAGE), norm).numpy()[0] == pytest.approx(EPSILON[norm])
    assert np.count_nonzero((point == 0) | (point == 1)) == 2
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(200_000, 9)) * rng.uniform(size=(200_000, 1))
    if norm == "linf":
        noise = np.clip(noise, -1, 1)
    else:
        noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1)
    points = np.clip(IMAGE.ravel() + EPSILON[norm] * noise, 0, 1)
    gains = points @ DIRECTION.ravel() - score(IMAGE)
    gain = score(point) - score(IMAGE)
    assert 0.7 * gain < gains.max() <= gain


@pytest.mark.parametrize("norm", EPSILON)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_at_the_worst_point(name, norm):
    highest, lowest = score(worst(norm)), score(IMAGE)
    # It is not broken even there, so that nothing ends early.
    threshold = tf.Variable(highest + 0.01, dtype=tf.float32)
    attack = make(name, norm, threshold)
    x = attack.perturb(IMAGE, [0], seed=1)
    assert 0.99 * (highest - lowest) <= score(x) - lowest <= (highest - lowest) * (1 + 1e-5)

    # And broken where the threshold is within reach.
    threshold.assign(lowest + 0.95 * (highest - lowest))
    assert score(attack.perturb(IMAGE, [0], seed=1)) > threshold


@pytest.mark.parametrize("target", ["least_likely", "next"])
@pytest.mark.parametrize("norm", EPSILON)
def test_the_targeted_class_gains_all_it_can(norm, target):
    attack = make("pgd", norm, 40.0, target=target)
    gain = score(attack.perturb(IMAGE, [0])) - score(IMAGE)
    assert gain >= 0.99 * (score(worst(norm)) - score(IMAGE))


def test_fgsm_takes_one_step_in_either_norm():
    threshold = score(worst("linf")) + 0.01
    for random_start in (False, True):
        attack = FGSM(model(threshold), epsilon=EPSILON["linf"], random_start=random_start)
        x = attack.perturb(IMAGE, [0]).numpy()
        if not random_start:
            expected = worst("linf")
            np.testing.assert_allclose(x[DIRECTION != 0], expected[DIRECTION != 0], atol=1e-6)
        # From anywhere in the ball a step of its radius leads at least as far as the image.
        assert np.all((x - IMAGE) * DIRECTION >= -1e-6)
    x = FGSM(model(threshold), epsilon=EPSILON["l2"], norm="l2").perturb(IMAGE, [0])
    step = EPSILON["l2"] * DIRECTION / np.linalg.norm(DIRECTION)
    np.testing.assert_allclose(x, np.clip(IMAGE + step, 0, 1), atol=1e-6)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", EPSILON)
def test_fab_breaks_examples_whose_boundary_is_within_epsilon(norm, random_start):
    highest, lowest = score(worst(norm)), score(IMAGE)
    options = {"epsilon": EPSILON[norm], "norm": norm, "jit_compile": False}
    threshold = tf.Variable(0.0)
    attack = FAB(model(threshold), random_start=random_start, **options)
    for share, is_broken in ((0.97, True), (1.03, False)):
        threshold.assign(lowest + share * (highest - lowest))
        x = attack.perturb(IMAGE, [0], seed=(1, 1)).numpy()  # a restart
        assert (score(x) > threshold) == is_broken
        assert is_broken or np.array_equal(x, IMAGE)


def test_a_target_that_is_the_label_is_no_attack():
    attack = PGD(model(40.0), epsilon=0.1, step_size=0.01, num_steps=5, target=0)
    np.testing.assert_array_equal(attack.perturb(IMAGE, [0]), IMAGE)
