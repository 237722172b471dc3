"""Any Keras model: evaluated, and trained by fit."""

import functools
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import robust
from common.attack import APGD, PGD, standard_suite
from common.errors import InputError
from common.evaluation import Evaluator, Trial
from common.robust import AdversarialModel, RobustAccuracy, evaluate
from common.training import losses, steps

OPTIONS = {"epsilon": 0.1, "bounds": (0, 1)}
ATTACK = functools.partial(PGD, step_size=0.04, num_steps=3, **OPTIONS)
L = keras.layers


def network(*, seed=0, classes=4, shape=(6, 5, 1), activation=None, last=(), **options):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(shape),
            L.Conv2D(3, 3, activation="relu", kernel_regularizer=keras.regularizers.L2(1e-2)),
            L.Flatten(),
            L.Dense(6, activation="relu", **options),
            L.Dense(classes, activation=activation, **options),
            *last,
        ]
    )


def examples(count=12, classes=4, shape=(6, 5, 1), seed=0):
    """Images whose class is the band of rows that is bright, with noise."""
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=count).astype("i4")
    x = random.uniform(0, 0.5, (count, *shape)).astype("f4")
    for image, label in zip(x, y):
        image[label] += 0.5
    return x, y


@pytest.fixture(scope="module")
def trained():
    """A network that classifies well, without a softmax."""
    x, y = examples(200)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss)
    model.fit(x, y, epochs=30, verbose=0)
    assert np.mean(model.predict(x, verbose=0).argmax(1) == y) > 0.9
    return model


def with_softmax(model, form):
    """A model of the same weights that ends in a softmax."""
    if form == "activation":
        copy = keras.models.clone_model(model)
        copy.layers[-1].activation = keras.activations.softmax
        copy.set_weights(model.get_weights())
        return copy
    if form == "layer":
        return keras.Sequential([model, L.Softmax()])
    if form == "activation layer":
        return keras.Sequential([*model.layers, L.Activation("softmax")])
    if form == "op":
        return keras.Model(model.inputs, keras.ops.softmax(model.outputs[0]))
    if form == "nested":
        images = keras.Input(model.input_shape[1:])
        return keras.Model(images, with_softmax(model, "activation")(images))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.body, self.head = model, L.Softmax()

        def call(self, x):
            return self.head(self.body(x)) if form == "subclassed" else tf.nn.softmax(self.body(x))

    return Subclassed()


FORMS = ("activation", "layer", "activation layer", "op", "nested", "subclassed")


# Logits.


