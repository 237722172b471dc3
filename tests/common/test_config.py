import dataclasses
import json
import os
import pathlib
import re
import shutil

import pytest
from absl import flags

from cifar10_challenge.challenge import CIFAR10
from common import checkpoints, config
from common.attack import make_attack
from common.errors import InputError
from common.scripts import compare as compare_lib
from common.scripts import evaluate, export_model
from common.scripts.flags import config_from_flags, define_attack_flags, define_flags
from mnist_challenge.challenge import MNIST
from paper import accuracy_against_epsilon, adversarial_images, reproduce, training_curve
from tests.helpers import run

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
    define_flags(challenge, flag_values)
    define_attack_flags(challenge, flag_values)
    flag_values(["script.py", *argv])
    return config_from_flags(challenge, flag_values)


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
                "width": 10,
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
        "natural_share": 0,
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


@pytest.mark.parametrize(
    "given, taken",
    [("auto", "auto"), ("yes", True), ("no", False), ("true", True), (True, True), (False, False)],
)
def test_jit_compile_is_auto_or_a_bool(given, taken):
    assert config.make_config(MNIST, ("here", {"jit_compile": given})).jit_compile is taken


@pytest.mark.parametrize(
    "name, spellings",
    [
        ("jit_compile", ("yes", "true", True)),
        ("random_start", ("no", "0", False)),
        ("epsilon", ("8/255", 8, 8.0, "8")),
        ("num_steps", (7, 7.0, "7")),
        ("step_size_schedule", ([[0, 1], [5, 0.5]], "[[0, 1.0], [5, 0.5]]")),
        ("attack_schedule", ([[0, 5, 2]], '[[0, 5, "2/255"]]')),
        ("attack_schedule", (None, "null")),
        ("store_adv_path", ("~", os.path.expanduser("~"))),
    ],
)
def test_two_spellings_of_a_value_are_equal_once_parsed(name, spellings):
    first, *others = [config.parsed(CIFAR10, {name: spelling}) for spelling in spellings]
    assert all(other == first for other in others)
    made = make(CIFAR10, **{name: spellings[0]})
    assert first == {name: getattr(made, name)}


def test_values_that_cannot_be_parsed_stay_unchanged():
    values = {"epsilon": "wide", "num_steps": -1, "store_adv_path": "", "other": [1]}
    assert config.parsed(MNIST, values) == values


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
    assert (settings.loss_func, settings.data_dir, settings.width) == ("cw", "/data", 1)
    assert settings.step_size_schedule == ((0, 0.1), (5, 0.01))
    assert settings.attack_schedule == ((0, 7, 2.0), (5, 10, pytest.approx(2.0)))
    assert parse(CIFAR10, "--attack_schedule=null").attack_schedule is None


@pytest.mark.parametrize("challenge, epsilon", [(MNIST, 8 / 255), (CIFAR10, 8.0)], ids=CHALLENGES)
def test_a_fraction_is_of_the_pixel_range(challenge, epsilon):
    assert parse(challenge, "--epsilon=8/255").epsilon == epsilon
    assert make(challenge, epsilon="8/255").epsilon == epsilon


# Where the model is.


@BOTH
def test_model_dir_is_relative_to_its_config_file_or_the_working_directory(challenge, write):
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
        ("{", ".*given.json is not JSON"),
        (
            '{"num_steps": 1, "num_steps": 2}',
            ".*given.json is not JSON: the name 'num_steps' is there",
        ),
        ('{"num_steps": ' + "[" * 10**6, ".*given.json is not JSON that can be read: it is nested"),
        ('{"num_steps": ' + "9" * 5000 + "}", ".*given.json is not JSON: "),
        ("3", "expected a JSON object in .*given.json, got int"),
        ("null", "expected a JSON object in .*given.json, got NoneType"),
        ("[1]", "expected a JSON object in .*given.json, got list"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused(tmp_path, write, content, expected):
    path = tmp_path / "missing.json" if content is None else write(content)
    with pytest.raises(InputError, match=f"^{expected}"):
        parse(MNIST, f"--config={path}")


def test_a_config_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "given.json").write_bytes(b"\xef\xbb\xbf" + b'{"num_steps": 3}')
    assert parse(MNIST, f"--config={tmp_path / 'given.json'}").num_steps == 3


# Numbers that the arithmetic cannot hold: TensorFlow counts in int32, and pixels are float32.

