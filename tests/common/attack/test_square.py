import numpy as np
import pytest
import tensorflow as tf

from common.attack import PGD, Square, margin
from common.attack.square import bump, share_of_pixels
from tests.common.attack.attack_cases import (
    highest_leads,
    images,
    labelled,
    linear_model,
    worst_point,
)


@pytest.mark.parametrize(
    "query, halvings",
    [(0, 0), (5, 0), (6, 1), (25, 1), (26, 2), (100, 2), (101, 3), (500, 4), (501, 5), (4999, 9)],
)
def test_the_papers_schedule_at_5000_queries(query, halvings):
    assert share_of_pixels(query, 5000, 0.8) == 0.8 / 2**halvings


def test_the_sides_of_the_squares():
    linf = Square(lambda x: x, epsilon=0.3)
    l2 = Square(lambda x: x, epsilon=0.3, norm="l2")
    assert linf.square_size(0, 28, 28) == 25  # root of 0.8 * 28**2 is 25.04
    assert linf.square_size(4999, 28, 28) == 1  # 1.1
    assert l2.square_size(4999, 28, 28) == 3
    assert l2.square_size(30, 32, 32) == 15  # 14.3 is 14, which is even
    assert linf.square_size(0, 40, 8) == 8  # not 16


def test_the_schedule_may_be_that_of_more_queries():
    attack = Square(lambda x: x, epsilon=0.3, num_queries=5000, schedule_queries=10_000)
    assert attack.square_size(40, 28, 28) == 18  # once halved: root of 0.4 * 28**2 is 17.7
    assert attack.square_size(4999, 28, 28) == 2  # seven times: 2.2


def test_the_bump_by_hand():
    # Halves of 1 x 3 and 2 x 3, n = 1: 1 + 1/4 at the centre, 1/4 around it.
    upper = np.array([[0.25, 1.25, 0.25]])
    lower = np.array([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    upper, lower = (half / np.linalg.norm(half) / np.sqrt(2) for half in (upper, lower))
    np.testing.assert_allclose(bump(3), np.concatenate([upper, -lower]))


@pytest.mark.parametrize("size", [1, 2, 5, 10, 25])
def test_bumps_have_length_one(size):
    assert np.linalg.norm(bump(size)) == pytest.approx(1)


FAR = np.float32([60, 0, 0, 0, 0])  # nothing is broken: the search runs to its end


@pytest.mark.parametrize("queries, least", [(1, 0.0), (2000, 0.9)])
def test_it_comes_close_to_the_corner_of_a_linear_model(queries, least):
    weights, biases, model = linear_model()
    x_nat, y = images(6), np.zeros(6, int)

    def lead(x):
        return -margin(model(x) + FAR, y).numpy()

    attack = Square(lambda x: model(x) + FAR, epsilon=0.05, num_queries=queries, jit_compile=False)
    nat, found = lead(x_nat), lead(attack.perturb(x_nat, y))
    corner = highest_leads(weights, biases + FAR, x_nat, y, 0.05)
    assert np.all(found <= corner + 1e-3) and np.all(found >= nat)
    assert np.min((found - nat) / (corner - nat)) >= least  # of the way from image to corner


@pytest.mark.parametrize("at_ends", [False, True])  # of the range, a third of the pixels
def test_in_l2_it_climbs_most_of_the_way_to_the_sphere(at_ends):
    _, _, model = linear_model()
    x_nat, y = images(6) if at_ends else np.full((6, 6, 6, 2), 0.5, np.float32), np.zeros(6, int)

    def two_classes(x):
        return (model(x) + FAR)[:, :2]

    def lead(x):
        return -margin(two_classes(x), y).numpy()

    weights, _, _ = linear_model()
    attack = Square(two_classes, epsilon=0.4, num_queries=2000, norm="l2", jit_compile=False)
    climbed = lead(attack.perturb(x_nat, y)) - lead(x_nat)
    normal = (weights[1] - weights[0]).reshape(x_nat.shape[1:])
    worst = np.stack([worst_point(image, normal, 0.4, "l2") for image in x_nat])
    assert ((worst == 0) | (worst == 1)).any() == at_ends
    most = ((worst - x_nat) * normal).sum(axis=(1, 2, 3))
    assert np.all(climbed <= most * (1 + 1e-4))
    assert np.min(climbed / most) > 0.6


def test_it_breaks_a_model_that_masks_its_gradient():
    _, _, linear = linear_model()

    def quantised(x):
        return linear(tf.round(x * 16) / 16 + 0.0 * x)  # the gradient of round is none

    x_nat, y = labelled(quantised)
    options = {"epsilon": 0.1, "jit_compile": False}
    pgd = PGD(quantised, step_size=0.02, num_steps=20, random_start=False, **options)
    np.testing.assert_array_equal(np.argmax(quantised(pgd.perturb(x_nat, y)), axis=1), y)
    x = Square(quantised, num_queries=500, **options).perturb(x_nat, y)
    assert np.mean(np.argmax(quantised(x), axis=1) != y) > 0.5