@pytest.mark.parametrize("form", FORMS)
def test_a_softmax_is_stepped_over(trained, form):
    x, _ = examples()
    model = with_softmax(trained, form)
    before = model(x).numpy()
    logits = robust.logits_of(model, x)
    np.testing.assert_allclose(logits(x, training=False), trained(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(model(x), before)  # the model itself keeps it
    assert robust.logits_of(trained, x) is trained


def test_probabilities_of_another_kind_are_refused(trained):
    x, _ = examples()
    for model in (with_softmax(trained, "hidden"), lambda x: tf.nn.softmax(trained(x))):
        with pytest.raises(InputError, match="expected logits, or a softmax as the last layer"):
            robust.logits_of(model, x)


# Evaluation.


def test_the_report_is_the_evaluators(trained):
    x, y = examples(40, seed=1)
    report = evaluate(trained, x, y, **OPTIONS, precision="float32", seed=3, show_progress=False)
    trials = [
        Trial(attack, name=name)
        for name, attack in standard_suite(trained, **OPTIONS, precision="float32")
    ]
    expected = Evaluator(
        trained,
        trials,
        to_pixels=tf.constant,
        batch_size=100,
        seed=3,
        spare_misclassified=True,
        show_progress=False,
    ).run(x, y)
    np.testing.assert_array_equal(report.result.x_adv, expected.x_adv)
    found, wanted = report.to_dict(), expected.summary()
    del wanted["seconds"]
    assert wanted.items() <= found.items()
    assert 0 < found["adversarial_accuracy"] < found["natural_accuracy"]
    assert [entry["name"] for entry in found["attacks"]] == [trial.name for trial in trials]
    low, high = expected.confidence_interval
    text = str(report)
    assert f"({low:.2f}%" not in text and f"{low:.2f}% to {high:.2f}%" in report.line
    assert text.endswith(report.line) and "apgd_targeted" in text

    # Softmax, one-hot labels, a data set in batches or one by one: the same numbers.
    attacks = [ATTACK]
    plain = evaluate(trained, x, y, **OPTIONS, suite=attacks, show_progress=False)
    model, one_hot = with_softmax(trained, "activation"), np.eye(4)[y]
    batches = tf.data.Dataset.from_tensor_slices((x, one_hot))
    for data in ((x, one_hot), (batches,), (batches.batch(7),)):
        other = evaluate(model, *data, **OPTIONS, suite=attacks, show_progress=False)
        np.testing.assert_allclose(other.result.x_adv, plain.result.x_adv, atol=1e-6)
        assert other.line == plain.line


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_have_a_suite_too(classes):
    x, y = examples(6, classes=classes)
    report = evaluate(
        network(classes=classes), x, y, epsilon=0.5, bounds=(0, 1), show_progress=False
    )
    names = [trial.name for trial in report.trials]
    assert names[0] == "apgd_xent" and "apgd_targeted" not in names and names[-1] == "square"
    assert ("apgd_dlr" in names) == (classes == 3)


def test_pixels_of_bytes_and_colours_are_taken():
    x, y = examples(8, shape=(7, 5, 3))
    inner = network(shape=(7, 5, 3))
    model = keras.Sequential([keras.Input((7, 5, 3)), L.Rescaling(1 / 255), inner])
    images = np.rint(x * 255).astype("u1")
    attack = functools.partial(PGD, epsilon=8, step_size=2, num_steps=3, bounds=(0, 255))
    options = {"suite": [attack], "show_progress": False}
    report = evaluate(model, images, y, epsilon=8, bounds=(0, 255), **options)
    distance = np.abs(report.result.x_adv - images).reshape(8, -1).max(axis=1)
    assert report.result.x_adv.dtype == np.float32 and 7.9 < distance.max() <= 8.001


def no_gradient(x):
    return tf.reshape(tf.round(4 * x), (tf.shape(x)[0], -1))


def not_a_number(x):
    return tf.reshape(tf.math.log(x - 0.5), (tf.shape(x)[0], -1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bounds": (0, 0.5)}, r"x: expected pixels in \[0, 0.5\], got"),
        ({"epsilon": 8}, "epsilon: expected 0 to 1 .*did you mean 0.03137"),
        ({"y": np.full(12, 4)}, "expected classes from 0 to 3, got 4"),
        ({"y": np.full(11, 1)}, "expected a label for each of 12 images, got 11"),
        ({"y": None}, "y: expected the labels"),
        ({"x": np.zeros((0, 6, 5, 1)), "y": np.zeros(0, "i4")}, "x: expected one image or more"),
        ({"x": np.zeros((12, 30))}, r"expected images \(batch, height, width, channels\)"),
        ({"model": no_gradient}, "expected logits with a gradient"),
        ({"model": not_a_number}, "expected logits that are numbers, got NaN for"),
        ({"suite": "quick"}, "suite: expected standard or a list of attacks, got 'quick'"),
        ({"suite": [ATTACK], "epsilon": 0.2}, "suite: expected attacks of epsilon 0.2, got pgd"),
        ({"suite": [3]}, "attack: expected an attack, or a function from logits to one, got 3"),
        ({"norm": "l1"}, "norm: expected one of linf, l2"),
    ],
)
def test_what_cannot_be_attacked_is_one_line(trained, change, message):
    x, y = examples()
    arguments = {"model": trained, "x": x, "y": y, **OPTIONS, **change}
    with pytest.raises(InputError, match=message) as raised:
        evaluate(**arguments, show_progress=False)
    assert "\n" not in str(raised.value)


def test_nan_pixels_and_endless_data_are_refused(trained):
    x, y = examples()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    with pytest.raises(InputError, match="with an end"):
        evaluate(trained, data.repeat(), **OPTIONS)
    x[3, 0, 0] = np.nan
    with pytest.raises(InputError, match="got 1 that are not finite"):
        evaluate(trained, x, y, **OPTIONS)


# Training.


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("softmax", [False, True])
def test_a_step_is_that_of_the_trainings(loss, softmax):
    x, y = examples(8)
    model, plain = network(activation="softmax" if softmax else None), network()
    trainer = AdversarialModel(model, ATTACK, loss=loss, epsilon_warmup_steps=3, seed=5)
    trainer.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(plain.trainable_variables)
    attack, loss_of = ATTACK(plain), losses.make_loss(loss)
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


def test_evaluate_tells_natural_and_robust_accuracy(trained):
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


def test_early_stopping_and_checkpoints_see_robust_accuracy(tmp_path):
    x, y = examples(16)
    trainer = AdversarialModel(network(), ATTACK)
    trainer.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"])
    watch = {"monitor": "val_robust_accuracy", "mode": "max"}
    path = tmp_path / "best.keras"
    history = trainer.fit(
        x,
        y,
        epochs=9,
        verbose=0,
        callbacks=[
            RobustAccuracy(tf.data.Dataset.from_tensor_slices((x, y)), ATTACK),
            keras.callbacks.ModelCheckpoint(path, save_best_only=True, **watch),
            keras.callbacks.EarlyStopping(patience=2, **watch),
        ],
    ).history
    # Weights that stand still bring nothing after the first epoch.
    assert len(history["val_robust_accuracy"]) == 3
    report = evaluate(network(), x, y, **OPTIONS, suite=[ATTACK], show_progress=False)
    accuracy = report.to_dict()["adversarial_accuracy"]
    assert history["val_robust_accuracy"][0] == pytest.approx(accuracy / 100)
    saved = keras.models.load_model(path)
    assert not isinstance(saved, AdversarialModel)
    np.testing.assert_allclose(saved(x), trainer.model(x), atol=1e-6)


def test_every_other_epoch_on_a_plain_model():
    x, y = examples(16)
    model = network(activation="softmax")
    model.compile("sgd", "sparse_categorical_crossentropy")
    watch = RobustAccuracy((x, y), ATTACK, every=2)
    history = model.fit(x, y, epochs=4, verbose=0, callbacks=[watch]).history
    assert len(history["val_robust_accuracy"]) == 2


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


def test_the_ten_lines_run_as_they_stand(tmp_path, monkeypatch, capsys):
    x, y = examples(20, classes=4, shape=(6, 5, 3))
    network(shape=(6, 5, 3), activation="softmax").save(tmp_path / "mine.keras")
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "labels.npy", y)
    monkeypatch.chdir(tmp_path)
    text = robust.__doc__
    block = text[text.index("    import numpy") : text.index("An attack is given")]
    found = {}
    exec(textwrap.dedent(block).replace("epochs=10", "epochs=2"), found)
    assert "robust accuracy" in capsys.readouterr().out
    assert len(found["trainer"].history.history["val_robust_accuracy"]) == 2


def test_what_is_wrong_with_a_batch_is_one_line():
    x, y = examples(8)
    trainer = AdversarialModel(network(), ATTACK)
    trainer.compile("sgd")
    for images, labels, message in (
        (2 * x, y, r"^x: expected pixels in \[0, 1\], got others$"),
        (x, y + 4, "^y: expected classes from 0 to 3 or one-hot labels"),
        (x, np.full(8, -1), "^y: expected classes from 0 to 3 or one-hot labels"),
        (x, np.zeros((8, 5)), "^y: expected one of 4 classes, got one of 5$"),
    ):
        for call in (trainer.fit, trainer.evaluate):
            with pytest.raises(InputError, match=message):
                call(images, labels, verbose=0)
    assert np.all([np.isfinite(weight).all() for weight in trainer.get_weights()])


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
    for loss in ("mse", keras.losses.CategoricalCrossentropy(label_smoothing=0.1)):
        with pytest.raises(InputError, match="loss: expected None or one of"):
            trainer.compile("sgd", loss)
    trainer.compile("sgd")
    with pytest.raises(InputError, match="attack: the model ends in a softmax"):
        trainer.fit(x, y, verbose=0)
    slow = AdversarialModel(network(), functools.partial(APGD, **OPTIONS))
    slow.compile("sgd")
    with pytest.raises(InputError, match="apgd_xent: expected a call outside of tf.function"):
        slow.fit(x, y, verbose=0)
