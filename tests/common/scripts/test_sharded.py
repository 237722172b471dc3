"""Evaluations in shards, by eval.py and pgd_attack.py: joined they are a single run's."""

import json
import os
import pathlib
import shutil
import signal

import pytest
from absl import flags

from common.attack import PGD
from common.errors import InputError
from common.evaluation.shards import Shard
from common.files import Lock
from common.scripts import attack_file, evaluate
from common.scripts.flags import config_from_flags, define_flags
from mnist_challenge.challenge import MNIST
from tests.helpers import EMPTY_HOME, ROOT, end_of_sample, error_line, run, train

COUNT = 48
FEW = (f"--num_eval_examples={COUNT}", "--eval_batch_size=8", "--precision=float32")
PGD_2 = ("--num_steps=2", "--step_size=0.03", "--epsilon=0.04")
EVAL = evaluate.evaluate, evaluate.define_eval_flags
PGD_ATTACK = attack_file.pgd_attack, attack_file.define_attack_file_flags


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The directory of a small network that classifies most images, and withstands few attacks."""
    directory = tmp_path_factory.mktemp("tiny") / "run"
    settings = {"adversary": "none", "training_batch_size": 50, "step_size_schedule": [[0, 0.005]]}
    counts = {"num_output_steps": 100, "num_validation_steps": 0, "num_checkpoint_steps": 100}
    settings["images"] = end_of_sample(MNIST)
    train(MNIST, directory, scale=1, max_num_training_steps=60, **settings, **counts)
    return directory


@pytest.fixture
def script(tiny, tmp_path, monkeypatch, capsys):
    """Function from flags to what eval.py or pgd_attack.py prints, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", EMPTY_HOME)  # the sample
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    def script(*arguments, of=EVAL):
        main, define_own_flags = of
        flag_values = flags.FlagValues()
        define_flags(MNIST, flag_values)
        define_own_flags(MNIST, flag_values)
        flag_values(["script.py", f"--model_dir={tiny}", *FEW, *arguments])
        settings = config_from_flags(MNIST, flag_values)
        capsys.readouterr()
        main(MNIST, settings, flag_values)
        return capsys.readouterr().out

    return script


