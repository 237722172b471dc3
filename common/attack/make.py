"""Attacks by name."""

from common.attack.apgd import APGD
from common.attack.fab import FABT
from common.attack.pgd import FGSM, PGD, MultiTargeted
from common.attack.square import Square
from common.errors import InputError

# What each takes from a config beside the radius, the pixel range and how it is compiled.
_LOSS = ("loss_func", "kappa")
_STEPS = ("step_size", "num_steps", "random_start")


def _takes(attack, *names, is_trainable=False, **fixed):
    def make(model, config, batch_statistics, **options):
        if is_trainable:
            options["batch_statistics"] = batch_statistics
        return attack(model, **{name: getattr(config, name) for name in names}, **fixed, **options)

    return make


ATTACKS = {
    "pgd": _takes(PGD, *_STEPS, *_LOSS, is_trainable=True),
    "fgsm": _takes(FGSM, *_LOSS, is_trainable=True),
    "pgd_l2": _takes(PGD, *_STEPS, *_LOSS, is_trainable=True, norm="l2"),
    "fgsm_random_start": _takes(FGSM, *_LOSS, is_trainable=True, random_start=True),
    "multi_targeted": _takes(MultiTargeted, *_STEPS),
    "odi_pgd": _takes(PGD, *_STEPS, *_LOSS, is_trainable=True, odi_steps=2),
    "apgd_xent": _takes(APGD, loss_func="xent"),
    "apgd_dlr": _takes(APGD, loss_func="dlr"),
    "apgd_targeted": _takes(APGD, loss_func="targeted_dlr"),
    "fab_targeted": _takes(FABT),
    "square": _takes(Square),
}


def make_attack(name, model, config, bounds, batch_statistics=False):
    """The attack that a config describes.

    Args:
        name: one of `ATTACKS`. "pgd", "pgd_l2" and "odi_pgd" take all of the config's settings,
            "multi_targeted" the steps and "fgsm" and "fgsm_random_start" the loss; the others are
            as in their papers. All take epsilon.
        model: see `Attack`.
        config: a `common.config.Config`.
        bounds, batch_statistics: see `PGD`.

    Raises:
        InputError: `name` is none of them; as the attack.
    """
    if name not in ATTACKS:
        *others, last = ATTACKS
        raise InputError(f"--attack: expected {', '.join(others)} or {last}, got {name!r}")
    return ATTACKS[name](
        model,
        config,
        batch_statistics,
        epsilon=config.epsilon,
        bounds=bounds,
        jit_compile=config.jit_compile,
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
