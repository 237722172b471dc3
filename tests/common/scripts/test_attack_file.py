"""pgd_attack.py and eval.py with interruptions, and with files that cannot be written."""

import errno
import json
import os
import pathlib
import signal

import numpy as np
import pytest
from absl import flags

from common import submission
from common.attack import PGD
from common.errors import InputError
from common.evaluation import state
from common.scripts import attack_file, evaluate
from common.scripts.flags import config_from_flags, define_flags
from mnist_challenge.challenge import MNIST
from tests.helpers import EMPTY_HOME, ROOT, interrupted_in_its_attack, run, start

FEW = ("--model_dir=adv_trained", "--num_eval_examples=12", "--eval_batch_size=4", "--num_steps=2")


@pytest.fixture
def attack(tmp_path, monkeypatch, capsys):
    """Function from flags to what pgd_attack.py, or eval.py, prints, run in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", EMPTY_HOME)  # the sample, as for `start`
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    def attack(*arguments, command=attack_file.pgd_attack):
        flag_values = flags.FlagValues()
        define_flags(MNIST, flag_values)
        is_eval = command is evaluate.evaluate
        define = evaluate.define_eval_flags if is_eval else attack_file.define_attack_file_flags
        define(MNIST, flag_values)
        flag_values(["pgd_attack.py", *FEW, *arguments])
        settings = config_from_flags(MNIST, flag_values)
        capsys.readouterr()
        command(MNIST, settings, flag_values)
        return capsys.readouterr().out

    return attack


@pytest.fixture
def no_attacks(monkeypatch):
    """Makes every further attack fail the test."""

    def forbid():
        own = PGD.perturb

        def perturb(self, *args, **options):
            if self.epsilon != 1:  # not that of the check before several attacks
                pytest.fail("attacks again")
            return own(self, *args, **options)

        monkeypatch.setattr(PGD, "perturb", perturb)

    return forbid


def interrupt_after(monkeypatch, count):
    """Ctrl-C while the `count`-th batch is attacked."""
    own, calls = PGD.perturb, []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == count:
            signal.raise_signal(signal.SIGINT)
        return own(*args, **options)

    monkeypatch.setattr(PGD, "perturb", interrupted)


def names():
    return sorted(path.name for path in pathlib.Path().iterdir())


def the_state(directory="."):
    (state,) = pathlib.Path(directory).glob("evaluation-*.npz")
    return state


def fail_replacing(monkeypatch, name):
    """No room for the file of this name, from the next `os.replace` to it on."""
    own = os.replace

    def replace(source, target, **kwargs):
        if pathlib.Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", replace)


def test_an_interrupted_attack_resumes_to_the_same_file(attack, monkeypatch, capsys):
    attack("--store_adv_path=whole.npy")
    whole, note = submission.load("whole.npy"), submission.load_note("whole.npy")
    assert names() == ["whole.npy", "whole.npy.json"]
    pathlib.Path("to").mkdir()
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(patch, 1)
            attack("--store_adv_path=to/parts.npy")
        line = f"stopped; the same command resumes there, from {the_state('to')}"
        assert line in capsys.readouterr().out
        assert [path.name for path in pathlib.Path("to").iterdir()] == [the_state("to").name]
    out = attack("--store_adv_path=to/parts.npy")
    assert "attack: resuming from to/evaluation-" in out
    assert sorted(os.listdir("to")) == ["parts.npy", "parts.npy.json"]
    assert pathlib.Path("to/parts.npy").read_bytes() == pathlib.Path("whole.npy").read_bytes()
    np.testing.assert_array_equal(submission.load("to/parts.npy"), whole)
    parts = submission.load_note("to/parts.npy")
    parts.pop("seconds"), note.pop("seconds")
    assert parts == note


def test_other_settings_do_not_resume_it(attack, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        attack()
    before = the_state().read_bytes()
    assert "resuming from" not in attack("--num_steps=1")
    assert the_state().read_bytes() == before


def test_a_damaged_state_is_one_line(attack, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        attack()
    the_state().write_bytes(the_state().read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot resume from evaluation-.*remove it to start anew"):
        attack()
    assert names() == [the_state().name]


@pytest.mark.parametrize("name", ["attack.npy", "attack.npy.json"])
def test_what_cannot_be_written_is_written_later_without_an_attack(
    name, attack, monkeypatch, no_attacks
):
    attack("--store_adv_path=whole.npy")
    whole = pathlib.Path("whole.npy").read_bytes()
    attack("--num_steps=1")
    before = pathlib.Path("attack.npy").read_bytes()
    assert before != whole
    with monkeypatch.context() as patch, pytest.raises(InputError) as error:
        if name == "attack.npy":
            patch.setattr(submission, "write_atomically", full)
        else:
            fail_replacing(patch, name)
        attack()
    assert "No space left on device" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    if name == "attack.npy":  # neither of the two is lost
        assert pathlib.Path("attack.npy").read_bytes() == before
        assert submission.load_note("attack.npy")["attack"]["num_steps"] == 1
    else:  # no note of another file is there
        assert not pathlib.Path("attack.npy.json").exists()
    assert the_state().exists()
    no_attacks()
    assert "attack: resuming from evaluation-" in attack()
    assert pathlib.Path("attack.npy").read_bytes() == whole
    assert submission.load_note("attack.npy")["attack"]["num_steps"] == 2
    assert names() == ["attack.npy", "attack.npy.json", "whole.npy", "whole.npy.json"]


def full(path, content):
    raise InputError(f"cannot write {path}: No space left on device")


@pytest.mark.parametrize(
    ("attacks", "name"),
    [
        ("pgd", "r.json"),
        ("pgd", "attack.npy"),
        ("pgd", "attack.npy.json"),
        ("pgd,fgsm", "r.json"),
        pytest.param("pgd,fgsm", "attack.npy", marks=pytest.mark.slow),
        pytest.param("pgd,fgsm", "attack.npy.json", marks=pytest.mark.slow),
    ],
)
def test_a_result_of_eval_that_cannot_be_written_is_written_later(
    name, attacks, attack, monkeypatch, no_attacks
):
    command = ("--output_json=r.json", "--store_adv_path=attack.npy", f"--attack={attacks}")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left"):
        if name == "attack.npy":
            patch.setattr(submission, "write_atomically", full)
        else:
            fail_replacing(patch, name)
        attack(*command, command=evaluate.evaluate)
    assert the_state().exists()
    no_attacks()
    out = attack(*command, command=evaluate.evaluate)
    assert "resuming from evaluation-" in out
    result = json.loads(pathlib.Path("r.json").read_text())
    assert submission.load_note("attack.npy")["model_digest"] == result["model_digest"]
    assert names() == ["attack.npy", "attack.npy.json", "r.json"]


def test_a_state_that_cannot_be_kept_does_not_cost_the_result(attack, monkeypatch, capsys):
    monkeypatch.setattr(state, "write_atomically", full)
    attack()
    assert names() == ["attack.npy", "attack.npy.json"]


@pytest.mark.parametrize("at", ["unlink", "replace", "write_json"])
def test_a_run_that_is_killed_between_the_two_files_leaves_no_wrong_note(at, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(first, *args, **kwargs):
        if at == "unlink" and first != note:
            return unlink(first, *args, **kwargs)
        raise Killed

    path, note, unlink = tmp_path / "attack.npy", tmp_path / "attack.npy.json", pathlib.Path.unlink
    submission.save(path, np.zeros((2, 28, 28, 1)), MNIST, {"model": "first"})
    before = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(submission if at == "write_json" else pathlib.Path, at, killed)
        submission.save(path, np.ones((2, 28, 28, 1)), MNIST, {"model": "second"})
    assert (path.read_bytes() != before) is (at == "write_json")
    assert note.exists() is (at == "unlink")
    assert submission.load_note(path).get("model") == ("first" if at == "unlink" else None)
    assert {p.name for p in tmp_path.iterdir()} <= {path.name, note.name}


def test_a_directory_instead_of_the_note_is_refused_before_the_attack(attack, no_attacks):
    pathlib.Path("attack.npy.json").mkdir()
    no_attacks()
    with pytest.raises(InputError, match="--store_adv_path: expected a file, got the directory"):
        attack()
    with pytest.raises(InputError, match="--store_adv_path: expected a file, got the directory"):
        attack("--store_adv_path=attack.npy", command=evaluate.evaluate)
    assert names() == ["attack.npy.json"]


def test_ctrl_c_of_the_script(tmp_path):
    script = ROOT / "mnist_challenge" / "pgd_attack.py"
    few = ("--model_dir=adv_trained", "--num_eval_examples=16", "--eval_batch_size=2")
    process = start(script, *few, "--num_steps=100", cwd=tmp_path)
    out, err = interrupted_in_its_attack(process)
    assert process.returncode == 130 and err.endswith("interrupted\n") and "Traceback" not in err
    assert f"the same command resumes there, from {the_state(tmp_path).name}\n" in out
    with np.load(the_state(tmp_path)) as state:
        assert 0 < state["num_attacks"].sum() < 16
    out = run(script, *few, "--num_steps=100", cwd=tmp_path)
    assert "attack: resuming from evaluation-" in out
    assert sorted(os.listdir(tmp_path)) == ["attack.npy", "attack.npy.json"]
