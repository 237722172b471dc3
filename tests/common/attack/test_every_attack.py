"""Properties of every attack."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from common.attack import (
    APGD,
    FastModel,
    is_misclassified,
)
from common.attack.ball import length
from common.errors import InputError
from tests.common.attack.attack_cases import (
    EPSILON,
    MAKERS,
    every_class,
    labelled,
    linear_model,
    make,
    small_network,
)

every_attack = pytest.mark.parametrize("name", MAKERS)
the_new = pytest.mark.parametrize(
    "name", ["apgd_targeted", "fab_targeted", "square", "multi_targeted"]
)
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


@functools.cache
def attack_on_linear_model(name, norm="linf"):
    """The attack on `linear_model()`, whose functions are traced once for all tests."""
    return make(name, linear_model()[2], norm)


@every_attack
@both_norms
def test_examples_stay_in_ball_and_range_and_depend_on_seed_and_index_alone(name, norm):
    _, _, model = linear_model()
    x_nat, y = labelled(model)
    attack = attack_on_linear_model(name, norm)
    x = attack.perturb(x_nat, y, seed=3)
    assert x.dtype == tf.float32 and x.shape == x_nat.shape
    assert np.max(length(x - x_nat, norm)) <= EPSILON[norm] * (1 + 1e-5)
    assert np.min(x) >= 0 and np.max(x) <= 1
    np.testing.assert_array_equal(attack.perturb(x_nat, y, seed=3), x)
    others = attack.perturb(x_nat, y, seed=4)
    assert np.any(others != x) == attack.random_start

    # In another order and in other batches, which shrink differently.
    order = np.random.default_rng(1).permutation(len(y))
    for batch in (order[:5], order[5:]):
        part = attack.perturb(x_nat[batch], y[batch], seed=3, index=batch)
        np.testing.assert_allclose(part, x.numpy()[batch], atol=1e-6)


@every_class
def test_no_ball_returns_the_image(name):
    _, _, model = linear_model()
    x_nat, y = labelled(model, count=3)
    np.testing.assert_array_equal(make(name, model, "l2", epsilon=0.0).perturb(x_nat, y), x_nat)


@the_new
def test_a_network_is_attacked_in_inference_mode_and_left_alone(name):
    model = small_network()
    before = [np.array(weight) for weight in model.weights]
    x_nat, y = labelled(lambda x: model(x, training=False), count=4)
    x = make(name, model, "linf").perturb(x_nat, y)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    as_function = make(name, lambda x: model(x, training=False), "linf").perturb(x_nat, y)
    np.testing.assert_allclose(x, as_function, atol=1e-6)


@every_class
def test_a_function_may_have_python_control_flow_over_tensors(name):
    _, _, linear = linear_model()

    def model(x):
        if tf.reduce_max(x) > 2.0:
            x = tf.zeros_like(x)
        return linear(x)

    x_nat, y = labelled(linear, count=3)
    expected = attack_on_linear_model(name).perturb(x_nat, y, seed=3)
    np.testing.assert_allclose(
        make(name, model, "linf").perturb(x_nat, y, seed=3), expected, atol=1e-6
    )


@the_new
def test_a_fast_model_in_padded_halves_gives_the_same(name):
    _, _, model = linear_model()
    x_nat, y = labelled(model, count=9)
    sizes = set()

    def prepared(x):
        sizes.add(x.shape[0])
        return model(x)

    fast = make(name, FastModel(model, lambda precision: prepared), "linf")
    expected = attack_on_linear_model(name).perturb(x_nat, y, seed=3)
    np.testing.assert_allclose(fast.perturb(x_nat, y, seed=3), expected, atol=1e-6)
    assert None not in sizes


@the_new
def test_misclassified_images_are_returned_unchanged(name):
    _, _, model = linear_model()
    x_nat, y = labelled(model, count=4)
    wrong = (y + 1) % 5
    np.testing.assert_array_equal(attack_on_linear_model(name).perturb(x_nat, wrong), x_nat)


@the_new
def test_examples_leave_once_broken(name):
    _, _, linear = linear_model()
    sizes = []

    def model(x):
        tf.py_function(lambda count: sizes.append(int(count)), [tf.shape(x)[0]], [])
        return linear(x)

    x_nat, y = labelled(linear)
    attack = make(name, model, "linf")
    x = attack.perturb(x_nat, y)
    num_standing = np.count_nonzero(~is_misclassified(linear(x), y).numpy())
    assert 0 < num_standing < 12
    # No example leaves within a loop.
    assert sizes[0] == 12 and sizes[-1] < 12 and sizes[-1] >= num_standing
    calls = len(sizes)
    assert calls <= attack.num_gradients + attack.num_queries + 1
    # What it says to have taken: all but for the images themselves, and for what was broken.
    assert 12 <= attack.passes(12).sum() <= sum(sizes[1:])
    if name == "square":
        assert attack.passes(12)[0] == 0
    if name == "fab_targeted":
        assert attack.passes(12)[0] < attack.passes(12)[1]


@the_new
def test_passes_and_examples_do_not_depend_on_the_batch(name):
    _, _, linear = linear_model()
    x_nat, y = labelled(linear)
    attack = make(name, linear, "linf")
    numbers = np.arange(12)
    x, passes = attack.perturb(x_nat, y, seed=3, index=numbers).numpy(), attack.passes(12)
    attack.fix_batch_size(8)
    total = 0
    for part in (numbers[:1], numbers[1:8], numbers[8:]):
        found = attack.perturb(x_nat[part], y[part], seed=3, index=part)
        np.testing.assert_allclose(found, x[part], atol=1e-6)
        total += attack.passes(len(part))
    np.testing.assert_array_equal(total, passes)


@the_new
def test_few_batch_sizes_are_few_traces(name):
    _, _, linear = linear_model()
    traces = []

    def model(x):
        traces.append(x.shape)
        return linear(x)

    x_nat, y = labelled(linear)
    attack = make(name, model, "linf")
    attack.perturb(x_nat, y)
    once = len(traces)
    for size in (11, 7, 12, 5):
        attack.perturb(x_nat[:size], y[:size], seed=size)
    assert len(traces) <= 2 * once + 2


@pytest.mark.parametrize("name", ["apgd_targeted", "square"])
def test_xla_finds_the_same(name):
    _, _, model = linear_model()
    x_nat, y = labelled(model, count=3)
    expected = attack_on_linear_model(name, "l2").perturb(x_nat, y, seed=3)
    actual = make(name, model, "l2", jit_compile=True).perturb(x_nat, y, seed=3)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@the_new
def test_an_empty_batch_returns_an_empty_batch(name):
    _, _, model = linear_model()
    x_nat, y = labelled(model, count=2)
    assert make(name, model, "linf").perturb(x_nat[:0], y[:0]).shape == (0, 6, 6, 2)


@every_attack
def test_settings_are_for_json_and_counts_are_numbers(name):
    _, _, model = linear_model()
    attack = make(name, model, "l2")
    settings = json.loads(json.dumps(attack.settings()))
    assert settings["name"] == attack.name and settings["norm"] == "l2"
    assert settings["epsilon"] == EPSILON["l2"]
    assert attack.num_gradients + attack.num_queries > 0


@pytest.mark.parametrize(
    "wrong, expected",
    [
        ({"norm": "l1"}, "norm: expected one of linf, l2, got 'l1'"),
        ({"epsilon": 8}, r"epsilon: expected 0 to 1 .*; did you mean 0.03137 \(8/255\)\?"),
        ({"epsilon": -1, "norm": "l2"}, "epsilon: expected 0 to inf .*, got -1"),
        ({"num_steps": 0}, "num_steps: expected 1 or more, got 0"),
        ({"num_targets": 0}, "num_targets: expected 1 or more, got 0"),
        (
            {"loss_func": "cw"},
            "loss_func: expected one of xent, scaled_xent, dlr, targeted_dlr, got 'cw'",
        ),
    ],
)
def test_wrong_settings_are_refused(wrong, expected):
    with pytest.raises(InputError, match=expected):
        APGD(lambda x: x, **{"epsilon": 0.3} | wrong)


@pytest.mark.parametrize("loss_func, fewest", [("dlr", 3), ("targeted_dlr", 4)])
def test_too_few_classes_are_refused(loss_func, fewest):
    attack = APGD(lambda x: x[:, 0, 0, : fewest - 1], epsilon=0.3, loss_func=loss_func)
    expected = f"{loss_func} expects {fewest} classes or more, the model has {fewest - 1}"
    with pytest.raises(InputError, match=expected):
        attack.perturb(np.zeros((2, 1, 1, 4), np.float32), [0, 1])
