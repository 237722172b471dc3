"""PGD, on numbers that can be checked in the head, and against the original's loop."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import data
from common.attack import (
    FGSM,
    PGD,
    FastModel,
    cw_loss,
    xent_loss,
)
from common.attack.ball import uniform_start
from common.attack.fast import compiles_with_xla
from common.errors import InputError
from mnist_challenge.model import build_model
from tests.common.attack.attack_cases import image, linear


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(0)
    return rng.random((7, 2, 2, 1), np.float32), rng.integers(2, size=7)


@pytest.fixture(scope="module")
def digits():
    with np.load(data.SAMPLES / "mnist.npz") as sample:
        images = sample["images"][:20].reshape(-1, 28, 28, 1)
        return data.mnist_pixels(images), sample["labels"][:20].astype(np.int32)


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

    start = uniform_start(x_nat, 0.3, (0.0, 1.0), [3, 0], tf.range(len(y)))
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
    for weight, old in zip(normed.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    as_function = PGD(lambda x: normed(x, training=False), **options).perturb(*noisy)
    np.testing.assert_array_equal(x_adv, as_function)


def test_batch_statistics_update_the_averages_at_every_step(normed):
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
    for weight, old in zip(normed.trainable_weights, weights, strict=True):
        np.testing.assert_array_equal(weight, old)


# Formulations.


def test_a_fast_model_is_prepared_once_an_attack_and_gives_the_same(noisy):
    calls = []

    def prepare(precision):
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

    def prepare(precision):
        raise AssertionError("not under XLA")

    options = {"epsilon": 0.3, "step_size": 0.05, "num_steps": 4, "random_start": random_start}
    expected = PGD(model, **options, jit_compile=False).perturb(x_nat, y, seed=3)
    fast = FastModel(model, prepare)
    actual = PGD(fast, **options, jit_compile=True).perturb(x_nat, y, seed=3)
    assert np.mean(np.abs(actual - expected) > 1e-6) < 0.005


def test_xla_is_for_accelerators_unless_told(monkeypatch):
    devices = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices * (kind == "GPU"))
    assert [compiles_with_xla(choice) for choice in (True, False, "auto")] == [
        True,
        False,
        False,
    ]
    devices.append("a GPU")
    assert [compiles_with_xla(choice) for choice in (True, False, "auto")] == [True, False, True]


def test_each_example_may_have_a_seed_of_its_own(noisy):
    x_nat, y = noisy
    pgd = PGD(linear, epsilon=0.3, step_size=0.05, num_steps=3)
    one, two = (pgd.perturb(x_nat, y, seed=(7, restart)).numpy() for restart in (0, 1))
    seeds = np.array([[7, 0]] * 3 + [[7, 1]] * 4)
    expected = np.concatenate([one[:3], two[3:]])
    np.testing.assert_array_equal(pgd.perturb(x_nat, y, seed=seeds), expected)


@pytest.mark.parametrize(
    "wrong, expected",
    [
        ({"loss_func": "hinge"}, "loss_func: expected one of xent, cw, got 'hinge'"),
        ({"num_steps": -1}, "num_steps: expected 0 or more, got -1"),
        ({"jit_compile": "yes"}, "jit_compile: expected True, False or 'auto', got 'yes'"),
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


def test_a_model_without_gradient_is_refused():
    attack = PGD(lambda x: tf.zeros((2, 10)), epsilon=0.3, step_size=0.1, num_steps=1)
    with pytest.raises(InputError, match="^model: expected logits with a gradient .*, got none$"):
        attack.perturb(np.zeros((2, 28, 28, 1)), [0, 1])


def test_images_in_other_units_are_refused():
    attack = PGD(lambda x: x, epsilon=0.3, step_size=0.1, num_steps=0)
    with pytest.raises(InputError, match=r"expected pixels in \[0, 1\], got \[0, 255\]"):
        attack.perturb(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1), [0, 1])
