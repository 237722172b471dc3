"""Arguments of attacks and evaluations are accepted if unambiguous, else refused in one line.

No argument may silently make a network look robust.
"""

import collections
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import data
from common.attack import (
    APGD,
    FAB,
    FGSM,
    PGD,
    Boundary,
    FastModel,
    MultiTargeted,
    Square,
    is_misclassified,
)
from common.attack.ball import check_radius
from common.attack.gradient import as_logits
from common.attack.inputs import to_labels
from common.attack.sizes import Sizes
from common.attack.staged import state_of
from common.errors import InputError
from common.evaluation import Evaluator, State, Trial, pitfalls
from tests.common.attack.attack_cases import (
    CLASSES,
    MAKERS,
    NUM_CLASSES,
    SHAPE,
    every_class,
    images,
    linear_model,
    make,
)

_, _, MODEL = linear_model()
IMAGES = np.rint(255 * images()).astype(np.uint8)
X = data.mnist_pixels(IMAGES)
Y = np.argmax(MODEL(X), axis=1).astype(np.int32)
ONE_HOT = np.eye(NUM_CLASSES)[Y]
every_attack = pytest.mark.parametrize("name", MAKERS)
# One attack of each class: the others differ from it in loss and target alone.
every_class_and_norm = pytest.mark.parametrize(
    ("name", "norm"),
    [
        *((name, norm) for name in CLASSES for norm in ("linf", "l2")),
        *(
            pytest.param(name, "linf", marks=pytest.mark.slow)
            for name in MAKERS
            if name not in CLASSES
        ),
    ],
)


def is_one_line(error):
    return "\n" not in str(error.value)


def pgd(model=MODEL, **options):
    return PGD(model, **{"epsilon": 0.05, "step_size": 0.0125, "num_steps": 4} | options)


@functools.cache
def traced_pgd():
    """`pgd()`, whose functions are traced once for all tests."""
    return pgd()


def evaluate(attack, model=MODEL, labels=Y, state=None, **options):
    """The `Result` of an attack on `X`."""
    evaluator = Evaluator(
        model,
        [Trial(attack, **options)],
        to_pixels=data.mnist_pixels,
        batch_size=5,
        show_progress=False,
    )
    return evaluator.run(IMAGES, labels, state)


# Labels. https://github.com/Trusted-AI/adversarial-robustness-toolbox/issues/1961,
# https://github.com/cleverhans-lab/cleverhans/issues/1182,
# https://github.com/bethgelab/foolbox/issues/254

