"""Projected gradient descent: steps of a fixed size from a random point of the ball."""

import collections
import functools

import numpy as np
import tensorflow as tf

from common.attack.attacked_model import compiled
from common.attack.ball import draw, select, step, uniform_start
from common.attack.base import Attack
from common.attack.gradient import value_and_gradient
from common.attack.inputs import (
    LARGEST,
    as_raised,
    real_number,
    to_images,
    to_index,
    to_scale,
    to_seed,
    whole_number,
)
from common.attack.losses import (
    LOSSES,
    TARGETED_LOSSES,
    finite_logits,
    least_likely_wrong_class,
    wrong_class_at,
)
from common.errors import InputError

LOSS_FUNCS = ("xent", "cw")
TARGETS = ("random", "least_likely", "next")
START, OUTPUT_DIRECTION, TARGET = None, 1, 2  # streams of random numbers

_STATE = (
    "x",  # the iterate
    "x_nat",
    "y",
    "undefined",  # bool, whether a gradient had a NaN
    "weights",  # of the logits, for `odi_steps`
    "target",  # the class, for an attack with a `target`
)
State = collections.namedtuple("State", _STATE, defaults=[(), ()])


class PGD(Attack):
    """Projected gradient descent on the loss (paper, Sec. 2.1 and 4).

        x <- project(x + step_size * direction(grad_x loss(model(x), y)))     num_steps times

    The direction is the sign of the gradient, or in L2 the gradient over its norm.

    As in the paper the last point is returned. It is not always the one with the highest loss, and
    may be classified correctly even if the image is not; APGD returns its best point.

    Args:
        model: see `Attack`.
        epsilon: see `Attack`.
        step_size: length of a step, in the units of `bounds`.
        num_steps: number of steps; 0 returns the start.
        random_start: True starts at a uniform point of the ball, False at the image.
        loss_func: "xent", or "cw" with confidence `kappa`.
        kappa: see `cw_loss`.
        odi_steps: number of steps of Output Diversified Initialisation before the others (Tashiro
            et al. 2020, who take 2): they have size epsilon and ascend a random combination of the
            logits with weights uniform in [-1, 1].
        target: None ascends the loss of the label. With a class the steps ascend
            `targeted_xent_loss`, or for "cw" `targeted_margin_loss`, and images of the class are
            returned unchanged. "random" chooses a wrong class for each example, "least_likely" the
            wrong class of its lowest logit, "next" the class after its label; the first class
            follows the last.
        batch_statistics: False attacks the model in inference mode. True calls it with
            training=True, as the original CIFAR-10 training does: batch norm then uses the
            statistics of the batch under attack (which couples its images) and every step
            updates the stored averages. The published networks were trained this way; it is for
            training only.
        **kwargs: bounds, norm, jit_compile and precision, see `Attack`.

    Raises:
        InputError: a number is out of range; the message says what was expected and what came.
    """

    name = "pgd"
    SETTINGS = ("step_size", "num_steps", "random_start", "loss_func", "kappa")
    _runs_in_graphs = True

    def __init__(
        self,
        model,
        *,
        epsilon,
        step_size,
        num_steps,
        random_start=True,
        loss_func="xent",
        kappa=50.0,
        odi_steps=0,
        target=None,
        batch_statistics=False,
        **kwargs,
    ):
        super().__init__(
            model,
            epsilon=epsilon,
            step_size=step_size,
            batch_statistics=bool(batch_statistics),
            **kwargs,
        )
        if loss_func not in LOSS_FUNCS:
            raise InputError(
                f"loss_func: expected one of {', '.join(LOSS_FUNCS)}, got {loss_func!r}"
            )
        self.step_size = float(step_size)
        self.num_steps = whole_number("num_steps", num_steps, 0)
        self.odi_steps = whole_number("odi_steps", odi_steps, 0)
        self.loss_func = loss_func
        self.kappa = real_number("kappa", kappa, 0.0)
        self.target = _to_target(target)
        self._starts_at_random = bool(random_start)
        self.random_start = bool(random_start or odi_steps or target == "random")
        self.num_gradients = self.num_steps + self.odi_steps

    def perturb(self, x_nat, y, seed=0, index=None, scale=1.0):
        """Adversarial examples for `x_nat`.

        It may be called in a tf.function, too.

        Args:
            x_nat, y, seed, index: see `Attack.perturb`.
            scale: multiplies epsilon and step_size, for training that starts with a small ball.

        Returns:
            float32 tensor, the shape of `x_nat`.

        Raises:
            InputError: as `Attack.perturb`; scale is not a number of 0 or more; `target` is not one
                of the model's classes.
        """
        scale = to_scale(scale, LARGEST / max(self.epsilon, self.step_size, 1.0))
        x_nat, y, seed, index = self._inputs(x_nat, y, seed, index)
        if x_nat.shape[0] == 0:
            self._undefined = ()
            return x_nat
        self._check_target()
        size = scale * self.epsilon, scale * self.step_size
        if not tf.executing_eagerly():
            return self._climb(self._begin(x_nat, y, seed, index, size[0]), *size)[0]
        count = len(x_nat)
        rows = self._model.padded(np.arange(count))
        if len(rows) > count:
            x_nat, y, index = (tf.gather(values, rows) for values in (x_nat, y, index))
            seed = tf.gather(seed, rows) if seed.shape.rank == 2 else seed
        with as_raised():
            x, undefined = self._climb(self._begin(x_nat, y, seed, index, size[0]), *size)
        if len(rows) > count:
            x, undefined = x[:count], undefined[:count]
        self._undefined = undefined
        return x

    def start(self, x_nat, y, seed=0, index=None, scale=1.0):
        """The state before the first step, for a caller with its own loop (see `ascend`).

        Args:
            x_nat, y, seed, index, scale: see `perturb`; classes as int32 (batch,).

        Returns:
            Named tuple of tensors (batch, ...); `x` are the images under attack.

        Raises:
            InputError: the attack has a `target` or `odi_steps`; or as `perturb`.
        """
        if self.target is not None or self.odi_steps:
            raise InputError("pgd: expected no target and no odi_steps for single steps")
        x_nat = to_images(x_nat, self.bounds)
        seed, index = to_seed(seed, x_nat.shape[0]), to_index(index, x_nat.shape[0])
        return self._start(x_nat, y, seed, index, scale * self.epsilon)

    def ascend(self, state, scale=1.0):
        """One step of the attack: `perturb` is `start`, and `num_steps` of these.

        Nothing is compiled: within a tf.function of several devices (`tf.distribute`) the model may
        exchange statistics between them, which is not possible in the loop of `perturb`.

        Args:
            state: see `start`.
            scale: see `perturb`.

        Returns:
            The state after the step.
        """
        size = scale * self.epsilon, scale * self.step_size
        return self._climber(self._model.prepare(), self._loss_of, *size)(0, state)

    def _start(self, x_nat, y, seed, index, epsilon):
        x = x_nat
        if self._starts_at_random:
            ball = epsilon, self.bounds, seed, index, self.norm, START
            x = uniform_start(x_nat, *ball, side_by_side=self._model.uses_xla)
        options = self._options(x_nat, y, seed, index)
        return State(x, x_nat, y, tf.zeros_like(y, tf.bool), **options)

    _begin = compiled(_start, uses_xla=False)

    @compiled
    def _climb(self, state, epsilon, step_size):
        """The end points, and bool (batch,), which images had a gradient with NaN."""
        logits = self._model.prepare()
        if self.odi_steps:
            diversify = self._climber(logits, _combination_of_logits, epsilon, epsilon)
            state = self._model.iterate(diversify, state, 0, self.odi_steps)
        climb = self._climber(logits, self._loss_of, epsilon, step_size)
        state = self._model.iterate(climb, state, 0, self.num_steps)
        if self.target is None:
            return state.x, state.undefined
        is_target = state.target == state.y
        return select(is_target, state.x_nat, state.x), state.undefined & ~is_target

    def _climber(self, logits, loss_of, epsilon, step_size):
        """A step of gradient ascent on a loss, as function (number, state) to state."""

        def climb(_, state):
            loss, x = loss_of(state), state.x
            _, _, gradient, undefined = value_and_gradient(loss, logits, x)
            x = step(x, gradient, state.x_nat, epsilon, step_size, self.bounds, self.norm)
            return state._replace(x=x, undefined=state.undefined | undefined)

        return climb

    def _loss_of(self, state):
        """The loss that the steps ascend, a function from logits to float32 (batch,)."""
        if self.target is not None:
            loss = TARGETED_LOSSES[self.loss_func]
            return functools.partial(loss, y=state.y, target=state.target)
        options = {"kappa": self.kappa} if self.loss_func == "cw" else {}
        return functools.partial(LOSSES[self.loss_func], y=state.y, **options)

    def _options(self, x_nat, y, seed, index):
        """The state's `weights`, for `odi_steps`, and `target`, as a dict of those that it has."""
        options = {}
        if self.odi_steps or self.target in TARGETS:
            logits = self._model.prepare(exact=True)(x_nat)
        if self.odi_steps:
            options["weights"] = draw(tf.shape(logits)[1:], seed, index, OUTPUT_DIRECTION)
        if self.target == "random":
            share = (draw([], seed, index, TARGET) + 1.0) / 2.0
            options["target"] = wrong_class_at(share, logits, y)
        elif self.target == "least_likely":
            options["target"] = least_likely_wrong_class(logits, y)
        elif self.target == "next":
            options["target"] = (y + 1) % tf.shape(logits)[1]
        elif self.target is not None:
            options["target"] = tf.fill(tf.shape(y), self.target)
        return options

    def _check_target(self):
        if isinstance(self.target, int) and self.target >= (self._model.num_classes or np.inf):
            raise InputError(
                f"target: expected a class from 0 to {self._model.num_classes - 1}, "
                f"got {self.target}"
            )

    def _trace(self, x_nat):
        if self.odi_steps or self.target is not None:
            super()._trace(x_nat)
            return
        x = self._model.spec(x_nat)  # as `perturb` calls it, so that it is traced only once
        y, undefined = (tf.TensorSpec(x.shape[:1], dtype) for dtype in (tf.int32, tf.bool))
        number = tf.TensorSpec((), tf.float32)
        self._climb.get_concrete_function(State(x, x, y, undefined), number, number)

    def settings(self):
        """The hyperparameters as a dict, for the files that record what was run.

        A plain attack in L-infinity has neither name nor norm there, as its records never had.
        """
        settings = super().settings()
        if self.loss_func != "cw" or self.target is not None:
            del settings["kappa"]
        settings["random_start"] = self._starts_at_random
        plain = {"name": "pgd", "norm": "linf", "odi_steps": 0, "target": None}
        others = {name: getattr(self, name) for name in plain}
        if others == plain:
            return {name: value for name, value in settings.items() if name not in plain}
        return {**others, **settings}


def _to_target(target):
    if target is None or (isinstance(target, str) and target in TARGETS):
        return target
    try:
        return whole_number("target", target, 0)
    except InputError:
        raise InputError(
            f"target: expected a class, {' or '.join(TARGETS)} or None, got {target!r}"
        ) from None


def _combination_of_logits(state):
    def loss(logits):
        return tf.reduce_sum(state.weights * finite_logits(logits), axis=-1)

    return loss


def FGSM(model, *, epsilon, random_start=False, **kwargs):
    """Fast gradient sign method (Goodfellow et al. 2015): one PGD step of size epsilon.

    Args:
        model, epsilon: see `PGD`.
        random_start: True steps from a uniform point of the ball, and projects, as Wong et al. 2020
            do in training; their step is 1.25 epsilon, here it is epsilon.
        **kwargs: the other arguments of `PGD` but step_size and num_steps.
    """
    return PGD(
        model, epsilon=epsilon, step_size=epsilon, num_steps=1, random_start=random_start, **kwargs
    )
