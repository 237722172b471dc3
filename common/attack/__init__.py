"""Attacks: the inner maximisation of the paper's saddle-point problem (Sec. 2.1).

    max over |delta| <= epsilon of loss(model(x + delta), y)

All have one interface, `Attack`:

    attack = PGD(model, epsilon=0.3, step_size=0.01, num_steps=40, bounds=(0.0, 1.0))
    x_adv = attack.perturb(x_nat, y, seed=1)
"""

from common.attack.apgd import APGD
from common.attack.ball import project, round_to_8_bits, step
from common.attack.base import Attack
from common.attack.boundary import Boundary
from common.attack.fab import FAB
from common.attack.fast import FastModel
from common.attack.losses import (
    cw_loss,
    dlr_loss,
    is_misclassified,
    margin,
    targeted_dlr_loss,
    targeted_margin_loss,
    targeted_xent_loss,
    xent_loss,
)
from common.attack.multi_targeted import MultiTargeted
from common.attack.pgd import FGSM, PGD
from common.attack.registry import ATTACKS, fitting, make_attack, standard_suite
from common.attack.square import Square

__all__ = [
    "APGD",
    "ATTACKS",
    "FAB",
    "FGSM",
    "PGD",
    "Attack",
    "Boundary",
    "FastModel",
    "MultiTargeted",
    "Square",
    "cw_loss",
    "dlr_loss",
    "fitting",
    "is_misclassified",
    "make_attack",
    "margin",
    "project",
    "round_to_8_bits",
    "standard_suite",
    "step",
    "targeted_dlr_loss",
    "targeted_margin_loss",
    "targeted_xent_loss",
    "xent_loss",
]
