"""Trainings on several devices equal those on one, and survive faults."""

import json
import pathlib
import signal
import socket

import numpy as np
import pytest
import tensorflow as tf

from common.config import make_config
from common.errors import InputError
from common.files import Lock
from common.training import distribution
from common.training.batches import training_batches
from mnist_challenge.challenge import MNIST
from tests.helpers import ROOT, checkpoint_arrays, error_line, run, start

SCRIPT = pathlib.Path(__file__).with_name("distributed.py")
TWO, FOUR = ({"distribute": "mirrored", "num_devices": count} for count in (2, 4))
PER_REPLICA = {"kind": "cifar10", "batch_norm": "per_replica"}
SPLIT = {"natural_share": 0.25, "average_decay": 0.9, "epsilon_warmup_steps": 10}
SCHEDULE = {"attack_schedule": [[0, 2, "2/255"], [30, 1, "4/255"]], "num_checkpoint_steps": 30}


def train(*trainings, cwd):
    """Runs trainings one after the other in a process of their own."""
    return run(SCRIPT, json.dumps(trainings), cwd=cwd)


def assert_close(directory, other, tolerance=1e-10):
    """Checkpoints hold the same variables, with the same values but for rounding."""
    arrays, others = checkpoint_arrays(directory), checkpoint_arrays(other)
    assert arrays.keys() == others.keys() and len(arrays) > 8
    for name, array in arrays.items():
        np.testing.assert_allclose(array, others[name], atol=tolerance, rtol=0, err_msg=name)


def assert_has_learned(directory):
    """The weights of the newest checkpoint are not those of the oldest that is kept."""
    oldest = min(directory.glob("checkpoint-*.index"), key=lambda path: int(path.stem[11:]))
    first = tf.train.load_checkpoint(str(oldest.with_suffix("")))
    moved = {
        name: np.abs(array - first.get_tensor(name)).max()
        for name, array in checkpoint_arrays(directory).items()
        if name.startswith(("model/", "optimizer/_trainable_variables/"))
    }
    assert moved and min(moved.values()) > 1e-6 and max(moved.values()) > 1e-4


# One training on different numbers of devices.


def test_a_training_resumes_on_two_devices_and_back_as_on_one(tmp_path):
    train(
        {"kind": "cifar10", "model_dir": "two", **TWO},
        {"kind": "cifar10", "model_dir": "mixed", "max_num_training_steps": 20},
        {"kind": "cifar10", "model_dir": "mixed", "max_num_training_steps": 40, **TWO},
        {"kind": "cifar10", "model_dir": "mixed"},
        cwd=tmp_path,
    )
    assert_close(tmp_path / "two", tmp_path / "mixed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        ({"kind": "mnist"}, TWO),
        ({"kind": "mnist", "adversary": "fgsm", "loss": "natural_and_adversarial"}, FOUR),
        ({"kind": "mnist", "loss": "trades", **SPLIT, **SCHEDULE}, FOUR),
        ({"kind": "cifar10"}, FOUR),
        ({"kind": "cifar10", "loss": "natural_and_adversarial", **SPLIT, **SCHEDULE}, FOUR),
        ({"kind": "cifar10", "loss": "trades", "batch_statistics": False}, TWO),
        ({**PER_REPLICA}, TWO),
        ({**PER_REPLICA, **SPLIT}, FOUR),
        ({**PER_REPLICA, "batch_statistics": False, "adversary": "none"}, FOUR),
        # The paper's network: 31 convolutions.
        ({"kind": "resnet", "max_num_training_steps": 2, "num_checkpoint_steps": 1}, TWO),
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_weights_after_50_steps_are_those_of_one_device(settings, devices, tmp_path):
    one = dict(settings)
    if "batch_norm" in settings:  # one device that takes its statistics of parts of the batch
        one["parts"] = devices["num_devices"]
    train(
        {**settings, **devices, "model_dir": "several"}, {**one, "model_dir": "one"}, cwd=tmp_path
    )
    assert_close(tmp_path / "several", tmp_path / "one")
    assert_has_learned(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"batch_norm": "per_replica"}], ids=str)
