"""The benchmarks run, and all implementations attack the same network."""

import json

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import attack_throughput, autoattack, measure, peers, plain, training_throughput
from cifar10_challenge.challenge import CIFAR10
from common.attack import PGD
from common.checkpoints import LoadedModel, fast_model
from common.config import make_config
from common.data import Split
from common.errors import InputError
from common.evaluation import suites
from mnist_challenge.challenge import MNIST
from mnist_challenge.model import build_model
from tests.helpers import ROOT, digits, error_line, normed_network, pictures, run


def test_attack_throughput(tmp_path):
    target = tmp_path / "result.json"
    names = ["ours", "ours in bfloat16", "plain tf.function"]
    flags = ["--batch_size=4", "--rounds=2", "--matmul_size=512"]
    flags.append(f"--implementations={','.join(names)}")
    script = ROOT / "benchmarks" / "attack_throughput.py"
    run(script, *flags, f"--output_json={target}", cwd=tmp_path)
    result = json.loads(target.read_text())
    # 784 * 25 * 32 + 196 * 800 * 64 + 3136 * 1024 + 1024 * 10 multiplications
    assert result["megaflop_per_example_step"] == pytest.approx(4 * 13.883904)
    assert result["hardware"]["threads"] > 0 and "tensorflow" in result["versions"]
    (batch,) = result["batches"]
    assert batch["batch_size"] == 4 and list(batch["implementations"]) == names
    for name, entry in batch["implementations"].items():
        rate = entry["example_steps_per_second"]
        assert 0 < rate["lowest"] <= rate["median"] <= rate["highest"]
        prefix = "bfloat16_" if "bfloat16" in name else ""
        matmul = batch[f"{prefix}matmul_flop_per_second"]["median"]
        expected = rate["median"] * 4e6 * 13.883904 / matmul
        assert entry["share"] == pytest.approx(expected)


@pytest.mark.slow
def test_every_implementation_gives_the_same_accuracy(tmp_path):
    pytest.importorskip("foolbox")  # other peers are used if they are installed
    target = tmp_path / "result.json"
    flags = ["--num_images=50", "--num_steps=10", "--step_size=0.05", f"--output_json={target}"]
    run(ROOT / "benchmarks" / "agreement.py", *flags, cwd=tmp_path, afresh=True)
    doors = json.loads(target.read_text())["doors"]
    assert {"evaluate in float32", "evaluate in bfloat16", "eval.py", "Foolbox TensorFlow"} <= set(
        doors
    )
    assert doors.pop("evaluate in bfloat16")["accuracy"] == pytest.approx(94, abs=4)
    assert {entry["num_other_verdicts"] for entry in doors.values()} == {0}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("agreement_*.json")))
def test_recorded_accuracies_of_all_implementations_agree_within_half_a_point(path):
    result = json.loads(path.read_text())
    accuracies = [entry["accuracy"] for entry in result["doors"].values()]
    assert result["num_examples"] == 500 and len(accuracies) == 6
    assert max(accuracies) - min(accuracies) <= 0.5
    assert 10 < min(accuracies) < result["natural_accuracy"] - 2  # or there is nothing to see


@pytest.mark.parametrize(
    "names",
    [["plain tf.function"], pytest.param(["ours", "plain tf.function"], marks=pytest.mark.slow)],
    ids=len,
)
def test_training_throughput(names, tmp_path):
    target = tmp_path / "result.json"
    # Each has a process of its own, for its memory; the loop is ours.
    flags = ["--batch_size=2", "--rounds=1", "--loop_steps=3"]
    flags.append(f"--implementations={','.join(names)}")
    script = ROOT / "benchmarks" / "training_throughput.py"
    run(script, *flags, f"--output_json={target}", cwd=tmp_path)
    result = json.loads(target.read_text())
    assert (result["batch_size"], result["num_steps"]) == (2, 40)
    assert 0 < result["loop_share"] < 1
    assert list(result["implementations"]) == names
    for entry in result["implementations"].values():
        assert entry["examples_per_second"]["median"] > 0
        assert 0.1 < entry["peak_memory_gib"] < 20


