import numpy as np
import pytest
import tensorflow as tf

from common.attack import FAB
from common.attack.ball import length
from common.attack.fab import step_to_hyperplane
from tests.common.attack.attack_cases import NUM_CLASSES, labelled, linear_model


def least_step(x, normal, change, norm):
    """The length of the smallest delta with <normal, delta> = change within [0, 1], by bisection.

    What a step of a given length can do at most grows with its length. In L2 it is the largest
    <normal, clip(lambda normal)> over lambda, at that length.
    """
    sign = np.sign(change) * np.sign(normal)
    room = np.where(sign > 0, 1 - x, x)

    def delta(t):
        return sign * np.minimum(t * (1.0 if norm == "linf" else np.abs(normal)), room)

    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        reached = abs(normal @ delta(middle)) >= abs(change)
        low, high = (low, middle) if reached else (middle, high)
    order = np.inf if norm == "linf" else 2
    return np.linalg.norm(delta(high), order), abs(normal @ delta(high))


def random_cases(pixels, count=60):
    rng = np.random.default_rng(0)
    x = np.clip(rng.uniform(-0.5, 1.5, (count, pixels)), 0, 1)
    normal = rng.normal(size=(count, pixels)) * rng.integers(2, size=(count, pixels))
    change = rng.normal(size=count) * np.abs(normal).sum(axis=1) * 0.5
    change[0], normal[1] = 0, 0
    return x.astype(np.float32), normal.astype(np.float32), change.astype(np.float32)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("pixels", [12, 784])
