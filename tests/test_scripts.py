"""The scripts as users run them, on real images: train, resume, evaluate, attack, score."""

import json
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import ROOT, checkpoint_arrays, error_line, run, start

MNIST_TINY = ("--scale=1", "--num_steps=2", "--step_size=0.1", "--training_batch_size=10")
CIFAR10_TINY = ("--width=simple", "--num_steps=1", "--training_batch_size=4")
FLOAT32 = "--precision=float32"


@pytest.fixture(scope="module")
def mnist_dir(tmp_path_factory, data_dir):
    """A training of 4 steps."""
    place = tmp_path_factory.mktemp("mnist")
    run(
        ROOT / "mnist_challenge" / "train.py",
        "--model_dir=run",
        "--max_num_training_steps=4",
        *MNIST_TINY,
        cwd=place,
        data_dir=data_dir,
    )
    return place


@pytest.mark.slow
def test_interrupted_training_resumes_bit_for_bit(tmp_path, data_dir):
    script = ROOT / "mnist_challenge" / "train.py"
    settings = (*MNIST_TINY, "--num_output_steps=5")
    process = start(script, "--model_dir=parts", *settings, cwd=tmp_path, data_dir=data_dir)
    for line in process.stdout:
        if line.startswith("Step 10:"):
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command resumes there" in out
    stopped = int(tf.train.latest_checkpoint(str(tmp_path / "parts")).rpartition("-")[2])
    assert stopped > 10
    end = f"--max_num_training_steps={stopped + 3}"
    out = run(script, "--model_dir=parts", *settings, end, cwd=tmp_path, data_dir=data_dir)
    assert f"resuming at step {stopped}" in out
    run(script, "--model_dir=whole", *settings, end, cwd=tmp_path, data_dir=data_dir)
    whole, parts = checkpoint_arrays(tmp_path / "whole"), checkpoint_arrays(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_training_whose_terminal_or_reader_is_gone_leaves_a_checkpoint(tmp_path, data_dir):
    script = ROOT / "mnist_challenge" / "train.py"
    settings = (*MNIST_TINY, "--num_output_steps=5")
    ended = {}
    for name in ("hung up", "closed"):
        process = start(script, f"--model_dir={name}", *settings, cwd=tmp_path, data_dir=data_dir)
        for line in process.stdout:
            if line.startswith("Step 10:"):
                break
        if name == "hung up":
            process.send_signal(signal.SIGHUP)
        process.stdout.close()
        err = process.stderr.read()
        ended[name] = process.wait(timeout=60)
        assert "Traceback" not in err and "Error" not in err, err
        newest = tf.train.latest_checkpoint(str(tmp_path / name))
        assert int(newest.rpartition("-")[2]) > 10
    assert ended == {"hung up": 128 + signal.SIGHUP, "closed": 128 + signal.SIGPIPE}


def test_ctrl_c_during_start_up_is_one_line(tmp_path):
    process = start(ROOT / "cifar10_challenge" / "eval.py", cwd=tmp_path, afresh=True)
    time.sleep(1.0)  # imports of TensorFlow and Keras take three times that
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_eval_prints_and_records_bfloat16(mnist_dir, data_dir, tmp_path):
    script = ROOT / "mnist_challenge" / "eval.py"
    flags = ("--num_eval_examples=60", "--num_steps=3", f"--model_dir={mnist_dir / 'run'}")
    for precision in ("bfloat16", "float32"):
        asked = (f"--precision={precision}", f"--output_json={precision}.json")
        out = run(script, *flags, *asked, cwd=tmp_path, data_dir=data_dir)
        line = f"arithmetic of attacks: {precision} (as asked for); of every accuracy: float32"
        assert line in out.splitlines()
    exact, rounded = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("float32", "bfloat16")
    )
    assert rounded["attack"] == {**exact["attack"], "precision": "bfloat16"}
    assert rounded["natural_accuracy"] == exact["natural_accuracy"]
    assert rounded["natural_loss"] == exact["natural_loss"]
    assert rounded["adversarial_loss"] != exact["adversarial_loss"]


