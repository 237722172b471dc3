"""The figures' style: colours, the paper's curves, legends."""

from cifar10_challenge.challenge import CIFAR10
from mnist_challenge.challenge import MNIST
from paper import networks, style
from paper.networks import FGSM_TRAINED, NATURAL, ROBUST, ROBUST_B, SIMPLE_ROBUST


def test_a_network_has_a_colour_that_its_second_seed_does_not_have():
    assert style.colour_of(ROBUST) == style.colour_of(SIMPLE_ROBUST)
    every = [n for n in vars(networks).values() if isinstance(n, networks.Network)]
    for challenge in (MNIST, CIFAR10):
        seeds = {n.title.endswith("other seed") for n in every if n.challenge is challenge}
        assert seeds == {True, False}
    assert len({style.colour_of(n) for n in (NATURAL, ROBUST, ROBUST_B, FGSM_TRAINED)}) == 4


def test_models_of_scripts_have_their_networks_colour_and_others_a_spare_one(tmp_path):
    found = style.colours_and_titles(MNIST, ["adv_trained", tmp_path / "mine", "natural", "x"])
    assert [title for _, title in found] == ["robust", "mine", "natural", "x"]
    assert found[0][0] == style.colour_of(ROBUST) and found[2][0] == style.colour_of(NATURAL)
    assert len({colour for colour, _ in found}) == 4
    assert style.known_network(CIFAR10, "adv_trained") is None


def test_the_papers_curves_differ_by_attack_and_by_network():
    lines = [style.paper_line(attack) for attack in ("none", "FGSM", "PGD", "boundary attack")]
    assert len({str(line["linestyle"]) for line in lines}) == 4
    assert lines[1]["linestyle"] == style.line_of("FGSM")["linestyle"]
    assert lines[1]["label"] == "paper: FGSM" and lines[1]["zorder"] == 0
    robust, natural = (style.paper_line("PGD", network) for network in (ROBUST, NATURAL))
    assert robust["label"] == "paper: robust, PGD" and robust["color"] != natural["color"]


def test_a_legend_has_each_label_of_several_axes_once():
    figure, axes = style.subplots(1, 2, 4, 2)
    for axis, labels in zip(axes[0], (("a", "b"), ("b", "c")), strict=True):
        for label in labels:
            axis.plot([0, 1], label=label)
    style.legend_below(figure, *axes[0])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
