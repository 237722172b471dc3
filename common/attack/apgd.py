"""Auto-PGD: PGD with adaptive step sizes, momentum and a memory of the best point.

Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", Sec. 3 and 4.
"""

import functools
import itertools

import numpy as np
import tensorflow as tf

from common.attack.attacked_model import drawing_stage, stage
from common.attack.ball import per_image, project, select, step
from common.attack.gradient import value_and_gradient
from common.attack.inputs import whole_number
from common.attack.losses import (
    LOSSES,
    TARGETED_LOSSES,
    is_misclassified,
    leads_by,
    scale_of,
)
from common.attack.staged import StagedAttack, state_of, where
from common.errors import InputError

# By the names of `loss_func`.
FEWEST_CLASSES = {"xent": 2, "scaled_xent": 2, "dlr": 3, "targeted_dlr": 4}

MOMENTUM = 0.75  # the paper's alpha: the share of the new step
LEAST_INCREASES = 0.75  # the paper's rho
# In bfloat16 a point is proposed as misclassified once a wrong class leads by this share of the
# largest logit, about twice of what rounding moves it by. Float32 then decides.
LEAST_LEAD_IN_BFLOAT16 = 0.01
# Most examples that break do so within the first steps; they may leave after these steps, too.
EARLY = (3, 10)


