"""The rules of figures: the paper's own numbers keep all of them, others break them."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

from common.errors import InputError
from mnist_challenge.challenge import MNIST
from paper import accuracy_against_epsilon, training_curve
from paper.item import NOT_REPRODUCED, REPRODUCED, Work, published
from paper.items import (
    figure_1,
    figure_2,
    figure_5,
    figure_6,
    figure_7,
    figure_8,
    figure_11,
    figure_12,
)
from paper.networks import NATURAL, ROBUST, SIMPLE_NATURAL, SIMPLE_ROBUST
from paper.results import Result


class Everything:
    """A source that has every network."""

    def exists(self, network):
        return True

    def is_shipped(self, network):
        return False


def result_of(item, numbers, **settings):
    """A `Result` with the numbers of parts by their names."""
    result = Result(item, {**item.settings, **settings}, source=Everything())
    names = {part.name for part in result.parts}
    assert set(numbers) <= names, set(numbers) - names
    for name, values in numbers.items():
        result.records[name] = {"numbers": values}
    return result


def failures(result):
    return [text for text in result.item.verdict(result).criteria if text.startswith("fails")]


def labels_of(figure):
    """The texts of a figure's legends."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def of_figure_6(accuracy=lambda attack, paper: paper, num_images=1000):
    """Our numbers of Figure 6, made from the paper's; AutoAttack is left out."""
    numbers = {}
    for panel, network, attack, epsilon in figure_6.curve_names(figure_6.ITEM.settings):
        name = figure_6.CURVES.get((attack, network))
        theirs = published("figure_6")[panel].get(name)
        if theirs is None:
            continue
        of_mnist = network.challenge is MNIST
        sizes = num_images if of_mnist else 500, figure_6.CHUNKS[network.challenge.name]
        for first, last in figure_6.chunks(*sizes):
            numbers[figure_6.part_name(panel, network, attack, epsilon, first)] = {
                "epsilon": theirs["epsilon"],
                "accuracy": [accuracy(attack, paper) for paper in theirs["accuracy"]],
                "num_examples": last - first,
            }
    return numbers


def test_the_papers_own_numbers_reproduce_figure_6():
    result = result_of(figure_6.ITEM, of_figure_6())
    verdict = figure_6.ITEM.verdict(result)
    assert verdict.word == REPRODUCED and len(verdict.criteria) == 10
    assert any("85 points more than PGD (needed: 43; paper 85)" in c for c in verdict.criteria)
    assert any("falls by 65 points" in c for c in verdict.criteria)
    worse = of_figure_6(lambda attack, paper: paper - 5.1)
    worse = failures(result_of(figure_6.ITEM, worse))
    assert len(worse) == 8 and all("5.1 points from the paper's" in text for text in worse)
    flat = of_figure_6(lambda attack, paper: 50)
    assert len(failures(result_of(figure_6.ITEM, flat))) == 10


def test_figure_6_shows_a_curve_once_all_its_chunks_are_there():
    numbers = of_figure_6()
    name = figure_6.part_name("mnist_linf", ROBUST, figure_6.PGD, None, 100)
    assert numbers[name]["num_examples"] == 100
    numbers[name] = {**numbers[name], "accuracy": [0.0] * 15}
    result = result_of(figure_6.ITEM, numbers)
    epsilons, accuracies, count = figure_6.curve(result, "mnist_linf", ROBUST, figure_6.PGD)
    assert count == 1000 and epsilons[1] == 0.03
    assert accuracies[0] == pytest.approx(0.9 * 98.53)  # one chunk of ten has nothing
    labels = labels_of(figure_6.draw(result))
    assert "paper: robust, boundary attack" in labels and "paper: natural, PGD" in labels
    assert "ours: robust, PGD" in labels and "ours: robust, AutoAttack" not in labels
    del result.records[name]
    assert figure_6.curve(result, "mnist_linf", ROBUST, figure_6.PGD) is None
    assert figure_6.curve(result, "mnist_l2", ROBUST, figure_6.PGD) is not None


def test_figure_6_has_parts_of_minutes_and_the_images_that_it_promises():
    parts = figure_6.ITEM.parts(figure_6.ITEM.settings)
    assert max(part.weight for part in parts) < 40 * 60
    assert figure_6.ITEM.minutes == pytest.approx(sum(p.weight for p in parts) / 120, abs=1)
    for challenge, count in ((MNIST, 1000), (SIMPLE_ROBUST.challenge, 500)):
        own = [part for part in parts if part.networks[0].challenge is challenge]
        for attack in (figure_6.PGD, figure_6.BOUNDARY, figure_6.SUITE):
            assert max(part.num_images for part in own if attack in part.name) == count


KERNEL = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32) / 20
LINEAR = types.SimpleNamespace(logits=lambda x: tf.reshape(x, (-1, 784)) @ KERNEL)


