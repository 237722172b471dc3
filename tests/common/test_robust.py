"""Any Keras model: its evaluation, and its robust accuracy during training."""

import functools
import logging
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import robust
from common.attack import PGD, standard_suite
from common.errors import InputError
from common.evaluation import Evaluator, Trial, pitfalls
from common.robust import AdversarialModel, RobustAccuracy, evaluate
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

DATA = tf.data.Dataset.from_tensor_slices


@pytest.fixture(scope="module")
def trained():
    return trained_network()


# Evaluation.


def test_the_report_is_the_evaluators(trained):
    x, y = examples(40, seed=1)
    report = evaluate(trained, x, y, **OPTIONS, precision="float32", seed=3, show_progress=False)
    trials = [
        Trial(attack, name=name)
        for name, attack in standard_suite(trained, **OPTIONS, precision="float32")
    ]
    assert [trial.settings() for trial in report.trials] == [trial.settings() for trial in trials]
    expected = Evaluator(
        trained,
        report.trials,  # which are compiled
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
    assert found["precision"] == "float32 (as asked for)"
    told = "arithmetic of attacks: float32 (as asked for); of every accuracy: float32"
    assert told in str(report).splitlines()
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


def test_the_attack_that_checks_is_compiled_as_asked(trained, monkeypatch):
    asked = []

    def checking(model, **options):
        asked.append(options["jit_compile"])
        return PGD(model, **options)

    monkeypatch.setattr(pitfalls, "PGD", checking)
    evaluate(trained, *examples(4), **OPTIONS, suite=ATTACK, jit_compile=False, show_progress=False)
    assert asked == [False]


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_have_a_suite_too(classes):
    x, y = examples(6, classes=classes)
    report = evaluate(
        network(classes=classes), x, y, epsilon=0.5, bounds=(0, 1), show_progress=False
    )
    names = [trial.name for trial in report.trials]
    assert names[0] == "apgd_xent" and "apgd_targeted" not in names and names[-1] == "square"
    assert ("apgd_dlr" in names) == (classes == 3)


def test_pixels_of_bytes_and_colours_are_taken(tmp_path):
    x, y = examples(8, shape=(7, 5, 3))
    inner = network(shape=(7, 5, 3))
    model = keras.Sequential([keras.Input((7, 5, 3)), L.Rescaling(1 / 255), inner])
    images = np.rint(x * 255).astype("u1")
    attack = functools.partial(PGD, epsilon=8, step_size=2, num_steps=3, bounds=(0, 255))
    options = {"suite": [attack], "show_progress": False}
    report = evaluate(model, images, y, epsilon=8, bounds=(0, 255), **options)
    distance = np.abs(report.result.x_adv - images).reshape(8, -1).max(axis=1)
    assert report.result.x_adv.dtype == np.float32 and 7.9 < distance.max() <= 8.001
    report.save_html(tmp_path / "r.html", class_names=["a", "b", "c", "<d>"], title="Mine")
    page = (tmp_path / "r.html").read_text()
    found = report.to_dict()
    for accuracy in (found["natural_accuracy"], found["adversarial_accuracy"]):
        assert f"<b>{accuracy:.2f}<small>%" in page
    assert "<h1>Mine</h1>" in page and "linf, epsilon 8" in page and "&lt;d&gt;" in page
    # The matrix of classes is of the model's own predictions.
    classes = np.asarray(model(report.result.x_adv)).argmax(axis=1)
    names = ["a", "b", "c", "&lt;d&gt;"]
    for label, other in zip(y, classes, strict=True):
        number = np.count_nonzero((y == label) & (classes == other))
        assert f"{names[label]} classified as {names[other]}: {number} (" in page
    with pytest.raises(InputError, match="^cannot write "):
        report.save_html(tmp_path / "no" / "r.html")


def preprocessing():
    """Layers that a user puts before a network; they have seen the images."""
    normalise = L.Normalization(axis=-1)
    normalise.adapt(examples(8, 5, (8, 7, 3))[0])
    return normalise, L.Resizing(10, 9), L.RandomFlip()


@pytest.mark.parametrize(
    "make",
    [
        lambda: colour_network(*preprocessing()),
        Subclassed,
        lambda: colour_network(policy="float16", activation="softmax"),
        lambda: colour_network(policy="bfloat16", activation="softmax", size=(None, None, 3)),
        lambda: colour_network(policy="mixed_float16"),
        lambda: keras.Sequential([L.Conv2D(3, 3), L.Flatten(), L.Dense(5)]),
    ],
    ids=["preprocessing", "subclassed", "float16", "bfloat16", "mixed_float16", "unbuilt"],
)
def test_models_are_taken_as_they_come(make):
    x, _ = examples(9, 5, (8, 7, 3))
    model = make()
    y = np.argmax(model(x, training=False), axis=1)  # so that all are attacked
    attack = functools.partial(
        PGD, epsilon=1, step_size=1, num_steps=1, random_start=False, bounds=(0, 1)
    )
    data = tf.data.Dataset.from_tensor_slices((x, keras.utils.to_categorical(y, 5))).batch(4)
    before = model.get_weights()
    report = evaluate(model, data, epsilon=1, bounds=(0, 1), suite=[attack], show_progress=False)
    result = report.result
    assert np.mean(result.natural_correct) > 0.5  # a tie, which 8 bits may make, is not correct
    its = np.argmax(model(result.x_adv, training=False), axis=1)
    assert np.all((its == y)[result.adversarial_correct])
    moved = result.x_adv[result.natural_correct]
    assert np.mean((moved == 0) | (moved == 1)) > 0.2  # a step to the corners of the box
    for weight, its in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, its)


