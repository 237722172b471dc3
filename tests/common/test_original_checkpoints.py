"""Checkpoints of the originals, with their networks in TensorFlow 1's own ops."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from cifar10_challenge.challenge import CIFAR10
from cifar10_challenge.model import build_model as build_cifar10
from common import checkpoints
from common.attack import PGD, FastModel, xent_loss
from common.config import make_config
from common.original_checkpoints import is_original, load_original, save_original
from common.scripts import evaluate
from common.scripts.flags import define_flags
from common.scripts.train import export_newest
from mnist_challenge.challenge import MNIST
from mnist_challenge.model import build_model as build_mnist
from tests.helpers import ROOT, content, digits, input_gradient, pictures, refused, sum_xent, train
from tests.helpers import run as run_script
from tests.originals import (
    MNIST_CONFIG,
    MNIST_SHAPES,
    Original,
    cifar10_logits,
    mnist_logits,
    mnist_shapes,
    original_mnist,
)

tf1 = tf.compat.v1


# What the original MNIST training saves, Adam included.
MNIST_CHECKPOINT = {
    **{f"{name}{end}": s for name, s in MNIST_SHAPES.items() for end in ("", "/Adam", "/Adam_1")},
    **dict.fromkeys(("beta1_power", "beta2_power", "global_step"), ()),
}


# The originals.


def original_cifar10_variables(widths):
    """Random variables made in the original's scopes, by the paths of our weights."""
    variables = {}

    def make(path, name, shape, low, high, **kwargs):
        start = tf1.random_uniform_initializer(low, high, seed=len(variables))
        variables[path] = tf1.get_variable(name, shape, initializer=start, **kwargs)

    def conv(layer, name, channels, filters):
        with tf1.variable_scope(name):
            limit = (6 / (9 * filters)) ** 0.5
            make(f"{layer}/kernel", "DW", (3, 3, channels, filters), -limit, limit)

    def norm(layer, channels):
        with tf1.variable_scope(None, "BatchNorm"):
            make(f"{layer}/beta", "beta", (channels,), -0.5, 0.5)
            make(f"{layer}/gamma", "gamma", (channels,), 0.5, 1.5)
            for name, low, high in (("moving_mean", -0.5, 0.5), ("moving_variance", 0.5, 1.5)):
                make(f"{layer}/{name}", name, (channels,), low, high, trainable=False)

    channels, *groups = widths
    with tf1.variable_scope("input"):
        conv("stem", "init_conv", 3, channels)
    for group, filters in enumerate(groups, start=1):
        for unit in range(5):
            layer, is_first = f"unit{group}_{unit}", group == 1 and unit == 0
            with tf1.variable_scope(f"unit_{group}_{unit}"):
                shortcut = "shared_activation" if is_first else "residual_only_activation"
                with tf1.variable_scope(shortcut):
                    norm(f"{layer}_pre_norm", channels)
                with tf1.variable_scope("sub1"):
                    conv(f"{layer}_conv1", "conv1", channels, filters)
                with tf1.variable_scope("sub2"):
                    norm(f"{layer}_mid_norm", filters)
                    conv(f"{layer}_conv2", "conv2", filters, filters)
            channels = filters
    with tf1.variable_scope("unit_last"):
        norm("last_norm", channels)
    with tf1.variable_scope("logit"):
        limit = (3 / channels) ** 0.5
        make("logits/kernel", "DW", (channels, 10), -limit, limit)
        make("logits/bias", "biases", (10,), -0.5, 0.5)
    return variables


