import numpy as np
import pytest
import tensorflow as tf

from common.attack import APGD, xent_loss
from common.attack.apgd import halving_steps, segments
from common.attack.ball import uniform_start
from tests.common.attack.attack_cases import highest_leads, labelled, linear_model


def test_the_steps_that_halve_are_the_papers():
    assert halving_steps(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def test_steps_that_halve_are_rounded_up_and_before_the_end():
    assert halving_steps(10) == [0, 3, 5, 6, 7, 8, 9]  # of 2.2, 4.1, 5.7, 7, 8, 8.7, 9.3, 9.9
    assert halving_steps(50) == [0, 11, 21, 29, 35, 40, 44, 47]  # 49.5 rounds to the end
    assert halving_steps(1) == [0]


def test_segments_of_a_climb_end_at_halving_steps_and_more_often_at_first():
    assert segments(50)[:5] == [(0, 3, 0), (3, 10, 0), (10, 11, 0), (11, 21, 11), (21, 29, 10)]
    assert segments(50)[-1] == (47, 50, 3)
    assert segments(10)[:2] == [(0, 3, 0), (3, 5, 3)]
    assert segments(1) == [(0, 1, 0)]


@pytest.mark.parametrize("loss_func", ["xent", "targeted_dlr"])
def test_it_breaks_exactly_what_the_corner_breaks(loss_func):
    weights, biases, model = linear_model()
    x_nat, y = labelled(model)
    leads = {e: highest_leads(weights, biases, x_nat, y, e) for e in (0.01, 0.02)}
    for epsilon, lead in leads.items():
        assert np.min(np.abs(lead)) > 1e-3  # none on the boundary
        attack = APGD(model, epsilon=epsilon, num_steps=20, loss_func=loss_func, jit_compile=False)
        x = attack.perturb(x_nat, y)
        broken = np.argmax(model(x), axis=1) != y
        # Of several wrong classes the likeliest at the image need not be the closest: cross-entropy
        # may miss it, every class in turn cannot.
        assert not np.any(broken & (lead < 0))
        if loss_func == "targeted_dlr":
            np.testing.assert_array_equal(broken, lead > 0)
    assert (leads[0.02] > 0).any() and (leads[0.01] < 0).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_scaled_cross_entropy_breaks_the_same_at_any_scale_of_the_logits(norm):
    _, _, model = linear_model()
    x_nat, y = labelled(model)
    epsilon = {"linf": 0.015, "l2": 0.1}[norm]

    def broken(scale, loss_func):
        attack = APGD(
            lambda x: scale * model(x),
            epsilon=epsilon,
            num_steps=10,
            loss_func=loss_func,
            norm=norm,
            jit_compile=False,
        )
        x = attack.perturb(x_nat, y)
        assert np.abs(x - x_nat).max() > 0.9 * epsilon or norm == "l2"
        return np.argmax(model(x), axis=1) != y

    expected = broken(1.0, "scaled_xent")
    assert 0 < expected.sum() < len(y)
    # Exact in float32; plain cross-entropy has no gradient there.
    np.testing.assert_array_equal(broken(2.0**40, "scaled_xent"), expected)


def two_classes(direction):
    """Logits (0, <direction, x>)."""

    def model(x):
        lead = tf.reduce_sum(x * direction, axis=(1, 2, 3))
        return tf.stack([tf.zeros_like(lead), lead], axis=1)

    return model


def test_it_reaches_the_corner_of_ball_and_box():
    direction = np.float32([1, -2, 3, -4]).reshape(1, 2, 2, 1)
    x_nat = np.float32([0.5, 0.5, 0.9, 0.1]).reshape(1, 2, 2, 1)
    attack = APGD(lambda x: two_classes(direction)(x) - [[0, 9]], epsilon=0.25, num_steps=20)
    corner = np.float32([0.75, 0.25, 1, 0]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(attack.perturb(x_nat, [0]), corner, atol=1e-6)


def test_it_reaches_the_closest_point_of_the_sphere():
    direction = np.float32([3, -4, 0, 0]).reshape(1, 2, 2, 1)
    x_nat = np.full((1, 2, 2, 1), 0.5, np.float32)
    attack = APGD(
        lambda x: two_classes(direction)(x) - [[0, 9]], epsilon=0.25, num_steps=60, norm="l2"
    )
    expected = x_nat + 0.25 * direction / 5
    np.testing.assert_allclose(attack.perturb(x_nat, [0]), expected, atol=3e-3)


# The halving rule, by hand.


def conditions(num_increases, was_halved, best, best_before):
    image = tf.zeros((1, 1, 1, 1))
    state = APGD.State(
        num_increases=tf.constant([num_increases]),
        was_halved=tf.constant([was_halved]),
        loss_best=tf.constant([best]),
        loss_best_before=tf.constant([best_before]),
        step_size=tf.constant([0.5]),
        x=image + 0.1,
        x_best=image + 0.2,
        gradient_best=image + 0.3,
        loss=tf.constant([-1.0]),
    )
    attack = APGD(lambda x: x, epsilon=0.3)
    return attack._halved(state, image + 0.4, tf.constant(True), tf.constant(20))


@pytest.mark.parametrize(
    "num_increases, was_halved, best, best_before, halves",
    [
        (14, False, 2.0, 1.0, True),  # fewer than 15 of 20: condition 1
        (15, False, 2.0, 1.0, False),
        (15, False, 1.0, 1.0, True),  # nothing found by the same steps: condition 2
        (15, True, 1.0, 1.0, False),  # nothing found, but the steps have changed
        (14, True, 1.0, 1.0, True),
    ],
)
def test_the_step_is_halved_under_either_condition(
    num_increases, was_halved, best, best_before, halves
):
    state, gradient = conditions(num_increases, was_halved, best, best_before)
    assert state.step_size.numpy() == [0.25 if halves else 0.5]
    assert state.was_halved.numpy() == [halves]
    np.testing.assert_allclose(np.ravel(state.x), [0.2 if halves else 0.1])
    np.testing.assert_allclose(np.ravel(gradient), [0.3 if halves else 0.4])
    assert state.loss.numpy() == [best if halves else -1.0]


# Against the paper's algorithm, written down once more.


def transcription(loss_and_gradient, start, x_nat, epsilon, num_steps, norm):
    """Algorithm 1 of the paper for one example in float64; the point of the highest loss."""

    def to_ball(x):
        delta = x - x_nat
        if norm == "linf":
            delta = np.clip(delta, -epsilon, epsilon)
        elif np.linalg.norm(delta) > epsilon:
            delta *= epsilon / np.linalg.norm(delta)
        return np.clip(x_nat + delta, 0, 1)

    def uphill(g):
        return np.sign(g) if norm == "linf" else g / np.linalg.norm(g)

    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [int(np.ceil(round(share * num_steps, 9))) for share in p]

    eta, x, x_old = 2 * epsilon, start, start
    f, g = loss_and_gradient(x)
    losses = [f]
    f_max, x_max, g_max = f, x, g
    j, etas, maxima = 1, [eta], [f]
    for k in range(num_steps):
        z = to_ball(x + eta * uphill(g))
        alpha = 0.75 if k else 1.0
        x, x_old = to_ball(x + alpha * (z - x) + (1 - alpha) * (x - x_old)), x
        f, g = loss_and_gradient(x)
        losses.append(f)
        if f > f_max:
            f_max, x_max, g_max = f, x, g
        if k + 1 == w[j] < num_steps:
            window = losses[w[j - 1] : w[j] + 1]
            rises = sum(b > a for a, b in zip(window, window[1:]))
            stuck = etas[-1] == eta and maxima[-1] == f_max
            # What the next checkpoint compares with.
            etas.append(eta)
            maxima.append(f_max)
            if rises < 0.75 * (w[j] - w[j - 1]) or stuck:
                eta /= 2
                x, g = x_max, g_max
                losses[-1] = f_max
                etas[-1] = None  # changed at this checkpoint
            j += 1
    return x_max


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.2), ("l2", 1.0)])
def test_it_is_the_papers_algorithm(norm, epsilon):
    rng = np.random.default_rng(2)
    first, second = (rng.normal(size=size) for size in ((8, 16), (16, 3)))
    second *= 0.3
    biases = np.array([6.0, 0, 0])  # nothing is broken, so that the highest loss comes back

    def forward(x):
        hidden = np.tanh(x.reshape(8) @ first)
        z = hidden @ second + biases
        p = np.exp(z - z.max())
        p /= p.sum()
        onward = (p - [1, 0, 0]) @ second.T * (1 - hidden**2)
        return -np.log(p[0]), (onward @ first.T).reshape(x.shape)

    def model(x):
        hidden = tf.tanh(tf.reshape(x, (-1, 8)) @ tf.constant(first))
        return hidden @ tf.constant(second) + biases

    x_nat = rng.uniform(size=(4, 2, 2, 2)).astype(np.float32)
    start = uniform_start(x_nat, epsilon, (0.0, 1.0), [5, 0], tf.range(4), norm, 0).numpy()
    attack = APGD(
        lambda x: tf.cast(model(tf.cast(x, tf.float64)), tf.float32),
        epsilon=epsilon,
        num_steps=25,
        norm=norm,
    )
    x = attack.perturb(x_nat, np.zeros(4, int), seed=5).numpy()
    for image, begin, found in zip(x_nat, start, x):
        expected = transcription(
            forward, begin.astype(float), image.astype(float), epsilon, 25, norm
        )
        assert forward(found.astype(float))[0] == pytest.approx(forward(expected)[0], rel=1e-3)
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_never_below_its_start():
    _, _, model = linear_model()
    x_nat, y = labelled(model)
    start = uniform_start(x_nat, 0.02, (0.0, 1.0), [3, 0], tf.range(12), "linf", 0)
    x = APGD(model, epsilon=0.02, num_steps=1).perturb(x_nat, y, seed=3)
    assert np.all(xent_loss(model(x), y) >= xent_loss(model(start), y) - 1e-5)
