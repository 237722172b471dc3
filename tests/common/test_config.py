import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from cifar10_challenge.challenge import CIFAR10
from common import commands, config
from common.attack import make_attack
from common.errors import InputError
from mnist_challenge.challenge import MNIST

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHALLENGES = {"mnist": MNIST, "cifar10": CIFAR10}
BOTH = pytest.mark.parametrize("challenge", CHALLENGES.values(), ids=CHALLENGES)

# Config files as the original code has them.
ORIGINAL_MNIST = """{
  "_comment": "===== MODEL CONFIGURATION =====",
  "model_dir": "models/a_very_robust_model",

  "_comment": "===== TRAINING CONFIGURATION =====",
  "random_seed": 4557077,
  "max_num_training_steps": 100000,
  "num_output_steps": 100,
  "num_summary_steps": 100,
  "num_checkpoint_steps": 300,
  "training_batch_size": 50,

  "_comment": "===== EVAL CONFIGURATION =====",
  "num_eval_examples": 10000,
  "eval_batch_size": 200,
  "eval_on_cpu": true,

  "_comment": "=====ADVERSARIAL EXAMPLES CONFIGURATION=====",
  "epsilon": 0.3,
  "k": 40,
  "a": 0.01,
  "random_start": true,
  "loss_func": "xent",
  "store_adv_path": "attack.npy"
}"""
ORIGINAL_CIFAR10 = """{
  "_comment": "===== MODEL CONFIGURATION =====",
  "model_dir": "models/model",

  "_comment": "===== DATASET CONFIGURATION =====",
  "data_path": "cifar10_data",

  "_comment": "===== TRAINING CONFIGURATION =====",
  "tf_random_seed": 451760341,
  "np_random_seed": 216105420,
  "max_num_training_steps": 80000,
  "num_output_steps": 100,
  "num_summary_steps": 100,
  "num_checkpoint_steps": 1000,
  "training_batch_size": 128,
  "step_size_schedule": [[0, 0.1], [40000, 0.01], [60000, 0.001]],
  "weight_decay": 0.0002,
  "momentum": 0.9,

  "_comment": "===== EVAL CONFIGURATION =====",
  "num_eval_examples": 10000,
  "eval_batch_size": 100,
  "eval_on_cpu": true,

  "_comment": "=====ADVERSARIAL EXAMPLES CONFIGURATION=====",
  "epsilon": 8.0,
  "num_steps": 10,
  "step_size": 2.0,
  "random_start": true,
  "loss_func": "xent",
  "store_adv_path": "attack.npy"
}"""


def make(challenge, **values):
    return config.make_config(challenge, ("here", values))


