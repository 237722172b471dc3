"""The balls: projection, random start, direction, radius, 256 levels."""

import numpy as np
import pytest
import tensorflow as tf

from common.attack import PGD, project, round_to_8_bits, step
from common.attack.ball import check_radius, direction, draw, length, uniform_start
from common.errors import InputError
from tests.common.attack.attack_cases import image, linear


@pytest.mark.parametrize(
    "x, expected",
    [
        (image(0.5, 0.4, 0.9, 0.1), image(0.5, 0.4, 0.9, 0.1)),  # inside
        (image(0.75, 0.25, 1.0, 0.0), image(0.75, 0.25, 1.0, 0.0)),  # on the faces
        (image(0.9, 0.1, 0.9, 0.1), image(0.75, 0.25, 0.9, 0.1)),  # outside the ball
        (image(0.5, 0.5, 1.1, -0.1), image(0.5, 0.5, 1.0, 0.0)),  # outside the box
        (image(9.0, -9.0, 9.0, -9.0), image(0.75, 0.25, 1.0, 0.0)),  # outside both
    ],
)
def test_projection_of_points_inside_on_and_outside_the_ball(x, expected):
    x_nat = image(0.5, 0.5, 0.9, 0.1)
    np.testing.assert_array_equal(project(x, x_nat, 0.25, (0.0, 1.0)), expected)


def test_the_start_is_uniform_in_the_ball():
    x_nat = np.full((20, 28, 28, 1), 0.5, np.float32)
    start = uniform_start(x_nat, 0.3, (0.0, 1.0), [1, 0], tf.range(20))
    shares, _ = np.histogram(start - x_nat, bins=10, range=(-0.3, 0.3))
    np.testing.assert_allclose(shares / x_nat.size, 0.1, atol=0.01)  # and none outside
    assert len(np.unique(start[:, 0, 0, 0])) == 20


def test_the_start_is_clipped_to_the_pixels():
    x_nat = np.zeros((20, 28, 28, 1), np.float32)
    start = uniform_start(x_nat, 0.3, (0.0, 1.0), [1, 0], tf.range(20)).numpy()
    assert start.min() == 0 and start.max() <= 0.3
    assert np.mean(start == 0) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "epsilon, step_size, bounds, expected",
    [
        (8, 0.01, (0, 1), r"epsilon: expected 0 to 1 .*\[0, 1\].*got 8; .* 0.03137 \(8/255\)\?"),
        (0.3, 2, (0, 1), r"step_size: expected 0 to 1 .*, got 2; .* 0.007843 \(2/255\)\?"),
        (0.03, 2, (0, 255), r"epsilon: expected 0, or 0.2 to 255 .*, got 0.03; .* 7.65\?"),
        (8, 2 / 255, (0, 255), r"step_size: expected 0, or 0.016 .*; did you mean 2\?"),
        (-0.1, 0.01, (0, 1), "epsilon: expected 0 to 1 .*, got -0.1$"),
        (0.3, float("nan"), (0, 1), "step_size: expected 0 to 1 .*, got nan$"),
        (300, 2, (0, 255), "epsilon: expected 0 to 255 .*, got 300$"),
    ],
)
def test_numbers_in_other_units_are_refused(epsilon, step_size, bounds, expected):
    with pytest.raises(InputError, match=expected):
        check_radius(epsilon, step_size, bounds)
    with pytest.raises(InputError, match=expected):
        PGD(linear, epsilon=epsilon, step_size=step_size, num_steps=1, bounds=bounds)


def test_l2_radii_in_other_units_are_refused():
    for epsilon, bounds in ((2.0, (0, 1)), (128.0, (0, 255)), (0.0, (0, 255)), (5000.0, (0, 255))):
        check_radius(epsilon, 0.0, bounds, "l2")
    for wrong, message in (
        ((0.5, 0.0), r"epsilon: expected 0, or 2.55 to inf .*, got 0.5; did you mean 128\?"),
        ((128.0, 0.1), r"step_size: expected 0, or 0.256 to inf .*; did you mean 25.5\?"),
    ):
        with pytest.raises(InputError, match=message):
            check_radius(*wrong, (0, 255), "l2")


