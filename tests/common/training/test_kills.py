"""Trainings that are killed between any two operations on their files, and resumed."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import checkpoint_files, checkpoints
from common.config import make_config
from common.errors import InputError
from common.files import Lock
from common.training import optimizers
from common.training.directory import check
from mnist_challenge.challenge import MNIST
from tests import helpers
from tests.helpers import TINY, checkpoint_arrays

SETTINGS = {
    "scale": 1,
    "precision": "float32",
    "max_num_training_steps": 22,
    "num_checkpoint_steps": 2,
    "num_output_steps": 1000,
    "num_summary_steps": 1000,
    "num_validation_steps": 0,
    "num_steps": 1,
}
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")


def train(directory, **settings):
    helpers.train(MNIST, directory, **{**SETTINGS, **settings})


class Hook:
    """Calls `function()` before each of Python's operations on files in a directory."""

    def __init__(self, directory, function):
        self._directory = os.fspath(directory)
        self._function = function
        self._is_on = True
        sys.addaudithook(self._hear)  # there is no way to take it back

    def _hear(self, event, args):
        if not self._is_on or event not in OPERATIONS:
            return
        if any(isinstance(word, str) and word.startswith(self._directory) for word in args):
            self._is_on = False
            self._function()
            self._is_on = True

    def end(self):
        self._is_on = False


def contents(directory):
    """Names, relative to `directory`, to bytes; of a folder None."""
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if not path.name.startswith("events.out")
    }


def lay(state, directory):
    for name, data in state.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a training of 22 steps leaves, and the states that its directory went through."""
    directory, states = tmp_path_factory.mktemp("whole") / "run", []

    def note():
        state = contents(directory) if directory.exists() else {}
        if state and (not states or state != states[-1]):
            states.append(state)

    hook = Hook(directory, note)
    train(directory)
    hook.end()
    # What the operations of TensorFlow itself leave in between: a file of any length.
    for state in states[:]:
        beside = [name for name in state if name.startswith(".checkpoint.") and state[name]]
        for name in beside:
            states.append({**state, name: state[name][: len(state[name]) // 2]})
            states.append({other: data for other, data in state.items() if other != name})
    return directory, states


@pytest.fixture(scope="module")
def restored():
    """A function from a training's directory to the step that it resumes at, which tidies it up."""
    config = make_config(MNIST, ("test", {**TINY, **SETTINGS}))
    model = MNIST.build_model(config)
    optimizer = keras.optimizers.Adam(optimizers.learning_rate(((0, 1e-4),)), epsilon=1e-8)
    optimizer.build(model.trainable_variables)

    def restore(directory):
        step = checkpoints.TrainingRun(directory, model, optimizer).restore()
        checkpoint_files.tidy(directory)
        return step, model.get_weights()

    return restore


def test_every_state_of_the_directory_resumes_at_a_checkpoint_of_the_training(
    whole, restored, tmp_path
):
    directory, states = whole
    assert len(states) > 100
    reached, weights = set(), {}
    for number, state in enumerate(states):
        lay(state, tmp_path / str(number))
        step, found = restored(tmp_path / str(number))
        steps = checkpoint_files.steps_in(tmp_path / str(number))
        assert step == max(steps, default=None) and len(steps) <= 4
        names = [path.name for path in (tmp_path / str(number)).iterdir()]
        assert not [name for name in names if checkpoint_files.is_left_over(name)]
        if step is not None:
            reached.add(step)
            # The same at each state; the next test checks that these are the training's own.
            for ours, first in zip(found, weights.setdefault(step, found), strict=True):
                np.testing.assert_array_equal(ours, first)
        shutil.rmtree(tmp_path / str(number))
    assert reached == set(range(0, 23, 2))


def without_first_checkpoint(state):
    return {name: data for name, data in state.items() if not name.startswith("checkpoint")}


@pytest.fixture(scope="module")
def state(whole):
    """The state of the directory when checkpoint-8 was its newest."""
    _, states = whole
    return next(s for s in states if {f"checkpoint-{n}.index" for n in (4, 6, 8)} <= {*s})