def parse(challenge, *argv):
    """The config of a command line."""
    flag_values = flags.FlagValues()
    config.define_flags(challenge, flag_values)
    commands.define_attack_flags(challenge, flag_values)
    flag_values(["script.py", *argv])
    return config.config_from_flags(challenge, flag_values)


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a config file of text, or of a dict, and returns its path."""

    def write(content):
        path = tmp_path / "given.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


# The shipped files.


@pytest.mark.parametrize(
    "challenge, published",
    [
        (
            MNIST,
            {
                "scale": 16,
                "random_seed": 4557077,
                "max_num_training_steps": 100000,
                "training_batch_size": 50,
                "step_size_schedule": ((0, 1e-4),),
                "num_checkpoint_steps": 300,
                "epsilon": 0.3,
                "num_steps": 40,
                "step_size": 0.01,
                "eval_batch_size": 200,
            },
        ),
        (
            CIFAR10,
            {
                "width": "wide",
                "random_seed": 451760341,
                "max_num_training_steps": 80000,
                "training_batch_size": 128,
                "step_size_schedule": ((0, 0.1), (40000, 0.01), (60000, 0.001)),
                "num_checkpoint_steps": 1000,
                "weight_decay": 2e-4,
                "momentum": 0.9,
                "batch_statistics": True,
                "epsilon": 8.0,
                "num_steps": 7,  # of the paper and its networks; the original file says 10
                "step_size": 2.0,
                "eval_batch_size": 100,
            },
        ),
    ],
    ids=CHALLENGES,
)
def test_config_json_is_the_papers(challenge, published):
    common = {
        "adversary": "pgd",
        "step_size_interpolation": "constant",
        "epsilon_warmup_steps": 0,
        "num_eval_examples": 10000,
        "random_start": True,
        "num_restarts": 1,
        "loss_func": "xent",
        "kappa": 50.0,
        "round_to_8_bits": False,
    }
    settings = dataclasses.asdict(config.make_config(challenge))
    expected = common | published
    assert {name: settings[name] for name in expected} == expected


@BOTH
def test_every_shipped_file_and_to_json_can_be_read(challenge, write):
    for path in challenge.directory.glob("config*.json"):
        settings = parse(challenge, f"--config={path}")
        assert config.make_config(challenge, ("again", json.loads(settings.to_json()))) == settings


@pytest.mark.parametrize(
    "challenge, preset",
    [(challenge, preset) for challenge in CHALLENGES.values() for preset in challenge.presets],
)
def test_every_preset_is_an_attack(challenge, preset):
    settings = parse(challenge, f"--preset={preset}")
    attack = make_attack("pgd", lambda x: x, settings, challenge.bounds)
    assert attack.epsilon == (0.3 if challenge is MNIST else 8)
    assert attack.loss_func in preset or not re.search("xent|cw", preset)
    if steps := re.search(r"pgd_(\d+)", preset):
        assert attack.num_steps == int(steps[1]) and attack.random_start
    if restarts := re.search(r"\dx(\d+)", preset):
        assert settings.num_restarts == int(restarts[1])
    if "fgsm" in preset:
        assert (attack.num_steps, attack.step_size) == (1, attack.epsilon)
        assert attack.random_start == preset.endswith("random_start")


# The originals' files.


@pytest.mark.parametrize(
    "challenge, content, changed",
    [
        (MNIST, ORIGINAL_MNIST, {}),
        (
            CIFAR10,
            ORIGINAL_CIFAR10,
            {"model_dir": "models/model", "num_steps": 10},
        ),
    ],
    ids=CHALLENGES,
)
def test_an_original_file_drops_in(challenge, content, changed, write):
    path = write(content)
    changed = {"model_dir": "models/a_very_robust_model"} | changed
    changed["model_dir"] = str(path.parent / changed["model_dir"])
    expected = dataclasses.replace(config.make_config(challenge), **changed)
    assert parse(challenge, f"--config={path}") == expected


def test_the_originals_data_beside_their_file_are_found(write):
    path = write(ORIGINAL_CIFAR10)
    assert parse(CIFAR10, f"--config={path}").data_dir is None
    (path.parent / "cifar10_data").mkdir()
    assert parse(CIFAR10, f"--config={path}").data_dir == str(path.parent / "cifar10_data")


def test_the_file_of_a_published_network_drops_in(write):
    content = json.loads(ORIGINAL_MNIST) | {"a": 0.02, "k": 30}
    path = write(content | {"optimizer": "adam", "step_size": 0.0005})
    settings = parse(MNIST, f"--config={path}")
    assert (settings.step_size, settings.num_steps) == (0.02, 30)
    assert settings.step_size_schedule == ((0, 0.0005),)


# Layers.


@BOTH
def test_flags_override_preset_overrides_file_overrides_own(challenge, write):
    path = write({"num_steps": 2, "num_restarts": 3, "epsilon": 0.25, "eval_batch_size": 7})
    preset = "leaderboard_pgd_20x10_xent" if challenge is CIFAR10 else "paper_pgd_40x20"
    settings = parse(challenge, "--num_steps=5", f"--preset={preset}", f"--config={path}")
    assert (settings.num_steps, settings.eval_batch_size) == (5, 7)
    assert settings.num_restarts == challenge.presets[preset]["num_restarts"]
    assert settings.epsilon == challenge.presets[preset]["epsilon"]
    assert settings.max_num_training_steps == (80000 if challenge is CIFAR10 else 100000)


def test_later_layers_win():
    layers = ("first", {"num_steps": 1, "epsilon": 0.1}), ("second", {"num_steps": 2})
    settings = config.make_config(MNIST, *layers)
    assert (settings.num_steps, settings.epsilon) == (2, 0.1)


def test_flags_take_every_kind():
    settings = parse(
        CIFAR10,
        "--norandom_start",
        "--round_to_8_bits",
        "--epsilon=4",
        "--step_size=2/255",
        "--loss_func=cw",
        "--data_dir=/data",
        "--step_size_schedule=[[0, 0.1], [5, 0.01]]",
        '--attack_schedule=[[0, 7, 2], [5, 10, "2/255"]]',
        "--width=simple",
    )
    assert not settings.random_start and settings.round_to_8_bits
    assert (settings.epsilon, settings.step_size) == (4.0, pytest.approx(2.0))
    assert (settings.loss_func, settings.data_dir, settings.width) == ("cw", "/data", "simple")
    assert settings.step_size_schedule == ((0, 0.1), (5, 0.01))
    assert settings.attack_schedule == ((0, 7, 2.0), (5, 10, pytest.approx(2.0)))
    assert parse(CIFAR10, "--attack_schedule=null").attack_schedule is None


@pytest.mark.parametrize("challenge, epsilon", [(MNIST, 8 / 255), (CIFAR10, 8.0)], ids=CHALLENGES)
def test_a_fraction_is_of_the_pixel_range(challenge, epsilon):
    assert parse(challenge, "--epsilon=8/255").epsilon == epsilon
    assert make(challenge, epsilon="8/255").epsilon == epsilon


# Where the model is.


@BOTH
def test_model_dir_is_relative_to_where_it_was_named(challenge, write):
    own = str(challenge.directory / "models" / "a_very_robust_model")
    file = write({"model_dir": "models/mine"})
    mine = str(file.parent / "models" / "mine")
    assert parse(challenge).model_dir == own
    assert parse(challenge, f"--config={file}").model_dir == mine
    assert parse(challenge, "--model_dir=run").model_dir == "run"
    assert parse(challenge, f"--config={file}", "--model_dir=run").model_dir == "run"
    assert parse(challenge, f"--config={write({'num_steps': 3})}").model_dir == own


def test_an_absolute_model_dir_stays(write):
    assert parse(MNIST, f"--config={write({'model_dir': '/run'})}").model_dir == "/run"


# Wrong use.


@pytest.mark.parametrize(
    "name, values, expected",
    [
        ("num_steps", ["x", 1.5, -1, True, None, [1], "1e400", float("inf")], "an integer of 0 or"),
        ("training_batch_size", [0, "0"], "an integer of 1 or more"),
        ("kappa", ["x", None, True, [1]], "a number"),
        ("epsilon", ["x", "8/x", "8/0", None], "a number"),
        ("random_start", ["maybe", 1, None], "true or false"),
        ("loss_func", ["hinge", None, []], "one of xent, cw"),
        ("adversary", ["PGD"], "one of pgd, fgsm, none"),
        ("data_dir", [3], "text"),
        ("model_dir", [3, None], "text"),
        (
            "step_size_schedule",
            ["x", 3, [], [[0]], [[1, 0.1]], [[0, 0.1], [0, 0.2]], [[0, 0.1], [float("inf"), 0.2]]],
            r"\[\[0, rate\], \[step, rate\], ...\] with rising steps",
        ),
        (
            "attack_schedule",
            [
                "x",
                3,
                [],
                [[0]],
                [[0, 5]],
                [[1, 5, 0.1]],
                [[0, 5, 0.1], [0, 5, 0.1]],
                [[0, -1, 0.1]],
            ],
            r"\[\[0, num_steps, step_size\], ...\] with rising first steps",
        ),
    ],
)
def test_values_of_the_wrong_kind_are_refused(name, values, expected):
    for value in values:
        with pytest.raises(InputError, match=f"^here: {name}: expected {expected}.*, got "):
            make(MNIST, **{name: value})


def test_unknown_names_are_refused(write):
    with pytest.raises(
        InputError, match="here: unknown setting 'epsilom'; known: .*epsilon.*scale"
    ):
        make(MNIST, epsilom=0.3)
    with pytest.raises(InputError, match="given.json: unknown setting 'width'"):
        parse(MNIST, f"--config={write({'width': 'wide'})}")
    with pytest.raises(InputError, match="--preset: expected one of paper_fgsm, .*got 'paper'"):
        parse(MNIST, "--preset=paper")
    with pytest.raises(InputError, match="^command line: epsilon: expected a number.* got .tiny"):
        parse(MNIST, "--epsilon=tiny")


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "cannot read .*missing.json: No such file"),
        ("{", ".*given.json is no JSON"),
        ("[1]", "expected a JSON object in .*given.json, got list"),
    ],
)
def test_what_is_no_config_file_is_refused(tmp_path, write, content, expected):
    path = tmp_path / "missing.json" if content is None else write(content)
    with pytest.raises(InputError, match=f"^{expected}"):
        parse(MNIST, f"--config={path}")


# Imports.

IMPORT_ALL = """
import importlib, pathlib
from absl import flags, logging
packages = "common", "mnist_challenge", "cifar10_challenge"
for package in packages:
    for path in pathlib.Path(package).glob("*.py"):
        importlib.import_module(f"{package}.{path.stem}")
print([name for name in flags.FLAGS.flags_by_module_dict() if name.startswith(packages)])
"""


def test_importing_declares_no_flag_and_says_nothing():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
