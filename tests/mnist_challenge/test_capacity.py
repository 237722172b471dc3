"""The capacity family: what it trains, in which order, and how it resumes."""

import dataclasses
import json

import pytest

from common.config import make_config
from common.errors import InputError
from common.files import Lock
from mnist_challenge import capacity
from mnist_challenge.challenge import MNIST
from tests.helpers import ROOT, TINY, error_line, run, train


def test_the_family_is_that_of_figures_4_and_8_with_value_first():
    networks = capacity.family("out", seeds=(0, 7))
    names = [network.name for network in networks]
    half = len(names) // 2
    assert [name.replace("seed_0", "seed_7") for name in names[:half]] == names[half:]
    assert half == 5 * 4 + 1 + 2 and len(set(names)) == len(names)
    order = [names.index(f"pgd_scale_{scale}_seed_0") for scale in (1, 2, 4, 8, 16)]
    assert order == sorted(order)
    assert {"natural_b_seed_0", "fgsm_very_large_seed_7", "fgsm_scale_16_seed_7"} < set(names)
    for network in networks:
        config = network.config
        assert config.model_dir == f"out/{network.name}" and network.minutes > 0
        assert config.random_seed == int(network.name.rpartition("_")[2])
        assert config.epsilon == 0.3
        assert config.step_size_schedule[-1][0] == config.max_num_training_steps
        for _, num_steps, step_size in config.attack_schedule or ():
            assert num_steps * step_size >= config.epsilon


def test_the_two_pgd_trainings_differ_in_the_rise_of_epsilon_alone():
    rising, constant = capacity.family(
        "out", trainings=["pgd_constant_epsilon", "pgd"], networks=["scale_2"]
    )
    there, here = (dataclasses.asdict(network.config) for network in (rising, constant))
    differing = {name for name in there if there[name] != here[name]}
    assert differing == {"model_dir", "epsilon_warmup_steps"}
    assert (there["epsilon_warmup_steps"], here["epsilon_warmup_steps"]) == (500, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"networks": ["scale_3"]}, "--networks: expected some of scale_1, .*, got 'scale_3'"),
        ({"trainings": ["trades"]}, "--trainings: expected some of natural, .*, got 'trades'"),
    ],
)
def test_unknown_names(options, message):
    with pytest.raises(InputError, match=message):
        capacity.family("out", **options)


def tiny(network):
    """A network of the family with a training of six steps."""
    settings = {"adversary": network.config.adversary, "model_dir": network.config.model_dir}
    return dataclasses.replace(
        network, config=make_config(MNIST, ("test", {**TINY, "scale": 1, **settings}))
    )


def test_finished_networks_are_skipped_and_interrupted_ones_resume(tmp_path, capsys):
    networks = [
        tiny(network)
        for network in capacity.family(
            tmp_path, networks=["scale_1"], trainings=["natural", "fgsm"]
        )
    ]
    trained = []

    def on_the_sample(config, steps=6):
        trained.append((config.adversary, steps))
        settings = {"scale": 1, "adversary": config.adversary, "max_num_training_steps": steps}
        train(MNIST, config.model_dir, **settings)

    on_the_sample(networks[1].config, steps=4)
    assert (networks[1].steps, networks[1].is_done) == (4, False)
    assert networks[1].minutes_left == pytest.approx(networks[1].minutes / 3)

    # Another process trains the first one.
    expected = "1 of 2 networks are not trained: natural_scale_1_seed_0"
    with (
        Lock(networks[0].config.model_dir, "--model_dir"),
        pytest.raises(InputError, match=expected),
    ):
        capacity.train_all(networks, on_the_sample)
    out, err = capsys.readouterr()
    assert "1 of 2: natural_scale_1_seed_0; the whole list takes about" in out
    assert "resuming at step 4 of 6" in out
    assert "error: natural_scale_1_seed_0: --model_dir" in err
    assert [network.is_done for network in networks] == [False, True]

    del trained[:]
    capacity.train_all(networks, on_the_sample)
    assert trained == [("none", 6)]
    out = capsys.readouterr().out
    assert "2 of 2: fgsm_scale_1_seed_0 is done" in out
    capacity.show(networks)
    assert capsys.readouterr().out.count("6 of 6") == 2

    # After a change of the recipe the old network does not count as the new one.
    other = dataclasses.replace(networks[1].config, epsilon=0.2)
    with pytest.raises(InputError, match="1 of 1 networks are not trained: fgsm_scale_1_seed_0"):
        capacity.train_all([dataclasses.replace(networks[1], config=other)], on_the_sample)
    assert "another epsilon in" in capsys.readouterr().err


def test_the_script_lists_what_is_left(tmp_path):
    script = ROOT / "mnist_challenge" / "capacity.py"
    out = run(
        script, "--output_dir=c", "--list", "--networks=b,scale_1", "--seeds=0,1", cwd=tmp_path
    )
    lines = out.splitlines()
    assert lines[1].split()[:4] == ["natural_scale_1_seed_0", "0", "of", "3000"]
    assert len(lines) == 2 + 2 * 5 and lines[-1].endswith("of processor time left")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--list"], "--output_dir: expected a directory, got none"),
        (["--output_dir=c", "--seeds=a"], "--seeds: expected an integer of 0 or more"),
        (["--output_dir=c", "more"], "expected flags only, got 'more'"),
        (
            ["--output_dir=c", "--networks=b", "--trainings=pgd"],
            "expected trainings that the networks have",
        ),
    ],
)
@pytest.mark.slow
def test_wrong_flags_of_the_script(flags, message, tmp_path):
    err = run(ROOT / "mnist_challenge" / "capacity.py", *flags, cwd=tmp_path, code=1)
    assert error_line(err).startswith(f"error: {message}")


def test_recipes_are_valid_json_with_a_cost_for_each_network():
    recipes = json.loads(capacity.FILE.read_text())
    for network in recipes["networks"].values():
        assert network["minutes"].keys() <= recipes["trainings"].keys()
