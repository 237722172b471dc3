"""The figure's command runs, and the tables in the READMEs are those of the results."""

import json
import pathlib
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest

from paper import readme_tables

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", readme_tables.TABLES, ids=lambda path: path.parent.name)
def test_tables_are_those_of_the_results(path):
    assert readme_tables.fill_in(path) == path.read_text()


def test_results_name_command_hardware_and_seed():
    files = list((ROOT / "paper" / "results").glob("*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text())
        assert result["command"].startswith("mnist_challenge/eval.py "), file
        assert result["hardware"]["processor"] and result["seconds"] > 0 and result["seed"] > 0
        assert "MNIST test set (10,000 images)" in result["data"]


def test_figure_of_digits(tmp_path):
    subprocess.run(
        [
            sys.executable,
            ROOT / "paper" / "adversarial_digits.py",
            "--model_dir=adv_trained",
            "--num_steps=2",
            "--output=digits.png",
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    picture = plt.imread(tmp_path / "digits.png")
    assert picture.shape[0] > 200 and picture.shape[1] > 1000 and picture.std() > 0.1


def test_python_of_the_readme_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = (ROOT / "README.md").read_text().split("```python\n")[1:]
    names = {}
    exec(code.split("```")[0], names)
    assert names["x_adv"].shape == (50, 28, 28, 1)
