import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from common import checkpoints, rounded_weights
from common.attack import PGD, FastModel
from common.config import make_config
from common.errors import InputError
from common.evaluation import suites
from mnist_challenge.challenge import MNIST
from mnist_challenge.model import build_model
from tests.helpers import pictures

X = np.random.default_rng(0).random((5, 28, 28, 1), np.float32)
# One of each network; each has its card's weights, see test_cards.py.
DEFAULT = {"adv_trained", "model_b", "simple_adv_trained"}
SHIPPED = [
    pytest.param(
        challenge,
        path.parent.name,
        id=f"{challenge.name}-{path.parent.name}",
        marks=() if path.parent.name in DEFAULT else pytest.mark.slow,
    )
    for challenge in (MNIST, CIFAR10)
    for path in sorted(challenge.directory.glob("models/*/saved_model.pb"))
]


@pytest.fixture(scope="module")
def model():
    return build_model(scale=1, seed=1)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The model on disk, in its three forms."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints.export(model, folder / "SavedModel")
    model.save(folder / "model.keras")
    start_training(folder / "training", scale=1)
    checkpoints.TrainingRun(folder / "training", model).save(300)
    return folder


def start_training(folder, **settings):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))


def tiny(shape=(28, 28, 1)):
    """A small model of such images."""
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(10)])