def test_steps_too_short_for_the_ball_are_warned_of(trained):
    short = functools.partial(ATTACK, step_size=0.01)
    report = evaluate(trained, *examples(8), **OPTIONS, suite=[short], show_progress=False)
    assert "warning: short steps: pgd: 3 steps of 0.01 do not lead" in str(report)


def test_tensorflows_warnings_of_traces_are_dropped_and_others_kept(trained):
    logger, heard = logging.getLogger("tensorflow"), []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())

    def warns(x):
        logger.warning("5 calls triggered tf.function retracing")
        logger.warning("another")
        return trained(x)

    logger.addHandler(handler)
    try:
        evaluate(warns, *examples(2), **OPTIONS, suite=[ATTACK], show_progress=False)
        said = set(heard)
        logger.warning("retracing")
    finally:
        logger.removeHandler(handler)
    assert "another" in said and not any("retracing" in line for line in said)
    assert heard[-1] == "retracing"


class OnlyPerturb:
    """What is not quite an attack."""

    def perturb(self, x_nat, y, seed=0, index=None):
        return x_nat


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
        ({"model": None}, "model: expected a keras.Model or a function, got None"),
        (
            {"model": lambda x: [2 * x[:, :4, 0, 0], x[:, :3, 0, 0]]},
            "expected a tensor of logits .*, got list of 2; give a model or a function that",
        ),
        ({"model": lambda x: tf.nn.sigmoid(x[:, 0, 0])}, "2 classes or more, got 1; .* tf.concat"),
        (
            {"model": lambda x: x[:, :4, 0, 1]},
            "takes images of 6 x 5 x 1, got InvalidArgumentError",
        ),
        (
            {"x": np.ones((12, 6, 5, 3))},
            "takes images of 6 x 5 x 3, got ValueError: Input 0 .* expected axis -1",
        ),
        (
            {"model": lambda x: tf.cast(tf.nn.softmax(x[:, :4, 0, 0]), tf.float16)},
            "got probabilities whose softmax was not found",
        ),
        (
            {"suite": "quick"},
            "suite: expected standard, fast, strong, an attack or a list of attacks, got 'quick'",
        ),
        ({"suite": None}, "suite: expected standard, .*, got None"),
        ({"suite": 3}, "suite: expected standard, .*, got 3"),
        ({"suite": OnlyPerturb()}, "got .*OnlyPerturb.* without name, bounds, num_gradients, sett"),
        ({"suite": lambda z: OnlyPerturb()}, "got .*OnlyPerturb.* without name, bounds"),
        ({"suite": [ATTACK], "epsilon": 0.2}, "suite: expected attacks of epsilon 0.2, got pgd"),
        ({"suite": [3]}, "attack: expected an attack, or a function from logits to one, got 3"),
        ({"norm": "l1"}, "norm: expected one of linf, l2"),
    ],
)
def test_a_model_that_cannot_be_attacked_is_one_line(trained, change, message):
    x, y = examples()
    arguments = {"model": trained, "x": x, "y": y, **OPTIONS, **change}
    with pytest.raises(InputError, match=message) as raised:
        evaluate(**arguments, show_progress=False)
    assert "\n" not in str(raised.value)


class Endless(keras.utils.PyDataset):
    """Batches without an end."""

    num_batches = None

    def __getitem__(self, number):
        return examples()


def sizes_differ():
    yield from ((np.ones((2, side, 5, 1), "f4"), np.zeros(2, "i4")) for side in (5, 6))