def original_cifar10(widths):
    """The original's graph, momentum included, with random variables."""
    x, y = tf1.placeholder(tf.float64, (None, 32, 32, 3)), tf1.placeholder(tf.int32, (None,))
    variables = original_cifar10_variables(widths)
    logits, averages = cifar10_logits(tf.cast(x, tf.float32), variables, training=True)
    moves = [tf1.assign(variables[path], average) for path, average in averages.items()]
    kernels = [w for path, w in variables.items() if path.endswith("kernel")]
    decay = tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])
    with tf1.control_dependencies(moves):
        step = tf1.train.MomentumOptimizer(0.01, 0.9).minimize(
            sum_xent(logits, y) / 4 + 2e-4 * decay, tf1.train.get_or_create_global_step()
        )
    exact = {path: tf.cast(variable, tf.float64) for path, variable in variables.items()}
    return Original(x, y, cifar10_logits(x, exact, training=False)[0], step)


@dataclasses.dataclass
class Case:
    """One of the two challenges, at a small size."""

    challenge: object
    original: object
    build_model: object
    size: dict
    images: object
    attack: dict


CASES = {
    "mnist": Case(
        MNIST,
        lambda: original_mnist(scale=2),
        lambda **options: build_mnist(scale=2, seed=4, **options),
        {"scale": 2},
        lambda: digits(8),
        {"epsilon": 0.3, "step_size": 0.05, "bounds": (0.0, 1.0)},
    ),
    "cifar10": Case(
        CIFAR10,
        lambda: original_cifar10((16, 16, 32, 64)),
        lambda **options: build_cifar10("simple", seed=4, **options),
        {"width": "simple"},
        lambda: pictures(4),
        {"epsilon": 8.0, "step_size": 2.0, "bounds": (0.0, 255.0)},
    ),
}


def plain_pgd(gradient_of, x_nat, *, epsilon, step_size, bounds):
    """Ten steps from the images themselves, in NumPy."""
    x = x_nat
    for _ in range(10):
        x = x + np.float32(step_size) * np.sign(gradient_of(x)).astype("f4")
        x = np.clip(np.clip(x, x_nat - epsilon, x_nat + epsilon), *bounds).astype("f4")
    return x


@dataclasses.dataclass
class Trained:
    """A training by TensorFlow 1, and what its session says of the network at its end."""

    case: Case
    directory: pathlib.Path
    logits: np.ndarray
    gradient: np.ndarray
    x_adv: np.ndarray


@pytest.fixture(scope="module", params=list(CASES))
def trained(request, tmp_path_factory):
    """Three steps, with a checkpoint before each and at the end, moved to another directory."""
    case, place = CASES[request.param], tmp_path_factory.mktemp(request.param)
    x, y = case.images()
    (place / "author").mkdir()
    with tf.Graph().as_default(), tf1.Session() as session:
        original = case.original()
        feed = {original.x: x, original.y: y}
        session.run(tf1.global_variables_initializer())
        saver = tf1.train.Saver(max_to_keep=3)
        path, number = str(place / "author" / "checkpoint"), tf1.train.get_global_step()
        for _ in range(3):
            saver.save(session, path, global_step=number)
            session.run(original.train_step, feed)
        saver.save(session, path, global_step=number)
        logits, gradient = session.run([original.logits, original.gradient], feed)
        x_adv = plain_pgd(
            lambda x: session.run(original.gradient, {**feed, original.x: x}), x, **case.attack
        )
    assert str(place / "author") in (place / "author" / "checkpoint").read_text()
    (place / "author").rename(place / "here")
    return Trained(case, place / "here", logits, gradient, x_adv)


def write_checkpoint(directory, shapes, step=1):
    """A checkpoint by TensorFlow 1's Saver of variables of these names and shapes."""
    directory.mkdir(exist_ok=True)
    with tf.Graph().as_default(), tf1.Session() as session:
        for name, shape in shapes.items():
            tf1.get_variable(name, shape)
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(directory / "checkpoint"), global_step=step)
    return directory


