import keras
import numpy as np
import pytest
import tensorflow as tf

from common import attack, data
from common.attack import (
    FGSM,
    PGD,
    FastModel,
    check_radius,
    cw_loss,
    project,
    round_to_8_bits,
    xent_loss,
)
from common.errors import InputError
from mnist_challenge.model import build_model

# Two classes of 2x2 images. Attacking label 0 raises pixels 0 and 2 and lowers the others; label 1
# the reverse.
KERNEL = np.float32([[0, 1], [0, -1], [0, 2], [0, -2]])


def linear(x):
    return tf.reshape(x, (-1, 4)) @ KERNEL


def image(*pixels, dtype=np.float32):
    return np.array(pixels, dtype).reshape(1, 2, 2, 1)


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(0)
    return rng.random((7, 2, 2, 1), np.float32), rng.integers(2, size=7)


@pytest.fixture(scope="module")
def digits():
    with np.load(data._SAMPLES / "mnist.npz") as sample:
        images = sample["images"][:20].reshape(-1, 28, 28, 1)
        return data.mnist_pixels(images), sample["labels"][:20].astype(np.int32)


# Losses.


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


# Projection.


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
def test_project(x, expected):
    x_nat = image(0.5, 0.5, 0.9, 0.1)
    np.testing.assert_array_equal(project(x, x_nat, 0.25, (0.0, 1.0)), expected)


# Random start.


def test_the_start_is_uniform_in_the_ball():
    x_nat = np.full((20, 28, 28, 1), 0.5, np.float32)
    start = attack.uniform_start(x_nat, 0.3, (0.0, 1.0), [1, 0], tf.range(20))
    shares, _ = np.histogram(start - x_nat, bins=10, range=(-0.3, 0.3))
    np.testing.assert_allclose(shares / x_nat.size, 0.1, atol=0.01)  # and none outside
    assert len(np.unique(start[:, 0, 0, 0])) == 20


def test_the_start_is_clipped_to_the_pixels():
    x_nat = np.zeros((20, 28, 28, 1), np.float32)
    start = attack.uniform_start(x_nat, 0.3, (0.0, 1.0), [1, 0], tf.range(20)).numpy()
    assert start.min() == 0 and start.max() <= 0.3
    assert np.mean(start == 0) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_examples_depend_on_seed_and_index_and_not_on_the_batch(noisy, batch_size):
    x_nat, y = noisy
    pgd = PGD(linear, epsilon=0.3, step_size=0.05, num_steps=3)
    whole = pgd.perturb(x_nat, y, seed=5).numpy()
    order = np.random.default_rng(1).permutation(7)
    for start in range(0, 7, batch_size):
        batch = order[start : start + batch_size]
        part = pgd.perturb(x_nat[batch], y[batch], seed=5, index=batch)
        np.testing.assert_array_equal(part, whole[batch])


def test_other_seeds_start_elsewhere(noisy):
    pgd = PGD(linear, epsilon=0.3, step_size=0.05, num_steps=0)
    starts = [pgd.perturb(*noisy, seed=s).numpy() for s in (5, (5, 0), 6, (5, 1))]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).any(axis=(1, 2, 3)).all()
    assert (starts[0] != starts[3]).any(axis=(1, 2, 3)).all()


# Steps.


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("loss_func", ["xent", "cw"])
@pytest.mark.parametrize("y, corner", [(0, (0.75, 0.25, 1, 0)), (1, (0.25, 0.75, 0.65, 0.35))])
def test_pgd_ends_in_the_corner_of_ball_and_box(y, corner, loss_func, random_start):
    pgd = PGD(
        linear,
        epsilon=0.25,
        step_size=0.1,
        num_steps=6,  # farther than the ball is wide
        random_start=random_start,
        loss_func=loss_func,
    )
    x_adv = pgd.perturb(image(0.5, 0.5, 0.9, 0.1), [y])
    np.testing.assert_allclose(x_adv, image(*corner), atol=1e-7)


@pytest.mark.parametrize("epsilon, num_steps", [(0.0, 5), (0.3, 0)])
def test_no_ball_or_no_steps_return_the_image(noisy, epsilon, num_steps):
    pgd = PGD(linear, epsilon=epsilon, step_size=0.1, num_steps=num_steps, random_start=False)
    np.testing.assert_array_equal(pgd.perturb(*noisy), noisy[0])


