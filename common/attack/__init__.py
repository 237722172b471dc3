"""Attacks: the inner maximisation of the paper's saddle-point problem (Sec. 2.1).

    max over |delta| <= epsilon of loss(model(x + delta), y)

All have one interface, `Attack`:

    attack = PGD(model, epsilon=0.3, step_size=0.01, num_steps=40, bounds=(0.0, 1.0))
    x_adv = attack.perturb(x_nat, y, seed=1)
"""

from common.attack.apgd import APGD
from common.attack.ball import (
    NORMS,
    check_radius,
    draw,
    project,
    round_to_8_bits,
    uniform_start,
)
from common.attack.base import Attack
from common.attack.boundary import Boundary
from common.attack.fab import FABT
from common.attack.fast import FastModel, compiles_with_xla
from common.attack.gradient import as_logits
from common.attack.inputs import as_raised, to_labels, whole_number
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
from common.attack.pgd import FGSM, LOSSES, PGD
from common.attack.registry import ATTACKS, Maker, make_attack, maker, norm_of, standard_suite
from common.attack.square import Square

__all__ = [
    "APGD",
    "ATTACKS",
    "FABT",
    "FGSM",
    "LOSSES",
    "NORMS",
    "PGD",
    "Attack",
    "Boundary",
    "FastModel",
    "Maker",
    "MultiTargeted",
    "Square",
    "as_logits",
    "as_raised",
    "check_radius",
    "compiles_with_xla",
    "cw_loss",
    "dlr_loss",
    "draw",
    "is_misclassified",
    "make_attack",
    "maker",
    "margin",
    "norm_of",
    "project",
    "round_to_8_bits",
    "standard_suite",
    "targeted_dlr_loss",
    "targeted_margin_loss",
    "targeted_xent_loss",
    "to_labels",
    "uniform_start",
    "whole_number",
    "xent_loss",
]
