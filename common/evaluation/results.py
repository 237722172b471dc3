"""Attacks as trials, the results of an evaluation, and confidence intervals."""

import dataclasses
import math
from typing import Any

import numpy as np

from common.attack.inputs import SMALLEST, real_number, whole_number
from common.errors import InputError


@dataclasses.dataclass(frozen=True)
class Trial:
    """An attack as an evaluation runs it.

    Attributes:
        attack: a `common.attack.Attack`, or any object with `perturb(x_nat, y, seed, index)`. Its
            `passes(num_examples)` and `num_undefined` are counted if it has them. A returned image
            that is not finite counts as the natural one.
        num_restarts: an example withstands the attack if the model is right in every restart.
        eight_bits: round the adversarial images to 256 levels, within the ball.
        name: the attack's name for people.
        share: the share of the remaining examples that the attack is given, above 0: those closest
            to the boundary, by the least margin z_y - max_{i != y} z_i of their images and of what
            earlier attacks have reached. Scaling or shifting the logits does not change the choice.

    Raises:
        InputError: num_restarts is not a whole number from 1 to 2**31 - 1; `share` is not a number
            above 0 and up to 1; `eight_bits` is set in L2, as rounding stays only in an
            L-infinity ball.
    """

    attack: Any
    num_restarts: int = 1
    eight_bits: bool = False
    name: str = "attack"
    share: float = 1.0

    def __post_init__(self):
        count = whole_number("num_restarts", self.num_restarts, 1)
        object.__setattr__(self, "num_restarts", count)
        object.__setattr__(self, "share", real_number("share", self.share, SMALLEST, 1.0))
        if self.eight_bits and getattr(self.attack, "norm", "linf") != "linf":
            raise InputError(
                f"--round_to_8_bits: expected an attack in L-infinity, got {self.name} in L2"
            )

    def settings(self):
        """Returns the attack's settings and how it is run, as a dict for JSON.

        They include `precision` if it is not float32, and `share` if it is below 1.
        """
        precision = getattr(self.attack, "precision", None)
        is_exact = precision is None or precision.name == "float32"
        return {
            **self.attack.settings(),
            **({} if is_exact else {"precision": precision.name}),
            "num_restarts": self.num_restarts,
            "round_to_8_bits": self.eight_bits,
            **({"share": self.share} if self.share < 1 else {}),
        }


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """The result of one attack of an evaluation; accuracies in percent of all examples.

    Attributes:
        name: the `Trial`'s name.
        num_given: number of examples that it was given.
        num_broken: number of these that it broke.
        accuracy: accuracy in the worst case over this attack and those before it.
        accuracy_alone: accuracy under this attack alone, or None if it was not given all examples.
        num_attacks: number of examples that it attacked, restarts counted.
        num_gradients: number of gradients that it computed, counted by example.
        num_queries: number of further forward passes, counted by example.
        seconds: the time that it took.
        num_undefined: number of attacked examples, restarts counted, with a gradient that was not
            a number; the attack takes no step along such a gradient.
        num_left_alone: number of remaining examples that it was not given, see `Trial.share`.
    """

    name: str
    num_given: int
    num_broken: int
    accuracy: float
    accuracy_alone: float | None
    num_attacks: int
    num_gradients: int
    num_queries: int
    seconds: float
    num_undefined: int = 0
    num_left_alone: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an evaluation of n examples, in the data set's order.

    Attributes:
        natural_correct: bool (n,), whether the image itself is classified correctly.
        adversarial_correct: bool (n,), whether it still is under every attack and restart.
        natural_losses: float32 (n,), cross-entropy of the images.
        adversarial_losses: float32 (n,), cross-entropy of `x_adv`.
        x_adv: float32 (n, height, width, channels), each example's first image that fooled the
            model, by attack and restart, else its image with the highest loss; the example itself
            if no attack was given it.
        withstood: bool (attacks, n), False if the attack broke the example.
        trials: a `TrialResult` for each attack.
        seconds: the time that the evaluation took.
        cpu_seconds: the processor's time, of all threads, that it took.
    """

    natural_correct: np.ndarray
    adversarial_correct: np.ndarray
    natural_losses: np.ndarray
    adversarial_losses: np.ndarray
    x_adv: np.ndarray
    withstood: np.ndarray
    trials: tuple[TrialResult, ...]
    seconds: float
    cpu_seconds: float = 0.0

    @property
    def num_attacks(self):
        """Number of examples that were attacked, attacks and restarts counted."""
        return sum(trial.num_attacks for trial in self.trials)

    @property
    def num_left_alone(self):
        """The largest number of remaining examples that an attack was not given."""
        return max((trial.num_left_alone for trial in self.trials), default=0)

    @property
    def confidence_interval(self):
        """The 95 % interval of the accuracy under all attacks, in percent: [low, high]."""
        correct = self.adversarial_correct
        return shown_interval(int(np.count_nonzero(correct)), len(correct))

    def summary(self):
        """Returns the numbers as a dict: accuracies in percent, mean losses."""
        return {
            "natural_accuracy": 100 * float(np.mean(self.natural_correct)),
            "adversarial_accuracy": 100 * float(np.mean(self.adversarial_correct)),
            "natural_loss": float(np.mean(self.natural_losses, dtype=np.float64)),
            "adversarial_loss": float(np.mean(self.adversarial_losses, dtype=np.float64)),
            "num_examples": len(self.natural_correct),
            "num_attacks": self.num_attacks,
            "seconds": round(self.seconds, 2),
        }


def shown_interval(num_correct, num_examples):
    """Returns `wilson_interval` as a list, rounded as in records and pages."""
    return [round(limit, 4) for limit in wilson_interval(num_correct, num_examples)]


def wilson_interval(num_correct, num_examples):
    """Returns the 95 % confidence interval of an accuracy, in percent (Wilson 1927).

    These are the accuracies from which the counts deviate by at most 1.96 standard errors. The
    interval stays within 0 and 100 and is not empty if all or no examples are correct. It assumes
    that the examples are drawn at random from those that the accuracy is claimed for.

    Args:
        num_correct: number of examples that are correct.
        num_examples: number of examples, 1 or more.

    Returns:
        (low, high).
    """
    z = 1.959964
    p = num_correct / num_examples
    scale = 1 + z * z / num_examples
    centre = (p + z * z / (2 * num_examples)) / scale
    reach = z / scale * math.sqrt(p * (1 - p) / num_examples + (z / (2 * num_examples)) ** 2)
    return 100 * max(centre - reach, 0.0), 100 * min(centre + reach, 1.0)
