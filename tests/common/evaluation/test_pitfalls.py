"""Each check warns of a model made for it, and none warns of a sound network."""

import types

import numpy as np
import pytest
import tensorflow as tf

from common.checkpoints import load_model
from common.evaluation import pitfalls
from common.evaluation.results import Trial
from mnist_challenge.challenge import MNIST

RNG = np.random.default_rng(0)
SAMPLE = MNIST.load("sample").head(60)
X_NAT, Y = MNIST.to_pixels(SAMPLE.images), SAMPLE.labels
LOGITS = RNG.normal(size=(50, 10)).astype(np.float32)


@pytest.fixture(scope="module")
def natural():
    return load_model(MNIST, "natural").logits


def check(model, epsilon=0.3, x_nat=X_NAT, y=Y):
    return pitfalls.check_model(model, x_nat, y, epsilon=epsilon, bounds=(0.0, 1.0), batch_size=40)


def steps(epsilon, num_steps, step_size, **others):
    return "pgd", {"epsilon": epsilon, "num_steps": num_steps, "step_size": step_size, **others}


def names(warnings):
    return [warning.split(":")[0] for warning in warnings]


def test_a_network_without_fault_gives_no_warning(natural):
    assert check(natural) == []


def test_quantised_inputs_are_flagged(natural):
    """TensorFlow gives rounding no gradient; the second one has one, which is zero everywhere."""
    assert names(check(lambda x: natural(tf.round(x)))) == ["zero gradients"]
    (warning,) = check(lambda x: natural(tf.round(x) + 0 * x))
    assert warning.startswith("zero gradients: the cross-entropy has none at 60 of 60 images")


def test_softmax_outputs_are_flagged(natural):
    assert "softmax outputs" in names(check(lambda x: tf.nn.softmax(natural(x))))


def test_a_random_model_is_flagged(natural):
    generator = tf.random.Generator.from_seed(1)
    noisy = check(lambda x: natural(x + generator.normal(tf.shape(x), stddev=0.1)))
    assert "randomised" in names(noisy)


def test_a_network_trained_on_one_step_attacks_is_flagged():
    model = load_model(MNIST, "fgsm_trained").logits
    (warning,) = [w for w in check(model) if w.startswith("above natural")]
    assert "is above the natural one" in warning


def test_misleading_gradients_are_flagged(natural):
    @tf.custom_gradient
    def reverse(x):
        return tf.identity(x), lambda upstream: -upstream

    *_, warning = check(lambda x: natural(reverse(x)))
    assert warning.startswith("large epsilon: with the whole pixel range as epsilon PGD leaves")


# The single checks, on both sides of their thresholds.


@pytest.mark.parametrize(
    ("logits", "fires"),
    [
        (tf.nn.softmax(LOGITS), True),
        (tf.nn.softmax(LOGITS) + 1e-4, False),  # sum 1.001
        (LOGITS, False),
        (np.full((50, 2), 0.5), True),
    ],
)
def test_probabilities_are_flagged_as_softmax_outputs(logits, fires):
    assert (pitfalls.softmax_outputs(logits) is not None) is fires


@pytest.mark.parametrize(
    ("other", "fires"),
    [
        (LOGITS, False),
        (LOGITS * (1 + 1e-6), False),  # as another order of sums gives
        (LOGITS + 0.01 * RNG.normal(size=LOGITS.shape), True),
        (LOGITS[:, ::-1], True),
    ],
)
def test_different_outputs_of_two_calls_are_flagged(other, fires):
    assert (pitfalls.randomised(LOGITS, other) is not None) is fires


@pytest.mark.parametrize(("num_zero", "fires"), [(0, False), (1, False), (2, True), (100, True)])
def test_zero_gradients_are_flagged(num_zero, fires):
    gradients = RNG.normal(size=(100, 2, 2, 1)) * 1e-12  # small is not zero
    gradients[:num_zero] = 0
    warning = pitfalls.zero_gradients(gradients)
    assert (warning is not None) is fires
    assert not fires or f"{num_zero} of 100" in warning


BYTES = RNG.integers(256, size=(4, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("x_nat", "epsilon", "bounds", "message"),
    [
        (BYTES, 8, (0, 255), None),
        (BYTES / 255, 0.3, (0, 1), None),
        (BYTES / 255, 1 / 255, (0, 1), None),
        (BYTES, 0.3, (0, 1), "and go from"),  # not divided by 255
        (BYTES / 255, 8, (0, 255), "only"),  # divided, and stated not to be
        (BYTES // 255, 0.3, (0, 1), "whole numbers"),  # divided as integers
        (BYTES - 128, 8, (0, 255), "and go from"),
        (BYTES, 8 / 255, (0, 255), "below one of their 256 levels"),
        (BYTES / 255, 0, (0, 1), None),
    ],
)
def test_pixels_in_units_other_than_the_bounds_are_flagged(x_nat, epsilon, bounds, message):
    warning = pitfalls.pixel_units(x_nat, epsilon, bounds)
    assert (warning is None) if message is None else (message in warning)


@pytest.mark.parametrize(
    ("function", "silent", "firing"),
    [
        (pitfalls.above_natural, (90, 90), (90, 90.1)),
        (pitfalls.large_epsilon, (5,), (5.1,)),
        (pitfalls.black_box_stronger, ("square", 2, 1000), ("square", 3, 1000)),
        (pitfalls.short_steps, steps(0.3, 30, 0.01), steps(0.3, 29, 0.01)),
        (pitfalls.short_steps, ("square", {"epsilon": 0.3}), steps(2.0, 40, 0.01)),
        (pitfalls.short_steps, steps(0.3, 5, 0.01, odi_steps=2), steps(0.3, 5, 0.01, odi_steps=0)),
    ],
)
def test_warnings_begin_above_their_thresholds(function, silent, firing):
    assert function(*silent) is None
    assert "\n" not in function(*firing)


@pytest.mark.parametrize(
    ("num_gradients", "broken", "fires"),
    [
        ((40, 0), ([0, 1], [2, 3, 4]), True),
        ((40, 0), ([0, 1, 2, 3, 4], [2, 3, 4]), False),  # the attack by gradients broke them too
        ((40, 0), ([], [9]), False),  # that one was misclassified before
        ((0, 40), ([2, 3, 4], [0, 1]), False),  # it came first
        ((0,), ([2, 3, 4],), False),
        ((40, 20), ([0], [2, 3, 4]), False),
    ],
)
def test_a_black_box_attack_that_is_stronger(num_gradients, broken, fires):
    withstood = np.ones((len(broken), 10), bool)
    for row, numbers in zip(withstood, broken, strict=True):
        row[numbers] = False
    result = types.SimpleNamespace(withstood=withstood, natural_correct=np.arange(10) < 9)
    trials = [
        Trial(types.SimpleNamespace(num_gradients=number), name=f"attack {i}")
        for i, number in enumerate(num_gradients)
    ]
    warnings = pitfalls.check_result(result, trials)
    assert names(warnings) == (["black box stronger"] if fires else [])
    assert not fires or "attack 1, which sees no gradient, broke 3 of 10" in warnings[0]