def test_resuming_on_two_devices_is_exact(settings, tmp_path):
    training = {"kind": "cifar10", "dtype": "float32", **TWO, **settings}
    train(
        {**training, "model_dir": "whole"},
        {**training, "model_dir": "parts", "max_num_training_steps": 33},
        {**training, "model_dir": "parts"},
        cwd=tmp_path,
    )
    assert_close(tmp_path / "whole", tmp_path / "parts", tolerance=0)
    assert_has_learned(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        (("--scale=1", "--num_steps=2", "--step_size=0.1"), 1e-5),
        (("--scale=1", "--num_steps=2", "--step_size=0.1", "--jit_compile=yes"), 1e-5),
        (("--scale=1", "--num_steps=2", "--precision=bfloat16"), 1e-3),
    ],
    ids=["mnist", "mnist with XLA", "mnist in bfloat16"],
)
def test_mnist_trains_on_two_devices_as_on_one(settings, tolerance, tfds_dir, tmp_path):
    settings = ("--max_num_training_steps=3", "--training_batch_size=6", *settings)
    train_on_two_and_one("mnist", settings, tfds_dir, tmp_path)
    assert_close(tmp_path / "two", tmp_path / "one", tolerance)


@pytest.mark.slow
def test_cifar10s_gradient_on_two_devices_is_that_on_one_but_for_float32s_rounding(
    tfds_dir, tmp_path
):
    # Rounding moves an activation across the kink of a leaky ReLU in about every second such
    # gradient of one device, too; one of them changes some kernels' gradients by a hundredth.
    settings = ("--width=simple", "--adversary=none", "--step_size_schedule=[[0,1e-3]]")
    settings += ("--max_num_training_steps=1", "--training_batch_size=32")
    train_on_two_and_one("cifar10", settings, tfds_dir, tmp_path)
    two, one = (checkpoint_arrays(tmp_path / name) for name in ("two", "one"))
    momenta = [name for name in one if name.startswith("optimizer/_variables")]
    assert len(momenta) > 90
    two, one = (np.concatenate([had[name].ravel() for name in momenta]) for had in (two, one))
    assert np.linalg.norm(two - one) < 0.02 * np.linalg.norm(one)


def train_on_two_and_one(name, settings, tfds_dir, tmp_path):
    script = ROOT / f"{name}_challenge" / "train.py"
    if not any(word.startswith("--precision") for word in settings):
        settings = (*settings, "--precision=float32")
    at = {"cwd": tmp_path, "data_dir": tfds_dir}
    mirrored = ("--distribute=mirrored", "--num_devices=2")
    out = run(script, "--model_dir=two", *mirrored, *settings, **at)
    assert "steps; SavedModel in" in out and (tmp_path / "two" / "saved_model").is_dir()
    run(script, "--model_dir=one", *settings, **at)
    recorded = json.loads((tmp_path / "two" / "config.json").read_text())
    assert (recorded["distribute"], recorded["num_devices"]) == ("mirrored", 2)


@pytest.mark.slow
def test_fit_on_two_devices_is_that_of_one(tmp_path):
    two, one = {"kind": "fit", "model_dir": "two.npz", "num_devices": 2}, {"kind": "fit"}
    train(two, {**one, "model_dir": "one.npz"}, cwd=tmp_path)
    with np.load(tmp_path / "two.npz") as found, np.load(tmp_path / "one.npz") as expected:
        assert found.keys() == expected.keys() and len(expected.keys()) == 4 + 6
        assert np.ptp(expected["loss"]) > 0.01
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_dropout_is_refused(tfds_dir, tmp_path):
    flags = ("--network=b", "--distribute=mirrored", "--num_devices=2", "--model_dir=new")
    script = ROOT / "mnist_challenge" / "train.py"
    err = run(script, *flags, cwd=tmp_path, data_dir=tfds_dir, code=1)
    assert "expected a network without random layers" in error_line(err)


