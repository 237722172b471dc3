"""Attacks by name, and AutoAttack's standard suite of them."""

import dataclasses
from collections.abc import Callable

from common.attack.apgd import APGD
from common.attack.boundary import Boundary
from common.attack.fab import FABT
from common.attack.multi_targeted import MultiTargeted
from common.attack.pgd import FGSM, PGD
from common.attack.square import Square
from common.errors import InputError

_LOSS = ("loss_func", "kappa")
_STEPS = ("step_size", "num_steps", "random_start")


@dataclasses.dataclass(frozen=True)
class Maker:
    """How a config makes an attack.

    Attributes:
        attack: the class, or function that makes it.
        settings: names of what it takes from a config beside the radius, the pixel range and how
            it is compiled.
        fixed: dict of further arguments.
        is_trainable: whether it takes `batch_statistics`, see `PGD`.
    """

    attack: Callable
    settings: tuple = ()
    fixed: dict = dataclasses.field(default_factory=dict)
    is_trainable: bool = False

    @property
    def norm(self):
        """Of its ball where no other is asked for: "linf" or "l2"."""
        return self.fixed.get("norm", "linf")


ATTACKS = {
    "pgd": Maker(PGD, (*_STEPS, *_LOSS), is_trainable=True),
    "fgsm": Maker(FGSM, _LOSS, is_trainable=True),
    "pgd_l2": Maker(PGD, (*_STEPS, *_LOSS), {"norm": "l2"}, is_trainable=True),
    "fgsm_random_start": Maker(FGSM, _LOSS, {"random_start": True}, is_trainable=True),
    "multi_targeted": Maker(MultiTargeted, _STEPS),
    "pgd_random_target": Maker(PGD, (*_STEPS, *_LOSS), {"target": "random"}, is_trainable=True),
    "pgd_least_likely": Maker(
        PGD, (*_STEPS, *_LOSS), {"target": "least_likely"}, is_trainable=True
    ),
    "odi_pgd": Maker(PGD, (*_STEPS, *_LOSS), {"odi_steps": 2}, is_trainable=True),
    "apgd_xent": Maker(APGD, fixed={"loss_func": "xent"}),
    "apgd_dlr": Maker(APGD, fixed={"loss_func": "dlr"}),
    "apgd_targeted": Maker(APGD, fixed={"loss_func": "targeted_dlr"}),
    "fab_targeted": Maker(FABT, fixed={"random_start": True}),
    "square": Maker(Square),
    "boundary": Maker(Boundary, fixed={"norm": "l2"}),
}


def maker(name):
    """The `Maker` of an attack by its name.

    Raises:
        InputError: there is no such attack.
    """
    if name not in ATTACKS:
        *others, last = ATTACKS
        raise InputError(f"--attack: expected {', '.join(others)} or {last}, got {name!r}")
    return ATTACKS[name]


def norm_of(name, norm=None):
    """The norm of an attack's ball, "linf" or "l2".

    Args:
        name: one of `ATTACKS`.
        norm: the one that is asked for; None for `Maker.norm`.

    Raises:
        InputError: there is no such attack, or it is of the other norm.
    """
    made = maker(name)
    if "norm" in made.fixed and norm not in (None, made.norm):
        raise InputError(f"--norm: expected {made.norm}, as --attack={name}, got {norm}")
    return norm or made.norm


def make_attack(name, model, config, bounds, batch_statistics=False, norm=None):
    """The attack that a config describes.

    Args:
        name: one of `ATTACKS`, whose `settings` it takes from the config beside epsilon; all
            others are as in the attack's paper.
        model: see `Attack`.
        config: a `common.config.Config`.
        bounds, batch_statistics: see `PGD`.
        norm: see `norm_of`.

    Raises:
        InputError: as `norm_of`; as the attack.
    """
    made = maker(name)
    options = {setting: getattr(config, setting) for setting in made.settings} | made.fixed
    options["norm"] = norm_of(name, norm)
    if made.is_trainable:
        options["batch_statistics"] = batch_statistics
    return made.attack(
        model,
        epsilon=config.epsilon,
        bounds=bounds,
        jit_compile=config.jit_compile,
        **options,
    )


def standard_suite(model, epsilon, bounds, norm="linf", jit_compile="auto"):
    """AutoAttack's standard version (Croce & Hein 2020, "Reliable evaluation ...").

    APGD on cross-entropy, APGD on the targeted DLR loss and targeted FAB with 9 targets, of 100
    steps and one restart each, and Square with 5,000 queries. As in its public code, FAB goes
    without a final search, and Square's schedule, that of 10,000 queries, is not rescaled.

    Args:
        model, epsilon, bounds, norm, jit_compile: see `Attack`.

    Returns:
        List of (name, attack), to be run in this order, each on what the ones before left.
    """
    options = {"epsilon": epsilon, "bounds": bounds, "norm": norm, "jit_compile": jit_compile}
    attacks = [
        APGD(model, loss_func="xent", **options),
        APGD(model, loss_func="targeted_dlr", **options),
        FABT(model, num_search_steps=0, **options),
        Square(model, schedule_queries=10_000, **options),
    ]
    return [(attack.name, attack) for attack in attacks]
