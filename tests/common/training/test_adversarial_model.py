"""Any Keras model, trained by fit."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.attack import APGD, PGD
from common.errors import InputError
from common.training import losses, steps
from common.training.adversarial_model import AdversarialModel
from tests.common.keras_models import (
    ATTACK,
    OPTIONS,
    L,
    Subclassed,
    colour_network,
    examples,
    network,
    trained_network,
    with_softmax,
)


def dense(**options):
    """A network of one layer, which is traced fast."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6, 5, 1)), L.Flatten(), L.Dense(4, **options)])


@pytest.fixture(scope="module")
def trained():
    return trained_network()


@pytest.mark.parametrize(
    ("loss", "softmax"),
    [
        *((loss, False) for loss in losses.LOSSES),
        (losses.LOSSES[0], True),
        *(pytest.param(loss, True, marks=pytest.mark.slow) for loss in losses.LOSSES[1:]),
    ],
)
def test_a_step_is_that_of_the_trainings(loss, softmax):
    x, y = examples(8)
    model, plain = network(activation="softmax" if softmax else None), network()
    weights = {"natural_weight": 0.2, "trades_beta": 2.0}
    trainer = AdversarialModel(model, ATTACK, loss=loss, epsilon_warmup_steps=3, seed=5, **weights)
    trainer.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(plain.trainable_variables)
    attack, loss_of = ATTACK(plain), losses.make_loss(loss, 0.2, 2.0)
    for step in range(3):
        logs = trainer.train_on_batch(x, y, return_dict=True)
        trainer.reset_metrics()
        x_adv = steps.ascend(attack, x, y, step, 5, 3)
        found, logits = steps.descend(loss_of, tf.reduce_mean, plain, optimizer, x, x_adv, y)
        np.testing.assert_allclose(logs["loss"], found, rtol=1e-4)
        accuracy = np.mean(np.argmax(logits, axis=1) == y)
        assert logs["accuracy"] == logs["robust_accuracy"] == pytest.approx(accuracy)
    for weight, its in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(weight, its, atol=1e-5)
    assert not np.allclose(model.get_weights()[0], network().get_weights()[0])


def test_evaluate_reports_natural_and_robust_accuracy(trained):
    x, y = examples(40, seed=1)
    trainer = AdversarialModel(with_softmax(trained, "activation"), ATTACK)
    trainer.compile(metrics=["accuracy"], weighted_metrics=[])
    found = trainer.evaluate(x, np.eye(4)[y], batch_size=40, return_dict=True, verbose=0)
    logits = trained(x).numpy()
    x_adv = ATTACK(trained).perturb(x, y)
    natural = logits.argmax(1) == y
    both = natural & (trained(x_adv).numpy().argmax(1) == y)
    xent = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    assert found["accuracy"] == pytest.approx(natural.mean())
    assert found["robust_accuracy"] == pytest.approx(both.mean())
    assert found["loss"] == pytest.approx(float(np.mean(xent) + trained.losses[0]), rel=1e-4)
    assert 0 < both.mean() < natural.mean()
    weights = np.linspace(0, 2, 40)
    found = trainer.evaluate(x, y, 40, sample_weight=weights, return_dict=True, verbose=0)
    expected = float(np.mean(weights * xent) + trained.losses[0])
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(trainer.predict(x, verbose=0), tf.nn.softmax(logits), atol=1e-5)