def test_replicas_take_turns_in_a_batch_and_lose_no_image():
    images, labels = np.zeros((20, 2, 2, 1), "u1"), np.arange(20)
    images += labels.astype("u1")[:, None, None, None]
    options = {"batch_size": 6, "seed": 1, "num_steps": 5, "to_pixels": tf.identity}
    whole = [y.numpy() for _, y in training_batches(images, labels, **options)]
    rows = [np.arange(first, 6, 3) for first in range(3)]
    parts = [training_batches(images, labels, rows=its, **options) for its in rows]
    for step, found in enumerate(zip(*parts, strict=True)):
        for its, (x, y) in zip(rows, found, strict=True):
            np.testing.assert_array_equal(y, whole[step][its])
            np.testing.assert_array_equal(x[:, 0, 0, 0], y)


# Several processes.


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Returns a function that starts a training's workers; those that are left are killed."""
    monkeypatch.setenv("no_grpc_proxy", "127.0.0.1")  # conftest.py cuts off the network by a proxy
    started = []
    count = 2
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()

    def start_workers(numbers=range(count), **settings):
        training = json.dumps([{"distribute": "multi_worker", **settings}])
        for number in numbers:
            cluster = {"worker": addresses}
            task = {"type": "worker", "index": number}
            monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
            started.append(start(SCRIPT, training, cwd=tmp_path))
        monkeypatch.delenv("TF_CONFIG")
        return started[-len(numbers) :]

    yield start_workers
    for process in started:
        process.kill()


def ended(processes, code=0):
    """What the processes printed, once all have ended with this exit code."""
    texts = [process.communicate(timeout=300) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [code] * len(processes), texts
    return texts


def read_to(process, beginning):
    """Reads what a process prints to the line that begins so."""
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"kind": "mnist"}, {"kind": "cifar10"}, PER_REPLICA], ids=str)
def test_two_processes_train_as_one_device_and_only_the_chief_writes(settings, workers, tmp_path):
    (chief, _), (other, _) = ended(workers(model_dir="two", **settings))
    one = {**settings, "parts": 2} if "batch_norm" in settings else settings
    train({**one, "model_dir": "one"}, cwd=tmp_path)
    assert_close(tmp_path / "two", tmp_path / "one")
    assert "Step 40:" in chief and "Step" not in other and "worker 1 of 2" in other
    for name in ("events.out.*", "runs.json", "saved_model", "checkpoint-50.index"):
        assert len(list((tmp_path / "two").glob(name))) == 1, name
    (entry,) = json.loads((tmp_path / "two" / "runs.json").read_text())
    assert entry["num_replicas"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1], ids=["the chief", "the other"])
def test_a_killed_worker_is_started_again_and_nothing_is_lost(killed, workers, tmp_path):
    training = {"kind": "cifar10", "max_num_training_steps": 120}
    processes = workers(model_dir="killed", **training)
    read_to(processes[0], "Step 30:")
    processes[killed].kill()
    (_, err) = processes[1 - killed].communicate(timeout=300)
    assert processes[1 - killed].returncode == 1
    assert "another worker has ended; the same command on every host resumes" in error_line(err)
    assert not (tmp_path / "killed" / "saved_model").exists()

    ended(workers(model_dir="killed", **training))
    train({"model_dir": "whole", **training}, cwd=tmp_path)
    assert_close(tmp_path / "killed", tmp_path / "whole")
    runs = json.loads((tmp_path / "killed" / "runs.json").read_text())
    assert [run["first_step"] > 0 for run in runs] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1], ids=["the chief", "the other"])
