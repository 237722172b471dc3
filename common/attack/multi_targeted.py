"""PGD towards every wrong class in turn."""

import numpy as np
import tensorflow as tf

from common.attack.attacked_model import drawing_stage, stage
from common.attack.ball import select, step
from common.attack.gradient import value_and_gradient
from common.attack.inputs import whole_number
from common.attack.losses import is_misclassified, targeted_margin_loss
from common.attack.staged import StagedAttack, state_of


class MultiTargeted(StagedAttack):
    """PGD towards every wrong class in turn (Gowal et al. 2019, "An alternative surrogate loss").

    Each climb ascends z_target - z_y from a random start of its own, the likeliest class first. An
    example is returned as the end point of the first climb that broke it, else as the end point
    with the highest z_target - z_y.

    Args:
        model, epsilon, bounds, norm, jit_compile, precision: see `Attack`.
        step_size, num_steps, random_start: see `PGD`.
        num_targets: how many classes, the likeliest at the image; 9 are all wrong ones of ten.
    """

    State = state_of(
        "highest",  # z_target - z_y at x_adv, the highest of all climbs
        "x",  # the iterate
        "target",  # the climb's class
    )
    name = "multi_targeted"
    SETTINGS = ("step_size", "num_steps", "random_start", "num_targets")

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

    def _begin(self, state, logits):
        return state._replace(highest=tf.fill(tf.shape(state.y), -np.inf))

    def _stages(self, num_classes):
        for rank in self._ranks(num_classes):
            yield lambda state: self._climb(self._start(state, tf.constant(rank)))

    @drawing_stage
    def _start(self, state, rank):
        return self._towards(state, rank)

    @stage
    def _climb(self, state):
        logits, exact = self._model.prepare_both()

        def climb(_, state):
            def loss(z):
                return targeted_margin_loss(z, state.y, state.target)

            _, _, gradient, undefined = value_and_gradient(loss, logits, state.x)
            x = step(
                state.x,
                gradient,
                state.x_nat,
                self.epsilon,
                self.step_size,
                self.bounds,
                self.norm,
            )
            return state._replace(x=x, undefined=state.undefined | undefined)

        def finish(_, state):
            z = exact(state.x)
            value = targeted_margin_loss(z, state.y, state.target)
            broken = is_misclassified(z, state.y)
            better = (broken | (value > state.highest)) & ~state.broken
            return state._replace(
                x_adv=select(better, state.x, state.x_adv),
                highest=select(better, value, state.highest),
                broken=state.broken | broken,
            )

        state = self._model.iterate(climb, state, 0, self.num_steps, passes=(1, 0))
        return self._model.iterate(finish, state, 0, 1, passes=(0, 1))