def test_sample_and_class_weights_weigh_the_loss():
    x, y = examples(8)
    weights = np.linspace(0, 2, 8)
    found = []
    for options in ({"sample_weight": weights}, {"class_weight": {0: 0.0, 1: 1.0, 2: 3.0, 3: 0.5}}):
        trainer = AdversarialModel(network(), ATTACK)
        trainer.compile(keras.optimizers.SGD(0.0))
        history = trainer.fit(x, y, batch_size=8, shuffle=False, verbose=0, **options)
        model = network()
        x_adv = ATTACK(model).perturb(x, y, seed=(0, 0))
        xent = keras.losses.sparse_categorical_crossentropy(y, model(x_adv), from_logits=True)
        each = weights if "sample_weight" in options else np.array([0, 1, 3, 0.5])[y]
        expected = np.mean(xent * each) + float(model.losses[0])
        np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-4)
        found.append(expected)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "policy, options",
    [
        ("float32", {"steps_per_execution": 2}),
        ("float32", {"jit_compile": True}),
        ("float32", {"run_eagerly": True}),
        ("mixed_float16", {}),
        ("mixed_bfloat16", {}),
    ],
)
def test_fit_learns_in_every_mode(policy, options):
    x, y = examples(64)
    model = network(seed=2, dtype=policy)
    if policy != "float32":
        keras_policy = keras.dtype_policies.DTypePolicy(policy)
        model.dtype_policy = keras_policy
    trainer = AdversarialModel(model, functools.partial(ATTACK, num_steps=1))
    optimizer, loss = keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy"
    trainer.compile(optimizer, loss, metrics=["accuracy"], **options)
    if policy == "mixed_float16":
        assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    history = trainer.fit(x, y, batch_size=16, epochs=6, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert all(weight.dtype == "float32" for weight in model.weights)


def test_files_are_the_inner_models(tmp_path):
    x, _ = examples()
    model = network(seed=3)
    trainer = AdversarialModel(model, ATTACK)
    trainer.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))
    trainer.save_weights(tmp_path / "its.weights.h5")
    other = network(seed=4)
    other.load_weights(tmp_path / "its.weights.h5")
    np.testing.assert_array_equal(other(x), model(x))
    trainer.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(x), model(x), atol=1e-5)
    # A file of the inner model itself, which has its own optimizer, is taken too.
    other.compile("sgd")
    other.save_weights(tmp_path / "another.weights.h5")
    trainer.load_weights(tmp_path / "another.weights.h5")
    assert isinstance(other.optimizer, keras.optimizers.SGD) and not hasattr(model, "optimizer")


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C in the second batch of the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self._epoch and batch:
            raise KeyboardInterrupt


def check_that_a_fit_resumes(directory, policy="float32", **modes):
    """Compares fits of three epochs, without a break and with one."""
    x, y = examples(24)
    weights, found = np.linspace(0.5, 2, 24), []
    backup = keras.callbacks.BackupAndRestore(directory)
    for seed, callbacks in ((1, []), (1, [backup, Interrupt()]), (2, [backup])):
        keras.utils.set_random_seed(seed)
        layers = [L.Flatten(), L.Dropout(0.3, seed=seed), L.Dense(4, dtype=policy)]
        model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
        model.dtype_policy = keras.dtype_policies.DTypePolicy(policy)
        attack = functools.partial(ATTACK, num_steps=1)
        trainer = AdversarialModel(model, attack, epsilon_warmup_steps=9, seed=4)
        trainer.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"], **modes)
        options = {"epochs": 3, "shuffle": False, "verbose": 0, "callbacks": callbacks}
        try:
            history = trainer.fit(x, y, 8, sample_weight=weights, **options).history
        except KeyboardInterrupt:
            assert (directory / "latest.weights.h5").exists()
            continue
        assert len(history["loss"]) == (3 if seed == 1 else 2)
        found.append([*model.variables, *trainer.optimizer.variables])
    for variable, its in zip(*found, strict=True):
        np.testing.assert_array_equal(variable, its, err_msg=variable.path)


def test_an_interrupted_fit_resumes_bit_for_bit(tmp_path):
    check_that_a_fit_resumes(tmp_path / "backup", run_eagerly=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "modes",
    [
        {},
        {"steps_per_execution": 3},
        {"jit_compile": True},
        {"policy": "mixed_float16"},
        {"policy": "mixed_bfloat16"},
    ],
    ids=str,
)
def test_a_compiled_fit_resumes_bit_for_bit(tmp_path, modes):
    check_that_a_fit_resumes(tmp_path / "backup", **modes)