def halving_steps(num_steps):
    """The steps after which the step size may be halved: ceil(p_j num_steps), beginning with 0.

    p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).

    Returns:
        List of ints, increasing, below `num_steps`.
    """
    percent = [0, 22]
    while percent[-1] < 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    return sorted(
        {-(-p * num_steps // 100) for p in percent if p * num_steps <= 100 * (num_steps - 1)}
    )


def segments(num_steps):
    """The segments of a climb: they end at the `halving_steps`, and before these at `EARLY`.

    Returns:
        List of (first, last, num_since): steps `first` to below `last`; if `first` is one of
        `halving_steps` after 0, `num_since` is the number of steps since the last one, else 0.
    """
    found = halving_steps(num_steps)
    num_since = {last: last - first for first, last in itertools.pairwise(found)}
    firsts = sorted({*found, *(step for step in EARLY if step < num_steps)})
    return [
        (first, last, num_since.get(first, 0))
        for first, last in zip(firsts, [*firsts[1:], num_steps], strict=True)
    ]


class APGD(StagedAttack):
    """Auto-PGD (Croce & Hein 2020, Sec. 3): no step size to choose.

        z <- project(x + step_size * direction(gradient))
        x <- project(x + 0.75 (z - x) + 0.25 (x - x_previous))

    Steps start at 2 epsilon. At each of the `halving_steps` an example's step is halved, and it
    returns to the point of its highest loss, if the loss rose in fewer than 75 % of the steps since
    the last of them, or if neither step nor highest loss changed since.

    An example is returned as the first point that is misclassified, else as that of the highest
    loss. Examples that are broken leave the batch after each of `segments`.

    Args:
        model, epsilon, bounds, norm, jit_compile, precision: see `Attack`.
        num_steps: number of steps of each climb, one gradient each.
        loss_func: "xent"; "scaled_xent", with logits multiplied by `scale_of` the image's logits;
            "dlr"; or "targeted_dlr", which ascends `targeted_dlr_loss` towards the likeliest wrong
            classes in turn, each from a random start of its own.
        num_targets: number of classes for "targeted_dlr".
        random_start: True starts at a uniform point of the ball, False at the image.

    Raises:
        InputError: a number is out of range; the model has too few classes for the loss.
    """

    State = state_of(
        "scale",  # of the image's logits, for "scaled_xent"
        "highest_of_all",  # the loss at x_adv, the highest of all climbs
        # The climb:
        "target",  # its class, if it is targeted
        "x",  # the iterate
        "x_previous",
        "loss",  # at x_previous, or at the point to which it returned
        "x_best",  # the point of the highest loss
        "gradient_best",
        "loss_best",
        "step_size",
        # Since the last of `halving_steps`:
        "num_increases",
        "was_halved",
        "loss_best_before",
        # In bfloat16, a point that float32 is to judge:
        "proposed",
        "x_proposed",
    )
    SETTINGS = ("num_steps", "loss_func", "random_start", "num_targets")

    def __init__(
        self,
        model,
        *,
        epsilon,
        num_steps=100,
        loss_func="xent",
        num_targets=9,
        random_start=True,
        **kwargs,
    ):
        super().__init__(model, epsilon=epsilon, **kwargs)
        if loss_func not in FEWEST_CLASSES:
            raise InputError(
                f"loss_func: expected one of {', '.join(FEWEST_CLASSES)}, got {loss_func!r}"
            )
        self.num_steps = whole_number("num_steps", num_steps, 1)
        self.loss_func = loss_func
        self.is_targeted = loss_func == "targeted_dlr"
        num_targets = whole_number("num_targets", num_targets, 1)
        self.num_targets = num_targets if self.is_targeted else 0
        self.random_start = bool(random_start)
        self.name = "apgd_targeted" if self.is_targeted else f"apgd_{loss_func}"
        num_climbs = self.num_targets or 1
        self.num_gradients = num_climbs * self.num_steps
        self.num_queries = num_climbs  # in bfloat16 twice, and one for each proposed point

    def settings(self):
        settings = super().settings()
        if not self.is_targeted:
            del settings["num_targets"]
        return settings

    def _begin(self, state, logits):
        num_classes, fewest = logits.shape[-1], FEWEST_CLASSES[self.loss_func]
        if num_classes < fewest:
            raise InputError(
                f"loss_func: {self.loss_func} expects {fewest} classes or more, "
                f"the model has {num_classes}"
            )
        if self.loss_func == "scaled_xent":
            state = state._replace(scale=scale_of(logits))
        return state._replace(highest_of_all=tf.fill(tf.shape(state.y), -np.inf))

    def _stages(self, num_classes):
        for rank in self._ranks(num_classes) if self.is_targeted else [0]:
            yield functools.partial(self._start, rank=tf.constant(rank))
            for segment in segments(self.num_steps):
                first, last, num_since = (tf.constant(number) for number in segment)
                yield functools.partial(self._climb, first=first, last=last, num_since=num_since)
                if not self._model.is_exact:
                    yield self._confirm
            yield self._finish

    @drawing_stage
    def _start(self, state, rank):
        """The state at the start of a climb: the iterate and the climb's best point."""
        if self.is_targeted:
            state = self._towards(state, rank)
        else:
            state = state._replace(x=self._start_of(state, rank, self.epsilon))
        x = state.x
        lowest = tf.fill(tf.shape(state.y), -np.inf)
        if not self._model.is_exact:
            state = state._replace(proposed=state.broken, x_proposed=x)
        return state._replace(
            x_previous=x,
            loss=lowest,
            x_best=x,
            gradient_best=tf.zeros_like(x),
            loss_best=lowest,
            step_size=tf.fill(tf.shape(state.y), 2.0 * self.epsilon),
            num_increases=tf.zeros_like(state.y),
            was_halved=tf.zeros_like(state.broken),
            loss_best_before=lowest,
        )

    def _loss(self, logits, state):
        if self.is_targeted:
            return TARGETED_LOSSES["dlr"](logits, state.y, state.target)
        if self.loss_func == "scaled_xent":
            return LOSSES["xent"](state.scale[:, None] * logits, state.y)
        return LOSSES[self.loss_func](logits, state.y)

    @stage
    def _climb(self, state, first, last, num_since):
        """Climbs for one of `segments`."""
        logits = self._model.prepare()

        def climb(i, state):
            z, loss, gradient, undefined = value_and_gradient(
                lambda z: self._loss(z, state), logits, state.x
            )
            state = self._judged(state, z) if self._model.is_exact else self._proposed(state, z)
            state = self._evaluated(state, loss, gradient)
            undefined = state.undefined | (undefined & ~state.broken)
            state = state._replace(undefined=undefined)
            # The first step only records values for the next of `halving_steps`.
            halves = (i == first) & (num_since > 0)
            state, gradient = self._halved(state, gradient, halves, num_since)
            state = where(
                halves | (i == 0),
                state,
                num_increases=tf.zeros_like(state.num_increases),
                loss_best_before=state.loss_best,
            )
            return self._stepped(state, gradient, tf.where(i > 0, MOMENTUM, 1.0))

        return self._model.iterate(climb, state, first, last, passes=(1, 0), ends_early=True)

    def _judged(self, state, logits):
        """Records whether float32 logits say that x is misclassified."""
        broken = is_misclassified(logits, state.y) & ~state.broken
        return where(broken, state, x_adv=state.x, broken=broken)

    def _proposed(self, state, logits):
        """Records x as a point that float32 is to judge, if bfloat16 logits say so."""
        proposed = leads_by(logits, state.y, LEAST_LEAD_IN_BFLOAT16) & ~state.proposed
        return where(proposed, state, x_proposed=state.x, proposed=proposed)

    def _confirm(self, state):
        """Lets float32 judge the proposed points; those that it refutes are forgotten."""
        rows = np.flatnonzero((state.proposed & ~state.broken).numpy())
        if not len(rows):
            return state
        x, y = tf.gather(state.x_proposed, rows), tf.gather(state.y, rows)
        broken = np.zeros(len(state.y), bool)
        broken[rows] = is_misclassified(self._model.logits(x), y)
        passes = np.zeros(state.passes.shape, np.int64)
        passes[rows, 1] = 1
        state = where(tf.constant(broken), state, x_adv=state.x_proposed)
        broken = state.broken | broken
        return state._replace(broken=broken, proposed=broken, passes=state.passes + passes)

    def _evaluated(self, state, loss, gradient):
        """Records the loss and gradient at x."""
        is_increase = tf.cast(loss > state.loss, tf.int32)
        state = state._replace(num_increases=state.num_increases + is_increase, loss=loss)
        return where(
            loss > state.loss_best,
            state,
            x_best=state.x,
            gradient_best=gradient,
            loss_best=loss,
        )

    def _halved(self, state, gradient, halves, num_steps):
        """Halves the steps of examples that gained little in `num_steps`, if `halves`."""
        least = LEAST_INCREASES * tf.cast(num_steps, tf.float32)
        condition_1 = tf.cast(state.num_increases, tf.float32) < least
        condition_2 = ~state.was_halved & (state.loss_best == state.loss_best_before)
        halved = condition_1 | condition_2
        state = where(halves, state, was_halved=halved)
        halved &= halves
        gradient = select(halved, state.gradient_best, gradient)
        state = where(
            halved,
            state,
            step_size=state.step_size / 2.0,
            x=state.x_best,
            loss=state.loss_best,
        )
        return state, gradient

    def _stepped(self, state, gradient, momentum):
        x, x_nat = state.x, state.x_nat
        step_size = per_image(state.step_size, x)
        z = step(x, gradient, x_nat, self.epsilon, step_size, self.bounds, self.norm)
        # The subtraction fixes the order: TensorFlow may add three terms differently in each half.
        moved = x + momentum * (z - x) - (1.0 - momentum) * (state.x_previous - x)
        moved = project(moved, x_nat, self.epsilon, self.bounds, self.norm)
        return state._replace(x=moved, x_previous=x)

    @stage
    def _finish(self, state):
        """Records the last point, and the climb's best."""
        exact = self._model.prepare(exact=True)

        def finish(_, state):
            if not self._model.is_exact:  # the best point's own verdict and loss
                z = exact(state.x_best)
                state = self._judged(state._replace(x=state.x_best), z)._replace(x=state.x)
                state = state._replace(loss_best=self._loss(z, state))
            z = exact(state.x)
            state = self._judged(state, z)
            state = self._evaluated(state, self._loss(z, state), state.gradient_best)
            is_best = (state.loss_best > state.highest_of_all) & ~state.broken
            return where(is_best, state, x_adv=state.x_best, highest_of_all=state.loss_best)

        passes = (0, 1 if self._model.is_exact else 2)
        return self._model.iterate(finish, state, 0, 1, passes=passes)