@pytest.mark.parametrize(
    "data, message",
    [
        (lambda x, y: ((image for image in x), y), "x: expected an array, a tf.data.* got generat"),
        (lambda x, y: (Endless(),), "x: expected a data set with an end"),
        (lambda x, y: (DATA((x[..., 0], y)).batch(4),), r"\(4, 6, 5\); x\[..., None\] adds the ch"),
        (lambda x, y: (x[..., 0], y), r"\(12, 6, 5\); x\[..., None\] adds the channel"),
        (lambda x, y: ([x[0], x[1, :5]], y[:2]), "x: expected images of one size"),
        (
            lambda x, y: (
                tf.data.Dataset.from_generator(
                    sizes_differ,
                    output_signature=(
                        tf.TensorSpec((None, None, 5, 1)),
                        tf.TensorSpec((None,), tf.int32),
                    ),
                ),
            ),
            r"x: expected images of one size, got \(5, 5, 1\) and \(6, 5, 1\)",
        ),
        (lambda x, y: ({"a": x}, y), "x: expected one array of images, got dict; a model of sev"),
        (lambda x, y: ([x, x], y), "x: expected one array of images, got list; a model of sever"),
        (lambda x, y: (DATA(({"a": x}, y)).batch(4),), "x: expected one array of images, got dict"),
        (lambda x, y: (x, y + 4), "^y: expected classes from 0 to 3, got"),
    ],
)
def test_data_of_another_form_are_one_line(trained, data, message):
    with pytest.raises(InputError, match=message):
        evaluate(trained, *data(*examples()), **OPTIONS, suite=ATTACK, show_progress=False)


def test_models_of_channels_first_are_warned_of():
    first = keras.Sequential(
        [
            keras.Input((1, 6, 5)),
            L.Conv2D(2, 3, data_format="channels_first", name="its"),
            L.Flatten(),
            L.Dense(4),
        ]
    )
    (warning,) = pitfalls.channels_first(first)
    assert warning.startswith("channels first: layer its takes images (channels, height, width)")
    permuted = keras.Sequential([keras.Input((6, 5, 1)), L.Permute((3, 1, 2)), first])
    assert not pitfalls.channels_first(permuted) and not pitfalls.channels_first(network())
    nested = keras.Sequential([keras.Input((1, 6, 5)), first])
    assert pitfalls.channels_first(nested) == [warning]


def test_nan_pixels_and_endless_data_are_refused(trained):
    x, y = examples()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    with pytest.raises(InputError, match="with an end"):
        evaluate(trained, data.repeat(), **OPTIONS)
    x[3, 0, 0] = np.nan
    with pytest.raises(InputError, match="got 1 that are not finite"):
        evaluate(trained, x, y, **OPTIONS)


@pytest.mark.slow
def test_the_lines_of_the_docstring_run_as_written(tmp_path, monkeypatch, capsys):
    x, y = examples(20, classes=4, shape=(6, 5, 3))
    network(shape=(6, 5, 3), activation="softmax").save(tmp_path / "mine.keras")
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "labels.npy", y)
    monkeypatch.chdir(tmp_path)
    text = robust.__doc__
    block = text[text.index("    from common.attack") : text.index("An attack is a function")]
    found = {}
    exec(textwrap.dedent(block).replace("epochs=10", "epochs=2"), found)
    assert "robust accuracy" in capsys.readouterr().out
    assert len(found["trainer"].history.history["val_robust_accuracy"]) == 2


# Watching.


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
    # Without updates the accuracy does not improve after the first epoch.
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


def test_the_trainers_own_attack_is_not_logged_under_the_callbacks_name():
    x, y = examples(16)
    trainer = AdversarialModel(network(), functools.partial(ATTACK, num_steps=0))
    trainer.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    watch = RobustAccuracy((x, y), ATTACK, every=2)
    history = trainer.fit(
        x, y, epochs=4, verbose=0, validation_data=(x, y), callbacks=[watch]
    ).history
    report = evaluate(network(), x, y, **OPTIONS, suite=ATTACK, show_progress=False)
    accuracy = report.to_dict()["adversarial_accuracy"] / 100
    assert history["val_robust_accuracy"] == pytest.approx([accuracy] * 2)
    assert len(history["val_loss"]) == 4


@pytest.mark.parametrize("is_built", [True, False])
def test_data_that_cannot_be_attacked_are_refused_at_the_start(is_built):
    x, y = examples(8)
    late = np.concatenate([x] * 200)
    late[-1] += 2
    for data, message in (
        ((late, np.tile(y, 200)), r"^x: expected pixels in \[0, 1\], got"),
        ((x, y + 4), "^y: expected classes from 0 to 3, got"),
        ((x[:, :3], y), "^model: expected one that takes images of 3 x 5 x 1"),
    ):
        first = [keras.Input(x.shape[1:])] if is_built else []
        model = keras.Sequential([*first, L.Flatten(), L.Dense(4)])
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        watch = RobustAccuracy(data, ATTACK, every=9)
        with pytest.raises(InputError, match=message):
            model.fit(x, y, batch_size=2, verbose=0, callbacks=[watch])
        assert int(model.optimizer.iterations) == (0 if is_built else 1)