def test_the_step_to_the_hyperplane_is_the_smallest_within_the_box(pixels, norm):
    x, normal, change = random_cases(pixels)
    shape = (-1, pixels // 4, 2, 2)
    delta = step_to_hyperplane(x.reshape(shape), normal.reshape(shape), change, (0.0, 1.0), norm)
    delta = np.reshape(delta, x.shape).astype(np.float64)
    assert (x + delta).min() >= -1e-6 and (x + delta).max() <= 1 + 1e-6
    order, possible = (np.inf if norm == "linf" else 2), 0
    for i in range(len(x)):
        least, reached = least_step(*(a[i].astype(np.float64) for a in (x, normal, change)), norm)
        assert np.linalg.norm(delta[i], order) == pytest.approx(least, rel=1e-4, abs=1e-5)
        assert abs(normal[i] @ delta[i]) == pytest.approx(reached, rel=1e-4, abs=1e-5)
        if reached >= abs(change[i]) * (1 - 1e-6):
            assert normal[i] @ delta[i] == pytest.approx(change[i], rel=1e-4, abs=1e-5)
            possible += 1
    assert 20 < possible < 60  # of both kinds


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_random_point_of_the_hyperplane_is_closer(norm):
    rng = np.random.default_rng(1)
    x, normal = np.float32([[0.1, 0.5, 0.9]]), np.float32([[1.0, -2.0, 3.0]])
    image = (1, 1, 3, 1)
    delta = step_to_hyperplane(
        x.reshape(image), normal.reshape(image), np.float32([0.6]), (0.0, 1.0), norm
    )
    least = length(delta, norm).numpy()[0]
    # A dense set of the box, moved on to the hyperplane along the second pixel.
    points = rng.uniform(size=(100_000, 3)) - x
    points[:, 1] = (0.6 - points[:, 0] - 3 * points[:, 2]) / -2
    points = points[np.abs(points[:, 1]) <= 0.5]
    distances = np.linalg.norm(points, np.inf if norm == "linf" else 2, axis=1)
    assert len(points) > 10_000 and least - 1e-6 <= distances.min() <= least + 0.03


def test_the_step_by_hand_with_a_pixel_at_its_end():
    # 0.05 is left of the second pixel, the first has to go on alone: 2 t + 1 * 0.05 = 0.45.
    x = np.float32([0.5, 0.95]).reshape(1, 1, 2, 1)
    normal = np.float32([2, 1]).reshape(1, 1, 2, 1)
    delta = step_to_hyperplane(x, normal, np.float32([0.45]), (0.0, 1.0), "linf")
    np.testing.assert_allclose(np.ravel(delta), [0.2, 0.05], rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_finds_the_closest_point_of_a_linear_model(norm):
    weights, biases, model = linear_model()
    x_nat, y = labelled(model)
    expected = []
    for image, label in zip(x_nat.reshape(12, -1).astype(np.float64), y):
        steps = []
        for target in set(range(NUM_CLASSES)) - {label}:
            normal = (weights[target] - weights[label]).astype(np.float64)
            lead = normal @ image + float(biases[target] - biases[label])
            steps.append(least_step(image, normal, -lead, norm)[0])
        expected.append(min(steps))
    attack = FAB(model, epsilon=0.01, norm=norm, num_steps=10, jit_compile=False)
    x, distances = attack.closest(x_nat, y)
    assert np.all(np.argmax(model(x), axis=1) != y)
    np.testing.assert_allclose(distances, length(x - x_nat, norm), rtol=1e-6)
    # Points beyond the boundary at the end of the range return on a slightly different line.
    np.testing.assert_allclose(distances, expected, rtol=1e-2)
    assert np.all(distances.numpy() >= np.array(expected) * (1 - 1e-4))

    # Within a radius it breaks exactly those that are closer.
    radius = float(np.sort(expected)[5:7].mean())
    attack = FAB(model, epsilon=radius, norm=norm, num_steps=10, jit_compile=False)
    x = attack.perturb(x_nat, y)
    broken = np.argmax(model(x), axis=1) != y
    np.testing.assert_array_equal(broken, np.array(expected) < radius)
    np.testing.assert_array_equal(x.numpy()[~broken], x_nat[~broken])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_all_restarts_but_the_first_begin_elsewhere(norm):
    _, _, linear = linear_model()

    def model(x):  # curved, so that the way depends on where it begins
        return linear(x) + 0.5 * tf.sin(3.0 * linear(x))

    x_nat, y = labelled(model)
    options = {"epsilon": 0.5, "norm": norm, "num_steps": 10, "jit_compile": False}
    from_image = FAB(model, **options).closest(x_nat, y)[1].numpy()
    attack = FAB(model, random_start=True, **options)
    assert attack.random_start
    np.testing.assert_array_equal(attack.closest(x_nat, y, seed=(5, 0))[1], from_image)
    # Each row by its own number.
    starts = []
    start = attack._start
    attack._start = lambda state, rank: starts.append(start(state, rank)) or starts[-1]
    restarts = np.arange(len(y)) % 3
    seeds = np.stack([np.full_like(restarts, 5), restarts], axis=1)
    distances = attack.closest(x_nat, y, seed=seeds)[1].numpy()
    np.testing.assert_array_equal(distances[restarts == 0], from_image[restarts == 0])
    assert np.all(distances[restarts > 0] != from_image[restarts > 0])
    # The start for the first target is anywhere in the ball of half the radius.
    moved = length(starts[0].x - x_nat, norm).numpy()
    assert np.all(moved[restarts == 0] == 0)
    assert np.all((moved[restarts > 0] > 0) & (moved[restarts > 0] <= 0.25 * (1 + 1e-5)))
    assert moved.max() > 0.15


def test_an_image_without_another_class_is_infinitely_far():
    attack = FAB(lambda x: x[:, 0, 0, :] * 1e-3 + [9.0, 0, 0], epsilon=0.3, num_steps=5)
    x_nat = np.full((2, 1, 1, 3), 0.5, np.float32)
    x, distances = attack.closest(x_nat, [0, 1])  # the second is misclassified unattacked
    np.testing.assert_array_equal(x, x_nat)
    np.testing.assert_array_equal(distances, [np.inf, 0])


def test_a_flat_model_is_left_alone():
    attack = FAB(lambda x: 0 * x[:, 0, 0, :] + [9.0, 0, 0], epsilon=0.3, num_steps=5)
    x_nat = np.full((2, 1, 1, 3), 0.5, np.float32)
    np.testing.assert_array_equal(attack.perturb(tf.constant(x_nat), [0, 0]), x_nat)
