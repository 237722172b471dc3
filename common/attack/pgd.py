"""Projected gradient descent: steps of a fixed size from a random point of the ball."""

import functools

import numpy as np
import tensorflow as tf

from common.attack.ball import direction, draw, project, select, uniform_start
from common.attack.base import Attack, check_counts
from common.attack.losses import (
    cw_loss,
    is_misclassified,
    likely_wrong_classes,
    targeted_margin_loss,
    targeted_xent_loss,
    xent_loss,
)
from common.attack.model import value_and_gradient
from common.errors import InputError

LOSSES = ("xent", "cw")
TARGETS = ("random", "least_likely")
START, OUTPUT_DIRECTION, TARGET = None, 1, 2  # streams of random numbers


class PGD(Attack):
    """Projected gradient descent on the loss (paper, Sec. 2.1 and 4).

        x <- project(x + step_size * direction(grad_x loss(model(x), y)))     num_steps times

    The direction is the sign of the gradient, or in L2 the gradient over its norm.

    As in the paper the last point comes back. Where the loss fell again that is not the worst one,
    and may be classified correctly where the image is not; APGD returns its best.

    Args:
        model, epsilon, bounds, norm, jit_compile: see `Attack`.
        step_size: length of a step, in the units of `bounds`.
        num_steps: number of steps; 0 returns the start.
        random_start: start at a uniform point of the ball; False starts at the image.
        odi_steps: steps of Output Diversified Initialisation before the others (Tashiro et al.
            2020, who take 2), of size epsilon, up a random combination of the logits with weights
            uniform in [-1, 1].
        loss_func: "xent", or "cw" with confidence `kappa`.
        kappa: see `cw_loss`.
        target: None ascends the loss of the label. A class descends that class's own: the steps
            then ascend `targeted_xent_loss`, or for "cw" `targeted_margin_loss`, and images of the
            class stay as they are. "random" takes a wrong class for each example, "least_likely"
            the one of its lowest logit.
        batch_statistics: False attacks the model in inference mode. True calls it with
            training=True, as the original CIFAR-10 training does: batch norm then uses the
            statistics of the batch under attack (which couples its images) and every step
            moves the stored averages. The published networks were trained so, for the
            convenience of one graph; it is meant for training only.

    Raises:
        InputError: a number is out of range; the message says what was expected and what came.
    """

    name = "pgd"

    def __init__(
        self,
        model,
        *,
        epsilon,
        step_size,
        num_steps,
        random_start=True,
        odi_steps=0,
        loss_func="xent",
        kappa=50.0,
        target=None,
        bounds=(0.0, 1.0),
        norm="linf",
        batch_statistics=False,
        jit_compile="auto",
    ):
        super().__init__(
            model,
            epsilon=epsilon,
            step_size=step_size,
            bounds=bounds,
            norm=norm,
            jit_compile=jit_compile,
        )
        check_counts(at_least=0, num_steps=num_steps, odi_steps=odi_steps)
        if loss_func not in LOSSES:
            raise InputError(f"loss_func: expected one of {', '.join(LOSSES)}, got {loss_func!r}")
        is_class = isinstance(target, int) and not isinstance(target, bool) and target >= 0
        if not (target is None or target in TARGETS or is_class):
            raise InputError(
                f"target: expected a class, {' or '.join(TARGETS)} or None, got {target!r}"
            )
        self.step_size = float(step_size)
        self.num_steps = int(num_steps)
        self.odi_steps = int(odi_steps)
        self.loss_func = loss_func
        self.kappa = float(kappa)
        self.target = target
        self.batch_statistics = bool(batch_statistics)
        self._starts_at_random = bool(random_start)
        self.random_start = bool(random_start or odi_steps or target == "random")
        self.num_gradients = self.num_steps + self.odi_steps
        # The halves of a batch, and XLA, need its size.
        self._attack = tf.function(self._from_start, reduce_retracing=not self._needs_batch_size)
        self._climb = (
            tf.function(self._climb_, jit_compile=True) if self._uses_xla else self._climb_
        )

    def perturb(self, x_nat, y, seed=0, index=None, scale=1.0):
        """Adversarial examples for `x_nat`.

        Args:
            x_nat, y, seed, index: see `Attack.perturb`.
            scale: multiplies epsilon and step_size, for training that starts with a small ball.

        Returns:
            float32 tensor, the shape of `x_nat`.

        Raises:
            InputError: NumPy images are outside `bounds`.
        """
        inputs = self._inputs(x_nat, y, seed, index)
        return self._attack(*inputs, tf.cast(scale, tf.float32))

    def settings(self):
        """The hyperparameters as a dict, for the files that record what was run.

        Of the plain L-infinity attack they are those that its records have always had.
        """
        names = ("epsilon", "step_size", "num_steps", "random_start", "loss_func", "kappa")
        settings = {name: getattr(self, name) for name in names}
        if self.loss_func != "cw" or self.target is not None:
            del settings["kappa"]
        settings["random_start"] = self._starts_at_random
        plain = {"name": "pgd", "norm": "linf", "odi_steps": 0, "target": None}
        others = {name: getattr(self, name) for name in plain}
        return settings if others == plain else {**others, **settings}

    def _prepare(self):
        if self.batch_statistics:
            return functools.partial(self._model, training=True)
        return super()._prepare()

    def _loss(self, logits, y, target):
        if self.target is None:
            return (
                xent_loss(logits, y) if self.loss_func == "xent" else cw_loss(logits, y, self.kappa)
            )
        loss = targeted_xent_loss if self.loss_func == "xent" else targeted_margin_loss
        return loss(logits, y, target)

    def _from_start(self, x_nat, y, seed, index, scale):
        epsilon, step_size = scale * self.epsilon, scale * self.step_size
        x = x_nat
        if self._starts_at_random:
            x = uniform_start(x_nat, epsilon, self.bounds, seed, index, self.norm, START)
        state = {"x": x, "x_nat": x_nat, "y": y}
        num_classes = None
        if self.odi_steps or self.target in TARGETS:
            logits = self._prepare()(x_nat)
            num_classes = logits.shape[-1] or tf.shape(logits)[-1]
        if self.odi_steps:
            state["weights"] = draw([num_classes], seed, index, OUTPUT_DIRECTION)
        if self.target == "random":
            share = (draw([], seed, index, TARGET) + 1.0) / 2.0
            shift = tf.cast(share * tf.cast(num_classes - 1, tf.float32), tf.int32)
            state["target"] = (y + 1 + tf.minimum(shift, num_classes - 2)) % num_classes
        elif self.target == "least_likely":
            state["target"] = likely_wrong_classes(logits, y, num_classes - 1)[:, -1]
        elif self.target is not None:
            state["target"] = tf.fill(tf.shape(y), self.target)
        x = self._climb(state, epsilon, step_size)
        if self.target is not None:
            x = select(state["target"] == y, x_nat, x)
        return x

    def _climb_(self, state, epsilon, step_size):
        logits = self._prepare()

        def ascend(loss, state, step_size):
            _, _, gradient = value_and_gradient(loss, logits, state["x"])
            x = state["x"] + step_size * direction(gradient, self.norm)
            return {**state, "x": project(x, state["x_nat"], epsilon, self.bounds, self.norm)}

        def diversify(_, state):
            return ascend(lambda z: tf.reduce_sum(state["weights"] * z, axis=-1), state, epsilon)

        def climb(_, state):
            return ascend(
                lambda z: self._loss(z, state["y"], state.get("target")), state, step_size
            )

        if self.odi_steps:
            state = self._iterate(diversify, state, 0, self.odi_steps)
        return self._iterate(climb, state, 0, self.num_steps)["x"]


def FGSM(model, *, epsilon, random_start=False, **kwargs):
    """Fast gradient sign method (Goodfellow et al. 2015): one PGD step of size epsilon.

    Args:
        model, epsilon: see `PGD`.
        random_start: step from a uniform point of the ball, and project. Wong et al. 2020 train
            so with steps of 1.25 epsilon; here the step is epsilon.
        **kwargs: PGD's others, without step_size and num_steps.
    """
    return PGD(
        model, epsilon=epsilon, step_size=epsilon, num_steps=1, random_start=random_start, **kwargs
    )


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
        check_counts(at_least=1, num_steps=num_steps, num_targets=num_targets)
        self.step_size = float(step_size)
        self.num_steps = int(num_steps)
        self.random_start = bool(random_start)
        self.num_targets = int(num_targets)
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

            _, _, gradient = value_and_gradient(loss, logits, state["x"])
            x = state["x"] + self.step_size * direction(gradient, self.norm)
            return {**state, "x": project(x, state["x_nat"], self.epsilon, self.bounds, self.norm)}

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