FORMS = {
    "column": Y[:, None],
    "uint8": Y.astype(np.uint8),
    "uint64": Y.astype(np.uint64),
    "float": Y.astype(np.float64),
    "float column": Y[:, None].astype(np.float16),
    "list": Y.tolist(),
    "tensor": tf.constant(Y, tf.int64),
    "one-hot": ONE_HOT,
    "one-hot int": ONE_HOT.astype(int),
    "one-hot bool": ONE_HOT.astype(bool),
    "one-hot list": ONE_HOT.tolist(),
    "one-hot tensor": tf.constant(ONE_HOT, tf.float32),
    "bfloat16": tf.constant(Y, tf.bfloat16),
}
WRONG = {
    "too few": (Y[:5], "y: expected a label for each of 12 images, got 5"),
    "too many": (np.append(Y, 0), "y: expected a label for each of 12 images, got 13"),
    "one": (Y[:1], "y: expected a label for each of 12 images, got 1"),
    "scalar": (3, r"y: expected classes \(12,\) or one-hot labels \(12, classes\), got shape \(\)"),
    "rank 3": (Y[:, None, None], r"got shape \(12, 1, 1\)"),
    "too large": (Y + NUM_CLASSES, "y: expected classes from 0 to 4, got [5-9]"),
    "negative": (Y - 10, "y: expected classes .*, got -"),
    "beyond int32": (Y.astype(np.int64) + 2**32, "y: expected classes .*, got 42949672"),
    "not whole": (Y + 0.5, r"y: expected whole numbers, got \d.5"),
    "nan": (np.full(12, np.nan), "y: expected whole numbers, got nan"),
    "infinite": (np.full(12, np.inf), "y: expected whole numbers, got inf"),
    "bools": (Y > 0, "y: expected classes, got bools"),
    "text": (Y.astype(str), "y: expected real numbers"),
    "complex": (Y.astype(complex), "y: expected real numbers, got complex128"),
    "ragged": ([[1], [1, 2]] * 6, "y: expected an array of numbers"),
    "none": (None, "y: expected real numbers, got object"),
    "soft": (0.9 * ONE_HOT + 0.02, "y: expected a single 1 and else 0 in each row, got"),
    "two ones": (np.ones_like(ONE_HOT), "y: expected a single 1 and else 0 in each row, got"),
    "no ones": (np.zeros_like(ONE_HOT), "y: expected a single 1 and else 0 in each row, got"),
    "other classes": (np.eye(10)[Y], "y: expected one of 5 classes, got one of 10"),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_any_unambiguous_form_are_the_same(form):
    np.testing.assert_array_equal(to_labels(FORMS[form], 12, NUM_CLASSES), Y)
    np.testing.assert_array_equal(to_labels(FORMS[form], 12), Y)
    expected = traced_pgd().perturb(X, Y)
    np.testing.assert_array_equal(traced_pgd().perturb(X, FORMS[form]), expected)
    assert np.mean(is_misclassified(MODEL(expected), Y)) > 0.1


@pytest.mark.parametrize("case", WRONG)
def test_other_labels_are_refused(case):
    labels, message = WRONG[case]
    attack = pgd()
    for _ in range(2):  # before the model has been seen, and after
        with pytest.raises(InputError, match=message) as error:
            attack.perturb(X, labels)
        assert is_one_line(error)
        attack.perturb(X, Y)


@every_class
def test_every_attack_takes_the_labels_of_keras_and_refuses_those_out_of_range(name):
    attack = make(name, MODEL, "linf")
    with pytest.raises(InputError, match="y: expected classes from 0 to 4, got 5"):
        attack.perturb(X, np.full(12, 5))
    expected = attack.perturb(X, Y)
    assert np.any(expected != X)
    for labels in (Y[:, None], ONE_HOT):
        np.testing.assert_array_equal(attack.perturb(X, labels), expected)
    with pytest.raises(InputError, match="y: expected classes from 0 to 4, got 5"):
        attack.perturb(X, np.full(12, 5))


def test_the_closest_points_are_of_such_labels_too():
    attack = FAB(MODEL, epsilon=0.02, num_steps=5, jit_compile=False)
    expected, distance = attack.closest(X, Y)
    for labels in (Y[:, None], ONE_HOT):
        x, same = attack.closest(X, labels)
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_array_equal(same, distance)
    with pytest.raises(InputError, match="y: expected a label for each of 12 images, got 3"):
        attack.closest(X, Y[:3])


def test_the_boundary_attack_takes_such_labels_too():
    attack = Boundary(MODEL, epsilon=1.5, num_steps=5, jit_compile=False)
    expected = attack.perturb(X, Y, seed=2**31 - 1)
    for labels in (Y[:, None], ONE_HOT):
        np.testing.assert_array_equal(attack.perturb(X, labels, seed=2**31 - 1), expected)
    with pytest.raises(InputError, match="y: expected classes from 0 to 4, got 5"):
        attack.closest(X, np.full(12, 5))


def test_evaluations_take_such_labels_too():
    expected = evaluate(traced_pgd())
    for labels in (Y[:, None], ONE_HOT, Y.tolist()):
        result = evaluate(traced_pgd(), labels=labels)
        np.testing.assert_array_equal(result.adversarial_correct, expected.adversarial_correct)
        np.testing.assert_array_equal(result.natural_losses, expected.natural_losses)
    assert expected.natural_correct.all() and not expected.adversarial_correct.all()
    late = np.where(np.arange(12) == 11, NUM_CLASSES, Y)  # in the last batch
    for labels, message in (
        (late, "labels: expected classes from 0 to 4, got 5"),
        (Y[:3], "labels: expected a label for each of 12 images, got 3"),
        (np.eye(10)[Y], "labels: expected one of 5 classes, got one of 10"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(pgd(), labels=labels)


def test_checks_take_such_labels_too():
    options = {"epsilon": 0.02, "bounds": (0.0, 1.0), "batch_size": 5}
    expected = pitfalls.check_model(MODEL, X, Y, **options)
    for labels in (Y[:, None], ONE_HOT):
        assert pitfalls.check_model(MODEL, X, labels, **options) == expected
    for labels in (Y + 5, Y[:3], np.eye(10)[Y]):
        with pytest.raises(InputError, match="y: expected"):
            pitfalls.check_model(MODEL, X, labels, **options)


def test_the_classes_of_a_model_without_static_shape_are_counted():
    weights = linear_model()[0]

    @tf.custom_gradient
    def opaque(x):
        z = tf.numpy_function(lambda x: MODEL(x).numpy(), [x], tf.float32)
        return z, lambda dz: tf.reshape(dz @ weights, (-1, *SHAPE))

    for attack in (pgd(opaque), APGD(opaque, epsilon=0.02, num_steps=2, jit_compile=False)):
        with pytest.raises(InputError, match="y: expected classes from 0 to 4, got 5"):
            attack.perturb(X, np.full(12, 5))
        attack.perturb(X, ONE_HOT)


def test_the_model_is_not_run_to_find_its_classes_and_sees_the_batch_alone():
    sizes, traces = [], []

    def model(x):
        traces.append(x.shape)
        tf.py_function(lambda count: sizes.append(int(count)), [tf.shape(x)[0]], [])
        return MODEL(x)

    attack = pgd(model, num_steps=3)
    attack.perturb(X, Y)
    assert sizes == [12] * 3 and len(traces) == 1


# Within a tf.function.


def compiled(attack, *signature):
    function = tf.function(attack.perturb, autograph=False, input_signature=signature or None)
    return lambda x, y: function(tf.constant(x), tf.constant(y))


@pytest.mark.parametrize("is_known", [False, True])
def test_labels_in_a_graph(is_known):
    expected = traced_pgd().perturb(X, Y)
    attack = pgd()
    if is_known:
        attack.perturb(X, Y)
    perturb = compiled(attack)
    for labels in (Y, Y[:, None], ONE_HOT, Y.astype(np.float32)):
        np.testing.assert_array_equal(perturb(X, labels), expected)
    for labels in (Y + 5, Y - 5, Y + 0.5, Y * np.nan, 0.9 * ONE_HOT):
        with pytest.raises(tf.errors.InvalidArgumentError):
            perturb(X, labels)
    for labels in (Y[:5], np.eye(10)[Y], Y[:, None, None], Y > 0):
        with pytest.raises(InputError, match="y: expected"):
            perturb(X, labels)


def test_labels_in_a_graph_that_knows_no_sizes():
    expected = traced_pgd().perturb(X, Y)
    perturb = compiled(
        pgd(),
        tf.TensorSpec((None, *SHAPE), tf.float32),
        tf.TensorSpec((None, None), tf.float32),
    )
    for labels in (Y[:, None], ONE_HOT):
        np.testing.assert_array_equal(perturb(X, np.float32(labels)), expected)
    for labels in (Y[:, None] + 5, np.eye(10)[Y], 0.5 * ONE_HOT, ONE_HOT[:5], Y[:5, None]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            perturb(X, np.float32(labels))


def test_pixels_seeds_and_scale_in_a_graph():
    attack = pgd()
    function = tf.function(attack.perturb)
    expected = attack.perturb(X, Y, seed=(3, 4), scale=0.5)
    found = function(tf.constant(X), tf.constant(Y), tf.constant([3, 4]), None, tf.constant(0.5))
    np.testing.assert_array_equal(found, expected)
    for x in (X + 1, X * np.nan, np.where(X > 0.9, np.inf, X)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="x_nat: expected pixels in"):
            function(tf.constant(x), tf.constant(Y))
    for seed, scale in ((2**40, 1.0), ([1.5, 0.0], 1.0), (1, np.nan), (1, -1.0)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected"):
            function(tf.constant(X), tf.constant(Y), tf.constant(seed), None, tf.constant(scale))


def test_images_of_a_tf_data_pipeline_are_checked():
    for x, is_right in ((X, True), (X - 1, False)):
        batches = tf.data.Dataset.from_tensor_slices((x, Y)).batch(12).map(pgd().perturb)
        if is_right:
            assert next(iter(batches)).shape == X.shape
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match="x_nat: expected pixels in"):
                next(iter(batches))


def test_attacks_whose_batch_shrinks_say_that_they_run_outside_of_graphs():
    attack = APGD(MODEL, epsilon=0.02, num_steps=2)
    with pytest.raises(InputError, match="apgd_xent: expected a call outside of tf.function"):
        compiled(attack)(X, Y)


def test_an_input_error_stays_an_input_error_through_autograph():
    with pytest.raises(InputError, match="y: expected a label for each of 12 images, got 3"):
        tf.function(lambda x, y: pgd().perturb(x, y))(tf.constant(X), tf.constant(Y[:3]))


# Pixels. https://github.com/bethgelab/foolbox/issues/199,
# https://github.com/Trusted-AI/adversarial-robustness-toolbox/issues/894,
# https://github.com/fra31/auto-attack/issues/16

PIXELS = {
    "above": (X * 255, r"x_nat: expected pixels in \[0, 1\], got \[0, 255\]"),
    "below": (2 * X - 1, r"x_nat: expected pixels in \[0, 1\], got \[-1, 1\]"),
    "nan": (np.where(X > 0.5, np.nan, X), r"\[0, 1\], got [\d,]+ that are not finite numbers"),
    "infinite": (np.where(X > 0.5, np.inf, X), r"got [\d,]+ that are not finite numbers"),
    "one image": (X[0], r"x_nat: expected images \(batch, height, .*, got shape \(6, 6, 2\)"),
    "flat": (X.reshape(12, -1), r"x_nat: expected images .*, got shape \(12, 72\)"),
    "complex": (X.astype(complex), "x_nat: expected real numbers, got complex128"),
    "text": (X.astype(str), "x_nat: expected real numbers, got string"),
    "ragged": ([[1.0], [1.0, 2.0]], "x_nat: expected an array of numbers"),
    "none": (None, "x_nat: expected an array of numbers"),
}


@pytest.mark.parametrize("form", [np.asarray, tf.constant, lambda x: np.asarray(x).tolist()])
@pytest.mark.parametrize("case", PIXELS)
def test_invalid_images_are_refused_in_any_form(case, form):
    x, message = PIXELS[case]
    if case not in ("ragged", "none"):
        x = form(x)
    with pytest.raises(InputError, match=message) as error:
        pgd().perturb(x, Y)
    assert is_one_line(error)


@every_class
def test_every_attack_refuses_such_images(name):
    attack = make(name, MODEL, "linf")
    for x in (tf.constant(X * 255), tf.constant(X * np.nan), (X * 255).tolist()):
        with pytest.raises(InputError, match="x_nat: expected pixels in"):
            attack.perturb(x, Y)


def test_rounding_may_exceed_the_pixel_range():
    x = np.where(X == 1, 1 + 5e-5, X)
    for form in (np.asarray, tf.constant, lambda x: x.tolist()):
        assert np.max(pgd(num_steps=0, random_start=False).perturb(form(x), Y)) == 1
    perturb = compiled(pgd(num_steps=0, random_start=False))
    assert np.max(perturb(x.astype(np.float32), Y)) == 1


@functools.cache
def in_unit_range(norm):
    """PGD's result for pixels in [0, 1]."""
    attack = pgd(epsilon=16 / 510, step_size=16 / 510 / 4, num_steps=8, norm=norm)
    return attack.perturb(X, Y).numpy()


@pytest.mark.parametrize(
    "bounds", [(-1, 1), (-2.1, 2.6), (-0.5, 0.5), (0, 16), (-123.68, 151.061), (0, 1e-3)]
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_any_pixel_range_is_taken(bounds, norm):
    low, width = bounds[0], bounds[1] - bounds[0]
    epsilon = width * 16 / 255 / 2
    options = {"epsilon": epsilon, "step_size": epsilon / 4, "num_steps": 8, "norm": norm}
    x = PGD(lambda x: MODEL((x - low) / width), bounds=bounds, **options)
    found = (x.perturb(low + width * X, Y).numpy() - low) / width
    assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6
    expected = in_unit_range(norm)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.mean(np.abs(found - expected) > 1e-4) < 0.02


@pytest.mark.parametrize(
    "bounds",
    [
        (1, 0),
        (0.5, 0.5),
        (0, np.nan),
        (-np.inf, 1),
        (0, np.inf),
        (0, 1e39),
        (1e9, 1e9 + 1),  # the same in float32
        (0,),
        (0, 1, 2),
        1.0,
        None,
        ("0", "1"),
        (False, True),
        (np.zeros(3), np.ones(3)),
    ],
)
def test_other_bounds_are_refused(bounds):
    for attack in (pgd, lambda **options: APGD(MODEL, epsilon=0.1, **options)):
        with pytest.raises(InputError, match="bounds: expected two finite numbers, .*, got"):
            attack(bounds=bounds)
    with pytest.raises(InputError, match="bounds: expected two finite numbers"):
        check_radius(0.1, 0.1, bounds)
    with pytest.raises(InputError, match="bounds: expected two finite numbers"):
        pitfalls.check_model(MODEL, X, Y, epsilon=0.1, bounds=bounds, batch_size=5)


# Numbers. https://github.com/Harry24k/adversarial-attacks-pytorch/issues/145 and 68,
# https://github.com/bethgelab/foolbox/issues/575

MAKE = {
    "pgd": pgd,
    "multi_targeted": lambda **o: MultiTargeted(
        MODEL, **{"epsilon": 0.1, "step_size": 0.1, "num_steps": 1} | o
    ),
    "apgd": lambda **o: APGD(MODEL, **{"epsilon": 0.1} | o),
    "fab": lambda **o: FAB(MODEL, **{"epsilon": 0.1} | o),
    "square": lambda **o: Square(MODEL, **{"epsilon": 0.1} | o),
    "trial": lambda **o: Trial(pgd(), **o),
    "evaluator": lambda **o: Evaluator(
        MODEL, [], **{"to_pixels": data.mnist_pixels, "batch_size": 1} | o
    ),
    "check_model": lambda **o: pitfalls.check_model(
        MODEL, X, Y, **{"epsilon": 0.1, "bounds": (0.0, 1.0), "batch_size": 5} | o
    ),
}
COUNTS = {
    "pgd": {"num_steps": 0, "odi_steps": 0},
    "multi_targeted": {"num_steps": 1, "num_targets": 1},
    "apgd": {"num_steps": 1, "num_targets": 1},
    "fab": {"num_steps": 1, "num_targets": 1, "num_search_steps": 0},
    "square": {"num_queries": 1, "schedule_queries": 1},
    "trial": {"num_restarts": 1},
    "evaluator": {"batch_size": 1},
    "check_model": {"batch_size": 1},
}
ALL_COUNTS = [(name, count) for name, counts in COUNTS.items() for count in counts]


@pytest.mark.parametrize(("name", "count"), ALL_COUNTS)
@pytest.mark.parametrize(
    "value", [-1, 2**31, 2**64, 1.5, np.nan, np.inf, True, "3", [3], np.ones(2)]
)
def test_counts_are_whole_numbers_that_int32_holds(name, count, value):
    with pytest.raises(InputError, match=f"^{count}: expected .*, got") as error:
        MAKE[name](**{count: value})
    assert is_one_line(error)


@pytest.mark.parametrize(("name", "count"), ALL_COUNTS)
def test_counts_of_any_integer_type_are_taken(name, count):
    least = COUNTS[name][count]
    if least:
        with pytest.raises(InputError, match=f"^{count}: expected 1 or more, got 0"):
            MAKE[name](**{count: 0})
    for value in (least, np.int64(7), np.uint8(7), 7.0, 2**31 - 1):
        MAKE[name](**{count: value})


@pytest.mark.parametrize(
    ("name", "number", "right", "wrong"),
    [
        ("pgd", "kappa", (0, 50), (-1, 1e16)),
        ("fab", "alpha_max", (0, 1), (-0.1, 1.1)),
        ("fab", "eta", (1, 1.05), (0.9, -1, 1e16)),
        ("fab", "beta", (0, 1), (-0.1, 1.1)),
        ("square", "p_init", (0.001, 1), (0, -0.1, 1.1)),
        ("pgd", "epsilon", (0, 1), (-0.1, 1.1, 1e-46)),
        ("pgd", "step_size", (0, 1), (-0.1, 1.1, 1e-46)),
        ("apgd", "epsilon", (0, np.float32(0.3)), (-0.1, 1.1)),
    ],
)
def test_numbers_have_a_range_that_float32_holds(name, number, right, wrong):
    for value in right:
        MAKE[name](**{number: value})
    for value in (*wrong, np.nan, np.inf, -np.inf, True, "1", None, [0.5], 1j):
        with pytest.raises(InputError, match=f"^{number}: expected .*, got") as error:
            MAKE[name](**{number: value})
        assert is_one_line(error)


def test_an_l2_radius_is_no_more_than_float32_can_square():
    pgd(norm="l2", epsilon=1e6, step_size=1e6)
    for numbers in ({"epsilon": 1e20}, {"step_size": 1e20}):
        with pytest.raises(InputError, match=r"expected 0, or .* to 1e\+15 .*, got 1e\+20"):
            pgd(norm="l2", **numbers)


@pytest.mark.parametrize("scale", [-1, np.nan, np.inf, 1e16, True, "1", None, [1.0]])
def test_other_scales_are_refused(scale):
    with pytest.raises(InputError, match="scale: expected .*, got"):
        pgd().perturb(X, Y, scale=scale)


@pytest.mark.parametrize("target", [-1, 5, 2**31, 1.5, True, "cat", np.nan, [1]])
def test_other_targets_are_refused(target):
    with pytest.raises(InputError, match="target: expected a class"):
        pgd(target=target).perturb(X, Y)


def test_a_target_of_any_integer_type_is_the_same():
    expected = pgd(target=2).perturb(X, Y)
    np.testing.assert_array_equal(pgd(target=np.int64(2)).perturb(X, Y), expected)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (2**40, "seed: expected whole numbers within int32, got 1099511627776"),
        (2**31, "seed: expected whole numbers within int32, got 2147483648"),
        ((1, -(2**31) - 1), "seed: expected whole numbers within int32, got -2147483649"),
        (1.5, "seed: expected whole numbers within int32, got 1.5"),
        (np.nan, "seed: expected whole numbers within int32, got nan"),
        (True, "seed: expected whole numbers within int32, got a bool"),
        ("1", "seed: expected real numbers"),
        ((1, 2, 3), r"seed: expected an int, a pair or .* \(12, 2\), got shape \(3,\)"),
        (np.zeros((5, 2), int), r"seed: expected .*, got shape \(5, 2\)"),
        (np.zeros((1, 2), int), r"seed: expected .*, got shape \(1, 2\)"),
        (np.zeros((12, 3), int), r"seed: expected .*, got shape \(12, 3\)"),
    ],
)
@pytest.mark.parametrize("name", ["pgd", "apgd_xent"])
def test_other_seeds_are_refused(name, seed, message):
    with pytest.raises(InputError, match=message):
        make(name, MODEL, "linf").perturb(X, Y, seed=seed)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (np.arange(12) + 2**31, "index: expected whole numbers within int32, got 2147483648"),
        (np.arange(12) + 0.5, "index: expected whole numbers within int32, got 0.5"),
        (np.zeros(12, bool), "index: expected whole numbers within int32, got a bool"),
        (np.arange(5), r"index: expected shape \(12,\), got \(5,\)"),
        (3, r"index: expected shape \(12,\), got \(\)"),
        (np.zeros((12, 1), int), r"index: expected shape \(12,\), got \(12, 1\)"),
    ],
)
def test_other_indices_are_refused(index, message):
    with pytest.raises(InputError, match=message):
        pgd().perturb(X, Y, index=index)


def test_whole_seeds_of_any_type_are_the_same():
    attack = traced_pgd()
    expected = attack.perturb(X, Y, seed=(5, 0))
    for seed in (5, 5.0, np.int64(5), np.array([5, 0], np.uint8), [[5, 0]] * 12, tf.constant(5)):
        np.testing.assert_array_equal(attack.perturb(X, Y, seed=seed), expected)
    for seed in (2**31 - 1, -(2**31)):
        assert np.any(attack.perturb(X, Y, seed=seed) != expected)


def test_seeds_of_evaluations_are_refused_too():
    for make_it in (MAKE["evaluator"], MAKE["check_model"]):
        for seed in (2**31, 1.5, True):
            with pytest.raises(InputError, match="seed: expected"):
                make_it(seed=seed)


def test_a_count_of_passes_does_not_overflow():
    attack = pgd()
    state = state_of()(index=tf.zeros((2,)), passes=tf.zeros((2, 2), tf.int64))
    step = lambda i, state: state._replace(index=state.index + 1)  # noqa: E731
    many = 2**31 - 1
    for _ in range(3):
        state = attack._model.iterate(step, state, many - 2, many, passes=(many, 1))
    assert state.passes.numpy().tolist() == [[6 * many, 6]] * 2


def test_broken_examples_have_no_further_restarts():
    result = evaluate(pgd(epsilon=0.5, step_size=0.2), num_restarts=2**31 - 1)
    assert not result.adversarial_correct.any() and result.num_attacks < 100


# Gradients that are not numbers.
# https://github.com/Trusted-AI/adversarial-robustness-toolbox/issues/824


def undefined_at(x_nat, part=lambda x: x):
    """`MODEL` and a norm of what differs from `x_nat`: it has no gradient there."""

    def model(x):
        delta = tf.reshape(part(x - x_nat), (len(x_nat), -1))
        return MODEL(x) * (1.0 + 1e-3 * tf.norm(delta, axis=1)[:, None])

    return model


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_undefined_gradient_is_no_step(norm):
    attack = pgd(undefined_at(X), norm=norm, random_start=False)
    np.testing.assert_array_equal(attack.perturb(X, Y), X)
    assert attack.num_undefined == 12
    # That of single pixels leaves the others their steps.
    model = undefined_at(X, lambda x: x[:, :1])
    attack = pgd(model, norm=norm, random_start=False)
    x = attack.perturb(X, Y).numpy()
    np.testing.assert_array_equal(x[:, :1], X[:, :1])
    assert np.isfinite(x).all() and np.mean(x != X) > 0.3
    assert attack.num_undefined == 12
    # A random start has a gradient.
    attack = pgd(undefined_at(X), norm=norm)
    assert np.any(attack.perturb(X, Y) != X) and attack.num_undefined == 0


@every_class_and_norm
def test_no_attack_makes_images_that_are_not_finite(name, norm):
    @tf.custom_gradient
    def undefined_at_times(x):
        is_bright = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True) > np.median(X.mean((1, 2, 3)))
        return tf.identity(x), lambda dx: tf.where(is_bright, np.nan, dx)

    attack = make(name, lambda x: MODEL(undefined_at_times(x)), norm, epsilon=0.2)
    x = attack.perturb(X, Y)
    assert np.isfinite(x).all() and np.min(x) >= 0 and np.max(x) <= 1
    if name == "square":
        assert attack.num_undefined == 0
    else:
        assert 3 <= attack.num_undefined <= 9
        assert np.any(x != X)
    attack.perturb(X[:0], Y[:0])
    assert attack.num_undefined == 0


