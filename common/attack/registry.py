"""Attacks by name, and AutoAttack's standard suite of them."""

import dataclasses
from collections.abc import Callable

from common.attack.apgd import APGD
from common.attack.boundary import Boundary
from common.attack.fab import FAB
from common.attack.multi_targeted import MultiTargeted
from common.attack.pgd import FGSM, PGD
from common.attack.square import Square
from common.errors import InputError

_LOSS = ("loss_func", "kappa")
_STEPS = ("step_size", "num_steps", "random_start")


@dataclasses.dataclass(frozen=True)
class Maker:
    """The arguments that an attack takes from a config.

    Attributes:
        attack: the class, or function that makes it.
        settings: names of the config's settings that it takes, without epsilon, jit_compile and
            precision.
        fixed: dict of further arguments.
        takes_batch_statistics: whether it takes the argument of that name, see `PGD`.
    """

    attack: Callable
    settings: tuple = ()
    fixed: dict = dataclasses.field(default_factory=dict)
    takes_batch_statistics: bool = False

    @property
    def norm(self):
        """The ball's norm if no other is asked for: "linf" or "l2"."""
        return self.fixed.get("norm", "linf")


ATTACKS = {
    "pgd": Maker(PGD, (*_STEPS, *_LOSS), takes_batch_statistics=True),
    "fgsm": Maker(FGSM, _LOSS, takes_batch_statistics=True),
    "pgd_l2": Maker(PGD, (*_STEPS, *_LOSS), {"norm": "l2"}, takes_batch_statistics=True),
    "fgsm_random_start": Maker(FGSM, _LOSS, {"random_start": True}, takes_batch_statistics=True),
    "multi_targeted": Maker(MultiTargeted, _STEPS),
    "pgd_random_target": Maker(
        PGD, (*_STEPS, *_LOSS), {"target": "random"}, takes_batch_statistics=True
    ),
    "pgd_least_likely": Maker(
        PGD, (*_STEPS, *_LOSS), {"target": "least_likely"}, takes_batch_statistics=True
    ),
    "pgd_next_class": Maker(
        PGD, (*_STEPS, *_LOSS), {"target": "next"}, takes_batch_statistics=True
    ),
    "odi_pgd": Maker(PGD, (*_STEPS, *_LOSS), {"odi_steps": 2}, takes_batch_statistics=True),
    "apgd_xent": Maker(APGD, fixed={"loss_func": "xent"}),
    "apgd_dlr": Maker(APGD, fixed={"loss_func": "dlr"}),
    "apgd_targeted": Maker(APGD, fixed={"loss_func": "targeted_dlr"}),
    "fab_targeted": Maker(FAB, fixed={"random_start": True}),
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
        raise InputError(f"attack: expected {', '.join(others)} or {last}, got {name!r}")
    return ATTACKS[name]


def norm_of(name, norm=None):
    """The norm of an attack's ball, "linf" or "l2".

    Args:
        name: one of `ATTACKS`.
        norm: the norm that is asked for; None for `Maker.norm`.

    Raises:
        InputError: there is no such attack, or it is made for the other norm.
    """
    made = maker(name)
    if "norm" in made.fixed and norm not in (None, made.norm):
        raise InputError(f"norm: expected {made.norm}, which {name} is made for, got {norm}")
    return norm or made.norm


def make_attack(name, model, config, bounds, batch_statistics=False, norm=None):
    """The attack that a config describes.

    Args:
        name: one of `ATTACKS`; its other arguments are those of the attack's paper.
        model: see `Attack`.
        config: a `common.config.Config`.
        bounds: (lowest, highest) pixel value.
        batch_statistics: see `PGD`; attacks that do not take it ignore it.
        norm: see `norm_of`.

    Raises:
        InputError: as `norm_of`, or as the attack.
    """
    made = maker(name)
    options = {setting: getattr(config, setting) for setting in made.settings} | made.fixed
    options["norm"] = norm_of(name, norm)
    if made.takes_batch_statistics:
        options["batch_statistics"] = batch_statistics
    return made.attack(
        model,
        epsilon=config.epsilon,
        bounds=bounds,
        jit_compile=config.jit_compile,
        precision=config.precision,
        **options,
    )


def fitting(settings, num_classes):
    """The settings of an attack for a model of few classes.

    The targeted DLR loss needs four. For three classes the plain DLR loss replaces it, and for two
    nothing does.

    Args:
        settings: dict of arguments of an attack.
        num_classes: the model's number of classes.

    Returns:
        `settings`, those of the replacement, or None.
    """
    if settings.get("loss_func") != "targeted_dlr" or num_classes >= 4:
        return settings
    plain = {name: value for name, value in settings.items() if name != "num_targets"}
    return {**plain, "loss_func": "dlr"} if num_classes == 3 else None


def standard_suite(
    model, epsilon, bounds, norm="linf", jit_compile="auto", precision="auto", num_classes=10
):
    """AutoAttack's standard version (Croce & Hein 2020, "Reliable evaluation ...").

    APGD on cross-entropy, APGD on the targeted DLR loss and targeted FAB with 9 targets, of 100
    steps and one restart each, and Square with 5,000 queries. As in its public code, FAB has no
    final search, and Square keeps the schedule of 10,000 queries.

    Args:
        model, epsilon, bounds, norm, jit_compile, precision: see `Attack`.
        num_classes: see `fitting`.

    Returns:
        List of (name, attack), in their order; each attacks the examples that remain.
    """
    options = {
        "epsilon": epsilon,
        "bounds": bounds,
        "norm": norm,
        "jit_compile": jit_compile,
        "precision": precision,
    }
    targeted = fitting({"loss_func": "targeted_dlr"}, num_classes)
    attacks = [
        APGD(model, loss_func="xent", **options),
        *([] if targeted is None else [APGD(model, **targeted, **options)]),
        FAB(model, num_search_steps=0, **options),
        Square(model, schedule_queries=10_000, **options),
    ]
    return [(attack.name, attack) for attack in attacks]