def test_a_chunk_of_figure_6_has_the_random_starts_of_the_whole():
    images = MNIST.load("sample").head(12)
    x_nat = np.asarray(MNIST.to_pixels(images.images), np.float32)
    labels = np.argmax(LINEAR.logits(x_nat), axis=1).astype(np.int32)
    images = dataclasses.replace(images, labels=labels)
    settings = {**figure_6.ITEM.settings, "num_steps": 3}
    epsilons = [0.0, 0.004, 0.008, 0.012, 0.016]

    def found(last, first):
        few = dataclasses.replace(images, images=images.images[:last], labels=labels[:last])
        work = Work(MNIST, (LINEAR,), few, settings)
        return figure_6.under_pgd(work, "linf", epsilons, first)

    whole, first, rest = found(12, 0), found(7, 0), found(12, 7)
    assert (first["num_examples"], rest["num_examples"]) == (7, 5)
    together = np.average([first["accuracy"], rest["accuracy"]], axis=0, weights=[7, 5])
    np.testing.assert_allclose(together, whole["accuracy"], atol=0.01)
    assert len(set(whole["accuracy"])) > 2  # or there is nothing to see


def test_the_papers_epsilons_and_curves_are_those_of_figure_6():
    assert accuracy_against_epsilon.epsilons_of_paper(MNIST, "l2") == [k / 2 for k in range(13)]
    curve = accuracy_against_epsilon.paper_curve(MNIST, "l2", "boundary", "robust")
    assert curve["accuracy"][5] == 1.22
    natural = SIMPLE_NATURAL.challenge, "linf", "pgd", "natural"
    assert accuracy_against_epsilon.paper_curve(*natural) is None


def of_figure_8(change=lambda place, paper: paper):
    """Our numbers of Figure 8, made from the paper's."""
    numbers = {}
    for pair in figure_8.PAIRS:
        theirs = published("figure_8").get(pair)
        if theirs is not None:
            ours = [change(place, paper) for place, paper in enumerate(theirs)]
            entries = {"num_examples": 10000, "card": False}
            for cell, accuracy in zip(figure_8.cells(pair), ours[:6], strict=True):
                numbers[cell.name] = {"accuracy": accuracy, **entries}
            keys = ("mean", "deviation", "mean of random pairs", "deviation of random pairs")
            numbers[f"{pair}, gradients"] = dict(zip(keys, ours[6:], strict=True))
    return numbers


def test_the_papers_own_numbers_reproduce_figure_8():
    result = result_of(figure_8.ITEM, of_figure_8())
    assert figure_8.ITEM.verdict(result).word == REPRODUCED
    # Five for each pair, two more for FGSM's leak, and four for very large networks.
    assert len(figure_8.ITEM.verdict(result).criteria) == 4 * 5 + 2 + 4


@pytest.mark.parametrize(
    "place, shift, words",
    [
        (2, 8, ["FGSM leaves 11.9 of the source", "FGSM leaves 15.2 of the source"]),
        (5, 20, ["PGD leaves 0.0 of the source, 46.0", "PGD leaves -4.1 points less"]),
        (6, 9, ["the mean angle is 88.0", "it is 2.0 degrees below"]),
    ],
)
def test_other_numbers_break_figure_8(place, shift, words):
    changed = of_figure_8(lambda number, paper: min(paper + shift * (number == place), 100))
    found = failures(result_of(figure_8.ITEM, changed))
    for text in words:
        assert any(text in criterion for criterion in found), found


def ends_of_paper(network, image, attack, whose):
    """The paper's ends of Figure 7 as runs, whose last loss is that end."""
    ends = published("figure_7")[figure_7.PANELS[network]][f"{whose} {attack}"][image]
    return [[0.1, float(end)] for end in np.atleast_1d(ends)]


def test_the_papers_own_numbers_reproduce_figure_7_and_ours_alone_do_not_count():
    numbers = {
        f"{network.label}: {whose}": {
            attack: [ends_of_paper(network, image, attack, whose) for image in range(5)]
            for attack in figure_7.ATTACKS
        }
        for network in figure_7.PANELS
        for whose in ("own", "copy's")
    }
    result = result_of(figure_7.ITEM, numbers)
    verdict = figure_7.ITEM.verdict(result)
    assert verdict.word == REPRODUCED and len(verdict.criteria) == 5
    losses = {"FGSM": [[[0.0, 2.0]]] * 5, "PGD": [[[0.0, 1.0]]] * 5}
    result.records[f"{ROBUST.label}: own"] = {"numbers": losses}
    assert figure_7.ITEM.verdict(result) == verdict  # the paper has no MNIST row
    assert any(ROBUST.label in line for line in figure_7.table(result))
    of_natural = numbers[f"{SIMPLE_NATURAL.label}: own"]
    of_natural["FGSM"] = of_natural["PGD"]  # as high is not above
    assert len(failures(result)) == 2