INTEGERS = [
    field.name
    for field in dataclasses.fields(MNIST.config_class)
    if field.metadata["parse"].__qualname__.startswith("integer.")
]


@pytest.mark.parametrize("name", INTEGERS)
def test_whole_numbers_end_where_int32_does(name):
    """2**31 steps were none."""
    for value in (2**31, "2147483648", 2**40, 10**400, "9" * 5000, "1e400", -(2**31), 1e308):
        with pytest.raises(InputError, match=f"^here: {name}: expected an integer of ") as error:
            make(MNIST, **{name: value})
        assert len(str(error.value)) < 3000 and "\n" not in str(error.value)
    if name != "scale":
        assert getattr(make(MNIST, **{name: 2**31 - 1}), name) == 2**31 - 1


def test_a_network_that_no_memory_holds_is_refused():
    for scale in (411, 10**6):
        with pytest.raises(InputError, match="^here: scale: expected an integer of 1 or more and"):
            make(MNIST, scale=scale)
    # The largest one has as many weights as int32 counts, just about.
    count = 26 * 2 * 410 + (25 * 820 + 1) * 1640 + (49 * 1640 + 1) * 26240 + 26241 * 10
    assert make(MNIST, scale=410).scale == 410 and 0.99 < count / 2**31 < 1


NOT_FLOAT32 = [float("nan"), float("inf"), "Infinity", "nan", "1e999", 1e39, 10**400, "9" * 5000]


@pytest.mark.parametrize("name", ["kappa", "epsilon", "step_size", "weight_decay", "momentum"])
def test_numbers_are_finite_in_float32(name):
    for value in NOT_FLOAT32:
        with pytest.raises(InputError, match=f"^here: {name}: expected a number.*, got "):
            make(CIFAR10, **{name: value})
    assert make(MNIST, kappa=-3).kappa == -3


@pytest.mark.parametrize("value", ["inf/1", "nan/1", "1e308/1e-308", "1e999/2"])
def test_fractions_are_finite(value):
    for name in ("epsilon", "step_size"):
        with pytest.raises(InputError, match=f"^here: {name}: expected a number or a fraction"):
            make(MNIST, **{name: value})
    with pytest.raises(InputError, match="^here: attack_schedule: expected"):
        make(MNIST, attack_schedule=[[0, 5, value]])


@pytest.mark.parametrize("name", ["step_size_schedule", "attack_schedule"])
@pytest.mark.parametrize(
    "value",
    [
        "[" * 10**6,
        '{"a":' * 10**6,
        "[[0, 1e999]]",
        "[[0, NaN]]",
        "[[0, 1e39]]",
        "[[0, -Infinity, 0.1]]",
        "[[0, 2147483648, 0.1]]",
        "[[0, 1e400, 0.1]]",
        "[[0, 0.1], [2147483648, 0.1]]",
        "[[0, " + "9" * 5000 + "]]",
        '{"ab": 1}',
        '"text"',
        "true",
        "[[[[0]]]]",
        "[null]",
    ],
    ids=lambda value: value[:20],
)
def test_hostile_schedules_are_one_line(name, value):
    with pytest.raises(InputError, match=f"^command line: {name}: expected ") as error:
        parse(MNIST, f"--{name}={value}")
    assert len(str(error.value)) < 3000 and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(MNIST.config_class)])
def test_values_of_every_wrong_type_are_refused(name, write):
    deep = []
    for _ in range(500):
        deep = [deep]
    for value in ([1], {"a": 1}, deep, [[]], {"a": "\x1b[2J\n"}):
        with pytest.raises(InputError, match=f"given.json: {name}: expected ") as error:
            parse(MNIST, f"--config={write({name: value})}")
        assert str(error.value).isprintable()


# Paths.

PATHS = ("model_dir", "data_dir", "store_adv_path")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", PATHS)
def test_a_leading_tilde_is_the_home_directory(name, home, write):
    """See https://github.com/domainaware/parsedmarc/issues/550 ."""
    assert getattr(parse(MNIST, f"--{name}=~/x y"), name) == str(home / "x y")
    assert getattr(parse(MNIST, f"--{name}=~"), name) == str(home)
    assert getattr(parse(MNIST, f"--{name}=./~/x"), name) == "./~/x"
    path = write({name: "~/x"})
    assert getattr(parse(MNIST, f"--config={path}"), name) == str(home / "x")
    home.mkdir()
    path.rename(home / "given.json")
    assert getattr(parse(MNIST, "--config=~/given.json"), name) == str(home / "x")


