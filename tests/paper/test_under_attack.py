"""Accuracies of the paper's tables: from cards, in parts, beside the paper's numbers."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from common import cards
from common.attack import PGD
from mnist_challenge import capacity
from mnist_challenge.challenge import MNIST
from paper import transfer, under_attack
from paper.item import Work, published
from paper.items import figure_4, figure_8, table_1, table_2, table_5
from paper.networks import NATURAL, ROBUST, ROBUST_B, SIMPLE_ROBUST, Network
from paper.results import Result
from paper.under_attack import Cell

KERNEL = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32) / 20
LINEAR = types.SimpleNamespace(logits=lambda x: tf.reshape(x, (-1, 784)) @ KERNEL)
OTHER = types.SimpleNamespace(logits=lambda x: tf.reshape(x, (-1, 784)) @ KERNEL[::-1])


def work(*models, count=40):
    """A part's work on images that LINEAR classifies correctly but for the first."""
    images = MNIST.load("sample").head(count)
    x_nat = np.asarray(MNIST.to_pixels(images.images), np.float32)
    labels = np.argmax(LINEAR.logits(x_nat), axis=1).astype(np.int32)
    labels[0] = (labels[0] + 1) % 10
    return Work(MNIST, models, dataclasses.replace(images, labels=labels), {"seed": 3})


def record_of(numbers):
    return {"networks": {}, "data": None, "version": 1, "run": 0, "seconds": 1, "numbers": numbers}


@pytest.mark.parametrize("models", [(LINEAR,), (LINEAR, OTHER)], ids=["white box", "transfer"])
def test_a_row_is_the_same_in_parts_as_in_one(models):
    whole = under_attack.accuracy(work(*models), "paper_pgd_40")
    first = under_attack.accuracy(work(*models, count=25), "paper_pgd_40")
    rest = under_attack.accuracy(work(*models), "paper_pgd_40", first=25)
    assert (first["num_examples"], rest["num_examples"]) == (25, 15)
    for key in ("accuracy", "loss"):
        assert (25 * first[key] + 15 * rest[key]) / 40 == pytest.approx(whole[key], rel=1e-3)
    task = work(*models)
    attack = PGD(models[-1].logits, epsilon=0.3, step_size=0.01, num_steps=40)
    x = attack.perturb(task.x_nat, task.y, seed=(3, 0))
    expected = 100 * np.mean(np.argmax(LINEAR.logits(x), axis=1) == task.y)
    assert whole["accuracy"] == pytest.approx(expected)
    assert whole["accuracy"] < 97.5 or len(models) == 2


def test_natural_and_targeted_rows():
    natural = under_attack.accuracy(work(LINEAR), "natural")
    assert natural["accuracy"] == 97.5 and not natural["card"]
    targeted = under_attack.accuracy(work(LINEAR), under_attack.TARGETED)
    assert targeted["accuracy"] < natural["accuracy"]


def test_a_row_with_restarts_is_made_in_parts_of_minutes():
    cell = Cell("x", Network(MNIST, "none", "robust"), "paper_pgd_100x20")
    parts = under_attack.parts([cell], 10000)
    assert len(parts) > 10 and parts[0].name == "x, images 0 to 769"
    lasts = [part.num_images for part in parts]
    assert lasts == sorted(set(lasts)) and lasts[-1] == 10000
    assert [p.name for p in under_attack.parts([cell], 100)] == ["x"]


def test_an_accuracy_on_a_card_is_not_computed_again():
    white_box = Cell("a", ROBUST, "paper_pgd_40")
    transferred = Cell("b", ROBUST, "paper_pgd_40", ROBUST_B)
    card = cards.read(MNIST, "adv_trained")
    for cell, source in ((white_box, None), (transferred, "adv_trained_b")):
        (part,) = under_attack.parts([cell], 10000)
        assert part.num_images is None and part.compute is None
        expected = cards.find(card, "paper_pgd_40", source)["accuracy"]
        assert part.known["accuracy"] == pytest.approx(expected)
        assert part.known["card_seconds"] > 0
        assert all(other.num_images is not None for other in part.otherwise)
    assert under_attack.card_row(white_box, 999) is None  # a sample is computed
    assert under_attack.card_row(Cell("c", NATURAL, "paper_cw"), 10000) is None  # it has 1,000