@pytest.mark.slow
def test_weights_and_optimizer_come_back_before_the_first_batch(tmp_path):
    x, y = examples(8)
    trainers = [AdversarialModel(network(seed=seed), ATTACK) for seed in (1, 2)]
    for trainer in trainers:
        trainer.compile(keras.optimizers.Adam(0.01))
    trainers[0].train_on_batch(x, y)
    trainers[0].save_weights(tmp_path / "its.weights.h5")
    trainers[1].load_weights(tmp_path / "its.weights.h5")
    for trainer in trainers:
        trainer.train_on_batch(x, y)
    both = [[*t.model.weights, *t.optimizer.variables] for t in trainers]
    for variable, its in zip(*both, strict=True):
        np.testing.assert_array_equal(variable, its)


def test_the_attack_may_run_batch_norm_on_the_batch():
    x, y = examples(8, 5, (8, 7, 3))
    found = []
    for own in (True, False):
        model = colour_network()
        attack = functools.partial(ATTACK, batch_statistics=own)
        trainer = AdversarialModel(model, attack)
        trainer.compile(keras.optimizers.SGD(0.0))
        trainer.train_on_batch(x, y)
        plain = colour_network()
        x_adv = attack(plain).perturb(x, y, seed=(0, 0))
        plain(x_adv, training=True)  # the step's own call
        for weight, its in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(weight, its, atol=1e-6)
        found.append(model.layers[1].moving_mean.numpy())
    assert not np.allclose(*found)  # the attack's calls move the averages, too


@pytest.mark.parametrize("policy", [None, "float16"])
def test_fit_takes_models_and_data_sets_as_they_come(policy):
    x, y = examples(20, 5, (8, 7, 3))
    model = Subclassed() if policy is None else colour_network(L.Rescaling(2.0), policy=policy)
    trainer = AdversarialModel(model, functools.partial(ATTACK, num_steps=1))
    trainer.compile(keras.optimizers.SGD(0.01), metrics=["accuracy"])
    data = tf.data.Dataset.from_tensor_slices((x, keras.utils.to_categorical(y, 5))).batch(8)
    found = trainer.fit(data, epochs=2, verbose=0, class_weight=dict.fromkeys(range(5), 1.0))
    assert np.isfinite(found.history["loss"]).all() and len(found.history["accuracy"]) == 2


@pytest.mark.parametrize("jit_compile", [False, True])
def test_what_is_wrong_with_a_batch_is_one_line(jit_compile):
    x, y = examples(8)
    trainer = AdversarialModel(dense(), functools.partial(ATTACK, num_steps=1))
    trainer.compile("sgd", jit_compile=jit_compile)
    assert trainer.jit_compile is jit_compile
    before, nan = trainer.get_weights(), np.where(x == x.max(), np.nan, x)
    for images, labels, message in (
        (x - 5, y, r"^x: expected pixels in \[0, 1\], got \[-4\.\d+, -4\.\d+\]$"),
        (nan, y, r"^x: expected pixels in \[0, 1\], got some that are not finite$"),
        (x, np.full(8, 5), "^y: expected classes from 0 to 3 or one-hot labels, .*, got 5$"),
        (x, np.full(8, -1), "^y: expected classes from 0 to 3 or one-hot labels, .*, got -1$"),
        (x, None, "^y: expected the labels of the images x, got none$"),
        (x, np.zeros((8, 5)), "^y: expected one of 4 classes, got one of 5$"),
        (x, np.ones((8, 4)), "^y: expected classes from 0 to 3 or one-hot labels, .*, got 1 1 1"),
    ):
        for call in (trainer.fit, trainer.evaluate):
            with pytest.raises(InputError, match=message):
                call(images, labels, verbose=0)
    for call in (trainer.train_on_batch, trainer.test_on_batch):
        with pytest.raises(InputError, match="^x: expected pixels"):
            call(x - 5, y)
    for weight, its in zip(trainer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, its)
    assert np.isfinite(trainer.train_on_batch(x, y)).all()  # after batches of other shapes
    trainer = AdversarialModel(dense(), ATTACK)
    trainer.compile("sgd", jit_compile=jit_compile)
    with pytest.raises(
        InputError, match=r"^x: expected images .*, got shape \(8, 6, 5\); x\[..., None\] adds"
    ):
        trainer.train_on_batch(x[..., 0], y)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_several_inputs_are_one_line(run_eagerly):
    x, y = examples(8)
    trainer = AdversarialModel(dense(), ATTACK)
    trainer.compile("sgd", run_eagerly=run_eagerly)
    for images, name in (({"image": x}, "dict"), ([x, x], "(tuple|list)")):
        message = f"^x: expected one array of images, got {name}; a model of several inputs needs"
        for call in (trainer.train_on_batch, trainer.test_on_batch, trainer.fit, trainer.evaluate):
            with pytest.raises(InputError, match=message):
                call(images, y)