def test_the_originals_data_may_be_in_the_home_directory(home, write):
    (home / "data").mkdir(parents=True)
    path = write({"data_path": "~/data"})
    assert parse(CIFAR10, f"--config={path}").data_dir == str(home / "data")
    for odd in ("x" * 10**4, "nul\0", "", 3, "\ud800", "~nobody_at_all/x"):
        assert parse(CIFAR10, f"--config={write({'data_path': odd})}").data_dir is None


PATH_FLAGS = [
    (evaluate.define_eval_flags, ("source", "output_json", "state_dir", "merge", "report")),
    (compare_lib.define_flags, ("attack_file", "output_json", "state_dir")),
    (export_model.define_flags, ("output_dir",)),
    (adversarial_images.define_flags, ("output",)),
    (training_curve.define_flags, ("output",)),
    (accuracy_against_epsilon.define_flags, ("output",)),
    (lambda _, flag_values: reproduce.define_flags(flag_values), ("output_dir", "data_dir")),
]


@pytest.mark.parametrize(
    "define, name", [(define, name) for define, names in PATH_FLAGS for name in names]
)
def test_a_leading_tilde_is_the_home_directory_in_every_flag(define, name, home):
    flag_values = flags.FlagValues()
    define(MNIST, flag_values)
    flag_values(["script.py", f"--{name}=~/x"])
    assert flag_values[name].value == str(home / "x")
    with pytest.raises(flags.Error, match=f"flag --{name}=: expected a path, got ''"):
        flag_values(["script.py", f"--{name}="])


def test_every_flag_of_a_path_is_parsed_as_a_path():
    """Whoever adds one shall declare it with `config.define_path`."""
    words = r"DEFINE_string\(\s*\"\w*(_dir|_json|_path|_file|output|source|config)\""
    scripts = [
        path
        for folder in ("common", "paper", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(scripts) > 30
    for script in scripts:
        assert not re.search(words, script.read_text()), script


@pytest.mark.parametrize("name", ["model_dir", "store_adv_path"])
@pytest.mark.parametrize("value", ["", "a\0b", "\ud800", "\udcff"], ids=ascii)
def test_text_that_cannot_be_a_path_is_refused_in_one_line(name, value, write):
    with pytest.raises(InputError, match=f"given.json: {name}: expected a path, got '") as error:
        parse(MNIST, f"--config={write({name: value})}")
    assert str(error.value).isprintable()
    with pytest.raises(flags.Error, match="expected a path, got '"):
        parse(MNIST, f"--{name}={value}")


def test_without_a_home_directory_only_a_tilde_is_refused(monkeypatch, write, tmp_path):
    """A user of a container may have no entry in the list of users."""

    def unknown(*arguments):
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert parse(MNIST, "--model_dir=x").model_dir == "x"
    assert MNIST.load("test", allow_sample=True).source.endswith(
        "no MNIST, as the home directory is not known"
    )
    expected = "expected a path, got '~/x', whose home directory is not known"
    with pytest.raises(flags.Error, match=f"flag --model_dir=~/x: {expected}"):
        parse(MNIST, "--model_dir=~/x")
    with pytest.raises(InputError, match=f"given.json: data_dir: {expected}"):
        parse(MNIST, f"--config={write({'data_dir': '~/x'})}")
    with pytest.raises(InputError, match=expected):
        checkpoints.load_model(MNIST, "~/x")
    monkeypatch.setenv("TFDS_DATA_DIR", "~/x")
    with pytest.raises(InputError, match=f"^TFDS_DATA_DIR: {expected}"):
        MNIST.load("test", allow_sample=True)
    monkeypatch.setenv("HOME", "")
    with pytest.raises(flags.Error, match=expected):
        parse(MNIST, "--model_dir=~/x")
    with pytest.raises(flags.Error, match="got '~nobody_at_all', whose home"):
        parse(MNIST, "--model_dir=~nobody_at_all")


def test_the_home_directory_is_meant_by_the_environment_and_from_python_too(home, monkeypatch):
    shutil.copytree(MNIST.directory / "models" / "natural", home / "mine")
    assert checkpoints.load_model(MNIST, "~/mine").path == home / "mine"
    monkeypatch.setenv("TFDS_DATA_DIR", "~/data")
    assert f"no MNIST in {home / 'data'}" in MNIST.load("test", allow_sample=True).source


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
    assert run("-c", IMPORT_ALL, cwd=ROOT) == "[]\n"
