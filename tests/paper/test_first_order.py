"""The numbers of the items of RQ1 and of the trainings, on cases computed by hand."""

import types

import numpy as np
import pytest
import tensorflow as tf

from mnist_challenge.challenge import MNIST
from paper.items import figure_2, figure_5, figure_7, figure_9, maxima
from paper.networks import NATURAL
from paper.results import Result
from tests.helpers import ROOT, error_line, run, train


def test_distances_and_angles_of_perturbations():
    delta = np.zeros((3, 2, 2, 1), np.float32)
    delta[0, 0, 0], delta[1, 0, 1], delta[2, 0, 0] = 3, 4, -1
    np.testing.assert_allclose(maxima.distances(delta), [5, 4, np.sqrt(17)], rtol=1e-6)
    np.testing.assert_allclose(maxima.angles(delta), [90, 180, 90])
    gradient = np.zeros((2, 2, 1), np.float32)
    gradient[0, 0] = 1e-25  # whose square is 0 in float32
    np.testing.assert_allclose(maxima.cosines(delta, gradient), [1, 0, -1], atol=1e-6)


@pytest.mark.parametrize("bends", [1, -1])
def test_segments_tell_a_convex_loss_from_a_concave_one(bends):
    """The first pixel's distance from 0.5 makes the logit of class 0 and thereby the loss."""

    def logits(x):
        z = bends * 8 * tf.square(x[:, 0, 0, 0] - 0.5)
        return tf.stack([-z, tf.zeros_like(z)], axis=1)

    x = np.zeros((2, 28, 28, 1), np.float32)
    x[1, 0, 0] = 1
    found = maxima.segments(types.SimpleNamespace(logits=logits), x, 0, 5)
    end, middle = np.log1p(np.exp(bends * 2)), np.log(2)
    assert found["loss at the ends"] == pytest.approx(end, rel=1e-5)
    assert found["loss in the middle"] == pytest.approx(middle, rel=1e-5)
    assert found["middles below both ends"] == (bends == 1)
    assert found["inner points below the line"] == (bends == 1)


def test_merged_histograms_are_that_of_all_losses(monkeypatch):
    """Losses that are the numbers of their starts, in chunks of two."""
    monkeypatch.setattr(figure_2, "CHUNK", 2)
    losses = np.array([3.2, 3.9, 7.5, 3.3, 5.0])
    monkeypatch.setattr(figure_2.ascent, "examples", lambda work, robust: [4])
    monkeypatch.setattr(
        figure_2.ascent, "maxima", lambda *words: losses[words[-2]].reshape(-1, 1, 1, 1)
    )
    monkeypatch.setattr(figure_2.ascent, "losses_at", lambda model, x, y: x.ravel())
    settings = {**figure_2.ITEM.settings, "num_images": 1, "mnist_restarts": 5}
    result = Result(figure_2.ITEM, {**settings, "cifar10_restarts": 1})
    assert figure_2.merged(result, NATURAL, 0) is None
    work = types.SimpleNamespace(
        models=(None, None), settings=settings, challenge=MNIST, x_nat=range(9), y=range(9)
    )
    for part in result.parts:
        if part.networks[0] is NATURAL:
            result.records[part.name] = {"numbers": part.compute(work)}
    merged = figure_2.merged(result, NATURAL, 0)
    assert merged["image"] == 4 and merged["count"] == 5
    np.testing.assert_array_equal(merged["bins"], [3, 4, 5, 6, 7])
    np.testing.assert_array_equal(merged["counts"], [3, 0, 1, 0, 1])
    assert merged["mode"] == 3.5 and merged["lowest"] == 3.2 and merged["highest"] == 7.5
    assert merged["mean"] == pytest.approx(losses.mean())
    assert merged["deviation"] == pytest.approx(losses.std())
    assert figure_2.outliers({**merged, "mean": 3.5, "deviation": 0.2}) == 2


def test_losses_along_a_direction_begin_at_the_image_and_end_at_the_perturbed_one():
    def logits(x):
        return tf.stack([-x[:, 0, 0, 0], tf.zeros_like(x[:, 0, 0, 0])], axis=1)

    x_nat = np.zeros((2, 28, 28, 1), np.float32)
    ends = np.stack([x_nat + 1, x_nat + 2])
    found = figure_7.losses_along(
        types.SimpleNamespace(logits=logits), x_nat, np.zeros(2, int), ends
    )
    for run_number, end in enumerate((1, 2)):
        expected = np.log1p(np.exp(np.linspace(0, end, figure_7.NUM_POINTS)))
        np.testing.assert_allclose(found[0, run_number], expected, rtol=1e-5)


def test_a_threshold_filter_is_live_with_one_weight():
    first, second = np.zeros((5, 5, 1, 4), np.float32), np.zeros((5, 5, 4, 3), np.float32)
    first[0, 2, 0, 1], first[4, 4, 0, 3], first[..., 0] = 1.2, -0.5, 0.1
    second[:, :, 1, 2], second[0, 0, 0, 0] = 2, -3
    weights = [first, None, second]
    work = types.SimpleNamespace(models=[types.SimpleNamespace(model=None)])
    work.models[0].model = types.SimpleNamespace(weights=weights[:1] + [np.zeros(4)] + weights[2:])
    numbers = figure_9.filters(work)
    assert numbers["non-zero weights"] == [0, 1, 0, 1]
    assert numbers["second"][2] == [2.0] * 25
    assert figure_9.ends_of(numbers) == (0, 2)  # as drawn; -3 is of another filter


@pytest.mark.slow
def test_a_trainings_losses_are_drawn(tmp_path):
    train(MNIST, tmp_path / "training", num_summary_steps=2)
    script = ROOT / "paper" / "reproduce.py"
    out = run(script, "figure_5", "--sample", "--mnist_training=training", cwd=tmp_path)
    assert "figure_5: not reproduced, with" in out or "figure_5: in part" in out
    result = Result.read(figure_5.ITEM, tmp_path / "paper_sample")
    numbers = result.numbers["MNIST"]
    assert numbers["step"] == [0, 2, 4] and len(numbers["loss"]) == 3
    assert numbers["config"]["adversary"] == "pgd"
    assert str(tmp_path) not in (tmp_path / "paper_sample/results/figure_5.json").read_text()
    assert (tmp_path / "paper_sample" / "figures" / "figure_5.png").exists()
    flag = "--cifar10_training=paper_sample"
    err = run(script, "figure_5", "--sample", "--afresh", flag, cwd=tmp_path, code=1)
    assert "--cifar10_training: expected the directory of an adversarial" in error_line(err)


def test_the_average_is_that_of_a_window():
    step = np.arange(0, 10000, 100)
    numbers = {"step": step, "loss": step / 100}
    smoothed = figure_5.smoothed(numbers, "MNIST")  # a tenth of the steps, less than the paper's
    assert smoothed[50] == 50 and smoothed[0] == 2 and smoothed[99] == 97
    often = {"step": np.arange(10000), "loss": np.arange(10000.0)}  # logged more often
    assert figure_5.smoothed(often, "MNIST")[0] == pytest.approx(247.5, abs=2.5)
    long = {"step": step * 10, "loss": step / 100}  # 2,500 steps to each side, as in the paper
    assert figure_5.smoothed(long, "MNIST")[0] == 1
