"""eval.py --watch while its directory vanishes, is written to, or holds another training."""

import os
import shutil
import time

import pytest
import tensorflow as tf
from absl import flags

import common.checkpoint_files
import common.checkpoints
from common import config as config_lib
from common.checkpoints import TrainingRun
from common.errors import InputError
from common.scripts import evaluate
from common.scripts import watch as watch_lib
from common.scripts.flags import config_from_flags, define_flags
from mnist_challenge.challenge import MNIST
from tests.helpers import EMPTY_HOME


class Training:
    """A directory of checkpoints as a training leaves them, of one of the smallest networks."""

    def __init__(self, directory):
        self.directory = directory
        self._models = {}

    def save(self, step, scale=1):
        if scale not in self._models:
            config = config_lib.make_config(MNIST, ("test", {"scale": scale}))
            self._models[scale] = config, MNIST.build_model(config)
        config, model = self._models[scale]
        model.weights[0].assign_add(tf.ones_like(model.weights[0]))  # another network
        self.directory.mkdir(exist_ok=True)
        (self.directory / "config.json").write_text(config.to_json())
        TrainingRun(self.directory, model).save(step)
        self.digest = common.checkpoints.LoadedModel(model, model.weights, None).digest()

    def vanish(self):
        shutil.rmtree(self.directory)

    def data_file(self, step):
        return self.directory / f"checkpoint-{step}.data-00000-of-00001"


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path / "run")


@pytest.fixture
def at_each_poll(monkeypatch):
    """Function from functions to call in turn while the directory is waited for."""
    left, own_sleep = [], time.sleep

    def sleep(seconds):
        if seconds != watch_lib.POLL_SECONDS:  # not that of the watch
            return own_sleep(seconds)
        if not left:
            pytest.fail("waits on")
        left.pop(0)()

    monkeypatch.setattr(watch_lib.time, "sleep", sleep)
    yield left.extend
    assert not left


def wait(training, loaded, seen):
    return watch_lib.wait_for_checkpoint(MNIST, training.directory, loaded, seen)


def nothing():
    pass


def test_watch_waits_for_a_directory_that_vanishes(training, at_each_poll, capsys):
    seen = set()
    training.save(300)
    loaded = wait(training, None, seen)
    assert loaded.step == 300
    # It returns unchanged, without a new checkpoint; then it begins again, with lower steps.
    copy = training.directory.with_name("copy")

    def go():
        training.directory.rename(copy)

    def come():
        copy.rename(training.directory)

    at_each_poll([go, nothing, come, nothing, training.vanish, nothing, lambda: training.save(100)])
    again = wait(training, loaded, seen)
    assert again.step == 100 and again.model is loaded.model
    assert again.digest() == training.digest
    where = f"waiting for the next checkpoint in {training.directory}"
    assert capsys.readouterr().out.splitlines() == [
        f"{where} ...",
        f"{where}, which has none now ...",
        f"{where} ...",
        f"{where}, which has none now ...",
    ]


def test_watch_notices_a_new_training_at_the_same_step(training, at_each_poll):
    seen = set()
    training.save(300)
    loaded = wait(training, None, seen)

    def begin_anew():
        training.vanish()
        training.save(300)

    at_each_poll([begin_anew])
    assert wait(training, loaded, seen).digest() == training.digest


def test_watch_does_not_take_older_checkpoints_for_new_ones(training, at_each_poll):
    seen = set()
    for step in (100, 200, 300):
        training.save(step)
    loaded = wait(training, None, seen)
    at_each_poll(
        [
            lambda: (training.directory / "checkpoint-300.index").unlink(),
            lambda: (training.directory / "checkpoint-200.index").unlink(),
            lambda: training.save(150),
        ]
    )
    assert wait(training, loaded, seen).step == 150


@pytest.mark.parametrize("fault", ["cut", "flipped", "no data"])
def test_watch_waits_for_a_checkpoint_that_is_not_whole(training, at_each_poll, fault, capsys):
    seen = set()
    training.save(1)
    loaded = wait(training, None, seen)
    training.save(2)
    path, content = training.data_file(2), training.data_file(2).read_bytes()
    middle = len(content) // 2
    if fault == "no data":
        path.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(content[:middle] if fault == "cut" else flipped)
    at_each_poll([nothing, nothing, lambda: path.write_bytes(content)])
    found = wait(training, loaded, seen)
    assert found.step == 2 and found.digest() == training.digest
    (line,) = capsys.readouterr().out.splitlines()
    assert f"in {training.directory}, as checkpoint-2 cannot be taken: " in line