def numbers_in(path):
    """The JSON of an evaluation but for its time, command, commit and shards."""

    def timeless(value):
        if isinstance(value, list):
            return [timeless(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        skipped = ("seconds", "command", "commit", "shards")
        return {name: timeless(entry) for name, entry in value.items() if name not in skipped}

    return timeless(json.loads(pathlib.Path(path).read_text()))


def lines_of_numbers(out):
    """What is printed of the result, without times."""
    lines = out.splitlines()
    return [line for line in lines if "%" in line and " s, " not in line and "  " not in line]


EVALUATIONS = {
    "one attack": PGD_2,
    "restarts": (*PGD_2, "--num_restarts=3"),
    "list": (*PGD_2, "--attack=fgsm,pgd,apgd_xent", "--each_alone", "--fixed_batches"),
    "suite": ("--suite=standard", "--epsilon=0.02", "--fixed_batches"),
    "bfloat16": (*PGD_2, "--precision=bfloat16"),
}


@pytest.mark.parametrize(
    "name, count",
    [
        ("restarts", 3),
        pytest.param("one attack", 16, marks=pytest.mark.slow),
        pytest.param("list", 16, marks=pytest.mark.slow),
        pytest.param("bfloat16", 3, marks=pytest.mark.slow),
        pytest.param("suite", 3, marks=pytest.mark.slow),
    ],
)
def test_shards_joined_are_a_single_run(name, count, script):
    asked = EVALUATIONS[name]
    files = ("--output_json={}.json", "--store_adv_path={}.npy")
    whole = script(*asked, *(text.format("whole") for text in files))
    found = numbers_in("whole.json")
    assert 0 < found["adversarial_accuracy"] < found["natural_accuracy"]
    for number in (2, 1, *range(3, count + 1)):
        out = script(*asked, f"--shard={number}/{count}", "--state_dir=parts")
        examples = Shard(number, count).examples(COUNT)
        assert f"images {examples.start + 1} to {examples.stop} of {COUNT}" in out
    assert len(os.listdir("parts")) == count
    joined = script(*asked, "--merge=parts", *(text.format("joined") for text in files))
    assert numbers_in("joined.json") == found
    assert pathlib.Path("joined.npy").read_bytes() == pathlib.Path("whole.npy").read_bytes()
    assert numbers_in("joined.npy.json") == numbers_in("whole.npy.json")
    assert lines_of_numbers(joined) == lines_of_numbers(whole)
    provenance = json.loads(pathlib.Path("joined.json").read_text())["shards"]
    assert [set(part) for part in provenance] == count * [
        {"command", "commit", "hardware", "versions"}
    ]


@pytest.mark.slow
def test_an_attack_file_of_16_shards_is_that_of_a_single_run(tiny, tmp_path):
    attack = ROOT / "mnist_challenge" / "pgd_attack.py"
    asked = (f"--model_dir={tiny}", "--num_eval_examples=40", *PGD_2)
    run(attack, *asked, "--store_adv_path=whole.npy", cwd=tmp_path)
    for number in range(1, 17):
        run(attack, *asked, f"--shard={number}/16", "--state_dir=parts", cwd=tmp_path)
    run(attack, *asked, "--merge=parts", "--store_adv_path=joined.npy", cwd=tmp_path)
    whole, joined = (tmp_path / name for name in ("whole.npy", "joined.npy"))
    assert joined.read_bytes() == whole.read_bytes()
    assert numbers_in(f"{joined}.json") == numbers_in(f"{whole}.json")
    err = run(attack, *asked, "--merge=nowhere", cwd=tmp_path, code=1)
    assert error_line(err) == "error: --merge: expected the directory of the shards, got nowhere"


def test_an_interrupted_shard_is_not_merged_and_resumes(script, monkeypatch, capsys):
    whole = script(*PGD_2, "--store_adv_path=whole.npy")
    script(*PGD_2, "--shard=1/2", "--state_dir=parts")
    own, calls = PGD.perturb, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return own(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PGD, "perturb", interrupted)
        script(*PGD_2, "--shard=2/2", "--state_dir=parts")
    assert "stopped; the same command resumes there" in capsys.readouterr().out
    assert sorted(os.listdir("parts")) == ["shard-1-of-2.npz", "shard-2-of-2.unfinished.npz"]
    with pytest.raises(InputError, match=r"--merge: expected 2 .* got 1, without 2/2 \(not fini"):
        script(*PGD_2, "--merge=parts")
    with monkeypatch.context() as patch:
        calls.clear()
        patch.setattr(PGD, "perturb", lambda *a, **o: (calls.append(a), own(*a, **o))[1])
        out = script(*PGD_2, "--shard=2/2", "--state_dir=parts")
    assert "shard 2/2: resuming from parts/shard-2-of-2.unfinished.npz" in out
    assert len(calls) == 1  # of three batches
    out = script(*PGD_2, "--merge=parts", "--store_adv_path=joined.npy")
    assert lines_of_numbers(out) == lines_of_numbers(whole)
    assert pathlib.Path("joined.npy").read_bytes() == pathlib.Path("whole.npy").read_bytes()


def test_a_finished_shard_is_not_evaluated_again(script):
    script(*PGD_2, "--shard=1/24", "--state_dir=parts")
    (path,) = pathlib.Path("parts").iterdir()
    before = path.read_bytes()
    assert f"finished before: {path}" in script(*PGD_2, "--shard=1/24", "--state_dir=parts")
    assert path.read_bytes() == before


@pytest.fixture
def parts(script):
    """Both shards of an evaluation, in parts/."""
    for number in (1, 2):
        script(*PGD_2, f"--shard={number}/2", "--state_dir=parts")
    return pathlib.Path("parts")


def test_what_does_not_fit_is_one_line(parts, script):
    _, second = sorted(parts.iterdir())
    other = ("--random_seed=3", "--precision=bfloat16", *PGD_2)
    script("--shard=2/2", *other, "--state_dir=other")
    shutil.copy(pathlib.Path("other") / second.name, second)
    for command, flag in (
        (("--merge=parts",), "--merge"),
        (("--shard=1/2", "--state_dir=parts"), "--shard=1/2"),
    ):
        with pytest.raises(InputError) as caught:
            script(*PGD_2, *command)
        assert str(caught.value) == (
            f"{flag}: expected shards of one evaluation, that of this command, got {second} with "
            "another seed (3, not 4557077), precision (bfloat16, not float32)"
        )
    assert not pathlib.Path("attack.npy").exists()


def test_a_shard_that_is_missing_or_there_twice_or_damaged_is_one_line(parts, script):
    first, second = sorted(parts.iterdir())
    content = second.read_bytes()
    shutil.copy(first, parts / "shard-one.npz")
    with pytest.raises(InputError, match="each shard once, got 1/2 twice: shard-1-of-2.npz and sh"):
        script(*PGD_2, "--merge=parts")
    (parts / "shard-one.npz").unlink()
    second.unlink()
    with pytest.raises(InputError, match="expected 2 finished .* got 1, without 2/2; the command"):
        script(*PGD_2, "--merge=parts")
    for damaged in (content[:-1], content[: len(content) // 2], b"", b"\0" * 1000):
        second.write_bytes(damaged)
        with pytest.raises(InputError, match="^cannot read parts/shard-2-of-2.npz: "):
            script(*PGD_2, "--merge=parts")
    place = content.index(b"x_adv.npy") + 1000
    second.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(InputError, match="^cannot read parts/shard-2-of-2.npz: "):
        script(*PGD_2, "--merge=parts")
    second.write_bytes(content)
    script(*PGD_2, "--merge=parts")


def test_two_writers_of_one_shard_are_one_line(script):
    os.mkdir("parts")
    with Lock("parts", "", pathlib.Path("parts/.shard-1-of-2.lock")):
        with pytest.raises(InputError, match="^--shard=1/2: expected a shard that is not in use, "):
            script(*PGD_2, "--shard=1/2", "--state_dir=parts")
        script(*PGD_2, "--shard=2/2", "--state_dir=parts")
    assert os.listdir("parts") == ["shard-2-of-2.npz"]


WRONG = [
    (("--shard=3",), "--shard: expected K/N, with K from 1 to N, such as 3/16, got '3'"),
    (("--shard=0/2",), "--shard: expected K/N"),
    (("--shard=3/2",), "--shard: expected K/N"),
    (("--shard=1/49",), "--shard: expected at most 48 shards, one an image, got 1/49"),
    (("--shard=1/2", "--merge=x"), "--shard: expected none beside --merge"),
    (("--merge=x", "--state_dir=x"), "--state_dir: expected none beside --merge"),
    (("--merge=.",), "--merge: expected the shards of an evaluation in ., got none"),
    (("--shard=1/2", "--store_adv_path=a.npy"), "--store_adv_path: expected none beside --shard"),
]


@pytest.mark.parametrize(
    "of, arguments, message",
    [
        *((of, *case) for case in WRONG for of in (EVAL, PGD_ATTACK)),
        (EVAL, ("--shard=1/2", "--output_json=r.json"), "--output_json: expected none beside"),
        (EVAL, ("--shard=1/2", "--watch"), "--shard: expected none beside --watch"),
        (
            EVAL,
            ("--shard=1/2", "--suite=fast"),
            "--shard: expected attacks on each image by itself, got apgd_targeted",
        ),
    ],
)
def test_wrong_use_leaves_nothing(of, arguments, message, script, tmp_path):
    with pytest.raises(InputError) as caught:
        script(*arguments, of=of)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []
