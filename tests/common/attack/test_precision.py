"""Attacks in bfloat16: which layers compute in it, and float32's decision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from common import checkpoints
from common.attack import (
    APGD,
    FAB,
    PGD,
    FastModel,
    MultiTargeted,
    Square,
    attacked_model,
    precision,
)
from common.attack.losses import leads_by
from common.errors import InputError
from common.evaluation import pitfalls
from common.evaluation.report import arithmetic
from common.evaluation.results import Trial
from mnist_challenge.challenge import MNIST
from tests.common.attack.attack_cases import SHAPE, images, labelled, linear_model
from tests.helpers import digits, input_gradient, pictures

UNIT = precision.bfloat16_unit.__wrapped__  # the real one, which all tests go without
BFLOAT16 = {"precision": "bfloat16", "jit_compile": False}
OPTIONS = {"epsilon": 0.2, **BFLOAT16}
STAGED = {
    "apgd": lambda model: APGD(model, num_steps=12, **OPTIONS),
    "apgd_targeted": lambda model: APGD(
        model, num_steps=12, loss_func="targeted_dlr", num_targets=2, **OPTIONS
    ),
    "fab": lambda model: FAB(model, num_steps=8, num_targets=2, **OPTIONS),
    "square": lambda model: Square(model, num_queries=30, **OPTIONS),
    "multi_targeted": lambda model: MultiTargeted(
        model, step_size=0.05, num_steps=4, num_targets=2, **OPTIONS
    ),
}
staged = pytest.mark.parametrize("name", STAGED)


def convolutional(*before_last):
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Rescaling(2.0, name="scale"),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(),
            *before_last,
            keras.layers.Dense(5, name="logits"),
        ]
    )


class Bound(keras.layers.Layer):
    """Adds a float32 tensor, as a layer does that was not made for other arithmetic."""

    def call(self, x):
        return tf.add(x, tf.ones((), tf.float32))


class Overflowing(keras.layers.Layer):
    """A difference of large numbers, of which 8 bits leave nothing."""

    def call(self, x):
        return (x + 1000.0) - 1000.0


def taken_for(model, x_nat=None, **options):
    """The arithmetic of an attack on a model, after a run."""
    x_nat = images(4) if x_nat is None else x_nat
    attack = PGD(model, epsilon=0.1, step_size=0.05, num_steps=1, **options)
    attack.perturb(x_nat, np.zeros(len(x_nat), "i4"))
    return attack.precision


def test_any_keras_model_runs_in_bfloat16_with_its_own_weights():
    model = convolutional()
    x, y = tf.constant(images()), np.zeros(12, "i4")
    expected = model(x)
    rounded = precision.in_bfloat16(model)
    logits = tf.function(rounded)(x)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert logits.dtype == tf.float32 and 1e-5 < error < 0.03
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert {weight.dtype for weight in model.weights} == {"float32"}

    # The attack's gradient is that one's, and it follows weights that change.
    attack = PGD(model, epsilon=0.1, step_size=0.05, num_steps=1, random_start=False, **BFLOAT16)
    steps = []
    for factor in (1.0, -1.0):
        model.get_layer("logits").kernel.assign(factor * model.get_layer("logits").kernel)
        gradient = input_gradient(tf.function(rounded), x, y)
        steps.append(np.clip(x + 0.05 * np.sign(gradient), 0, 1))
        np.testing.assert_allclose(attack.perturb(x, y), steps[-1], atol=1e-6)
    assert np.mean(np.abs(steps[0] - steps[1]) > 1e-6) > 0.5


def test_a_layer_that_is_frozen_later_keeps_its_weights():
    model, x = convolutional(), tf.constant(images(4))
    logits = precision.in_bfloat16(model)
    expected = logits(x)
    model.get_layer("conv").trainable = False
    np.testing.assert_array_equal(logits(x), expected)


def test_the_first_and_last_layers_stay_in_float32():
    seen = {}

    class Recorded(keras.layers.Conv2D):
        def call(self, x):
            seen.setdefault(self.name, set()).add((self.compute_dtype, x.dtype.name))
            return super().call(x)

    image = keras.Input(SHAPE)
    first = Recorded(4, 3, padding="same", name="first")(keras.layers.Rescaling(2.0)(image))
    inner = keras.Sequential([keras.Input((6, 6, 4)), Recorded(4, 3, padding="same", name="inner")])
    y = keras.layers.Add()([first, inner(keras.layers.PReLU()(first))])
    y = Recorded(5, 6, name="last")(y)
    model = keras.Model(image, keras.layers.Flatten()(y))
    seen.clear()
    attack = PGD(model, epsilon=0.1, step_size=0.05, num_steps=1, **BFLOAT16)
    assert attack.precision.name == "bfloat16"
    assert ("bfloat16", "bfloat16") in seen["inner"]
    assert seen["first"] == seen["last"] == {("float32", "float32")}


def test_a_model_whose_call_is_a_tf_function_keeps_its_verdicts():
    class Traced(keras.layers.Conv2D):
        call = tf.function(keras.layers.Conv2D.call)

    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(8, 3, name="first"),
            Traced(8, 3, name="traced"),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    fresh = keras.models.clone_model(model)
    fresh.set_weights(model.get_weights())
    x = images(5)
    attack = PGD(model, epsilon=0.1, step_size=0.05, num_steps=1, **BFLOAT16)
    attack.perturb(x, np.zeros(5, "i4"))
    assert attack.precision.name == "bfloat16"
    np.testing.assert_array_equal(model(x), fresh(x))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (linear_model()[2], "the attack sees a function, not a keras.Model"),
        (convolutional(Bound()), "the model cannot run in bfloat16: TypeError: "),
        (
            convolutional(Overflowing()),
            "the model cannot run in bfloat16: bfloat16 changes the logits by more",
        ),
        (
            keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(5)]),
            "the model cannot run in bfloat16: it has no float32 kernel between its first and its ",
        ),
    ],
    ids=["function", "float32 layer", "cancellation", "linear"],
)
def test_a_model_that_cannot_run_in_bfloat16_is_attacked_in_float32_with_the_reason(model, reason):
    taken = taken_for(model, **BFLOAT16)
    assert taken.name == "float32" and taken.reason.startswith(reason)
    assert "\n" not in str(taken)


def test_a_block_that_is_not_a_model_computes_in_bfloat16_within():
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv = keras.layers.Conv2D(8, 3, name="inner")

        def call(self, x):
            seen.append(self.conv.compute_dtype)
            return self.conv(x)

    seen = []
    model = keras.Sequential(
        [keras.Input(SHAPE), Block(), Block(), keras.layers.Flatten(), keras.layers.Dense(5)]
    )
    seen.clear()
    assert taken_for(model, **BFLOAT16).name == "bfloat16"
    assert set(seen) == {"float32", "bfloat16"}


@pytest.mark.parametrize(("unit", "name"), [(None, "float32"), ("AMX-BF16", "bfloat16")])
def test_auto_takes_bfloat16_if_a_unit_multiplies_it(unit, name, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_unit", lambda: unit)
    taken = taken_for(convolutional(), precision="auto")
    assert taken.name == name
    assert (f"by {unit}" if unit else "no unit for bfloat16 is known here") == taken.reason


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n", "AMX-BF16"),
        ("processor: 0\nflags : fpu avx512_bf16\n", "AVX512-BF16"),
        ("flags : fpu avx2\n", None),
        ("Features : fp asimd\n", None),
        (None, None),
    ],
)
def test_the_unit_is_read_from_the_processors_flags(text, unit, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert UNIT() == unit


@pytest.mark.parametrize(("capability", "unit"), [((7, 5), None), ((8, 0), "a GPU"), (None, None)])
def test_a_gpu_counts_from_compute_capability_8(capability, unit, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("flags : amx_bf16")  # attacks run on the GPU in any case
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"] * (kind == "GPU"))
    details = {"device_name": "a GPU", **({"compute_capability": capability} if capability else {})}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert UNIT() == unit


def test_another_name_is_refused():
    with pytest.raises(InputError, match="precision: expected one of auto, float32, bfloat16, got"):
        taken_for(linear_model()[2], precision="float16")


@pytest.mark.parametrize(
    ("challenge", "taken"), [(MNIST, digits), (CIFAR10, pictures)], ids=["MNIST", "CIFAR-10"]
)
def test_the_fast_forms_agree_to_the_rounding_of_bfloat16(challenge, taken):
    x, y = taken(20)
    x = tf.constant(x)
    model = checkpoints.load_model(challenge, challenge.shipped).logits
    exact, rounded = (
        tf.function(lambda x, name=name: model.prepare(name)(x), autograph=False)
        for name in ("float32", "bfloat16")
    )
    z, expected = rounded(x).numpy(), exact(x).numpy()
    assert z.dtype == np.float32
    error = np.abs(z - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.02  # bfloat16 has 8 bits
    g, h = (input_gradient(form, x, y).numpy() for form in (rounded, exact))
    assert g.dtype == np.float32
    assert np.sum(g * h) / np.linalg.norm(g) / np.linalg.norm(h) > 0.99
    # Where float32 has no gradient, neither has bfloat16: no image brings the filters above zero.
    assert np.all(g[(h == 0).all(axis=(1, 2, 3))] == 0)


def test_xla_runs_the_network_itself_in_bfloat16():
    model = convolutional()
    x, y = images(4), np.zeros(4, "i4")

    def prepare(name):
        raise AssertionError("not under XLA")

    options = {"epsilon": 0.1, "step_size": 0.05, "num_steps": 2, "random_start": False}
    expected = PGD(model, **options, **BFLOAT16).perturb(x, y)
    fast = FastModel(model, prepare, network=model)
    attack = PGD(fast, **options, precision="bfloat16", jit_compile=True)
    assert attack.precision.name == "bfloat16"
    assert np.mean(np.abs(attack.perturb(x, y) - expected) > 1e-6) < 0.05
    # Without the network, what XLA runs is a function.
    attack = PGD(FastModel(model, prepare), **options, precision="bfloat16", jit_compile=True)
    assert attack.precision.name == "float32"


def attacked(name, rounded):
    """An attack on a linear model in float32, and on one of the same whose bfloat16 is `rounded`.

    Returns:
        The second attack, the images that it is given and their labels, and for both attacks, which
        examples they broke.
    """
    _, _, model = linear_model()
    x, y = labelled(model)
    x, y = x[y == y[0]], y[y == y[0]]  # so that `rounded` need not know the rows
    two_faced = FastModel(
        model, lambda name: model if name == "float32" else lambda x: rounded(model(x), y[0])
    )
    attack = STAGED[name](two_faced)
    broken = [
        np.argmax(model(one.perturb(x, y, seed=1)), axis=1) != y
        for one in (STAGED[name](model), attack)
    ]
    assert attack.precision.name == "bfloat16" and broken[0].sum() > 0
    return attack, x, *broken


@pytest.mark.parametrize("name", ["apgd", "square", "multi_targeted"])
def test_examples_that_float32_does_not_confirm_stay_under_attack(name):
    def rounded(z, label):  # everything is broken at once, and the gradient is the true one
        return z - 100.0 * tf.one_hot(label, 5)

    attack, x, expected, found = attacked(name, rounded)
    assert found.sum() >= expected.sum() - 1
    # The remaining examples have been attacked to the end.
    standing = x[~found][:1]
    if len(standing):
        attack.perturb(standing, np.argmax(linear_model()[2](standing), axis=1), seed=1)
        gradients, queries = attack.passes(1)
        assert gradients == attack.num_gradients and queries >= attack.num_queries


@staged
def test_examples_that_only_float32_misclassifies_are_found_in_the_end(name):
    def rounded(z, label):  # nothing ever leads by more than rounding
        return z + 1e6

    _, _, expected, found = attacked(name, rounded)
    assert np.mean(found == expected) >= 0.75 and found.any()


def test_leads_by_is_relative_to_the_largest_logit():
    logits = np.float32([[100, 101, 0], [100, 102, 0], [100, 99, 0], [1, 2, -np.inf]])
    leads = leads_by(tf.constant(logits), np.zeros(4, "i4"), 0.015)
    np.testing.assert_array_equal(leads, [False, True, False, True])


def test_records_name_the_arithmetic_if_it_is_not_float32():
    names = [
        Trial(PGD(convolutional(), epsilon=0.1, step_size=0.1, num_steps=1, precision=name))
        for name in ("float32", "bfloat16")
    ]
    for trial in names:
        trial.attack.perturb(images(2), [0, 1])
    exact, rounded = (trial.settings() for trial in names)
    assert "precision" not in exact
    assert rounded == {**exact, "precision": "bfloat16"}


def test_gradients_of_confident_predictions_survive_float16(monkeypatch):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, kernel_initializer=keras.initializers.RandomNormal(stddev=9.0)),
    ]
    exact = keras.Sequential([keras.Input(SHAPE), *layers])
    half = keras.models.clone_model(
        exact,
        clone_function=lambda layer: layer.__class__.from_config(
            {**layer.get_config(), "dtype": "mixed_float16"}
        ),
    )
    half.set_weights(exact.get_weights())
    x = images(200)
    second = np.sort(tf.nn.softmax(exact(x)), axis=1)[:, -2]
    x = x[(second > 1e-20) & (second < 1e-8)]  # gradients for the logits that float16 rounds to 0
    assert len(x) > 3
    y = np.argmax(exact(x), axis=1)
    options = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 1, "random_start": False}

    def share_of_right_steps():
        found, expected = (
            PGD(model, precision="float32", jit_compile=False, **options) for model in (half, exact)
        )
        told = arithmetic([Trial(found), Trial(expected)])
        assert told == (
            "arithmetic of attacks: float16, the model's own, float32 (as asked for); of every "
            "accuracy: float16, the model's own, float32"
        )
        steps, wanted = found.perturb(x, y) - x, expected.perturb(x, y) - x
        return np.mean(np.sign(steps) == np.sign(wanted))

    assert share_of_right_steps() > 0.95
    settings = {"epsilon": 0.1, "bounds": (0, 1), "batch_size": 100, "large": False}
    warnings = pitfalls.check_model(half, x, y, **settings)
    assert not any("zero gradients" in warning for warning in warnings)
    monkeypatch.setattr(attacked_model, "with_scaled_gradient", lambda logits, model: logits)
    assert share_of_right_steps() < 0.8