@pytest.mark.parametrize("policy", ["float64", "float16"])
def test_batches_of_numpy_are_taken_eagerly_and_regularisers_of_any_dtype(policy):
    x, y = examples(8)
    model = dense(dtype=policy, kernel_regularizer="l2")
    trainer = AdversarialModel(model, functools.partial(ATTACK, num_steps=1))
    trainer.compile("sgd", run_eagerly=True)
    loss = trainer.test_on_batch(x, y, return_dict=True)["loss"]
    logits = np.float32(model(x))
    xent = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    squares = 0.01 * np.sum(np.square(np.float32(model.layers[-1].kernel)))
    assert loss == pytest.approx(np.mean(xent) + squares, rel=5e-3)
    assert np.isfinite(trainer.train_on_batch(x, y)).all()


def test_batches_whose_gradients_are_accumulated_have_their_own_random_starts(monkeypatch):
    x, y = examples(6)
    found, ascend = [], steps.ascend

    def listed(attack, x_nat, y, step, *arguments):
        found.append(int(step))
        return ascend(attack, x_nat, y, step, *arguments)

    monkeypatch.setattr(steps, "ascend", listed)
    trainer = AdversarialModel(dense(), functools.partial(ATTACK, num_steps=1))
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    trainer.compile(optimizer, run_eagerly=True)
    trainer.fit(x, y, batch_size=2, epochs=2, verbose=0)
    assert found == [0, 1, 2, 3, 4, 5] and int(optimizer.iterations) == 2


def test_sizes_that_a_batch_does_not_tell_are_the_models():
    x, y = examples(8)
    spec = tf.TensorSpec((None, None, None, 1)), tf.TensorSpec((None,), tf.int32)
    data = tf.data.Dataset.from_generator(lambda: iter([(x * 255, y)]), output_signature=spec)
    seen = []

    class Scaled(L.Layer):
        def call(self, images):
            if tf.executing_eagerly():
                seen.append(images.numpy())
            return images / 255

    model = keras.Sequential([keras.Input(x.shape[1:]), Scaled(), L.Flatten(), L.Dense(4)])
    options = {"epsilon": 8, "step_size": 8, "num_steps": 1, "bounds": (0, 255)}
    trainer = AdversarialModel(model, functools.partial(PGD, **options))
    trainer.compile("sgd")
    assert np.isfinite(trainer.fit(data, verbose=0).history["loss"]).all()
    assert seen[0].shape[1:] == (6, 5, 1) and 200 < seen[0].max() < 255


