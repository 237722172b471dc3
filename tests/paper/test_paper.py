"""The figures' commands run, and the tables in the READMEs are those of the results."""

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


@pytest.mark.parametrize(
    "script, flags",
    [
        ("adversarial_digits.py", ("--num_steps=2",)),
        ("training_curve.py", ()),
        ("loss_along_pgd.py", ("--num_steps=3", "--num_restarts=2", "--num_images=2")),
        (
            "accuracy_against_epsilon.py",
            ("--num_steps=2", "--epsilons=0.3,0.4", "--num_eval_examples=20"),
        ),
    ],
)
def test_figures(script, flags, tmp_path):
    subprocess.run(
        [
            sys.executable,
            ROOT / "paper" / script,
            "--model_dir=adv_trained",
            "--output=picture.png",
            *flags,
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    picture = plt.imread(tmp_path / "picture.png")
    assert picture.shape[0] > 200 and picture.shape[1] > 600 and picture.std() > 0.1


def test_python_of_the_readme_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = (ROOT / "README.md").read_text().split("```python\n")[1:]
    names = {}
    exec(code.split("```")[0], names)
    assert names["x_adv"].shape == (50, 28, 28, 1)