@every_class_and_norm
def test_an_infinite_gradient_has_a_direction(name, norm):
    @tf.custom_gradient
    def steep(x):  # its first pixel is the one that counts
        return tf.identity(x), lambda dx: tf.concat([dx[:, :1] * np.inf, dx[:, 1:]], axis=1)

    attack = make(name, lambda x: MODEL(steep(x)), norm)
    x = attack.perturb(X, Y)
    assert np.isfinite(x).all() and attack.num_undefined == 0
    if name not in ("square", "fab_targeted"):
        assert np.any(x != X)


def test_undefined_gradients_are_counted_over_an_evaluation_and_warned_of(tmp_path):
    class OfBatch:
        """PGD on a model that has no gradient at the images of the batch."""

        num_undefined = 0

        def perturb(self, x_nat, y, seed, index):
            attack = pgd(undefined_at(x_nat), random_start=False)
            x = attack.perturb(x_nat, y, seed=seed, index=index)
            self.num_undefined = attack.num_undefined
            return x

    result = evaluate(OfBatch())
    assert result.adversarial_correct.all()
    (trial,) = result.trials
    assert (trial.num_undefined, trial.num_attacks) == (12, 12)
    assert pitfalls.undefined_gradients(trial).startswith(
        "undefined gradients: attack: at 12 of 12 attacked images a gradient was not a number"
    )
    assert pitfalls.undefined_gradients(evaluate(traced_pgd()).trials[0]) is None

    # With a break.
    class Ended(OfBatch):
        calls = 0

        def perturb(self, *arguments, **options):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().perturb(*arguments, **options)

    state = State(tmp_path / "state.npz", {})
    state._last = -np.inf  # so that a write is due
    keep = state.keep
    state.keep = lambda found, at_once: keep(found, at_once=True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Ended(), state=state)
    with np.load(tmp_path / "state.npz") as file:
        assert file["num_undefined"].tolist() == [10]
    assert evaluate(OfBatch(), state=state).trials[0].num_undefined == 12


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_counts_as_the_natural_one(value):
    class Broken:
        epsilon, bounds = 0.1, (0.0, 1.0)

        def perturb(self, x_nat, y, seed, index):
            return tf.where((index % 2 == 0)[:, None, None, None], value, x_nat)

    for eight_bits in (False, True):
        result = evaluate(Broken(), eight_bits=eight_bits)
        assert np.isfinite(result.x_adv).all()
        if not eight_bits:
            assert result.adversarial_correct.all()
            np.testing.assert_array_equal(result.x_adv, X)