def test_eval_runs_three_ways_and_agrees(mnist_dir, data_dir, tfds_dir, tmp_path):
    flags = ("--num_eval_examples=60", "--num_steps=3", f"--model_dir={mnist_dir / 'run'}")
    by_path = run(
        ROOT / "mnist_challenge" / "eval.py",
        f"--output_json={tmp_path / 'r.json'}",
        *flags,
        cwd=tmp_path,
        data_dir=data_dir,
    )
    by_module = run("-m", "mnist_challenge.eval", *flags, cwd=ROOT, data_dir=tfds_dir)
    inside = run("eval.py", *flags, cwd=ROOT / "mnist_challenge", data_dir=data_dir)
    numbers = [out.splitlines()[-4:] for out in (by_path, by_module, inside)]
    assert numbers[0] == numbers[1] == numbers[2]
    result = json.loads((tmp_path / "r.json").read_text())
    assert numbers[0][0] == f"natural: {result['natural_accuracy']:.2f}%"
    assert numbers[0][1] == f"adversarial: {result['adversarial_accuracy']:.2f}%"
    assert (result["num_examples"], result["num_gradients"]) == (60, 180)
    low, high = result["confidence_interval"]
    assert 0 <= low <= result["adversarial_accuracy"] <= high <= 100
    assert "60 images, 180 gradients; 95% confidence interval" in by_path
    assert f"accuracy: {low:.2f}% to {high:.2f}%" in by_path
    assert "first 60 of: MNIST test set" in by_path