def assert_close(actual, expected):
    """Equal to 1e-5 of the largest."""
    assert np.abs(expected).max() > 0.001
    error = np.abs(np.asarray(actual) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()


# Reading.


def test_logits_and_gradients_are_the_originals(trained):
    case = trained.case
    x, y = case.images()
    model, step = load_original(case.challenge, trained.directory)
    assert step == 3
    exact = case.build_model(dtype="float64")
    exact.set_weights(model.get_weights())
    assert_close(exact(x.astype("f8"), training=False), trained.logits)
    assert_close(input_gradient(exact, tf.constant(x, tf.float64), y), trained.gradient)
    assert_close(model(x, training=False), trained.logits)


def test_pgd_finds_the_originals_examples(trained):
    case = trained.case
    x, y = case.images()
    loaded = checkpoints.load_model(case.challenge, trained.directory)
    assert isinstance(loaded.logits, FastModel)
    exact = case.build_model(dtype="float64")
    exact.set_weights(loaded.model.get_weights())
    x_adv, *in_float32 = (
        PGD(model, num_steps=10, random_start=False, **case.attack).perturb(x, y).numpy()
        for model in (exact, loaded.model, loaded.logits)
    )
    assert np.mean(trained.x_adv != x) > 0.2
    assert np.mean(np.abs(x_adv - trained.x_adv) > 1e-4) < 0.001

    # In float32 the sign of a gradient that is nearly zero depends on rounding, and so on the
    # number of cores, and each sign that differs changes all the later ones: losses are compared.
    def losses(x):
        return xent_loss(loaded.model(x, training=False), y).numpy()

    assert np.all(losses(trained.x_adv) > 1.2 * losses(x))
    for x_rounded in in_float32:
        np.testing.assert_allclose(losses(x_rounded), losses(trained.x_adv), rtol=0.02)


def test_an_originals_directory_is_a_model(trained, tmp_path):
    case = trained.case
    x, _ = case.images()
    for has_config in (False, True):
        directory = shutil.copytree(trained.directory, tmp_path / str(has_config))
        if has_config:
            (directory / "config.json").write_text(json.dumps(MNIST_CONFIG))
        else:
            (directory / "checkpoint").unlink()
        assert is_original(directory)
        loaded = checkpoints.load_model(case.challenge, directory)
        assert (loaded.step, loaded.path) == (3, directory)
        assert [w.shape for w in loaded.model.weights] == [w.shape for w in loaded.weights]
        assert_close(loaded.logits(tf.constant(x)), trained.logits)


def test_an_older_checkpoint_by_its_number(trained):
    challenge, directory = trained.case.challenge, trained.directory
    (old, step), (new, _) = (load_original(challenge, directory, n) for n in (2, None))
    assert step == 2
    assert any(np.any(a != b) for a, b in zip(old.get_weights(), new.get_weights(), strict=True))
    # The Saver kept three.
    refused(f"a checkpoint in {directory}: 1, 2, 3; got 0", load_original, challenge, directory, 0)


@pytest.mark.parametrize("scale", [1, 16])
def test_the_scale_of_an_mnist_network_is_found(tmp_path, scale):
    x, _ = digits(3)
    with tf.Graph().as_default(), tf1.Session() as session:
        original = original_mnist(scale)
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(tmp_path / "checkpoint"), global_step=99900)
        logits = session.run(original.logits, {original.x: x})
    if scale == 16:
        written = {name: tuple(s) for name, s in tf.train.list_variables(str(tmp_path))}
        assert written == MNIST_CHECKPOINT
    model, step = load_original(MNIST, tmp_path)
    assert step == 99900 and model.get_layer("conv1").filters == 2 * scale
    assert_close(model(x), logits)