def test_the_first_checkpoint_may_be_torn_too(training, at_each_poll):
    training.save(5)
    content = training.data_file(5).read_bytes()
    training.data_file(5).write_bytes(content[:1000])
    at_each_poll([nothing, lambda: training.data_file(5).write_bytes(content)])
    assert wait(training, None, set()).digest() == training.digest


@pytest.mark.parametrize("is_first", [True, False])
def test_a_checkpoint_that_is_deleted_while_it_is_read(
    training, at_each_poll, is_first, monkeypatch
):
    seen, loaded = set(), None
    training.save(1)
    if not is_first:
        loaded = wait(training, None, seen)
        training.save(2)
    fault_of, calls = common.checkpoint_files.fault_of, []

    def deleted_after_it_was_checked(path, step):
        calls.append(step)
        fault = fault_of(path, step)
        if len(calls) == 1:
            training.vanish()
        return fault

    monkeypatch.setattr(common.checkpoint_files, "fault_of", deleted_after_it_was_checked)
    at_each_poll([nothing, lambda: training.save(3)])
    found = wait(training, loaded, seen)
    assert found.step == 3 and found.digest() == training.digest


def test_another_network_is_loaded_anew(training, at_each_poll):
    seen = set()
    training.save(1)
    loaded = wait(training, None, seen)

    def begin_anew():
        training.vanish()
        training.save(1, scale=2)

    at_each_poll([begin_anew])
    found = wait(training, loaded, seen)
    assert found.model is not loaded.model and found.digest() == training.digest


def test_a_network_that_is_not_its_configs_is_an_error(training, at_each_poll):
    training.save(1)
    config = config_lib.make_config(MNIST, ("test", {"scale": 2}))
    (training.directory / "config.json").write_text(config.to_json())
    at_each_poll([nothing])  # it is tried twice
    with pytest.raises(InputError, match="cannot load the checkpoint in"):
        wait(training, None, set())


def test_watch_waits_for_a_directory_that_cannot_be_read(training, at_each_poll, monkeypatch):
    training.save(1)
    steps_in = common.checkpoint_files.steps_in
    monkeypatch.setattr(
        common.checkpoint_files, "steps_in", lambda path: (_ for _ in ()).throw(InputError("no"))
    )
    at_each_poll(
        [nothing, lambda: monkeypatch.setattr(common.checkpoint_files, "steps_in", steps_in)]
    )
    assert wait(training, None, set()).step == 1


@pytest.fixture
def watch(training, monkeypatch, capsys):
    """Function that runs eval.py --watch until Ctrl-C; returns what it prints."""
    monkeypatch.chdir(training.directory.parent)
    monkeypatch.setenv("HOME", EMPTY_HOME)  # the sample, as for `start`
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    def watch():
        flag_values = flags.FlagValues()
        define_flags(MNIST, flag_values)
        evaluate.define_eval_flags(MNIST, flag_values)
        few = ("--num_eval_examples=20", "--num_steps=1", f"--model_dir={training.directory}")
        flag_values(["eval.py", "--watch", *few])
        config = config_from_flags(MNIST, flag_values)
        with pytest.raises(KeyboardInterrupt):
            evaluate.evaluate(MNIST, config, flag_values)
        return capsys.readouterr()

    return watch


def interrupt():
    raise KeyboardInterrupt


def steps_in_events(directory):
    steps = []
    for file in sorted(directory.glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            steps += [event.step for value in event.summary.value if value.tag == "xent_nat"]
    return steps


def test_watch_survives_all_of_these_changes(training, watch, at_each_poll):
    at_each_poll(
        [
            lambda: training.save(100),
            lambda: training.save(200),
            training.vanish,
            lambda: training.save(50),
            training.vanish,
            lambda: training.save(7, scale=2),
            interrupt,
        ]
    )
    out, err = watch()
    evaluated = [line for line in out.splitlines() if line.startswith("model: ")]
    assert [line.rpartition(" ")[2] for line in evaluated] == ["100", "200", "50", "7"]
    assert out.count("adversarial: ") == 4 and "Traceback" not in err
    assert steps_in_events(training.directory / "eval") == [7]


def test_events_that_cannot_be_written_are_reported(training, watch, at_each_poll):
    training.save(1)
    (training.directory / "eval").write_text("a file")

    def make_room():
        os.unlink(training.directory / "eval")
        training.save(2)

    at_each_poll([make_room, interrupt])
    out, err = watch()
    (line,) = [line for line in err.splitlines() if line.startswith("note: ")]
    assert f"cannot write TensorBoard's events in {training.directory / 'eval'}: " in line
    assert out.count("adversarial: ") == 2
    assert steps_in_events(training.directory / "eval") == [2]
