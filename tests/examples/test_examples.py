"""Other libraries attack the shipped network by their own PGD, and find what ours finds."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from common.attack import PGD
from common.checkpoints import load_model
from mnist_challenge.challenge import MNIST

ROOT = pathlib.Path(__file__).resolve().parents[2]


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
        [sys.executable, ROOT / "examples" / f"attack_with_{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    accuracy = float(done.stdout.split("\nadversarial: ")[1].rstrip("%\n"))
    assert accuracy == pytest.approx(our_accuracy, abs=0.5)