def test_a_statement_of_figures_1_and_11_holds_in_all_panels_or_not():
    theirs = published("figure_1")
    numbers = {
        network.label: {
            "image": 0,
            "losses": [theirs[panel][name] for name in ("lowest", "highest")],
        }
        for network, panel in figure_1.PANELS.items()
    }
    result = result_of(figure_1.ITEM, numbers)
    assert figure_1.ITEM.verdict(result).word == REPRODUCED
    assert figure_1.table(result)[-1] == "3 of the rule's 3 statements hold in all panels."
    low = numbers[NATURAL.label]["losses"]
    numbers[NATURAL.label]["losses"] = [np.divide(run, 20).tolist() for run in low]
    assert len(failures(result)) == 1
    assert figure_1.table(result)[-1] == "2 of the rule's 3 statements hold in all panels."
    found = figure_1.verdict_by_statements({"a": [(True, "x"), (False, "y")]})
    assert found.word == NOT_REPRODUCED and found.criteria == ("holds: x", "fails: y")


def test_the_papers_own_ends_reproduce_figure_11_which_draws_each_images_own(monkeypatch):
    numbers = {
        network.label: {
            "images": [
                {"image": 7, **{name: [end[name]] * 3 for name in end}}
                for end in published("figure_11")[network.label]
            ]
        }
        for network in figure_11.PANELS
    }
    result = result_of(figure_11.ITEM, numbers)
    assert figure_11.ITEM.verdict(result).word == REPRODUCED
    drawn = []
    monkeypatch.setattr(figure_11, "draw_paper", lambda axis, theirs: drawn.append(theirs["mean"]))
    figure = figure_11.draw(result)
    assert [mean[-1] for mean in drawn] == [132.0, 4.493, 73.25, 0.3725]
    ends = [
        [entry["mean"] for entry in published("figure_11")[network.label]]
        for network in figure_11.PANELS
    ]
    for row, network in zip(ends, figure_11.PANELS, strict=True):
        curve = published("figure_1")[figure_1.PANELS[network]]["mean"]
        assert row[figure_11.OF_FIGURE_1[network]] == pytest.approx(curve[-1], rel=0.01)
    assert "paper: range of the ends of its runs" in labels_of(figure)


def test_a_histogram_of_figure_2_is_held_against_its_own_data_sets():
    def entry(lowest, highest):
        return {
            "sum": 100.0,
            "squares": 10100.0,  # a deviation of 10
            "counts": [1],
            "first bin": 100,
            "lowest": lowest,
            "highest": [highest],
            "image": 0,
        }

    numbers = {
        figure_2.part_name(network, 0, 0): entry(*ends)
        for network, ends in (
            (NATURAL, (70.0, 130.0)),  # 0.60 of the mode at 100.5
            (ROBUST, (1.0, 2.0)),
            (SIMPLE_NATURAL, (70.0, 130.0)),
            (SIMPLE_ROBUST, (1.0, 2.0)),
        )
    }
    settings = {"num_images": 1, "mnist_restarts": 1, "cifar10_restarts": 1}
    found = failures(result_of(figure_2.ITEM, numbers, **settings))
    assert found == ["fails: MNIST, natural: range 0.60 of the mode (at most 0.54)"]


def test_half_the_papers_fall_is_near_enough_for_figure_5():
    theirs = published("figure_5")["MNIST"]

    def numbers(scale):
        return {"step": [0, 100], "loss": [theirs["loss"][0], scale * theirs["loss"][-1]]}

    def word(scale):
        name = {"MNIST": numbers(scale)}
        return figure_5.ITEM.verdict(result_of(figure_5.ITEM, name, mnist_training="x")).word

    assert word(1.9) == REPRODUCED and word(2.1) == NOT_REPRODUCED


@pytest.mark.parametrize("path", ["/tmp/training", "../training", "~/training", "a/../../b"])
def test_a_training_is_named_by_a_path_that_may_be_published(path):
    with pytest.raises(InputError, match="--mnist_training: expected a path below the current"):
        figure_5.training_directory("mnist_training", path)
    assert str(figure_5.training_directory("mnist_training", "models/full")) == "models/full"


def test_a_trainings_command_has_no_local_path():
    command = "mnist_challenge/train.py --model_dir=/tmp/robust --scale=2 --data_dir ~/data"
    expected = "mnist_challenge/train.py --model_dir=robust --scale=2 --data_dir data"
    assert figure_5.without_paths(command) == expected


@pytest.mark.parametrize("other, natural, count", [(1, 1, 0), (1, 0, 1), (0, 0, 2)])
def test_figure_12_asks_two_networks_that_were_not_attacked(other, natural, count):
    example = {
        "image": 0,
        "label": 0,
        "class": 3,
        "distance": 3.9,
        "class of other robust": other,
        "class of natural": natural,
    }
    numbers = {ROBUST.label: {"examples": [example] * 5, "candidates": 50}}
    result = result_of(figure_12.ITEM, numbers)
    assert len(failures(result)) == count
    assert "The farthest lies at a distance of 3.90" in figure_12.table(result)[-1]


def test_a_trainings_machines_are_named():
    hardware = {"processor": "AMD EPYC", "cores": 2, "gpus": []}
    other = {**hardware, "gpus": ["H100", "H100"]}
    runs = [{"hardware": hardware}, {"hardware": hardware}, {"hardware": other}]
    found = training_curve.hardware_of({"runs": runs})
    assert found == "2 cores of AMD EPYC and H100, H100"
    assert training_curve.hardware_of({"runs": []}) == "an unknown machine"