@pytest.mark.parametrize(
    ("tear", "step"),
    [
        (lambda state: {**state, "checkpoint-8.index": b""}, 6),
        (lambda state: {**state, "checkpoint-8.index": state["checkpoint-8.index"][:100]}, 6),
        (lambda state: {n: d for n, d in state.items() if n != "checkpoint-8.index"}, 6),
        (lambda state: {n: d for n, d in state.items() if "checkpoint-8.data" not in n}, 6),
        (lambda state: {**state, "checkpoint-8.index": b"", "checkpoint-6.index": b""}, 4),
        (lambda state: {**state, "checkpoint": b""}, 8),
        (lambda state: {**state, "checkpoint": b'model_checkpoint_path: "checkpoint-900"\n'}, 8),
        (lambda state: {n: d for n, d in state.items() if n != "checkpoint"}, 8),
        (
            lambda state: {
                **state,
                "checkpoint.tmp0123456789abcdef": b"",
                "checkpoint-8_temp": None,
            },
            8,
        ),
        (lambda state: {**state, "checkpoint-8_temp/part-00000-of-00001.index": b"x"}, 8),
        (lambda state: {**without_checkpoints(state), "checkpoint-0_temp": None}, None),
        (lambda state: {**without_checkpoints(state), "checkpoint-0.index": b""}, None),
        (lambda state: {".lock": b"process 1", ".config.json.abc": b"{"}, None),
    ],
)
def test_a_training_resumes_at_the_newest_whole_checkpoint_after_a_kill_or_a_full_disk(
    tear, step, state, restored, tmp_path, capsys
):
    """https://github.com/tensorflow/tensorflow/issues/61552: a full disk leaves such files."""
    torn = tear(state)
    lay(torn, tmp_path)
    config = make_config(MNIST, ("test", {**TINY, **SETTINGS}))
    check(tmp_path, config, MNIST)
    assert restored(tmp_path)[0] == step
    notes = capsys.readouterr().out.splitlines()
    assert len(notes) <= 2 and all(" is unfinished (" in note for note in notes)
    assert max(checkpoint_files.steps_in(tmp_path), default=None) == step
    left = [path.name for path in tmp_path.iterdir() if checkpoint_files.is_left_over(path.name)]
    assert left == []


def without_checkpoints(state):
    return {name: data for name, data in state.items() if not name.startswith("checkpoint")}


@pytest.mark.parametrize(
    "damaged",
    [
        {"config.json": b'{\n  "model_dir": ".",', "runs.json": b"[" * 1_000_000},
        {
            "runs.json": b'[{"seconds": 1e400, "versions": {}}]',
            "validation.json": b'[{"step": "6"}]',
        },
        {"runs.json": b"[1, null]"},
    ],
    ids=["text", "numbers", "entries"],
)
def test_damaged_records_are_reported_and_renamed(damaged, whole, state, tmp_path, capsys):
    directory, _ = whole
    lay({**state, **damaged}, tmp_path)
    train(tmp_path, num_validation_steps=500, watched=True)
    printed = capsys.readouterr().out
    for name, content in damaged.items():
        assert f"it is kept as {name}.damaged" in printed
        assert (tmp_path / f"{name}.damaged").read_bytes() == content
    assert_same_weights(tmp_path, directory)


def test_checkpoints_whose_settings_were_lost_on_a_full_disk_resume(whole, state, tmp_path):
    directory, _ = whole
    lay({**state, "config.json.damaged": b"{"}, tmp_path)
    (tmp_path / "config.json").unlink()
    train(tmp_path)
    assert_same_weights(tmp_path, directory)


def test_a_checkpoint_that_cannot_be_read_is_not_removed(state, tmp_path, monkeypatch):
    lay(state, tmp_path / "run[1]")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot make a link to"):
        checkpoint_files.tidy(tmp_path / "run[1]")
    assert 8 in checkpoint_files.steps_in(tmp_path / "run[1]")