def test_watch_follows_the_checkpoints(mnist_dir, data_dir, tmp_path):
    process = start(
        ROOT / "mnist_challenge" / "eval.py",
        "--watch",
        "--num_eval_examples=20",
        "--num_steps=1",
        f"--model_dir={mnist_dir / 'run'}",
        cwd=tmp_path,
        data_dir=data_dir,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("waiting"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("interrupted\n")
    assert any(line.startswith("adversarial: ") for line in lines)
    assert list((mnist_dir / "run" / "eval").glob("events.out.tfevents.*"))


def test_attack_file_from_making_to_scoring(mnist_dir, data_dir, tmp_path):
    attack = ROOT / "mnist_challenge" / "pgd_attack.py"
    score = ROOT / "mnist_challenge" / "run_attack.py"
    flags = ("--num_eval_examples=60", f"--model_dir={mnist_dir / 'run'}")
    made = run(attack, "--num_steps=3", *flags, cwd=tmp_path, data_dir=data_dir)
    accuracy = made.split("Accuracy under attack: ")[1].splitlines()[0]
    scored = run(score, *flags, cwd=tmp_path, data_dir=data_dir)
    assert f"Accuracy: {accuracy}" in scored
    assert "another model" not in scored
    predictions = np.load(tmp_path / "pred.npy")
    assert predictions.shape == (60,)
    note = json.loads((tmp_path / "attack.npy.json").read_text())
    assert note["attack"]["num_steps"] == 3

    x_adv = np.load(tmp_path / "attack.npy")
    assert x_adv.shape == (60, 784)
    x_adv[7, 3] = np.nan
    np.save(tmp_path / "bad.npy", x_adv)
    (tmp_path / "pred.npy").unlink()
    err = run(score, "--store_adv_path=bad.npy", *flags, cwd=tmp_path, data_dir=data_dir, code=1)
    assert "found NaN (image 7" in error_line(err)
    assert not (tmp_path / "pred.npy").exists()

    note["model_digest"] = "0" * 64
    (tmp_path / "attack.npy.json").write_text(json.dumps(note))
    assert "another model" in run(score, *flags, cwd=tmp_path, data_dir=data_dir)


CIFAR10_FEW = ("--model_dir=run", "--num_eval_examples=10", "--eval_batch_size=4", "--num_steps=1")


def test_cifar10_trains_and_evaluates(data_dir, tmp_path):
    folder, at = ROOT / "cifar10_challenge", {"cwd": tmp_path, "data_dir": data_dir}
    tiny = ("--max_num_training_steps=1", FLOAT32, *CIFAR10_TINY)
    assert "trained 1 steps" in run(folder / "train.py", "--model_dir=run", *tiny, **at)
    assert "adversarial: " in run(folder / "eval.py", FLOAT32, *CIFAR10_FEW, **at)


@pytest.mark.slow
def test_cifar10_trains_resumes_evaluates_and_is_attacked(data_dir, tmp_path):
    folder, few = ROOT / "cifar10_challenge", CIFAR10_FEW
    tiny = ("--model_dir=run", FLOAT32, *CIFAR10_TINY)
    at = {"cwd": tmp_path, "data_dir": data_dir}
    run(folder / "train.py", "--max_num_training_steps=1", *tiny, **at)
    out = run(folder / "train.py", "--max_num_training_steps=2", *tiny, **at)
    assert "resuming at step 1 of 2" in out
    assert "adversarial: " in run(folder / "eval.py", FLOAT32, *few, **at)
    out = run(folder / "pgd_attack.py", FLOAT32, *few, **at)
    accuracy = out.split("Accuracy under attack: ")[1].splitlines()[0]
    assert f"Accuracy: {accuracy}" in run(folder / "run_attack.py", *few[:3], **at)
    assert np.load(tmp_path / "attack.npy").shape == (10, 32, 32, 3)


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("mnist_challenge/eval.py", ("--epsilon=8",), "did you mean 0.03137 (8/255)?"),
        ("cifar10_challenge/train.py", ("--epsilon=0.03",), "pixels are in [0, 255]"),
        ("mnist_challenge/eval.py", ("--preset=paper",), "--preset: expected one of paper_fgsm"),
        ("mnist_challenge/run_attack.py", (), "cannot read the attack file attack.npy"),
        ("mnist_challenge/eval.py", ("--num_step=3",), "Did you mean: num_steps"),
        (
            "mnist_challenge/eval.py",
            ("--scale=1",),
            "--scale: expected a setting that eval.py uses",
        ),
        ("cifar10_challenge/train.py", ("--num_restarts=2",), "expected a setting that train.py"),
        ("cifar10_challenge/eval.py", ("--nobatch_statistics",), "--nobatch_statistics: expected"),
        (
            "mnist_challenge/eval.py",
            ("--watch", "--model_dir=adv_trained"),
            "--watch: expected a training directory",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_1(script, flags, message, tmp_path):
    err = run(ROOT / script, "--model_dir=none", *flags, cwd=tmp_path, code=1)
    assert message in error_line(err)
    assert list(tmp_path.iterdir()) == []


def test_the_readme_command_without_data_or_network(tmp_path):
    """The shipped network on the shipped sample, said in one line."""
    script = ROOT / "mnist_challenge" / "eval.py"
    out = run(script, "--num_eval_examples=100", cwd=tmp_path, afresh=True)
    lines = out.splitlines()
    assert "shipped sample: 1,000 images" in out
    # The published numbers are of the whole test set.
    number, _, published = lines[-4].removeprefix("natural: ").partition("%")
    assert float(number) > 95 and published == ""
    number, _, published = lines[-3].removeprefix("adversarial: ").partition("%")
    assert float(number) > 80 and published == ""
    assert "preset: paper_pgd_40" in lines


def test_a_shipped_name_is_taken_by_every_script(tmp_path):
    few = ("--model_dir=adv_trained", "--num_eval_examples=20")
    folder = ROOT / "mnist_challenge"
    out = run(folder / "eval.py", "--num_steps=1", *few, cwd=tmp_path)
    assert f"model: {folder / 'models' / 'adv_trained'}\n" in out
    made = run(folder / "pgd_attack.py", "--num_steps=1", *few, cwd=tmp_path)
    accuracy = made.split("Accuracy under attack: ")[1].splitlines()[0]
    scored = run(folder / "run_attack.py", *few, cwd=tmp_path)
    assert f"Accuracy: {accuracy}" in scored
    out = run(folder / "compare.py", "--rows=natural", *few, cwd=tmp_path)
    assert f"model: {folder / 'models' / 'adv_trained'}\n" in out
