"""Rows of a table survive failed writes."""

import json
import os

import pytest

from common import checkpoints
from common.attack import PGD
from common.config import make_config
from common.errors import InputError
from common.evaluation import presets
from common.evaluation.presets import evaluate_row
from mnist_challenge.challenge import MNIST


@pytest.fixture(scope="module")
def loaded():
    return checkpoints.load_model(MNIST, "adv_trained")


@pytest.fixture(scope="module")
def config():
    return make_config(MNIST, ("test", {"eval_batch_size": 4}))


@pytest.fixture(scope="module")
def images():
    return MNIST.load("sample").head(8)


def no_attacks(monkeypatch):
    monkeypatch.setattr(PGD, "perturb", lambda *args, **options: pytest.fail("attacks again"))


def full(*args):
    raise InputError("cannot write it: No space left on device")


def test_a_row_that_cannot_be_recorded_is_recorded_later_without_an_attack(
    loaded, config, images, tmp_path, monkeypatch
):
    arguments = (MNIST, config, "paper_fgsm", loaded, images, tmp_path, None)
    with pytest.raises(InputError, match="No space left on device"):
        evaluate_row(*arguments, full)
    (state,) = os.listdir(tmp_path)
    assert state.startswith("paper_fgsm-") and state.endswith(".npz")
    no_attacks(monkeypatch)
    recorded = []

    def record(found):
        assert os.listdir(tmp_path) == [state]  # it is removed only then
        recorded.append(found)

    assert evaluate_row(*arguments, record) == recorded[0]
    assert recorded[0]["num_attacks"] == 8 and os.listdir(tmp_path) == []


def test_a_finished_row_that_cannot_be_kept_is_kept_later_without_an_attack(
    loaded, config, images, tmp_path, monkeypatch
):
    arguments = (MNIST, config, "paper_fgsm", loaded, images, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left on device"):
        patch.setattr(presets, "write_json", full)
        evaluate_row(*arguments)
    no_attacks(monkeypatch)
    found = evaluate_row(*arguments)
    (kept,) = os.listdir(tmp_path)
    assert kept.endswith(".json") and evaluate_row(*arguments) == found
    content = json.loads((tmp_path / kept).read_text())
    assert content["found"].pop("num_undefined") == found.pop("num_undefined") == 0
    (tmp_path / kept).write_text(json.dumps(content))  # as earlier versions kept it
    assert evaluate_row(*arguments) == found and os.listdir(tmp_path) == [kept]
