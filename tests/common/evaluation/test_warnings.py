"""Every evaluation, of one attack or of several, prints its warnings."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from common.attack import PGD
from common.checkpoints import load_model
from common.evaluation import pitfalls, suites
from common.scripts import attack_file, evaluate
from common.scripts import compare as compare_lib
from common.scripts.flags import config_from_flags, define_flags
from mnist_challenge.challenge import MNIST
from tests.helpers import EMPTY_HOME

FEW_IMAGES = 20
KERNEL = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32)


def linear(x):
    return tf.reshape(x, (-1, 784)) @ KERNEL


def random_choice(x):
    # The seed 0 draws one anew, whatever global seed an earlier test has set.
    shape = (tf.shape(x)[0], 10)
    noise = tf.raw_ops.RandomStandardNormal(shape=shape, dtype=tf.float32, seed=0, seed2=0)
    return linear(x) + 100.0 * noise


def as_probabilities(x):
    return tf.nn.softmax(linear(x))


MODELS = {
    "softmax outputs": as_probabilities,
    "zero gradients": lambda x: 1e6 * linear(x),
    "randomised": random_choice,
    "rounding": lambda x: linear(tf.round(2.0 * x)),
}


def save(function, path):
    """Writes a function of images as SavedModel."""
    module = tf.Module()
    spec = tf.TensorSpec((None, 28, 28, 1), tf.float32, name="image")
    module.serve = tf.function(lambda image: {"logits": function(image)}, input_signature=[spec])
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Function from a name of `MODELS` to where it is."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save(function, folder / name) for name, function in MODELS.items()}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Function (work, flags' declaration, flags) to what a script prints, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", EMPTY_HOME)  # the sample
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    def run(main, define_own_flags, *arguments):
        flag_values = flags.FlagValues()
        define_flags(MNIST, flag_values)
        define_own_flags(MNIST, flag_values)
        flag_values(["script.py", f"--num_eval_examples={FEW_IMAGES}", *arguments])
        capsys.readouterr()
        main(MNIST, config_from_flags(MNIST, flag_values), flag_values)
        return capsys.readouterr()

    return run


EVAL = evaluate.evaluate, evaluate.define_eval_flags
PGD_ATTACK = attack_file.pgd_attack, attack_file.define_attack_file_flags
COMPARE = compare_lib.compare, compare_lib.define_flags
# What runs one attack, or several: script, flags and the file with the result.
RESULT = "--output_json=r.json"
RUNS = {
    "eval.py": (EVAL, ("--num_steps=2", RESULT), "r.json"),
    "eval.py, suite": (EVAL, ("--attack=fgsm,pgd", "--num_steps=2", RESULT), "r.json"),
    "pgd_attack.py": (PGD_ATTACK, ("--num_steps=2", "--store_adv_path=a.npy"), "a.npy.json"),
    "compare.py": (COMPARE, ("--rows=natural,leaderboard_fgsm_xent", RESULT), "r.json"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("script, arguments, result", RUNS.values(), ids=RUNS)
def test_every_evaluation_warns(script, arguments, result, name, models, run, tmp_path):
    """One without a gradient ended in a traceback under a single attack; compare
    https://github.com/fra31/auto-attack/issues/44 and
    https://github.com/Harry24k/adversarial-attacks-pytorch/issues/150 .
    """
    err = run(*script, f"--model_dir={models[name]}", *arguments).err
    said = [line.removeprefix("warning: ") for line in err.splitlines() if "warning: " in line]
    found = json.loads((tmp_path / result).read_text())
    assert found["warnings"] == said
    expected = "zero gradients" if name == "rounding" else name
    assert any(line.startswith(f"{expected}: ") for line in said), said
    if name == "rounding" and "adversarial_accuracy" in found:
        assert 0 <= found["adversarial_accuracy"] <= found["natural_accuracy"]


def test_a_single_attack_is_not_preceded_by_one_at_a_large_epsilon(models, run, monkeypatch):
    def fails(accuracy):
        raise AssertionError

    monkeypatch.setattr(pitfalls, "large_epsilon", fails)
    run(*EVAL, f"--model_dir={models['softmax outputs']}", "--num_steps=1")
    with pytest.raises(AssertionError):
        run(*EVAL, f"--model_dir={models['softmax outputs']}", "--attack=fgsm,pgd")


def test_short_steps_are_in_the_result_too(run, tmp_path):
    command = ("--model_dir=natural", "--num_steps=2", "--output_json=r.json")
    err = run(*EVAL, *command).err
    (warning,) = json.loads((tmp_path / "r.json").read_text())["warnings"]
    assert warning.startswith("short steps: pgd: 2 steps of 0.01") and warning in err
    assert err.count("short steps") == 1


def test_a_sound_evaluation_has_no_warnings(run, tmp_path):
    err = run(*EVAL, "--model_dir=adv_trained", "--num_steps=30", "--output_json=r.json").err
    assert "warning" not in err
    assert json.loads((tmp_path / "r.json").read_text())["warnings"] == []


def test_a_transfer_checks_the_model_that_is_attacked(models, run):
    command = ("--num_steps=2", "--model_dir=natural")
    assert "softmax outputs" in run(*EVAL, f"--source={models['softmax outputs']}", *command).err


def test_a_model_that_has_a_gradient_is_attacked_as_it_is():
    x = tf.constant(np.random.default_rng(0).random((3, 28, 28, 1), np.float32))
    graph = tf.function(suites.with_gradient(linear)).get_concrete_function(x).graph
    plain = tf.function(linear).get_concrete_function(x).graph
    assert [op.type for op in graph.get_operations()] == [op.type for op in plain.get_operations()]
    np.testing.assert_array_equal(suites.with_gradient(linear)(x), linear(x))
    layer = keras.layers.Flatten()
    assert suites.with_gradient(layer)(x).shape == (3, 784)


def test_pgd_breaks_nothing_on_a_model_without_gradient(models):
    logits = suites.with_gradient(load_model(MNIST, models["rounding"]).logits)
    x = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    attack = PGD(logits, epsilon=0.1, step_size=0.1, num_steps=2, random_start=False)
    np.testing.assert_array_equal(attack.perturb(x, np.arange(3)), x)