def assert_same_weights(directory, other):
    """What two trainings end with is the same bit for bit, the optimizer's state included."""
    ours, theirs = checkpoint_arrays(directory), checkpoint_arrays(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_a_damaged_checkpoint_is_renamed_and_the_one_before_it_is_loaded(whole, tmp_path, capsys):
    directory, states = whole
    data = "checkpoint-22.data-00000-of-00001"
    flipped = bytearray(states[-1][data])
    flipped[len(flipped) // 2] ^= 1
    lay({**states[-1], data: bytes(flipped)}, tmp_path / "run")
    train(tmp_path / "run")
    printed = capsys.readouterr().out
    assert "checkpoint-22 in" in printed and "is damaged" in printed
    assert "taking checkpoint-20" in printed and "resuming at step 20 of 22" in printed
    assert (tmp_path / "run" / f"{data}.damaged").read_bytes() == flipped
    assert_same_weights(tmp_path / "run", directory)


def kill_at(directory, number):
    """Trains, and kills its own process at the `number`-th operation of writing a checkpoint."""
    count, directory = 0, pathlib.Path(directory)

    def maybe_kill():
        nonlocal count
        if any(path.name.startswith(".checkpoint.") for path in directory.iterdir()):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    Hook(directory, maybe_kill)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        train(directory, num_checkpoint_steps=1)


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_do_not_change_the_weights(count, whole, tmp_path):
    directory, _ = whole
    (tmp_path / "run").mkdir()  # the hook of a process that makes it would end there
    program = f"import sys; from {__name__} import kill_at; kill_at(sys.argv[1], int(sys.argv[2]))"
    draw = random.Random(0)
    num_killed_while_writing = 0
    for number in range(count):
        at = draw.randint(1, 25) if number % 2 else 10**6
        process = helpers.start("-c", program, tmp_path / "run", at, cwd=helpers.ROOT)
        if number % 2 == 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.5, 2.0))
            process.kill()
        process.communicate(300)
        left = list((tmp_path / "run").glob(".checkpoint.*")) if (tmp_path / "run").exists() else []
        assert process.returncode in (-signal.SIGKILL, 0)
        num_killed_while_writing += bool(left)
    assert num_killed_while_writing >= count // 2
    train(tmp_path / "run")
    assert_same_weights(tmp_path / "run", directory)


@pytest.mark.parametrize(
    "names",
    [
        ("run[1]", "r?*\\"),
        pytest.param(("eps=[0.3],lr=0.1",), marks=pytest.mark.slow),
    ],
    ids=["brackets and wildcards", "a list"],
)
def test_a_directory_that_tensorflow_takes_for_a_pattern_touches_no_other(names, tmp_path):
    """https://github.com/tensorflow/tensorflow/issues/34290 and 32614."""
    beside = [tmp_path / name for name in ("run1", "eps=0", "r", "runx")]
    for other in beside:
        other.mkdir()
        for name in ("checkpoint-0.index", "checkpoint-2.data-00000-of-00001"):
            (other / name).write_text("another's")
    for name in names:
        directory = tmp_path / name
        train(directory, max_num_training_steps=2, num_checkpoint_steps=1)
        train(directory, max_num_training_steps=5, num_checkpoint_steps=1)
        assert checkpoint_files.steps_in(directory) == [3, 4, 5]
        loaded = checkpoints.load_model(MNIST, directory)
        assert loaded.step == 5
        assert checkpoints.load_model(MNIST, directory / "saved_model").digest() == loaded.digest()
    for other in beside:
        assert len(list(other.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_a_directory_has_one_training_at_a_time(tmp_path):
    with Lock(tmp_path / "run", "--model_dir"):
        with pytest.raises(InputError, match="not in use, got .*run, which process [0-9]+ on "):
            train(tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [Lock.NAME]
    train(tmp_path / "run", max_num_training_steps=1)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(InputError, match="became .*smaller rates"):
        train(tmp_path, step_size_schedule=[[0, 1e30]], num_checkpoint_steps=1)
    for step in checkpoint_files.steps_in(tmp_path):
        reader = tf.train.load_checkpoint(str(tmp_path / f"checkpoint-{step}"))
        for name in reader.get_variable_to_shape_map():
            if name != "_CHECKPOINTABLE_OBJECT_GRAPH":
                assert np.isfinite(reader.get_tensor(name)).all(), (step, name)


def test_a_weight_that_is_not_finite_keeps_the_checkpoint_from_being_written(tmp_path):
    model = MNIST.build_model(make_config(MNIST, ("test", {"scale": 1})))
    run_of = checkpoints.TrainingRun(tmp_path, model)
    run_of.save(1)
    model.weights[0].assign(model.weights[0] * np.nan)
    with pytest.raises(InputError, match="weights became infinite or NaN by step 2"):
        run_of.save(2)
    assert checkpoint_files.steps_in(tmp_path) == [1]


def test_a_disk_that_is_full_leaves_the_checkpoints_as_they_were(whole, state, tmp_path):
    """A limit on the size of files, which TensorFlow and Python meet as they meet a full disk."""
    resource = pytest.importorskip("resource")
    directory, _ = whole
    lay(state, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match="^cannot write a checkpoint in "):
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = contents(tmp_path)
    checkpoint = {name for name in state if name.startswith("checkpoint")}
    assert {name for name in left if "checkpoint" in name} == checkpoint
    assert all(left[name] == state[name] for name in checkpoint)
    train(tmp_path)
    assert_same_weights(tmp_path, directory)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "below", tmp_path / ("x" * 300), pathlib.Path("/proc/run")):
        with pytest.raises(InputError, match="^--model_dir: cannot "):
            train(place)