def test_a_loss_of_other_shapes_is_one_line():
    x, y = examples(8)

    def run(loss):
        trainer = AdversarialModel(dense(), ATTACK, loss=loss)
        trainer.compile("sgd", run_eagerly=True)
        trainer.train_on_batch(x, y, sample_weight=np.ones(8))

    for losses_of, got in (
        (lambda z: (z[:, :1], z), r"shapes \(8, 1\) and \(8, 4\)"),
        (lambda z: (tf.reduce_mean(z), z), r"shapes \(\) and \(8, 4\)"),
        (lambda z: (z[:3, 0], z), r"shapes \(3,\) and \(8, 4\)"),
        (lambda z: z[:, 0], "EagerTensor"),
        (lambda z: (z[:, 0], z, z), "tuple"),
    ):
        message = r"^loss: expected \(losses \(batch,\), logits \(batch, classes\)\), got "
        with pytest.raises(InputError, match=message + got):
            run(lambda x_nat, x_adv, y, model, of=losses_of: of(model(x_adv)))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_the_trainer_itself_is_not_saved(suffix, tmp_path):
    with pytest.raises(InputError, match=r"^AdversarialModel: expected trainer.save\(path\)"):
        keras.saving.save_model(AdversarialModel(dense(), ATTACK), tmp_path / f"its.{suffix}")


def test_an_attack_on_the_model_is_that_on_its_logits():
    x, y = examples(8)
    found = []
    for attack_of in (lambda model: ATTACK, ATTACK):
        model = network()
        trainer = AdversarialModel(model, attack_of(model))
        trainer.compile("sgd")
        trainer.fit(x, y, verbose=0)
        found.append(model.get_weights())
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


def test_wrong_use_of_the_trainer_is_refused():
    x, y = examples(4)
    model = network(activation="softmax")
    for arguments, message in (
        ((lambda x: x, ATTACK), "model: expected a keras.Model, got function"),
        ((model, 3), "attack: expected an attack, or a function from logits to one, got 3"),
    ):
        with pytest.raises(InputError, match=message):
            AdversarialModel(*arguments)
    with pytest.raises(InputError, match="loss: expected one of adversarial"):
        AdversarialModel(model, ATTACK, loss="mart")
    trainer = AdversarialModel(model, ATTACK(model))
    xent = keras.losses.SparseCategoricalCrossentropy
    for loss in (
        "mse",
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        xent(ignore_class=0),
        xent(reduction="sum"),
        keras.losses.MeanSquaredError(name="sparse_categorical_crossentropy"),
    ):
        with pytest.raises(InputError, match="loss: expected None or one of"):
            trainer.compile("sgd", loss)
    for arguments in ((None, [2.0]), ("categorical_crossentropy", 0.5)):
        with pytest.raises(InputError, match="loss_weights: expected None, as there is one loss"):
            trainer.compile("sgd", *arguments)
    trainer.compile("sgd", xent(from_logits=True, name="ce"))
    others = AdversarialModel(model, lambda logits: ATTACK(model))
    others.compile("sgd")
    for attacks_probabilities in (trainer, others):
        with pytest.raises(InputError, match="attack: the model ends in a softmax"):
            attacks_probabilities.fit(x, y, verbose=0)
    slow = AdversarialModel(network(), functools.partial(APGD, **OPTIONS))
    slow.compile("sgd")
    with pytest.raises(InputError, match="apgd_xent: expected a call outside of tf.function"):
        slow.fit(x, y, verbose=0)
    slow = AdversarialModel(dense(), functools.partial(APGD, **OPTIONS), epsilon_warmup_steps=5)
    slow.compile("sgd", run_eagerly=True)
    with pytest.raises(InputError, match="^epsilon_warmup_steps: expected 0 with an attack other"):
        slow.fit(x, y, verbose=0)


def test_images_for_a_model_of_vectors_are_one_line():
    x, y = examples(4)
    trainer = AdversarialModel(keras.Sequential([keras.Input((30,)), L.Dense(4)]), ATTACK)
    trainer.compile("sgd")
    with pytest.raises(InputError, match="^model: expected one that takes images of 6 x 5 x 1"):
        trainer.fit(x, y, verbose=0)


def test_the_function_that_makes_an_attack_is_given_a_model():
    x, y = examples(4)
    names = []

    def attack(logits):
        names.append(logits.name)
        return ATTACK(logits)

    trainer = AdversarialModel(network(activation="softmax"), attack)
    trainer.compile("sgd")
    trainer.fit(x, y, verbose=0)
    assert names[-1] == "logits" and None not in names