def test_ctrl_c_to_one_worker_stops_all_at_one_step_which_they_resume(asked, workers, tmp_path):
    training = {"kind": "mnist", "max_num_training_steps": 2000}
    processes = workers(model_dir="parts", **training)
    read_to(processes[0], "Step 30:")
    processes[asked].send_signal(signal.SIGINT)
    out, _ = processes[0].communicate(timeout=300)
    assert "the same command resumes there" in out
    processes[1].communicate(timeout=300)
    codes = [process.returncode for process in processes]
    assert codes[asked] == 128 + signal.SIGINT and codes[1 - asked] == 128 + signal.SIGTERM
    stopped = int(tf.train.latest_checkpoint(str(tmp_path / "parts")).rpartition("-")[2])
    end = {**training, "max_num_training_steps": stopped + 10}
    ended(workers(model_dir="parts", **end))
    train({"model_dir": "whole", **end}, cwd=tmp_path)
    assert_close(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_a_directory_in_use_or_other_settings_end_all_workers_in_a_line(workers, tmp_path):
    with Lock(tmp_path / "used", "--model_dir"):
        (_, chief), (_, other) = ended(workers(kind="mnist", model_dir="used"), code=1)
    assert "expected a directory that is not in use" in error_line(chief)
    assert "another worker has ended" in error_line(other)
    processes = workers([0], kind="mnist", model_dir="new")
    processes += workers([1], kind="mnist", model_dir="new", random_seed=4)
    for _, err in ended(processes, code=1):
        assert "expected workers with the same settings" in error_line(err)


# Wrong use.

CLUSTER = {"worker": ["a:1", "b:2"]}


def tf_config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_tf_config_gives_a_worker_its_number():
    parse = distribution.parse_tf_config
    assert parse(tf_config(CLUSTER, index=1)) == (("a:1", "b:2"), 1)
    chief = {"chief": ["c:3"], **CLUSTER}
    assert parse(tf_config(chief, "chief")) == (("c:3", "a:1", "b:2"), 0)
    assert parse(tf_config(chief, index=1)) == (("c:3", "a:1", "b:2"), 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "in the environment for --distribute=multi_worker, got none"),
        ("", "got none"),
        ("{", "got {"),
        ("[1]", "got [1]"),
        ('{"cluster": {}, "task": 1}', "TF_CONFIG: expected"),
        (tf_config({"worker": "a:1"}), "TF_CONFIG: expected"),
        (tf_config({"worker": ["a"]}), "TF_CONFIG: expected"),
        (tf_config({"worker": ["a:1"], "ps": ["b:2"]}), "TF_CONFIG: expected"),
        (tf_config({"worker": [1]}), "TF_CONFIG: expected"),
        (tf_config({"worker": ["a:1", "a:1"]}), "expected an address once, got a:1, a:1"),
        (tf_config(CLUSTER, index=2), "expected a task of the cluster, got type 'worker' and"),
        (tf_config(CLUSTER, index="0"), "and index '0'"),
        (tf_config(CLUSTER, index=-1), "and index -1"),
        (tf_config(CLUSTER, "chief"), "got type 'chief' and index 0"),
        (tf_config({}), "TF_CONFIG: expected a task of the cluster"),
    ],
)
def test_a_wrong_tf_config_is_one_line(text, message):
    with pytest.raises(InputError) as error:
        distribution.parse_tf_config(text)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_devices": 2}, "--num_devices: expected auto without --distribute=mirrored"),
        ({"distribute": "multi_worker"}, "TF_CONFIG: expected"),
        ({**FOUR, "training_batch_size": 50}, "expected a multiple of 4, the number of devices"),
        ({**FOUR, "training_batch_size": 8, "natural_share": 0.9}, "--natural_share: expected an"),
    ],
)
def test_devices_that_cannot_share_a_batch_are_one_line(settings, message, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    fake = distribution.Devices(types_strategy(4))
    monkeypatch.setattr(distribution, "_start", lambda *asked: fake)
    monkeypatch.setattr(distribution, "_STARTED", {})
    with pytest.raises(InputError, match=message):
        distribution.devices_of(make_config(MNIST, ("test", settings)))


def types_strategy(count):
    return type("Strategy", (), {"num_replicas_in_sync": count})()


@pytest.mark.parametrize("value", ["0", "three", "2.5", "-1"])
def test_a_number_of_devices_is_auto_or_an_integer(value):
    with pytest.raises(InputError, match="expected auto or an integer of 1 or more, got"):
        make_config(MNIST, ("test", {"num_devices": value}))


def test_a_process_has_one_group_of_devices(monkeypatch):
    """This one has begun with one part of the processor."""
    monkeypatch.setattr(distribution, "_STARTED", {})
    tf.constant(0)
    config = make_config(MNIST, ("test", {**FOUR, "training_batch_size": 8}))
    with pytest.raises(InputError, match="--num_devices: expected at most 1, the parts of the"):
        distribution.devices_of(config)
    monkeypatch.setattr(distribution, "_STARTED", {(2, None): distribution.Devices()})
    with pytest.raises(InputError, match="the devices that this process has begun with"):
        distribution.devices_of(config)
