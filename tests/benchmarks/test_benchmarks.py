"""The benchmarks run, and all that they time attacks the same network."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import attack_throughput, peers, plain, training_throughput
from cifar10_challenge.challenge import CIFAR10
from common.attack import PGD
from common.checkpoints import fast_model
from common.config import make_config
from mnist_challenge.challenge import MNIST
from mnist_challenge.model import build_model
from tests.cifar10_challenge.test_fast_model import network
from tests.cifar10_challenge.test_model import pictures
from tests.mnist_challenge.test_model import digits

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(script, *flags):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *flags], capture_output=True, text=True
    )


def test_attack_throughput(tmp_path):
    target = tmp_path / "result.json"
    names = ["ours", "plain tf.function"]
    flags = ["--batch_size=4", "--rounds=2", f"--implementations={','.join(names)}"]
    done = run("attack_throughput.py", *flags, f"--output_json={target}")
    assert done.returncode == 0, done.stderr
    result = json.loads(target.read_text())
    # 784 * 25 * 32 + 196 * 800 * 64 + 3136 * 1024 + 1024 * 10 multiplications
    assert result["megaflop_per_example_step"] == pytest.approx(4 * 13.883904)
    assert result["hardware"]["threads"] > 0 and "tensorflow" in result["versions"]
    (batch,) = result["batches"]
    assert batch["batch_size"] == 4 and list(batch["implementations"]) == names
    for entry in batch["implementations"].values():
        rate = entry["example_steps_per_second"]
        assert 0 < rate["lowest"] <= rate["median"] <= rate["highest"]
        expected = rate["median"] * 4e6 * 13.883904 / batch["matmul_flop_per_second"]["median"]
        assert entry["share"] == pytest.approx(expected)


def test_training_throughput(tmp_path):
    target = tmp_path / "result.json"
    flags = ["--batch_size=2", "--rounds=1", "--loop_steps=0"]
    done = run("training_throughput.py", *flags, f"--output_json={target}")
    assert done.returncode == 0, done.stderr
    result = json.loads(target.read_text())
    assert (result["batch_size"], result["num_steps"]) == (2, 40)
    for entry in result["implementations"].values():
        assert entry["examples_per_second"]["median"] > 0
        assert 0.1 < entry["peak_memory_gib"] < 20


def test_a_step_in_mixed_precision_is_the_float32_step_to_rounding():
    config = make_config(CIFAR10, ("test", {"width": "simple", "num_steps": 1}))
    x, y = (tf.constant(array) for array in pictures(4))
    exact, mixed = (
        make(CIFAR10, config, tf.reduce_mean, x, y)()
        for make in (training_throughput.our_step, training_throughput.our_mixed_step)
    )
    assert exact > 1 and exact != mixed
    assert mixed == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(
    "script, flag, expected",
    [
        ("attack_throughput.py", "--implementations=magic", "--implementations: expected some of"),
        ("attack_throughput.py", "--batch_size=few", "--batch_size: expected whole numbers"),
        ("training_throughput.py", "--implementations=magic", "--implementations: expected ours"),
    ],
)
def test_wrong_flags(script, flag, expected):
    done = run(script, flag)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: {expected}")


@pytest.mark.parametrize("scale", [2, 16])
def test_the_shipped_network_is_taken_where_it_has_the_size(scale):
    model = attack_throughput._network(MNIST, {"scale": scale})
    assert MNIST.size_of([tuple(weight.shape) for weight in model.weights]) == {"scale": scale}
    x, y = digits(100)
    is_trained = np.mean(np.argmax(model(x), axis=-1) == y) > 0.9
    assert is_trained == (scale == 16)


@pytest.mark.parametrize(
    "challenge, make, images",
    [
        (MNIST, lambda: build_model(2, seed=1), digits),
        (CIFAR10, lambda: network("simple"), pictures),
    ],
    ids=["mnist", "cifar10"],
)
def test_plain_networks_are_the_challenges(challenge, make, images):
    model, (x, _) = make(), images(3)
    logits = plain.build_model(challenge, model.get_weights())(x, training=False)
    np.testing.assert_allclose(logits, model(x, training=False), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_attack_the_same_network(name):
    if name not in peers.importable():
        pytest.skip(f"needs {' and '.join(peers.PEERS[name])}")
    x, y = digits(20)
    x = np.clip(x + np.random.default_rng(0).uniform(0, 0.2, x.shape), 0, 1).astype(np.float32)
    model = build_model(2, seed=1)
    settings = {"epsilon": 0.3, "step_size": 0.05, "num_steps": 4, "bounds": (0.0, 1.0)}
    plain_model = plain.mnist_model(model.get_weights())
    attack = peers.make(name, plain_model, x, y.astype(np.int64), **settings)
    expected = PGD(fast_model(model, MNIST), random_start=False, **settings).perturb(x, y)
    assert np.mean(np.abs(peers.to_images(attack()) - expected) > 1e-5) < 0.01


def test_torch_network_of_cifar10_is_the_same():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_networks

    x, _ = pictures(3)
    model = network("simple")
    theirs = torch_networks.Cifar10({weight.path: weight.numpy() for weight in model.weights})
    logits = theirs.eval()(torch.tensor(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(logits, model(tf.constant(x), training=False), rtol=1e-3, atol=1e-3)
