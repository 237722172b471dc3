"""The examples run; other libraries' attacks find on the shipped network what ours finds."""

import importlib.util
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from common.attack import PGD
from common.checkpoints import load_model
from mnist_challenge.challenge import MNIST

ROOT = pathlib.Path(__file__).resolve().parents[2]


EXAMPLES = ROOT / "examples"


def robust_accuracies(text):
    """The accuracies of the lines to quote."""
    return [float(number) for number in re.findall(r"^robust accuracy ([\d.]+)%", text, re.M)]


# Any Keras model.


@pytest.fixture
def printed(monkeypatch, capsys):
    """A function from an example's name and flags to what it prints."""

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        runpy.run_path(EXAMPLES / name, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_keras_fit_makes_a_network_robust(printed, tmp_path):
    path = tmp_path / "its.keras"
    out = printed("keras_fit.py", f"--save={path}")
    natural, robust = robust_accuracies(out)
    assert natural < 30 < 50 < robust
    assert keras.models.load_model(path).output_shape == (None, 10)


@pytest.mark.slow
def test_keras_fit_takes_any_set_of_tensorflow_datasets(tfds_dir, printed):
    flags = ["--dataset=mnist", f"--data_dir={tfds_dir}", "--images=210", "--epochs=1"]
    out = printed("keras_fit.py", *flags, "--suite=pgd")
    assert out.startswith("210 training images, 42 test images, epsilon 0.1")
    assert len(robust_accuracies(out)) == 2


@pytest.mark.slow
def test_a_network_of_keras_applications_is_attacked_at_its_own_size(printed):
    out = printed("keras_applications.py", "--images=3")
    assert ": 3 images, linf epsilon 1 of pixels in [0, 255], attacks: pgd" in out
    (accuracy,) = robust_accuracies(out)
    assert accuracy < 100


def code_of(notebook, **changes):
    """The code of a notebook's cells, with other values of some of its variables."""
    cells = json.loads(notebook.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for name, value in changes.items():
        code, count = re.subn(rf"^{name} = .*", f"{name} = {value}", code, flags=re.M)
        assert count == 1, name
    return code


def test_the_notebook_runs(monkeypatch, capsys):
    notebook = EXAMPLES / "quickstart.ipynb"
    assert notebook.stat().st_size < 200_000
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().axes)))
    code = code_of(notebook, epochs=1, suite="[lambda logits: attack(logits)]")
    exec(compile(code, notebook, "exec"), {"__name__": "__main__"})
    plt.close("all")
    assert shown == [1, 30]
    assert len(robust_accuracies(capsys.readouterr().out)) == 2


@pytest.mark.slow
def test_the_notebook_makes_a_network_robust(monkeypatch, capsys):
    monkeypatch.setattr(plt, "show", lambda: None)
    exec(code_of(EXAMPLES / "quickstart.ipynb"), {"__name__": "__main__"})
    plt.close("all")
    natural, robust = robust_accuracies(capsys.readouterr().out)
    assert natural < 30 < 50 < robust


# Other libraries.


@pytest.fixture(scope="module")
def our_accuracy():
    """In percent on 500 images: the mean of ten random starts, as a single one varies by 0.3."""
    test = MNIST.load("test", allow_sample=True).head(500)
    x_nat = MNIST.to_pixels(test.images)
    model = load_model(MNIST, "adv_trained")
    attack = PGD(model.logits, epsilon=0.3, step_size=0.01, num_steps=40)
    x_adv = [attack.perturb(x_nat, test.labels, seed=seed) for seed in range(10)]
    return 100 * np.mean([np.argmax(model.logits(x), axis=-1) == test.labels for x in x_adv])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(name) is None, reason="needs pip install -e '.[peers]'"
            ),
        )
        for name in ("foolbox", "cleverhans", "art")
    ],
)
def test_another_library_finds_what_ours_finds(name, our_accuracy, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"attack_with_{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    accuracy = float(done.stdout.split("\nadversarial: ")[1].rstrip("%\n"))
    assert accuracy == pytest.approx(our_accuracy, abs=0.5)