def test_fgsm_is_one_step_of_epsilon():
    x_adv = FGSM(linear, epsilon=0.25).perturb(image(0.5, 0.5, 0.9, 0.1), [0])
    np.testing.assert_array_equal(x_adv, image(0.75, 0.25, 1, 0))


def test_cw_without_kappa_leaves_the_misclassified_alone():
    x_nat = image(0.5, 0.4, 0.9, 0.1)  # classified as 1
    options = {"epsilon": 0.3, "step_size": 0.1, "num_steps": 3, "random_start": False}
    pgd = PGD(linear, loss_func="cw", kappa=0, **options)
    np.testing.assert_array_equal(pgd.perturb(x_nat, [0]), x_nat)
    assert (pgd.perturb(x_nat, [1]).numpy() != x_nat).all()


def test_scale_shrinks_ball_and_step(noisy):
    half = PGD(linear, epsilon=0.15, step_size=0.05, num_steps=2).perturb(*noisy)
    scaled = PGD(linear, epsilon=0.3, step_size=0.1, num_steps=2).perturb(*noisy, scale=0.5)
    np.testing.assert_allclose(scaled, half, atol=1e-7)


@pytest.mark.parametrize("loss_func", ["xent", "cw"])
def test_pgd_is_the_originals_loop(digits, loss_func):
    x_nat, y = digits
    model = build_model(scale=1, seed=1)
    loss = xent_loss if loss_func == "xent" else cw_loss

    def gradient(x):
        x = tf.constant(x, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(loss(model(x), y))
        return tape.gradient(total, x).numpy()

    start = attack.uniform_start(x_nat, 0.3, (0.0, 1.0), [3, 0], tf.range(len(y)))
    x = start.numpy().astype(np.float64)
    for _ in range(10):
        x += 0.05 * np.sign(gradient(x))
        x = np.clip(x, x_nat.astype(np.float64) - 0.3, x_nat.astype(np.float64) + 0.3)
        x = np.clip(x, 0, 1)

    pgd = PGD(model, epsilon=0.3, step_size=0.05, num_steps=10, loss_func=loss_func)
    difference = np.abs(pgd.perturb(x_nat, y, seed=3) - x)
    # Where a gradient is all but zero, rounding decides its sign, and with it a whole step.
    assert np.mean(difference > 1e-6) < 0.005


# Inputs.


@pytest.mark.parametrize("random_start", [False, True])
def test_every_dtype_gives_the_same_and_none_wraps_round(random_start):
    pgd = PGD(
        linear,
        epsilon=8,
        step_size=2,
        num_steps=9,
        random_start=random_start,
        bounds=(0.0, 255.0),
    )
    pixels = 250, 5, 100, 200
    inputs = [image(*pixels, dtype=dtype) for dtype in (np.uint8, np.float32, np.float64, int)]
    for x_nat in [*inputs, tf.constant(inputs[0]), tf.constant(inputs[1])]:
        for y in (np.uint8([0]), np.int64([0]), tf.constant([0])):
            np.testing.assert_array_equal(pgd.perturb(x_nat, y), image(255, 0, 108, 192))


def test_few_batch_sizes_are_few_traces(noisy):
    traces = []

    def model(x):
        traces.append(x.shape)
        return linear(x)

    pgd = PGD(model, epsilon=0.3, step_size=0.1, num_steps=2)
    x_nat, y = noisy
    for seed, size in enumerate((5, 5, 5, 3, 2)):
        pgd.perturb(x_nat[:size], y[:size], seed=seed)
    assert len(traces) <= 2


# Models.


@pytest.fixture
def normed():
    return keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )


def test_a_keras_model_is_attacked_in_inference_mode_and_left_alone(noisy, normed):
    before = [np.array(weight) for weight in normed.weights]
    options = {"epsilon": 0.3, "step_size": 0.1, "num_steps": 5}
    x_adv = PGD(normed, **options).perturb(*noisy)
    for weight, old in zip(normed.weights, before):
        np.testing.assert_array_equal(weight, old)
    as_function = PGD(lambda x: normed(x, training=False), **options).perturb(*noisy)
    np.testing.assert_array_equal(x_adv, as_function)


