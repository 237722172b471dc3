"""Projected gradient descent: steps of a fixed size from a random point of the ball."""

import functools

import numpy as np
import tensorflow as tf

from common.attack.ball import direction, draw, project, select, uniform_start
from common.attack.base import Attack
from common.attack.gradient import value_and_gradient
from common.attack.inputs import LARGEST, as_raised, real_number, to_scale, whole_number
from common.attack.losses import (
    cw_loss,
    finite_logits,
    least_likely_wrong_class,
    targeted_margin_loss,
    targeted_xent_loss,
    wrong_class_at,
    xent_loss,
)
from common.attack.sizes import Sizes
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
    _runs_in_graphs = True

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
        if loss_func not in LOSSES:
            raise InputError(f"loss_func: expected one of {', '.join(LOSSES)}, got {loss_func!r}")
        if not (target is None or (isinstance(target, str) and target in TARGETS)):
            try:
                target = whole_number("target", target, 0)
            except InputError:
                raise InputError(
                    f"target: expected a class, {' or '.join(TARGETS)} or None, got {target!r}"
                ) from None
        self.step_size = float(step_size)
        self.num_steps = whole_number("num_steps", num_steps, 0)
        self.odi_steps = whole_number("odi_steps", odi_steps, 0)
        self.loss_func = loss_func
        self.kappa = real_number("kappa", kappa, 0.0)
        self.target = target
        self.batch_statistics = bool(batch_statistics)
        self._starts_at_random = bool(random_start)
        self.random_start = bool(random_start or odi_steps or target == "random")
        self.num_gradients = self.num_steps + self.odi_steps
        self._sizes = Sizes()  # nobody leaves
        self._attack = tf.function(self._from_start, reduce_retracing=not self._needs_batch_size)
        self._climb = (
            tf.function(self._climb_, jit_compile=True) if self._uses_xla else self._climb_
        )

    def perturb(self, x_nat, y, seed=0, index=None, scale=1.0):
        """Adversarial examples for `x_nat`.

        It may be called in a tf.function, too.

        Args:
            x_nat, y, seed, index: see `Attack.perturb`.
            scale: multiplies epsilon and step_size, for training that starts with a small ball.

        Returns:
            float32 tensor, the shape of `x_nat`.

        Raises:
            InputError: as `Attack.perturb`; scale is not a number from 0 on; `target` is not one of
                the model's classes.
        """
        scale = to_scale(scale, LARGEST / max(self.epsilon, self.step_size, 1.0))
        x_nat, y, seed, index = self._inputs(x_nat, y, seed, index)
        if x_nat.shape[0] == 0:
            self._undefined = ()
            return x_nat
        if isinstance(self.target, int) and self.target >= (self._num_classes or np.inf):
            raise InputError(
                f"target: expected a class from 0 to {self._num_classes - 1}, got {self.target}"
            )
        if not tf.executing_eagerly():
            return self._attack(x_nat, y, seed, index, scale)[0]
        count = len(x_nat)
        rows = self._padded(np.arange(count))
        if len(rows) > count:
            x_nat, y, index = (tf.gather(values, rows) for values in (x_nat, y, index))
            seed = tf.gather(seed, rows) if seed.shape.rank == 2 else seed
        with as_raised():
            x, undefined = self._attack(x_nat, y, seed, index, scale)
        if len(rows) > count:
            x, undefined = x[:count], undefined[:count]
        self._undefined = undefined
        return x

    def _find_classes(self, x_nat, seed, index):
        size = self._spec(x_nat).shape[0]
        of_batch = [tf.TensorSpec((size,), tf.int32)] * 2
        seed = self._spec(seed) if seed.shape.rank == 2 else tf.TensorSpec((2,), tf.int32)
        scale = tf.TensorSpec((), tf.float32)
        self._attack.get_concrete_function(self._spec(x_nat), of_batch[0], seed, of_batch[1], scale)
        if self._num_classes is None and tf.executing_eagerly():  # its shape does not tell
            self._num_classes = int(self._logits_of(x_nat).shape[-1])

    def _padded(self, rows):
        # In training mode the images of a batch meet.
        return rows if self.batch_statistics else super()._padded(rows)

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

    def _raw_model(self):
        if self.batch_statistics:
            return functools.partial(self._model, training=True)
        return super()._raw_model()

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
        state = {"x": x, "x_nat": x_nat, "y": y, "undefined": tf.zeros_like(y, tf.bool)}
        if self.odi_steps or self.target in TARGETS:
            logits = self._prepare()(x_nat)
        if self.odi_steps:
            state["weights"] = draw(tf.shape(logits)[1:], seed, index, OUTPUT_DIRECTION)
        if self.target == "random":
            share = (draw([], seed, index, TARGET) + 1.0) / 2.0
            state["target"] = wrong_class_at(share, logits, y)
        elif self.target == "least_likely":
            state["target"] = least_likely_wrong_class(logits, y)
        elif self.target is not None:
            state["target"] = tf.fill(tf.shape(y), self.target)
        x, undefined = self._climb(state, epsilon, step_size)
        if self.target is not None:
            is_target = state["target"] == y
            x, undefined = select(is_target, x_nat, x), undefined & ~is_target
        return x, undefined

    def _climb_(self, state, epsilon, step_size):
        logits = self._prepare()

        def ascend(loss, state, step_size):
            _, _, gradient, undefined = value_and_gradient(loss, logits, state["x"])
            x = state["x"] + step_size * direction(gradient, self.norm)
            x = project(x, state["x_nat"], epsilon, self.bounds, self.norm)
            return {**state, "x": x, "undefined": state["undefined"] | undefined}

        def diversify(_, state):
            def loss(z):
                return tf.reduce_sum(state["weights"] * finite_logits(z), axis=-1)

            return ascend(loss, state, epsilon)

        def climb(_, state):
            return ascend(
                lambda z: self._loss(z, state["y"], state.get("target")), state, step_size
            )

        if self.odi_steps:
            state = self._iterate(diversify, state, 0, self.odi_steps)
        state = self._iterate(climb, state, 0, self.num_steps)
        return state["x"], state["undefined"]


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