# Classes that are ruled out. https://github.com/bethgelab/foolbox/issues/108 and 618,
# https://github.com/awslabs/Renate/issues/364


def ruling_out(x):
    """`MODEL`, which may take an image for any class but 1 and 3."""
    return tf.where([True, False, True, False, True], MODEL(x), -np.inf)


@every_attack
def test_every_attack_breaks_a_model_that_rules_classes_out(name):
    y = np.argmax(ruling_out(X), axis=1)
    attack = make(name, ruling_out, "linf", epsilon=0.3)
    x = attack.perturb(X, y)
    assert np.isfinite(x).all() and attack.num_undefined == 0
    assert np.mean(np.argmax(ruling_out(x), axis=1) != y) > 0.5


def test_cross_entropy_is_that_of_the_other_classes():
    def others(x):
        return tf.gather(MODEL(x), [0, 2, 4], axis=1)

    y = np.argmax(others(X), axis=1)
    x = pgd(ruling_out).perturb(X, 2 * y)
    np.testing.assert_allclose(x, pgd(others).perturb(X, y), atol=1e-6)


@pytest.mark.parametrize("target", ["random", "least_likely"])
def test_a_class_that_is_ruled_out_is_not_a_target(target):
    y = np.argmax(ruling_out(X), axis=1)
    x = pgd(ruling_out, target=target, epsilon=0.5, step_size=0.2, num_steps=8).perturb(X, y)
    # Towards a class that is ruled out, it could end in any other class.
    lowest = np.argmin(np.where(np.isinf(ruling_out(X)), np.inf, ruling_out(X)), axis=1)
    found = np.argmax(ruling_out(x), axis=1)
    if target == "least_likely":
        np.testing.assert_array_equal(found, lowest)
    else:
        assert np.all(found != y) and np.any(found == lowest) and np.any(found != lowest)