def test_batch_statistics_move_the_averages_at_every_step(normed):
    weights = [np.array(weight) for weight in normed.trainable_weights]
    pgd = PGD(
        normed,
        epsilon=0.3,
        step_size=0,
        num_steps=3,
        random_start=False,
        batch_statistics=True,
    )
    pgd.perturb(np.full((4, 2, 2, 1), 0.5), [0, 1, 0, 1])
    np.testing.assert_allclose(normed.layers[0].moving_mean, [0.5 * (1 - 0.9**3)], rtol=1e-6)
    for weight, old in zip(normed.trainable_weights, weights):
        np.testing.assert_array_equal(weight, old)


# Formulations.


def test_a_fast_model_is_prepared_once_an_attack_and_gives_the_same(noisy):
    calls = []

    def prepare():
        calls.append("prepare")
        return linear

    options = {"epsilon": 0.3, "step_size": 0.05, "num_steps": 3}
    fast = PGD(FastModel(linear, prepare), **options)
    for count in (7, 1):
        x_nat, y = noisy[0][:count], noisy[1][:count]
        expected = PGD(linear, **options).perturb(x_nat, y, seed=4)
        np.testing.assert_array_equal(fast.perturb(x_nat, y, seed=4), expected)
    assert len(calls) == 2  # as often as it was traced


@pytest.mark.parametrize("random_start", [False, True])
def test_xla_finds_the_same_and_needs_no_preparation(digits, random_start):
    x_nat, y = digits
    model = build_model(scale=1, seed=1)

    def prepare():
        raise AssertionError("not under XLA")

    options = {"epsilon": 0.3, "step_size": 0.05, "num_steps": 4, "random_start": random_start}
    expected = PGD(model, **options, jit_compile="no").perturb(x_nat, y, seed=3)
    fast = FastModel(model, prepare)
    actual = PGD(fast, **options, jit_compile="yes").perturb(x_nat, y, seed=3)
    assert np.mean(np.abs(actual - expected) > 1e-6) < 0.005


def test_xla_is_for_accelerators_unless_told(monkeypatch):
    devices = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices * (kind == "GPU"))
    assert [attack.compiles_with_xla(word) for word in ("yes", "no", "auto")] == [
        True,
        False,
        False,
    ]
    devices.append("a GPU")
    assert [attack.compiles_with_xla(word) for word in ("yes", "no", "auto")] == [True, False, True]


def test_each_example_may_have_a_seed_of_its_own(noisy):
    x_nat, y = noisy
    pgd = PGD(linear, epsilon=0.3, step_size=0.05, num_steps=3)
    one, two = (pgd.perturb(x_nat, y, seed=(7, restart)).numpy() for restart in (0, 1))
    seeds = np.array([[7, 0]] * 3 + [[7, 1]] * 4)
    expected = np.concatenate([one[:3], two[3:]])
    np.testing.assert_array_equal(pgd.perturb(x_nat, y, seed=seeds), expected)


# Settings, right and wrong.


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


@pytest.mark.parametrize(
    "wrong, expected",
    [
        ({"loss_func": "hinge"}, "loss_func: expected one of xent, cw, got 'hinge'"),
        ({"num_steps": -1}, "num_steps: expected 0 or more, got -1"),
        ({"jit_compile": True}, "jit_compile: expected auto, yes or no, got True"),
    ],
)
def test_wrong_settings_are_refused(wrong, expected):
    with pytest.raises(InputError, match=expected):
        PGD(linear, **{"epsilon": 0.3, "step_size": 0.1, "num_steps": 1} | wrong)


def test_settings_record_what_was_run():
    settings = {"epsilon": 0.3, "step_size": 0.01, "num_steps": 4, "random_start": True}
    cw = {"loss_func": "cw", "kappa": 0.0}
    assert PGD(linear, **settings).settings() == {**settings, "loss_func": "xent"}
    assert PGD(linear, **settings, **cw).settings() == {**settings, **cw}


# 256 levels.


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


def test_a_model_without_gradient_is_refused():
    attack = PGD(lambda x: tf.zeros((2, 10)), epsilon=0.3, step_size=0.1, num_steps=1)
    with pytest.raises(InputError, match="^model: expected logits with a gradient .*, got none$"):
        attack.perturb(np.zeros((2, 28, 28, 1)), [0, 1])


def test_images_in_other_units_are_refused():
    attack = PGD(lambda x: x, epsilon=0.3, step_size=0.1, num_steps=0)
    with pytest.raises(InputError, match=r"expected pixels in \[0, 1\], got \[0, 255\]"):
        attack.perturb(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1), [0, 1])
