"""The contents of an installation without -e."""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_holds_every_shipped_model_and_no_training(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    files = files_in(ROOT / "mnist_challenge" / "models" / "adv_trained") | {"card.json"}
    models = {f"{model}/{name}" for model in ("adv_trained", "another") for name in files}
    training = ("checkpoint", "checkpoint-300.index", "config.json", "saved_model/saved_model.pb")
    others = {f"a_very_robust_model/{name}" for name in training}
    others |= {f"published/secret/{name}" for name in files}
    for package in ("common", "mnist_challenge", "cifar10_challenge", "paper"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for challenge in ("mnist_challenge", "cifar10_challenge"):
        for name in models | others:
            path = tmp_path / challenge / "models" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib=built"]
    subprocess.run(command, cwd=tmp_path, check=True)
    for challenge in ("mnist_challenge", "cifar10_challenge"):
        assert files_in(tmp_path / "built" / challenge / "models") == models
    assert not (tmp_path / "built" / "paper").exists()