def test_evaluations_and_pitfalls_count_it_as_a_prediction():
    y = np.argmax(ruling_out(X), axis=1)
    result = evaluate(pgd(ruling_out, num_steps=0, random_start=False), ruling_out, y)
    assert result.natural_correct.all() and result.adversarial_correct.all()
    assert np.isfinite(result.natural_losses).all()
    options = {"epsilon": 0.02, "bounds": (0.0, 1.0), "batch_size": 12}
    assert pitfalls.check_model(ruling_out, X, y, **options) == []
    # A class that is ruled out is not a prediction, nor is a NaN.
    wrong = evaluate(pgd(ruling_out), ruling_out, np.where(np.arange(12) < 6, 1, 3))
    assert not wrong.natural_correct.any()
    assert not evaluate(pgd(), lambda x: MODEL(x) * np.nan).natural_correct.any()


# Logits of any dtype. https://github.com/fra31/auto-attack/issues/51,
# https://github.com/MadryLab/trak/issues/36


@every_class
def test_every_attack_takes_logits_in_half_precision(name):
    x = make(name, lambda x: tf.cast(MODEL(x), tf.float16), "linf", epsilon=0.05).perturb(X, Y)
    assert x.dtype == tf.float32 and np.any(is_misclassified(MODEL(x), Y))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("loss_func", ["xent", "cw"])