def test_a_source_that_has_changed_is_not_the_cards(monkeypatch):
    cell = Cell("b", ROBUST, "paper_pgd_40", ROBUST_B)
    assert under_attack.card_row(cell, 1000) is not None
    monkeypatch.setattr(Network, "digest", lambda network: "another")
    assert under_attack.card_row(cell, 1000) is None


def test_parts_add_up_to_an_accuracy_with_its_error():
    cell = Cell("x", Network(MNIST, "none", "robust"), "paper_pgd_100x20")
    item = types.SimpleNamespace(parts=lambda settings: under_attack.parts([cell], 1600))
    result = Result(item, {})
    names = [part.name for part in result.parts]
    assert len(names) == 2
    result.records[names[0]] = record_of(
        {"accuracy": 90.0, "num_examples": 800, "of": 1600, "card": False, "loss": 0.2}
    )
    assert under_attack.found(result, cell) is None
    result.records[names[1]] = record_of(
        {"accuracy": 70.0, "num_examples": 800, "of": 1600, "card": False, "loss": 0.4}
    )
    found = under_attack.found(result, cell)
    assert found.value == pytest.approx(80) and found.num_examples == 1600
    assert under_attack.loss(result, cell) == pytest.approx(0.3)
    assert found.sampling_error == pytest.approx(1.0, abs=0.01)
    assert under_attack.Accuracy(0.0, 1000, False).sampling_error > 0.1
    assert found.is_near(84) and not found.is_near(84.1)
    assert under_attack.difference(found, 82) == "-2.0 ± 1.0" and str(found) == "80.00 (1,600)"


def test_every_row_of_the_papers_tables_has_an_attack():
    assert len(table_1.cells()) == 17
    assert len({cell.name for _, cell in table_1.cells()}) == 17
    assert len(table_2.cells(SIMPLE_ROBUST)) == 10
    every = [(MNIST, cell) for _, cell in table_1.cells()]
    every += [(CIFAR10, cell) for target in table_2.SOURCES for _, cell in table_2.cells(target)]
    every += [(CIFAR10, cell) for *_, cells in table_5.rows() for cell in cells]
    every += [(CIFAR10, cell) for line in transfer.cells("paper_pgd_7") for cell in line]
    others = ("natural", under_attack.TARGETED)
    for challenge, cell in every:
        assert cell.row in others or cell.row in challenge.presets, cell
        assert all(network.challenge is challenge for network in cell.networks)


def test_the_diagonal_of_a_transfer_table_has_second_networks_alone():
    matrix = transfer.cells("paper_fgsm")
    names = published("table_3")["networks"]
    for number, line in enumerate(matrix):
        for place, cell in enumerate(line):
            assert cell.name == f"{names[number]} under {names[place]}"
            assert (cell.source.title == f"{cell.target.title}, other seed") == (number == place)


def test_figure_4s_networks_are_the_capacity_familys():
    names = {network.name for network in capacity.family("out", seeds=(0, 1, 2))}
    ours = {n.name for networks in figure_4.NETWORKS.values() for n in networks}
    shipped = {network.name for network in figure_4.SHIPPED.values()}
    assert ours - shipped <= names and len(ours - shipped) == 4 * 10 + 4


def test_angles_between_gradients():
    first = np.array([[1, 0], [2, 0], [1e-30, 0], [0, 0]], np.float32)
    second = np.array([[0, 3], [1, 1], [-1e-30, 0], [1, 1]], np.float32)
    np.testing.assert_allclose(figure_8.angles(first, second), [90, 45, 180], atol=1e-5)