@pytest.mark.parametrize("epsilon, high, reach", [(0.3, 1.0, 76), (8, 255.0, 8)])
def test_round_to_8_bits_stays_within_ball_and_box(epsilon, high, reach):
    rng = np.random.default_rng(0)
    levels = rng.integers(256, size=(50, 8, 8, 1)).astype(np.uint8)
    x_nat = (levels / 255 * high).astype(np.float32)
    noise = rng.uniform(-epsilon, epsilon, x_nat.shape)
    noise[:5] = 1.01 * epsilon * np.sign(noise[:5])  # as rounding may lead out of the ball
    x_adv = np.clip(x_nat + noise, 0, high).astype(np.float32)

    rounded = round_to_8_bits(x_adv, x_nat, epsilon, (0.0, high)).numpy()
    scaled = rounded / high * 255
    np.testing.assert_allclose(scaled, np.rint(scaled), atol=1e-4)
    assert rounded.min() >= 0 and rounded.max() <= high
    assert np.abs(np.rint(scaled) - levels).max() == reach
    # 0.3 is 76.5 levels, so the nearest level is at most half a level away in the ball as well.
    assert np.abs(scaled - x_adv / high * 255)[5:].max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    "delta, expected",
    [
        ((0.3, 0.4), (0.3, 0.4)),  # inside
        ((0.6, 0.8), (0.6, 0.8)),  # on the sphere
        ((3.0, 4.0), (0.6, 0.8)),  # outside
        ((-3.0, 4.0), (-0.5, 0.8)),  # outside, and of the pixel range as well
        ((0.0, 0.0), (0.0, 0.0)),
    ],
)
def test_project_on_the_l2_ball(delta, expected):
    x_nat = np.full((1, 1, 2, 1), 0.5, np.float32)
    x = x_nat + np.float32(delta).reshape(x_nat.shape)
    projected = project(x, x_nat, 1.0, (0.0, 2.0), "l2") - x_nat
    np.testing.assert_allclose(np.ravel(projected), expected, atol=1e-6)


def test_the_l2_start_is_uniform_in_the_ball():
    x_nat = np.full((3000, 1, 3, 1), 0.5, np.float32)
    start = tf.function(uniform_start)(x_nat, 0.4, (0.0, 1.0), [1, 0], tf.range(3000), "l2") - x_nat
    radii = np.linalg.norm(np.reshape(start, (-1, 3)), axis=1) / 0.4
    assert radii.max() <= 1 + 1e-6
    shares, _ = np.histogram(radii**3, bins=5, range=(0, 1))  # as volume grows
    np.testing.assert_allclose(shares / 3000, 0.2, atol=0.03)
    np.testing.assert_allclose(np.mean(start > 0, axis=0), 0.5, atol=0.04)


def test_streams_and_seeds_draw_other_numbers():
    index = tf.range(3)
    draws = [
        draw([4], seed, index, stream).numpy()
        for seed, stream in (([1, 0], None), ([1, 0], 0), ([1, 0], 1), ([1, 1], 1))
    ]
    assert len(np.unique(draws)) == 4 * 3 * 4
    np.testing.assert_array_equal(draw([4], [1, 0], index[1:], 1), draws[2][1:])


def test_directions_have_length_one():
    gradient = np.float32([[3, -4], [3e-30, -4e-30], [0, 0]]).reshape(3, 1, 2, 1)
    np.testing.assert_array_equal(np.ravel(direction(gradient, "linf")), [1, -1, 1, -1, 0, 0])
    expected = [0.6, -0.8, 0.6, -0.8, 0, 0]
    np.testing.assert_allclose(np.ravel(direction(gradient, "l2")), expected, rtol=1e-6)
    np.testing.assert_array_equal(length(gradient[:1], "linf"), [4])
    np.testing.assert_array_equal(length(gradient[:1], "l2"), [5])


@pytest.mark.parametrize(
    "norm, epsilon, step_size, gradient, expected",
    [
        ("linf", 0.2, 0.3, (3, -4, 1, 0), (1.0, 0.3, 0.7, 0.1)),  # the first meets the range's end
        ("l2", 0.5, 0.1, (3, -4, 0, 0), (0.96, 0.42, 0.5, 0.1)),  # 0.1 (0.6, -0.8)
        ("l2", 0.05, 0.1, (3, -4, 0, 0), (0.93, 0.46, 0.5, 0.1)),  # half of that
    ],
)
def test_a_step_follows_the_gradient_and_is_projected(norm, epsilon, step_size, gradient, expected):
    x_nat = image(0.9, 0.5, 0.5, 0.1)
    x = step(x_nat, image(*gradient), x_nat, epsilon, step_size, (0.0, 1.0), norm)
    np.testing.assert_allclose(x, image(*expected), atol=1e-6)