@pytest.mark.slow
def test_suites_are_run_once_and_kept(tmp_path):
    script, flags = ROOT / "benchmarks" / "suites.py", ("--num_images=3", "--output_json=r.json")
    out = run(script, *flags, "--suites=fast", "--seeds=1", cwd=tmp_path)
    result = json.loads((tmp_path / "r.json").read_text())
    (entry,) = result["attacks"].values()
    assert list(result["attacks"]) == ["fast, float32, seed 1"] and result["num_examples"] == 3
    assert entry["accuracy"] == pytest.approx(100 * entry["withstood"].count("1") / 3)
    assert entry["cpu_seconds"] > 0 and entry["threads"] > 0
    assert [done["name"] for done in entry["attacks"]] == [stage.name for stage in suites.FAST]
    assert "square: " in out and out.splitlines()[-1].startswith("fast, float32, seed 1: ")
    again = run(script, *flags, "--suites=fast", "--seeds=1", cwd=tmp_path)
    assert "square: " not in again and again.splitlines()[-1] == out.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"r.json"}
    err = run(script, *flags, "--num_images=2", cwd=tmp_path, code=1)
    assert "which differs in data, num_examples" in error_line(err)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--output_json=r.json", "--suites=paper"), "--suites: expected some of pgd, apgd_xent, "),
        (("--output_json=r.json", "--precisions=auto"), "--precisions: expected some of float32, "),
        (("--output_json=r.json", "--seeds=one"), "--seeds: expected whole numbers"),
        ((), "--output_json: expected a file"),
    ],
)
def test_wrong_suites_are_refused(flags, message, tmp_path):
    err = run(ROOT / "benchmarks" / "suites.py", *flags, cwd=tmp_path, code=1)
    assert message in error_line(err) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_distribution_times_each_number_of_devices(tmp_path):
    script = ROOT / "benchmarks" / "distribution.py"
    flags = ("--batch_size=4", "--rounds=2", "--devices=1,2", "--output_json=result.json")
    out = run(script, *flags, cwd=tmp_path, afresh=True)
    assert "without tf.distribute" in out and "2 devices" in out
    rates = json.loads((tmp_path / "result.json").read_text())["devices"]
    assert rates.keys() == {"none", "1", "2"}
    assert all(0 < rate["lowest"] <= rate["highest"] for rate in rates.values())


def test_a_step_in_mixed_precision_is_the_float32_step_to_rounding(two_units):
    config = make_config(CIFAR10, ("test", {"width": "simple", "num_steps": 1}))
    x, y = (tf.constant(array) for array in pictures(4))
    exact, mixed = (
        make(CIFAR10, config, tf.reduce_mean, x, y)()
        for make in (training_throughput.our_step, training_throughput.our_bfloat16_step)
    )
    assert exact > 1 and exact != mixed
    assert mixed == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(
    "script, flag, expected",
    [
        ("attack_throughput.py", "--implementations=magic", "--implementations: expected some of"),
        ("attack_throughput.py", "--batch_size=few", "--batch_size: expected whole numbers"),
        ("attack_throughput.py", "--model_dir=no", "--model_dir: "),
        ("training_throughput.py", "--implementations=magic", "--implementations: expected ours"),
        ("distribution.py", "--devices=two", "--devices: expected numbers of 1 or more, got"),
        ("autoattack.py", "--attacks=", "--attacks: expected one or more, got none"),
        ("autoattack.py", "--attacks=magic", "--attacks: expected some of apgd_xent, "),
    ],
)
def test_wrong_flags(script, flag, expected, tmp_path):
    err = run(ROOT / "benchmarks" / script, flag, cwd=tmp_path, code=1)
    assert error_line(err).startswith(f"error: {expected}")


def test_a_network_of_another_size_is_refused():
    expected = "--model_dir: expected the network of --model, got natural"
    with pytest.raises(InputError, match=expected):
        attack_throughput.network_of(MNIST, {"scale": 2}, "natural")


@pytest.mark.parametrize("scale", [2, 16])
def test_the_shipped_network_is_used_if_it_has_the_size(scale):
    model = attack_throughput.network_of(MNIST, {"scale": scale})
    assert MNIST.size_of([tuple(weight.shape) for weight in model.weights]) == {"scale": scale}
    x, y = digits(100)
    is_trained = np.mean(np.argmax(model(x), axis=-1) == y) > 0.9
    assert is_trained == (scale == 16)