def test_logits_of_other_floating_dtypes_are_taken(loss_func, dtype):
    x = pgd(lambda x: tf.cast(MODEL(x), dtype), loss_func=loss_func).perturb(X, Y)
    assert x.dtype == tf.float32 and np.mean(is_misclassified(MODEL(x), Y)) > 0.2
    if dtype == "float64":
        expected = traced_pgd() if loss_func == "xent" else pgd(loss_func=loss_func)
        np.testing.assert_array_equal(x, expected.perturb(X, Y))


def test_evaluations_and_checks_take_them_too():
    def model(x):
        return tf.cast(MODEL(x), tf.float64)

    result, expected = evaluate(pgd(model, loss_func="cw"), model), evaluate(pgd(loss_func="cw"))
    np.testing.assert_array_equal(result.adversarial_correct, expected.adversarial_correct)
    options = {"epsilon": 0.02, "bounds": (0.0, 1.0), "batch_size": 12}
    assert pitfalls.check_model(model, X, Y, **options) == pitfalls.check_model(
        MODEL, X, Y, **options
    )


def test_a_mixed_precision_network_is_attacked():
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(NUM_CLASSES, dtype=policy),
        ]
    )
    model.set_weights([linear_model()[0].T, linear_model()[1]])
    assert model(X).dtype == tf.float16
    for attack in (pgd(model, loss_func="cw"), APGD(model, epsilon=0.05, num_steps=5)):
        x = attack.perturb(X, Y)
        assert np.mean(is_misclassified(MODEL(x), Y)) > 0.2