def test_the_wide_cifar10_network(tmp_path):
    x, y = pictures(1)
    with tf.Graph().as_default(), tf1.Session() as session:
        variables = original_cifar10_variables((16, 160, 320, 640))
        logits, _ = cifar10_logits(tf.constant(x), variables, training=False)
        exact = {name: tf.cast(variable, tf.float64) for name, variable in variables.items()}
        pixels = tf.constant(x, tf.float64)
        exact_logits, _ = cifar10_logits(pixels, exact, training=False)
        gradient = tf.gradients(sum_xent(exact_logits, y), pixels)[0]
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(tmp_path / "checkpoint"), global_step=70000)
        logits, gradient = session.run([logits, gradient])
    model, step = load_original(CIFAR10, tmp_path)
    assert step == 70000 and model.name == "cifar10_wide"
    assert_close(model(x, training=False), logits)
    exact = build_cifar10("wide", dtype="float64")
    exact.set_weights(model.get_weights())
    pixels = tf.constant(x, tf.float64)
    assert_close(input_gradient(lambda x: exact(x, training=False), pixels, y), gradient)


def test_a_checkpoint_of_the_originals_own_code(tmp_path):
    """Its index alone: the values are asked for once names and shapes have been found right."""
    index = ROOT.parent / "shared" / "original_checkpoints" / "mnist_checkpoint-3600.index"
    if not index.is_file():
        pytest.skip(f"needs {index}")
    shutil.copy(index, tmp_path / "checkpoint-3600.index")
    listed = tf.train.list_variables(str(tmp_path / "checkpoint-3600"))
    assert {name: tuple(shape) for name, shape in listed} == MNIST_CHECKPOINT
    assert is_original(tmp_path)
    message = refused("cannot read the checkpoint", load_original, MNIST, tmp_path)
    assert "checkpoint-3600.data" in message


# The way back.


@pytest.mark.parametrize("name", CASES)
def test_the_original_restores_what_is_saved(tmp_path, name):
    case = CASES[name]
    x, _ = case.images()
    model = case.build_model()
    random = np.random.default_rng(2)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    save_original(case.challenge, model, tmp_path / "models" / "mine", step=1200)
    (tmp_path / "models" / "mine").rename(tmp_path / "moved")
    assert sorted(content(tmp_path / "moved")) == [
        "checkpoint",
        "checkpoint-1200.data-00000-of-00001",
        "checkpoint-1200.index",
    ]
    with tf.Graph().as_default(), tf1.Session() as session:
        if name == "mnist":
            x_input = tf.constant(x)
            variables = [tf1.Variable(tf.zeros(weight.shape)) for weight in model.weights]
            logits = mnist_logits(x_input, variables)
        else:
            variables = original_cifar10_variables((16, 16, 32, 64))
            logits, _ = cifar10_logits(tf.constant(x), variables, training=False)
        number = tf1.train.get_or_create_global_step()
        newest = tf1.train.latest_checkpoint(str(tmp_path / "moved"))
        tf1.train.Saver().restore(session, newest)  # every variable of the graph
        logits, number = session.run([logits, number])
    assert number == 1200
    assert_close(model(x, training=False), logits)
    again, step = load_original(case.challenge, tmp_path / "moved")
    assert step == 1200
    for weight, expected in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_saving_what_cannot_be_saved_changes_nothing(tmp_path):
    model = build_mnist(scale=1, seed=1)
    target = tmp_path / "target"
    refused("CIFAR-10 challenge's network, got another", save_original, CIFAR10, model, target)
    other = build_cifar10("simple")
    refused("MNIST challenge's network, got another", save_original, MNIST, other, target)
    refused("expected 0 or more, got -1", save_original, MNIST, model, target, -1)
    assert not target.exists()
    target.write_text("mine")
    refused("cannot write a checkpoint in", save_original, MNIST, model, target)
    assert target.read_text() == "mine"
    checkpoints.TrainingRun(tmp_path / "run", model).save(1)
    before = content(tmp_path / "run")
    refused("without checkpoints, got", save_original, MNIST, model, tmp_path / "run")
    assert content(tmp_path / "run") == before


# Refusing.