def refused(path, expected):
    with pytest.raises(InputError, match=expected) as error:
        checkpoints.load_model(MNIST, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# Finding.


def test_find_model_takes_a_path_or_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    challenge = dataclasses.replace(MNIST, directory=tmp_path / "challenge")
    shipped = challenge.directory / "models"
    for name in ("fast", "adv_trained"):
        (shipped / name).mkdir(parents=True)
        (shipped / name / "saved_model.pb").touch()
    (tmp_path / "run").mkdir()
    assert checkpoints.find_model(challenge, "fast") == shipped / "fast"
    assert checkpoints.find_model(challenge, "run") == pathlib.Path("run")
    assert checkpoints.find_model(challenge, str(tmp_path / "run")) == tmp_path / "run"
    with pytest.raises(InputError, match=r"expected .*\(adv_trained, fast\), got none, which does"):
        checkpoints.find_model(challenge, "none")
    with pytest.raises(InputError, match=r"shipped model \(none so far\), got none"):
        checkpoints.find_model(dataclasses.replace(MNIST, directory=tmp_path), "none")


# Loading.


@pytest.mark.parametrize(
    "name, step", [("SavedModel", None), ("model.keras", None), ("training", 300)]
)
def test_every_form_gives_the_same_model(model, saved, name, step):
    loaded = checkpoints.load_model(MNIST, saved / name)
    np.testing.assert_allclose(loaded.logits(tf.constant(X)), model(X), rtol=1e-5, atol=1e-6)
    assert loaded.path == saved / name and loaded.step == step
    expected = checkpoints.LoadedModel(model, model.weights, saved).digest()
    assert loaded.digest() == expected and len(expected) == 64
    other = build_model(scale=1, seed=2)
    assert expected != checkpoints.LoadedModel(other, other.weights, saved).digest()


@pytest.mark.parametrize("name", ["SavedModel", "model.keras", "training"])
def test_the_challenges_own_network_comes_as_a_keras_model_too(model, saved, name):
    loaded = checkpoints.load_model(MNIST, saved / name)
    assert isinstance(loaded.logits, FastModel)
    assert len(loaded.model.trainable_weights) == 8
    for weight, expected in zip(loaded.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("name", ["SavedModel", "model.keras", "training"])
def test_load_keras_model_gives_a_network_that_trains_on(model, saved, name):
    network, y = checkpoints.load_keras_model(MNIST, saved / name), np.arange(5)
    logits, before = model(X).numpy(), network.get_weights()
    np.testing.assert_allclose(network(X), logits, rtol=1e-5, atol=1e-6)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(0.1), loss)
    network.train_on_batch(X, y)
    after = network.get_weights()
    assert all(np.any(old != new) for old, new in zip(before, after, strict=True))
    # Cross-entropy's gradient for the last bias: the mean of the probabilities less the labels.
    gradient = np.mean(tf.nn.softmax(logits) - np.eye(10)[y], axis=0)
    np.testing.assert_allclose(after[-1], before[-1] - 0.1 * gradient, rtol=1e-5)


@pytest.mark.parametrize("name", ["SavedModel", "model.keras"])
def test_another_function_of_the_same_weights_is_not_mistaken_for_it(tmp_path, name):
    model = build_model(scale=1, seed=1)
    model.get_layer("dense").activation = keras.activations.tanh
    other = keras.models.clone_model(model)
    if name == "SavedModel":
        checkpoints.export(other, tmp_path / name)
    else:
        other.save(tmp_path / name)
    loaded = checkpoints.load_model(MNIST, tmp_path / name)
    assert loaded.model is None and not isinstance(loaded.logits, FastModel)
    with pytest.raises(InputError, match="expected the MNIST challenge's own network") as error:
        checkpoints.load_keras_model(MNIST, tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    np.testing.assert_allclose(loaded.logits(tf.constant(X)), other(X), rtol=1e-5, atol=1e-6)


def test_export_names_input_and_output_and_takes_any_batch(saved):
    signature = tf.saved_model.load(str(saved / "SavedModel")).signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    assert (spec.name, spec.shape.as_list(), spec.dtype) == ("image", [None, 28, 28, 1], tf.float32)
    ((name, output),) = signature.structured_outputs.items()
    assert (name, output.shape.as_list()) == ("logits", [None, 10])


def test_export_replaces_what_was_there(tmp_path, model):
    path = tmp_path / "models" / "mine"
    checkpoints.export(tiny(), path)
    (path / "old").touch()
    checkpoints.export(model, path)
    digest = checkpoints.LoadedModel(model, model.weights, path).digest()
    assert checkpoints.load_model(MNIST, path).digest() == digest
    assert not (path / "old").exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["mine"]


def test_rounded_weights_load_as_the_network_and_are_written_whole_or_not_at_all(
    tmp_path, monkeypatch
):
    path = CIFAR10.directory / "models" / "simple_adv_trained"
    model = checkpoints.load_keras_model(CIFAR10, path)
    before = [weight.numpy() for weight in model.weights]

    def full(directory, weights):
        (directory / "weights-1-of-2.npz").touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(rounded_weights, "save", full)
        with pytest.raises(InputError, match="cannot write the rounded weights .* No space left"):
            checkpoints.export_rounded(model, tmp_path / "rounded")
    assert not any(tmp_path.iterdir())

    checkpoints.export_rounded(model, tmp_path / "rounded")
    assert [entry.name for entry in tmp_path.iterdir()] == ["rounded"]
    loaded = checkpoints.load_model(CIFAR10, tmp_path / "rounded")
    for weight, own, old in zip(loaded.weights, model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, own)
        assert own.ndim == 1 or 0 < np.abs(own - old).max() <= 2**-8 * np.abs(old).max()
    assert isinstance(loaded.logits, FastModel) and loaded.model is not None
    x, _ = pictures(20)
    np.testing.assert_allclose(loaded.logits(x), model(x), atol=1e-4)

    (part,) = (tmp_path / "rounded").iterdir()
    with pytest.raises(InputError, match="--model_dir: expected weights of the MNIST challenge's"):
        checkpoints.load_model(MNIST, tmp_path / "rounded")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(InputError, match="--model_dir: cannot read .*weights-1-of-1.npz"):
        checkpoints.load_model(CIFAR10, tmp_path / "rounded")


def convolutional(size=28):
    """A small network with a kernel between its first and its last, of another shape than ours."""
    return keras.Sequential(
        [
            keras.Input((size, size, 1)),
            keras.layers.Conv2D(2, 3, strides=4),
            keras.layers.GlobalAveragePooling2D() if size is None else keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


@pytest.mark.parametrize("size", [28, None])
def test_a_keras_file_of_any_network_is_attacked_in_bfloat16(size, tmp_path):
    convolutional(size).save(tmp_path / "model.keras")
    loaded = checkpoints.load_model(MNIST, tmp_path / "model.keras")
    assert loaded.model is None
    config = make_config(MNIST, ("test", {"precision": "bfloat16", "jit_compile": False}))
    trial = suites.preset_trial("paper_fgsm", suites.with_gradient(loaded.logits), config, MNIST)
    assert trial.attack.precision.name == "bfloat16"
    x_adv = trial.attack.perturb(X, np.zeros(5, "i4")).numpy()
    assert 0.29 < np.abs(x_adv - X).max() <= 0.3001
    # The verdicts' logits are the float32 network's.
    np.testing.assert_array_equal(loaded.logits(X), keras.models.load_model(loaded.path)(X))


def test_a_keras_file_of_a_fixed_batch_is_a_function_and_attacked_in_float32(tmp_path):
    config = make_config(MNIST, ("test", {"precision": "bfloat16", "jit_compile": False}))
    fixed = keras.Sequential([keras.Input((28, 28, 1), batch_size=2), *convolutional().layers])
    fixed.save(tmp_path / "fixed.keras")
    logits = checkpoints.load_model(MNIST, tmp_path / "fixed.keras").logits
    trial = suites.preset_trial("paper_fgsm", suites.with_gradient(logits), config, MNIST)
    assert trial.attack.precision.name == "float32"
    assert logits(X).shape == (5, 10)


def logits_and_gradient(logits, x):
    """The logits, and the gradient of the third ones' sum for the pixels."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = logits(x)
        total = tf.reduce_sum(values[:, 3])
    return values, tape.gradient(total, x)


def test_pixel_gradients_flow_through_a_saved_model(model, saved):
    loaded = checkpoints.load_model(MNIST, saved / "SavedModel")
    _, expected = logits_and_gradient(model, tf.constant(X))
    _, gradient = logits_and_gradient(loaded.logits, tf.constant(X))
    assert np.any(expected)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    attack = PGD(loaded.logits, epsilon=0.3, step_size=0.1, num_steps=2, random_start=False)
    assert np.abs(attack.perturb(X, np.arange(5)) - X).max() == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("challenge, name", SHIPPED)
def test_a_shipped_model_is_the_same_in_every_form(challenge, name, tmp_path, monkeypatch):
    """As TensorFlow's function, as a Keras layer and as a keras.Model, from any directory."""
    monkeypatch.chdir(tmp_path)
    path = challenge.directory / "models" / name
    assert checkpoints.load_model(challenge, name).path == path
    low, high = challenge.bounds
    noise = np.random.default_rng(0).uniform(low, high, (3, *challenge.image_shape))
    x = tf.constant(noise, tf.float32)
    module, layer = tf.saved_model.load(path), keras.layers.TFSMLayer(path)
    network = checkpoints.load_keras_model(challenge, name)
    expected, gradient = logits_and_gradient(lambda x: network(x, training=False), x)
    assert np.all(np.any(gradient, axis=(1, 2, 3))) and network.trainable_weights
    for logits in (
        lambda x: module.signatures["serving_default"](image=x)["logits"],
        lambda x: layer(x)["logits"],
    ):
        for found, wanted in zip(logits_and_gradient(logits, x), (expected, gradient), strict=True):
            scale = np.max(np.abs(wanted))
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * scale)


def test_a_saved_model_made_without_keras_loads(tmp_path):
    class Linear(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(tf.ones((784, 10)))

        @tf.function(input_signature=[tf.TensorSpec((None, 28, 28, 1), name="pixels")])
        def __call__(self, pixels):
            return {"scores": tf.reshape(pixels, (-1, 784)) @ self.kernel}

    module = Linear()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    loaded = checkpoints.load_model(MNIST, tmp_path)
    assert loaded.logits(tf.constant(X)).shape == (5, 10)
    assert [weight.shape for weight in loaded.weights] == [(784, 10)]


# Refusing.


@pytest.mark.parametrize("form", ["SavedModel", "model.keras"])
def test_a_model_of_other_images_is_refused(tmp_path, form):
    other = tiny((32, 32, 3))
    if form == "SavedModel":
        checkpoints.export(other, tmp_path / form)
    else:
        other.save(tmp_path / form)
    expected = r"MNIST images \(None, 28, 28, 1\) to logits .* got one of \(None, 32, 32, 3\)"
    refused(tmp_path / form, expected)


@pytest.mark.parametrize(
    "name, expected",
    [
        (None, "expected a training directory with a checkpoint, a SavedModel or a .keras file"),
        (
            "model.h5",
            "expected a training directory.*, got .*model.h5; Keras saves such a model as",
        ),
        ("model.keras", "cannot load"),
        ("run/saved_model.pb", "cannot load"),
    ],
)
def test_garbage_is_refused(tmp_path, name, expected):
    path = tmp_path / "run"
    path.mkdir()
    if name is not None:
        (tmp_path / name).write_text("garbage")
        path = path if "/" in name else tmp_path / name
    refused(path, expected)


def test_a_training_of_another_network_is_refused(tmp_path, model):
    start_training(tmp_path / "wider", scale=2)
    checkpoints.TrainingRun(tmp_path / "wider", model).save(1)
    refused(tmp_path / "wider", "cannot load .*shape")
    start_training(tmp_path / "other", scale=1)
    checkpoints.TrainingRun(tmp_path / "other", tiny()).save(1)
    refused(tmp_path / "other", "cannot load")


@pytest.mark.parametrize(
    "content", ["", "garbage", 'model_checkpoint_path: "checkpoint-300"'], ids=str.split
)
def test_a_training_whose_checkpoint_is_gone_is_refused(tmp_path, content):
    start_training(tmp_path / "run", scale=1)
    (tmp_path / "run" / "checkpoint").write_text(content)
    refused(tmp_path / "run", "checkpoint")


def test_restore_training_needs_a_checkpoint(tmp_path):
    with pytest.raises(InputError, match="expected a training with a checkpoint, got"):
        checkpoints.restore_training(MNIST, tmp_path)


# Writing.


def test_three_checkpoints_are_kept(tmp_path, model):
    run = checkpoints.TrainingRun(tmp_path, model)
    assert run.latest_step() is None and run.restore() is None
    for step in (1, 2, 3, 4, 4):
        run.save(step)
    assert run.latest_step() == run.restore() == 4
    assert sorted(int(p.stem.rpartition("-")[2]) for p in tmp_path.glob("*.index")) == [2, 3, 4]