NO_LOGITS = {
    "integers": (lambda x: tf.cast(MODEL(x), tf.int32), "logits of a floating dtype, got int32"),
    "complex": (
        lambda x: tf.cast(MODEL(x), tf.complex64),
        "logits of a floating dtype, got complex64",
    ),
    "rank 1": (lambda x: MODEL(x)[:, 0], r"logits \(\d+, classes\), got shape \(\d+,\)"),
    "rank 3": (lambda x: MODEL(x)[:, None], r"logits \(\d+, classes\), got shape \(\d+, 1, 5\)"),
    "scalar": (lambda x: tf.reduce_sum(x), r"logits \(\d+, classes\), got shape \(\)"),
    "one class": (lambda x: MODEL(x)[:, :1], "logits of 2 classes or more, got 1"),
    "another batch": (lambda x: MODEL(x)[:1], r"logits \(\d+, classes\), got shape \(1, 5\)"),
    "dict": (lambda x: {"logits": MODEL(x)}, "a tensor of logits .*, got dict"),
}


@pytest.mark.parametrize("case", NO_LOGITS)
def test_what_is_not_logits_is_refused(case):
    model, message = NO_LOGITS[case]
    for run in (
        lambda: pgd(model).perturb(X, Y),
        lambda: APGD(model, epsilon=0.1).perturb(X, Y),
        lambda: evaluate(pgd(), model),
        lambda: pitfalls.check_model(model, X, Y, epsilon=0.1, bounds=(0.0, 1.0), batch_size=5),
    ):
        with pytest.raises(InputError, match=f"^model: expected {message}") as error:
            run()
        assert is_one_line(error)