def test_all_faults_of_a_checkpoint_are_in_one_message(tmp_path):
    shapes = {**MNIST_SHAPES, "Variable_5": (1000,), "Variable_7": (10, 1)}
    del shapes["Variable_3"], shapes["Variable_6"]
    # A slot belongs to a variable of the network, found or not.
    shapes |= {"Variable_6/Adam": (1024, 10), "Variable_8": (2,), "extra/Adam": (3,)}
    directory = write_checkpoint(tmp_path / "run", shapes)
    message = refused("original MNIST network", load_original, MNIST, directory)
    assert message == (
        f"expected the variables of the original MNIST network in {directory}/checkpoint-1, got "
        "others; missing: Variable_3, Variable_6; left over: Variable_8, extra/Adam; "
        "of another shape: Variable_5 (1000,) instead of (1024,), "
        "Variable_7 (10, 1) instead of (10,)"
    )
    assert refused("MNIST", checkpoints.load_model, MNIST, directory) == message


def test_the_other_challenges_checkpoint_is_refused(tmp_path):
    directory = write_checkpoint(tmp_path / "run", MNIST_SHAPES)
    message = refused("original CIFAR-10 network", load_original, CIFAR10, directory)
    assert "missing: input/init_conv/DW, unit_1_0/shared_activation/BatchNorm/gamma" in message
    assert "left over: Variable, Variable_1, Variable_2" in message


@pytest.mark.parametrize("file", ["checkpoint-1.data-00000-of-00001", "checkpoint-1.index"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_checkpoints_are_refused(tmp_path, file, damage):
    path = write_checkpoint(tmp_path / "run", mnist_shapes(scale=1)) / file
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        data[len(data) // 3] ^= 255
        path.write_bytes(data)
    expected = "cannot read the checkpoint"
    if damage == "gone" and path.suffix == ".index":
        expected = "expected a TensorFlow 1 checkpoint"
    refused(expected, load_original, MNIST, path.parent)


def test_our_own_training_is_not_taken_for_an_originals(tmp_path):
    assert not is_original(tmp_path)
    assert not is_original(tmp_path / "none")
    train(MNIST, tmp_path, scale=1, max_num_training_steps=1)
    assert not is_original(tmp_path)
    refused("got others; missing: Variable, ", load_original, MNIST, tmp_path)


@pytest.mark.parametrize("has_config", [False, True])
def test_no_training_begins_in_an_originals_directory(tmp_path, has_config):
    directory = write_checkpoint(tmp_path / "run", {"Variable": (5, 5, 1, 32)})
    if has_config:
        (directory / "config.json").write_text(json.dumps(MNIST_CONFIG))
    before = content(directory)
    refused("which holds a TensorFlow 1 checkpoint", train, MNIST, directory, scale=1)
    assert content(directory) == before


def test_eval_takes_an_originals_directory(tmp_path):
    write_checkpoint(tmp_path / "run", mnist_shapes(scale=1), step=99900)
    flags = ("--model_dir=run", "--num_eval_examples=10", "--num_steps=1")
    out = run_script(ROOT / "mnist_challenge" / "eval.py", *flags, cwd=tmp_path)
    assert "model: run, step 99900\n" in out and "\nadversarial: " in out


def test_what_else_the_scripts_do_with_it(tmp_path, capsys):
    write_checkpoint(tmp_path, mnist_shapes(scale=1), step=99900)
    config = make_config(MNIST, ("test", {"model_dir": str(tmp_path)}))
    watch = flags.FlagValues()
    define_flags(MNIST, watch)
    evaluate.define_eval_flags(MNIST, watch)
    watch(["eval.py", "--watch"])
    refused("--watch: expected a training directory", evaluate.evaluate, MNIST, config, watch)
    export_newest(config, MNIST)
    assert capsys.readouterr().out.endswith(
        f"\nstep 99900; SavedModel in {tmp_path / 'saved_model'}\n"
    )
    exported, original = (
        checkpoints.load_model(MNIST, path) for path in (tmp_path / "saved_model", tmp_path)
    )
    assert exported.digest() == original.digest() and original.step == 99900