@pytest.mark.parametrize(
    "challenge, make, images",
    [
        (MNIST, lambda: build_model(2, seed=1), digits),
        (CIFAR10, lambda: normed_network("simple"), pictures),
    ],
    ids=["mnist", "cifar10"],
)
def test_plain_networks_are_the_challenges(challenge, make, images):
    model, (x, _) = make(), images(3)
    logits = plain.build_model(challenge, model.get_weights())(x, training=False)
    np.testing.assert_allclose(logits, model(x, training=False), rtol=1e-3, atol=1e-3)


def test_suites_are_run_in_both_arithmetics_and_kept(tmp_path):
    target = tmp_path / "r.json"
    flags = ["--num_images=5", "--suites=pgd", "--precisions=float32,bfloat16", "--seeds=3"]
    script = ROOT / "benchmarks" / "suites.py"
    run(script, *flags, "--output_json=r.json", cwd=tmp_path)
    entries = json.loads(target.read_text())["attacks"]
    assert list(entries) == ["pgd, float32, seed 3", "pgd, bfloat16, seed 3"]
    for name, entry in entries.items():
        assert entry["accuracy"] in (80.0, 100.0)
        (done,) = entry["attacks"]
        assert done["name"] == "paper_pgd_40" and done["num_gradients"] >= 4 * 40
        assert entry["precision"] in name
    written = target.read_bytes()
    again = run(script, *flags, "--output_json=r.json", cwd=tmp_path)
    assert again.splitlines()[-1].startswith("pgd, bfloat16, seed 3: ")
    assert target.read_bytes() == written


def test_a_step_in_torch_is_the_float32_step_to_rounding():
    pytest.importorskip("torch")
    for challenge, reduce_loss, (x, y) in (
        (MNIST, tf.reduce_sum, digits(4)),
        (CIFAR10, tf.reduce_mean, pictures(4)),
    ):
        size = {"num_steps": 1, "random_seed": 1, "step_size_schedule": [[0, 1e-3]]}
        if challenge is CIFAR10:
            size["width"] = "simple"
        config = make_config(challenge, ("test", size))
        arguments = (challenge, config, reduce_loss, tf.constant(x), tf.constant(y))
        theirs = training_throughput.torch_step(*arguments)
        plain_loss = training_throughput.plain_step(*arguments)()
        losses = [theirs() for _ in range(5)]
        # Ours has the weight decay in its loss, torch in its optimizer.
        decay = plain_loss - losses[0] if challenge is CIFAR10 else 0.0
        assert losses[0] + decay == pytest.approx(plain_loss, rel=0.03) and decay < 0.5
        assert losses[-1] < losses[0]


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
    is_rounded = "bfloat16" in name  # it decides the sign of small gradients
    differing = np.mean(np.abs(peers.to_images(attack()) - expected) > 1e-5)
    assert differing < (0.2 if is_rounded else 0.01)


