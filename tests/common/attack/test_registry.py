"""Attacks by name, and the standard suite."""

import types

import numpy as np
import pytest

from common.attack import (
    ATTACKS,
    Square,
    make_attack,
    standard_suite,
)
from common.attack.ball import NORMS, length
from common.attack.registry import maker
from common.errors import InputError
from tests.common.attack.attack_cases import labelled, linear_model


def config(**values):
    settings = {"epsilon": 0.02, "step_size": 0.005, "num_steps": 4, "random_start": True}
    settings |= {"loss_func": "xent", "kappa": 50.0, "jit_compile": False, "precision": "float32"}
    return types.SimpleNamespace(**settings | values)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_name_makes_an_attack_of_the_norm_that_is_asked_for(name):
    _, _, model = linear_model()
    for norm in NORMS:
        if name in ("pgd_l2", "boundary") and norm == "linf":
            with pytest.raises(
                InputError, match=f"^norm: expected l2, which {name} is made for, got"
            ):
                make_attack(name, model, config(), (0.0, 1.0), norm=norm)
        else:
            assert make_attack(name, model, config(), (0.0, 1.0), norm=norm).norm == norm


@pytest.mark.parametrize("name", ATTACKS)
def test_every_name_makes_an_attack_of_the_configs_radius(name):
    _, _, model = linear_model()
    attack = make_attack(name, model, config(), (0.0, 1.0))
    assert (attack.epsilon, attack.bounds) == (0.02, (0.0, 1.0))
    settings = attack.settings()
    norm = "l2" if name in ("pgd_l2", "boundary") else "linf"
    assert settings.get("norm", "linf") == maker(name).norm == norm
    if name in ("pgd_l2", "odi_pgd", "pgd", "multi_targeted"):
        assert (settings["step_size"], settings["num_steps"]) == (0.005, 4)
    targets = {"pgd_random_target": "random", "pgd_least_likely": "least_likely"}
    assert settings.get("target") == {**targets, "pgd_next_class": "next"}.get(name)
    if name.startswith("fgsm"):
        assert (settings["step_size"], settings["num_steps"]) == (0.02, 1)
        assert settings["random_start"] == (name == "fgsm_random_start")


def test_other_names_are_refused():
    with pytest.raises(InputError, match="^attack: expected pgd, fgsm, .* or boundary, got 'cw'"):
        make_attack("cw", lambda x: x, config(), (0.0, 1.0))


def test_the_standard_suite_is_autoattacks():
    suite = standard_suite(lambda x: x, 8.0, (0.0, 255.0), jit_compile=False)
    assert [(name, attack.num_gradients, attack.num_queries) for name, attack in suite] == [
        ("apgd_xent", 100, 1),
        ("apgd_targeted", 900, 9),
        ("fab_targeted", 900, 900),
        ("square", 0, 5000),
    ]
    assert [attack.random_start for _, attack in suite] == [True, True, False, True]
    assert all(attack.bounds == (0.0, 255.0) and attack.epsilon == 8.0 for _, attack in suite)
    assert suite[-1][1].settings()["schedule_queries"] == 10_000


def test_the_standard_suite_in_l2_is_in_the_ball():
    _, _, model = linear_model()
    x_nat, y = labelled(model, count=4)
    suite = standard_suite(model, 0.15, (0.0, 1.0), norm="l2", jit_compile=False)
    for name, attack in suite:
        if name == "square":
            attack = Square(model, epsilon=0.15, norm="l2", num_queries=40, jit_compile=False)
        x = attack.perturb(x_nat, y)
        assert attack.settings()["norm"] == "l2"
        assert 0 < np.max(length(x - x_nat, "l2")) <= 0.15 * (1 + 1e-5)
