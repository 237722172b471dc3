"""--help lists the settings that a script uses, in groups; others are refused."""

import dataclasses

import pytest
from absl import flags

from cifar10_challenge.challenge import CIFAR10
from common import config
from common.scripts import attack_file, compare, evaluate, export_model
from common.scripts.flags import define_flags, help_text
from mnist_challenge.challenge import MNIST
from tests.helpers import ROOT, error_line, run

TRAINING = ("momentum", "max_num_training_steps", "adversary", "width", "attack_schedule")
ATTACK = ("num_steps", "step_size", "loss_func", "kappa", "num_restarts", "random_start")


def help_of(challenge, define_own_flags, uses):
    """The lines of --help."""
    flag_values = flags.FlagValues()
    define_flags(challenge, flag_values, uses)
    if define_own_flags is not None:
        define_own_flags(challenge, flag_values)
    return help_text(flag_values, "script.py", "What it does.").splitlines()


def names_in(lines):
    words = [line.strip().partition("=")[0] for line in lines if line.startswith("  --")]
    return {word.removeprefix("--").removeprefix("[no]") for word in words}


def test_help_is_grouped_and_shows_values_and_defaults():
    lines = help_of(CIFAR10, evaluate.define_eval_flags, evaluate.USES)
    heads = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert lines[0] == "What it does."
    assert heads == ["What to attack:", "The attack:", "The evaluation and its output:"]
    assert "  --loss_func=xent|cw" in lines and "  --norm=linf|l2" in lines
    assert "  --[no]random_start" in lines and "  --epsilon=X|X/255" in lines
    place = lines.index("  --epsilon=X|X/255")
    assert lines[place + 1].endswith("(default: 8.0)")
    text = " ".join(line.strip() for line in lines)
    assert all(preset in text for preset in CIFAR10.presets)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    "define_own_flags, uses, shown, hidden",
    [
        (evaluate.define_eval_flags, evaluate.USES, ATTACK, TRAINING),
        (
            attack_file.define_attack_file_flags,
            attack_file.USES,
            (*ATTACK, "store_adv_path"),
            TRAINING,
        ),
        (None, attack_file.SCORING, ("epsilon", "store_adv_path"), (*ATTACK, "random_seed")),
        (compare.define_flags, compare.USES, ("eval_batch_size",), (*ATTACK, *TRAINING)),
        (export_model.define_flags, export_model.USES, ("output_dir",), (*ATTACK, *TRAINING)),
        (None, (config.TRAINING,), TRAINING, ("num_restarts", "num_eval_examples")),
    ],
    ids=["eval", "pgd_attack", "run_attack", "compare", "export_model", "train"],
)
def test_a_script_lists_the_settings_that_it_uses(define_own_flags, uses, shown, hidden):
    names = names_in(help_of(CIFAR10, define_own_flags, uses))
    assert names >= {"config", "model_dir", "data_dir", *shown} and not names & set(hidden)


@pytest.mark.parametrize("challenge", [MNIST, CIFAR10], ids=["mnist", "cifar10"])
def test_every_setting_is_in_a_group_and_has_a_form(challenge):
    for field in dataclasses.fields(challenge.config_class):
        assert field.metadata["group"] in config.GROUPS and field.metadata["used_by"]
        assert field.metadata["parse"].form


@pytest.mark.slow
def test_the_figures_show_help_without_naming_a_challenge(tmp_path):
    for script in ("training_curve.py", "readme_tables.py"):
        out = run(ROOT / "paper" / script, "--help", cwd=tmp_path)
        assert f"python paper/{script}" in out
    err = run(ROOT / "paper" / "readme_tables.py", "mnist", cwd=tmp_path, code=1)
    assert error_line(err) == "error: expected no words, got 'mnist'"