def test_torch_network_of_cifar10_is_the_same():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_networks

    x, _ = pictures(3)
    model = normed_network("simple")
    theirs = torch_networks.Cifar10({weight.path: weight.numpy() for weight in model.weights})
    logits = theirs.eval()(torch.tensor(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(logits, model(tf.constant(x), training=False), rtol=1e-3, atol=1e-3)


# Ours and AutoAttack's.


def test_agreement_names_the_examples_that_only_one_breaks():
    ours, theirs = np.array([[1, 0, 0, 1, 1], [1, 0, 1, 0, 0]], bool)
    assert autoattack.agreement(ours, theirs) == {
        "accuracy": {"ours": 60.0, "theirs": 40.0},
        "withstood": {"ours": "10011", "theirs": "10100"},
        "only_ours_breaks": [2],
        "only_theirs_breaks": [3, 4],
    }


def autoattack_entry(ours, theirs, seconds):
    return {
        "withstood": {"ours": ours, "theirs": theirs},
        "seconds": {"ours": seconds, "theirs": 3 * seconds},
        "cpu_seconds": {"ours": seconds, "theirs": 2 * seconds},
    }


def test_the_worst_case_is_over_the_attacks_that_ran_alone():
    entries = {
        "square": autoattack_entry("1101", "1100", 1.0),
        "fab_targeted": autoattack_entry("1011", "1100", 2.0),
        "suite": autoattack_entry("0000", "0000", 10.0),
    }
    worst = autoattack.worst_case(entries)
    assert worst["attacks"] == ["square", "fab_targeted"]
    assert worst["withstood"] == {"ours": "1001", "theirs": "1100"}
    assert worst["seconds"] == {"ours": 3.0, "theirs": 9.0}
    assert (worst["ratio"], worst["cpu_ratio"]) == (3.0, 2.0)
    assert autoattack.worst_case({"suite": entries["suite"]})["attacks"] == ["suite"]


def test_a_comparison_resumes_with_its_own_results_only(tmp_path):
    what, path = {"model": "adv_trained", "seed": 1}, tmp_path / "result.json"
    assert measure.earlier_entries(path, what, autoattack.worst_case) == {}
    entries = {"square": autoattack_entry("10", "11", 1.0)}
    path.write_text(json.dumps({**what, "attacks": entries}))
    assert measure.earlier_entries(path, what, autoattack.worst_case) == entries
    with pytest.raises(InputError, match="the same comparison, got .*, which differs in seed"):
        measure.earlier_entries(path, {**what, "seed": 2}, autoattack.worst_case)
    for other in ({}, {**what, "attacks": {"square": {"ratio": 2.0}}}):
        path.write_text(json.dumps(other))
        with pytest.raises(InputError, match="--output_json: expected a new file, got "):
            measure.earlier_entries(path, what, autoattack.worst_case)


@pytest.mark.parametrize(
    "pixel, expected",
    [(0.8, False), (0.8 + 1e-7, False), (0.81, True), (0.2, False), (0.19, True), (np.nan, True)],
)
def test_what_leaves_the_ball_is_outside(pixel, expected):
    x_nat = np.full((2, 2, 2, 1), 0.5, np.float32)
    x_adv = x_nat.copy()
    x_adv[1, 0, 1, 0] = pixel
    outside = autoattack.is_outside(x_adv, x_nat, 0.3, (0.0, 1.0))
    np.testing.assert_array_equal(outside, [False, expected])


def test_what_leaves_the_pixel_range_is_outside():
    x_nat = np.float32([0.9, 0.9]).reshape(2, 1, 1, 1)
    x_adv = np.float32([1.0, 1.1]).reshape(2, 1, 1, 1)
    outside = autoattack.is_outside(x_adv, x_nat, 0.3, (0.0, 1.0))
    np.testing.assert_array_equal(outside, [False, True])


def test_a_missing_package_is_named():
    with pytest.raises(InputError, match="expected no-such-package, which is not installed"):
        peers.require("numpy", "no-such-package")


def test_ours_and_autoattacks_on_the_same_network():
    pytest.importorskip("torch")
    pytest.importorskip("pyautoattack")
    model = build_model(2, seed=1)
    images = (digits(6)[0] * 255).astype(np.uint8)
    labels = np.argmax(model(MNIST.to_pixels(images)), axis=1)
    labels[2] = (labels[2] + 1) % 10
    config = make_config(MNIST, ("test", {"eval_batch_size": 4, "epsilon": 0.3}))
    loaded = LoadedModel(fast_model(model, MNIST), model.weights, ROOT, model=model)
    test = Split(images, labels.astype(np.int32), "digits", "here", False)
    comparison = autoattack.Comparison(MNIST, config, loaded, test)
    np.testing.assert_array_equal(comparison.natural_correct, np.arange(6) != 2)

    entry = comparison.run("apgd_xent")
    for who in ("ours", "theirs"):
        # An untrained network withstands nothing.
        assert entry["withstood"][who] == "000000" and entry["accuracy"][who] == 0
        found = entry["found"][who]
        assert (found["num_found"], found["num_outside"], found["num_disputed"]) == (5, 0, 0)
        assert found["num_misclassified"] == {"keras": 5, "fast": 5, "torch": 5}
    assert entry["ratio"] == entry["seconds"]["theirs"] / entry["seconds"]["ours"]

    # A false claim does not count.
    x = MNIST.to_pixels(images)
    counts, withstood = comparison.verified(1 - x, comparison.natural_correct)
    assert counts["num_outside"] == 5 and withstood.sum() == 5
    counts, withstood = comparison.verified(x, comparison.natural_correct)
    assert counts["num_misclassified"]["keras"] == 0 and withstood.sum() == 5