# No gradient. https://github.com/fra31/auto-attack/issues/44,
# https://github.com/Harry24k/adversarial-attacks-pytorch/issues/150


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in CLASSES else pytest.mark.slow)
        for name in MAKERS
        if name != "square"
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        tf.round,
        tf.stop_gradient,
        lambda x: tf.image.adjust_hue(tf.concat([x, x[..., :1]], axis=3), 0.1)[..., :2],
    ],
    ids=["round", "stop_gradient", "adjust_hue"],
)
def test_a_model_without_a_gradient_is_refused_in_one_line(name, function):
    attack = make(name, lambda x: MODEL(function(x)), "linf")
    message = "^model: expected logits with a gradient for the images"
    with pytest.raises(InputError, match=message) as error:
        attack.perturb(X, Y)
    assert is_one_line(error)


# Few sizes. https://github.com/cleverhans-lab/cleverhans/issues/1037


def counted():
    """A model of either kind, and a dict of how often it was traced for each size of a batch."""
    traces = collections.Counter()

    def model(x):
        traces[x.shape[0]] += 1
        return MODEL(x)

    return model, traces


@pytest.mark.parametrize("order", ["up", "down"])
@pytest.mark.parametrize("kind", ["fast", "xla"])
def test_pgd_is_compiled_for_few_sizes(kind, order):
    x_nat = images(30)
    y = np.argmax(MODEL(x_nat), axis=1)
    model, traces = counted()
    sizes = list(range(1, 31) if order == "up" else range(30, 0, -1))
    if kind == "fast":
        prepared = collections.Counter()

        def prepare(precision):
            prepared["times"] += 1
            return model

        attack = pgd(FastModel(MODEL, prepare), num_steps=2)
    else:
        sizes = sizes[:12]
        attack = pgd(model, num_steps=2, jit_compile=True)
    whole = pgd(num_steps=2).perturb(x_nat, y, seed=3).numpy()
    for size in sizes:
        x = attack.perturb(x_nat[:size], y[:size], seed=3)
        assert x.shape[0] == size
        np.testing.assert_allclose(x, whole[:size], atol=1e-6)
    if kind == "fast":
        assert prepared["times"] <= 7
    else:
        assert sum(traces.values()) <= 5


@pytest.mark.parametrize("name", ["multi_targeted", "apgd_xent", "fab_targeted", "square"])
def test_the_others_are_compiled_for_few_sizes(name):
    x_nat = images(16)
    y = np.argmax(MODEL(x_nat), axis=1)
    prepared = collections.Counter()

    def prepare(precision):
        prepared["times"] += 1
        return MODEL

    attack = make(name, FastModel(MODEL, prepare), "linf", epsilon=0.005)
    whole = make(name, MODEL, "linf", epsilon=0.005).perturb(x_nat, y, seed=3).numpy()
    for size in range(8, 17):
        x = attack.perturb(x_nat[:size], y[:size], seed=3)
        np.testing.assert_allclose(x, whole[:size], atol=1e-6)
    # Two or three functions are compiled, and not each of them for 9 sizes.
    assert prepared["times"] <= 3 * 4


def test_the_first_size_is_exact_and_larger_ones_double():
    def sizes(counts, num_parts=None):
        fit = Sizes(num_parts)
        return [len(fit.rows(np.arange(count))) for count in counts]

    assert sizes([200, 200, 37, 200, 137, 1]) == [200, 200, 50, 200, 200, 1]
    assert sizes([5, 6, 10, 3, 25, 21]) == [5, 10, 10, 3, 25, 25]
    assert sizes([30, 0, 15, 12]) == [30, 0, 15, 15]
    # As a batch shrinks.
    assert sizes([200, 199, 137, 60, 3], 8) == [200, 200, 150, 75, 25]
    assert sizes([3, 4, 5], 8) == [3, 6, 6]
    rows = Sizes().rows(np.array([4, 7, 9]))
    np.testing.assert_array_equal(rows, [4, 7, 9])
    fit = Sizes()
    fit.rows(np.arange(8))
    np.testing.assert_array_equal(fit.rows(np.array([4, 7, 9])), [4, 7, 9, 4])


def test_a_batch_is_not_padded_where_its_images_meet():
    """In training mode batch norm takes the mean of all of them."""
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.BatchNormalization(momentum=0.0),
            keras.layers.Flatten(),
            keras.layers.Dense(NUM_CLASSES),
        ]
    )
    options = {"batch_statistics": True, "jit_compile": True, "random_start": False}
    attack = pgd(model, step_size=0.0, num_steps=1, **options)
    attack.perturb(X, Y)
    attack.perturb(X[:5], Y[:5])
    mean = X[:5].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(model.layers[0].moving_mean, mean, rtol=1e-5)


def test_as_logits_returns_float32_unchanged():
    z = MODEL(X)
    assert as_logits(z, X) is z


def test_fgsm_takes_these_too():
    expected = FGSM(MODEL, epsilon=0.02).perturb(X, Y)
    np.testing.assert_array_equal(FGSM(MODEL, epsilon=0.02).perturb(X, ONE_HOT), expected)
