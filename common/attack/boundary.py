"""Boundary attack: a random walk along the decision boundary towards the image, by classes only.

Brendel et al. 2018, "Decision-based adversarial attacks: reliable attacks against black-box machine
learning models".
"""

import functools

import numpy as np
import tensorflow as tf

from common.attack.attacked_model import stage
from common.attack.ball import length, per_image, select
from common.attack.inputs import whole_number
from common.attack.losses import is_misclassified, margin
from common.attack.precision import Precision, check_precision
from common.attack.staged import StagedAttack, state_of, where
from common.errors import InputError

# Sides of the tiles of the starts' noise, in pixels: coarse noise is of other classes than fine.
# The second of each pair has all pixels at the ends of the range.
TILES = (1, 1, 2, 2, 4, 4, 7, 7) * 3
BLOCK = 25  # steps whose random numbers are drawn at once
FIRST_STEP = 0.1  # both steps at first, in shares of the distance
EVERY = 10  # every tenth step only moves sideways, to learn how far it may
# A point of the walk is misclassified by this share of the largest logit or more. So it stays
# misclassified where another batch, or another form of the network, rounds otherwise.
LEAST_LEAD = 1e-5


class Boundary(StagedAttack):
    """Boundary attack (Brendel et al. 2018), L2: no gradient and no logit, only the class.

    It starts at noise of another class. A step goes in a random direction at the same distance from
    the image, and then towards the image; it is taken if the point is misclassified. Both lengths,
    in shares of the distance, grow with each success and shrink with each failure: half of the
    steps sideways, and a quarter of all steps, shall succeed. (The paper has windows of earlier
    steps in place of the latest one.)

    An image for which no noise is misclassified is returned unchanged.

    Args:
        model, epsilon, bounds, norm, jit_compile, precision: see `Attack`; the norm is "l2", and
            every query is a verdict, in float32.
        num_steps: number of steps of the walk, of one query each.

    Raises:
        InputError: a number is out of range; another norm.
    """

    State = state_of(
        "distance",  # of x_adv, the closest point so far; infinite without one
        "radius",  # the attack is done at this distance
        "sideways",  # length of the step at the same distance, in shares of the distance
        "inward",  # and of the one towards the image
        "numbers",  # the random numbers of the next queries
    )
    name = "boundary"
    random_start = True
    SETTINGS = ("num_steps",)

    def __init__(self, model, *, epsilon, num_steps=10_000, norm="l2", precision="auto", **kwargs):
        check_precision(precision)
        kwargs |= {"norm": norm, "precision": "float32"}
        super().__init__(model, epsilon=epsilon, **kwargs)
        self._model.precision = Precision("float32", "each of its queries is a verdict")
        if norm != "l2":
            raise InputError(f"norm: expected l2, which the boundary attack is for, got {norm!r}")
        self.num_steps = whole_number("num_steps", num_steps, 1)
        self.num_queries = len(TILES) + self.num_steps

    def perturb(self, x_nat, y, seed=0, index=None):
        x_nat, y, seed, index = self._inputs(x_nat, y, seed, index)
        x = self._walked(x_nat, y, seed, index, self.epsilon)
        return select(length(x - x_nat, "l2") <= self.epsilon, x, x_nat)

    def closest(self, x_nat, y, seed=0, index=None):
        """The closest misclassified points that are found, at whatever distance.

        Args:
            x_nat, y, seed, index: see `perturb`.

        Returns:
            float32 tensor, the shape of `x_nat`, with the image itself if no point was found; and
            the distances, float32 (batch,), infinite if no point was found, 0 if the image is
            misclassified.
        """
        x_nat, y, seed, index = self._inputs(x_nat, y, seed, index)
        x = self._walked(x_nat, y, seed, index, radius=0.0)
        if not len(x):
            return x, tf.zeros((0,))
        distance = length(x - x_nat, "l2")
        is_found = (distance > 0) | is_misclassified(self._model.logits(x_nat), y)
        return x, tf.where(is_found, distance, np.inf)

    def _walked(self, x_nat, y, seed, index, radius):
        return self._run(x_nat, y, seed, index, radius=tf.fill((tf.shape(x_nat)[0],), radius))

    def _begin(self, state, logits):
        count = tf.shape(state.y)
        return state._replace(
            distance=tf.fill(count, np.float32(np.inf)),
            sideways=tf.fill(count, np.float32(FIRST_STEP)),
            inward=tf.fill(count, np.float32(FIRST_STEP)),
        )

    def _stages(self, num_classes):
        yield self._from_noise
        for first in range(0, self.num_steps, BLOCK):
            yield functools.partial(
                self._next_steps, first=first, last=min(first + BLOCK, self.num_steps)
            )

    def _from_noise(self, state):
        shape = tf.constant([len(TILES), *state.x_nat.shape[1:]])
        numbers = self._draw(shape, state.seed, state.index, tf.constant(0))
        state = self._start(state._replace(numbers=numbers))
        return state._replace(broken=state.broken | tf.math.is_inf(state.distance))  # no way to go

    def _next_steps(self, state, first, last):
        shape = tf.constant([BLOCK, *state.x_nat.shape[1:]])  # whole, as a shape is compiled anew
        stream = tf.constant(1 + first)
        numbers = self._draw(shape, state.seed, state.index, stream, is_normal=True)
        return self._walk(state._replace(numbers=numbers), tf.constant(first), tf.constant(last))

    @stage
    def _start(self, state):
        logits = self._model.prepare()
        (low, high), sides = self.bounds, tf.constant(TILES)

        def start(i, state):
            noise = tf.gather(state.numbers, i, axis=1)
            for axis in (1, 2):
                noise = tf.gather(noise, tf.range(noise.shape[axis]) // sides[i], axis=axis)
            noise = tf.where(i % 2 == 1, tf.sign(noise), noise)
            x = low + (noise + 1.0) / 2.0 * (high - low)
            has_none = tf.math.is_inf(state.distance)
            return self._taken(state, x, has_none & self._is_beyond(logits(x), state.y))

        return self._model.iterate(start, state, 0, len(TILES), passes=(0, 1))

    @stage
    def _walk(self, state, first, last):
        logits = self._model.prepare()

        def walk(i, state):
            x_nat, distance = state.x_nat, per_image(state.distance, state.x_nat)
            outward = tf.math.divide_no_nan(state.x_adv - x_nat, distance)
            noise = tf.gather(state.numbers, i - first, axis=1)
            noise -= outward * tf.reduce_sum(outward * noise, axis=(1, 2, 3), keepdims=True)
            sideways = per_image(state.sideways, x_nat) * tf.math.l2_normalize(noise, (1, 2, 3))
            x = x_nat + distance * tf.math.l2_normalize(outward + sideways, axis=(1, 2, 3))
            x = tf.clip_by_value(x, *self.bounds)
            only_sideways = i % EVERY == EVERY - 1
            inward = tf.where(only_sideways, 0.0, per_image(state.inward, x_nat))
            x = tf.clip_by_value(x + inward * (x_nat - x), *self.bounds)
            is_there = tf.math.is_finite(state.distance)
            succeeds = is_there & self._is_beyond(logits(x), state.y)
            state = where(
                only_sideways,
                state,
                sideways=_adapted(state.sideways, succeeds, 0.5, 0.5),
            )
            state = where(
                ~only_sideways,
                state,
                inward=_adapted(state.inward, succeeds, 0.25, 0.1),
            )
            return self._taken(state, x, succeeds)

        return self._model.iterate(walk, state, first, last, passes=(0, 1), ends_early=True)

    def _taken(self, state, x, succeeds):
        """`state` at the misclassified points `x` where they are closer than what it has."""
        distance = length(x - state.x_nat, "l2")
        is_closer = succeeds & (distance < state.distance)
        state = where(is_closer & ~state.broken, state, x_adv=x, distance=distance)
        return state._replace(broken=state.broken | (state.distance <= state.radius))

    def _is_beyond(self, logits, y):
        lead = LEAST_LEAD * tf.reduce_max(tf.abs(logits), axis=1)
        return margin(logits, y) < -lead


def _adapted(step, succeeds, share, rate):
    """`step` (batch,), longer after a success and shorter after a failure, at most 1.

    It stays as it is on average if that `share` of the steps succeeds.
    """
    change = rate * (tf.cast(succeeds, tf.float32) - share)
    return tf.clip_by_value(step * tf.exp(change), 1e-7, 1.0)
