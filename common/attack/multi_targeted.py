"""PGD towards every wrong class in turn."""

import numpy as np
import tensorflow as tf

from common.attack.ball import direction, project, select
from common.attack.base import Attack
from common.attack.gradient import value_and_gradient
from common.attack.inputs import whole_number
from common.attack.losses import is_misclassified, likely_wrong_classes, targeted_margin_loss


class MultiTargeted(Attack):
    """PGD towards every wrong class in turn (Gowal et al. 2019, "An alternative surrogate loss").

    Each climbs z_target - z_y from a random start of its own, the likeliest class first. An
    example comes back as the end point of the first climb that broke it, else as the end point
    with the highest z_target - z_y.

    Args:
        model, epsilon, bounds, norm, jit_compile: see `Attack`.
        step_size, num_steps, random_start: see `PGD`.
        num_targets: how many classes, the likeliest at the image; 9 are all wrong ones of ten.
    """

    name = "multi_targeted"

    def __init__(
        self, model, *, epsilon, step_size, num_steps, random_start=True, num_targets=9, **kwargs
    ):
        super().__init__(model, epsilon=epsilon, step_size=step_size, **kwargs)
        self.step_size = float(step_size)
        self.num_steps = whole_number("num_steps", num_steps, 1)
        self.random_start = bool(random_start)
        self.num_targets = whole_number("num_targets", num_targets, 1)
        self.num_gradients = self.num_targets * self.num_steps
        self.num_queries = self.num_targets
        self._start = self._compiled(self._start_, has_random_numbers=True)
        self._climb = self._compiled(self._climb_)

    def settings(self):
        names = ("step_size", "num_steps", "random_start", "num_targets")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    def _begin(self, state, logits):
        count = min(self.num_targets, logits.shape[-1] - 1)
        targets = likely_wrong_classes(logits, state["y"], count)
        return {**state, "targets": targets, "highest": tf.fill(tf.shape(state["y"]), -np.inf)}

    def _stages(self, num_classes):
        for rank in range(min(self.num_targets, num_classes - 1)):
            yield lambda state: self._climb(self._start(state, tf.constant(rank)))

    def _start_(self, state, rank):
        x = self._start_of(state, rank, self.epsilon)
        return {**state, "x": x, "target": tf.gather(state["targets"], rank, axis=1)}

    def _climb_(self, state):
        logits = self._prepare()

        def climb(_, state):
            def loss(z):
                return targeted_margin_loss(z, state["y"], state["target"])

            _, _, gradient, undefined = value_and_gradient(loss, logits, state["x"])
            x = state["x"] + self.step_size * direction(gradient, self.norm)
            x = project(x, state["x_nat"], self.epsilon, self.bounds, self.norm)
            return {**state, "x": x, "undefined": state["undefined"] | undefined}

        def finish(_, state):
            z = logits(state["x"])
            value = targeted_margin_loss(z, state["y"], state["target"])
            broken = is_misclassified(z, state["y"])
            better = (broken | (value > state["highest"])) & ~state["broken"]
            return {
                **state,
                "x_adv": select(better, state["x"], state["x_adv"]),
                "highest": select(better, value, state["highest"]),
                "broken": state["broken"] | broken,
            }

        state = self._iterate(climb, state, 0, self.num_steps, passes=(1, 0))
        return self._iterate(finish, state, 0, 1, passes=(0, 1))
