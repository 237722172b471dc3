"""Fast adaptive boundary attack: the closest point of another class, found along the boundary.

Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
"""

import functools

import numpy as np
import tensorflow as tf

from common.attack.attacked_model import drawing_stage, stage
from common.attack.ball import length, per_image, select
from common.attack.gradient import value_and_gradient
from common.attack.inputs import LARGEST, real_number, whole_number
from common.attack.losses import is_misclassified, leads_by, margin, targeted_margin_loss
from common.attack.staged import StagedAttack, state_of, where

SEGMENTS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # shares of the steps after which broken examples leave
# The search ends on the boundary, where another form of the model may round the other way: a point
# that it finds must be misclassified by this share of its largest logit.
LEAST_LEAD = 1e-5
SHARE_OF_WAY = 0.99  # the share of the way to the expected boundary that the search goes


def step_to_hyperplane(x, normal, change, bounds, norm):
    """The smallest delta with <normal, delta> = change that keeps x + delta within `bounds`.

    With s the signs of change * normal and r the way from x to the pixel range's end in direction
    s, it is s * min(t m, r); m is 1 in L-infinity and |normal| in L2 (Croce & Hein 2020, Sec. 2.2
    and A). The change is a concave, piecewise linear function of t, with a corner where a pixel
    meets the end of the range, so that Newton's method from t = 0 finds the t exactly, with fewer
    passes over the pixels than sorting.

    Args:
        x: float32 images (batch, height, width, channels), pixels in `bounds`.
        normal: float32, the shape of `x`.
        change: float32 (batch,).
        bounds: (lowest, highest) pixel value.
        norm: "linf" or "l2".

    Returns:
        float32, the shape of `x`; if no such delta is within the pixel range, the one that comes
        closest to `change`.
    """
    shape = tf.shape(x)
    x, normal = (tf.reshape(tensor, (shape[0], -1)) for tensor in (x, normal))
    sign = tf.sign(normal) * tf.sign(change)[:, None]
    room = tf.where(sign > 0, bounds[1] - x, x - bounds[0])
    weight = tf.abs(normal)
    speed = tf.ones_like(weight) if norm == "linf" else weight
    whole, rate = weight * room, weight * speed
    change = tf.abs(change)

    def is_moving(t):
        return t[:, None] * speed < room

    def newton(t, num_moving, _):
        moving = is_moving(t)
        at_end = tf.reduce_sum(tf.where(moving, 0.0, whole), axis=1)
        slope = tf.reduce_sum(tf.where(moving, rate, 0.0), axis=1)
        # If no pixel can change any more, the change cannot be reached.
        t = tf.maximum(t, tf.math.divide_no_nan(change - at_end, slope))
        return t, tf.math.count_nonzero(moving, axis=1), num_moving

    def continues(_, num_moving, num_before):
        return tf.reduce_any(num_moving != num_before)

    count = tf.fill(shape[:1], tf.constant(-1, tf.int64))
    t, _, _ = tf.while_loop(continues, newton, (tf.zeros_like(change), count, count - 1))
    delta = sign * tf.minimum(t[:, None] * speed, room)
    return tf.reshape(delta, shape)


class FAB(StagedAttack):
    """Targeted fast adaptive boundary attack (Croce & Hein 2020): 9 classes, 100 steps each.

    Each step linearises z_target - z_y at x, and goes a little beyond the closest point of its
    boundary within the pixel range, biased towards the point of it that is closest to the image:

        x <- clip((1 - alpha) (x + eta delta) + alpha (x_nat + eta delta_nat))
        alpha = min(|delta| / (|delta| + |delta_nat|), alpha_max)

    From a point of another class it moves back to x <- (1 - beta) x_nat + beta x. After each target
    some steps of interpolation on the way to the image bring its closest point closer (the paper's
    final search).

    An example is returned as the first misclassified point within epsilon, else as the image.

    In bfloat16 float32 still decides which points are misclassified, as they are close to the
    boundary; only the linearisation is in bfloat16.

    Args:
        model, epsilon, bounds, norm, jit_compile, precision: see `Attack`.
        num_steps: number of steps for each target, of one gradient and one forward pass each.
        num_targets: how many classes, the likeliest at the image.
        alpha_max, eta, beta: see above.
        num_search_steps: number of steps of the final search for each target, of one forward pass
            each.
        random_start: True starts every restart but the first, 0, at a uniform point of the ball of
            half the radius (the paper's restarts); a restart's number is the second of a pair as
            seed. False starts every run at the image.
    """

    State = state_of(
        "radius",  # an example is broken once x_adv is that close
        "lead_nat",  # of the best wrong class over the label, at the image
        "distance_adv",  # of x_adv from the image, infinite if no point was found
        # The climb towards a target:
        "target",
        "x",  # the iterate
        "x_best",  # its closest misclassified point
        "distance_best",
        "lead_best",
        # The final search:
        "x_inner",  # the point on the way to the image that is not misclassified
        "lead_inner",
    )
    name = "fab_targeted"
    SETTINGS = (
        "num_steps",
        "num_targets",
        "alpha_max",
        "eta",
        "beta",
        "num_search_steps",
        "random_start",
    )

    def __init__(
        self,
        model,
        *,
        epsilon,
        num_steps=100,
        num_targets=9,
        alpha_max=0.1,
        eta=1.05,
        beta=0.9,
        num_search_steps=3,
        random_start=False,
        **kwargs,
    ):
        super().__init__(model, epsilon=epsilon, **kwargs)
        self.num_steps = whole_number("num_steps", num_steps, 1)
        self.num_targets = whole_number("num_targets", num_targets, 1)
        self.alpha_max = real_number("alpha_max", alpha_max, 0.0, 1.0)
        self.eta = real_number("eta", eta, 1.0)
        self.beta = real_number("beta", beta, 0.0, 1.0)
        self.num_search_steps = whole_number("num_search_steps", num_search_steps, 0)
        self.random_start = bool(random_start)
        self.num_gradients = self.num_targets * self.num_steps
        self.num_queries = self.num_targets * (self.num_steps + self.num_search_steps)

    def perturb(self, x_nat, y, seed=0, index=None):
        x_nat, y, seed, index = self._inputs(x_nat, y, seed, index)
        x = self._closest(x_nat, y, seed, index, radius=self.epsilon)
        is_within = length(x - x_nat, self.norm) <= self.epsilon
        return select(is_within, x, x_nat)

    def closest(self, x_nat, y, seed=0, index=None):
        """The closest misclassified points that are found, at whatever distance.

        Args:
            x_nat, y, seed, index: see `perturb`.

        Returns:
            float32 tensor, the shape of `x_nat`, with the image itself if no point was found, or if
            the image is misclassified; and the distances, float32 (batch,), infinite if no point
            was found.
        """
        x_nat, y, seed, index = self._inputs(x_nat, y, seed, index)
        x = self._closest(x_nat, y, seed, index, radius=-1.0)
        distance = length(x - x_nat, self.norm)
        broken = is_misclassified(self._model.logits(x), y)
        return x, tf.where(broken, distance, np.inf)

    def _closest(self, x_nat, y, seed, index, radius):
        """The closest points; an example leaves once its closest point is within `radius`."""
        return self._run(x_nat, y, seed, index, radius=tf.fill(tf.shape(y), radius))

    def _begin(self, state, logits):
        return state._replace(
            lead_nat=-margin(logits, state.y),
            distance_adv=tf.fill(tf.shape(state.y), np.inf),
        )

    def _stages(self, num_classes):
        lasts = sorted({-int(-share * self.num_steps // 1) for share in SEGMENTS})
        for rank in self._ranks(num_classes):
            yield functools.partial(self._start, rank=tf.constant(rank))
            for num_steps in np.diff(lasts, prepend=0):
                yield functools.partial(self._walk, num_steps=tf.constant(num_steps, tf.int32))
            if self.num_search_steps:
                yield self._search

    @drawing_stage
    def _start(self, state, rank):
        is_restart = state.seed[:, 1] > 0
        start = self._start_of(state, rank, self.epsilon / 2.0)
        return state._replace(
            target=tf.gather(state.targets, rank, axis=1),
            x=select(is_restart, start, state.x_nat),
            x_best=state.x_nat,
            distance_best=tf.fill(tf.shape(state.y), np.inf),
            lead_best=tf.zeros_like(state.lead_nat),
            x_inner=state.x_nat,
            lead_inner=state.lead_nat,
        )

    @stage
    def _walk(self, state, num_steps):
        logits, exact = self._model.prepare_both()

        def walk(_, state):
            x, undefined = self._beyond_boundary(state, logits)
            undefined = state.undefined | (undefined & ~state.broken)
            state = state._replace(undefined=undefined)
            z = exact(x)
            broken = is_misclassified(z, state.y)
            state = self._evaluated(state, x, -margin(z, state.y), broken)
            back = state.x_nat + self.beta * (x - state.x_nat)
            return state._replace(x=select(broken, back, x))

        return self._model.iterate(walk, state, 0, num_steps, passes=(1, 1), ends_early=True)

    def _beyond_boundary(self, state, logits):
        """The next point, and whether the gradient was not a number."""
        x, x_nat = state.x, state.x_nat

        def lead_of_target(z):
            return targeted_margin_loss(z, state.y, state.target)

        _, lead, normal, undefined = value_and_gradient(lead_of_target, logits, x)
        normal = tf.clip_by_value(normal, -LARGEST, LARGEST)  # which can be squared
        axes = list(range(1, x.shape.rank))
        lead_nat = lead + tf.reduce_sum(normal * (x_nat - x), axis=axes)  # linearised
        both = step_to_hyperplane(
            tf.concat([x, x_nat], axis=0),
            tf.concat([normal, normal], axis=0),
            -tf.concat([lead, lead_nat], axis=0),
            self.bounds,
            self.norm,
        )
        delta, delta_nat = tf.split(both, 2)
        way, way_nat = length(delta, self.norm), length(delta_nat, self.norm)
        alpha = tf.minimum(tf.math.divide_no_nan(way, way + way_nat), self.alpha_max)
        alpha = per_image(alpha, x)
        x = (1.0 - alpha) * (x + self.eta * delta) + alpha * (x_nat + self.eta * delta_nat)
        return tf.clip_by_value(x, *self.bounds), undefined

    def _evaluated(self, state, x, lead, broken):
        """Records points; `broken` says which of them are misclassified."""
        distance = length(x - state.x_nat, self.norm)
        state = where(
            broken & (distance < state.distance_best),
            state,
            x_best=x,
            distance_best=distance,
            lead_best=lead,
        )
        is_closer = broken & (distance < state.distance_adv) & ~state.broken
        state = where(is_closer, state, x_adv=x, distance_adv=distance)
        return state._replace(broken=state.broken | (state.distance_adv <= state.radius))

    @stage
    def _search(self, state):
        """Interpolates the boundary between this target's closest point and the image."""
        logits = self._model.prepare(exact=True)

        def search(_, state):
            # The point at which the lead of the best wrong class, if it were linear, would be 0.
            lead, lead_inner = state.lead_best, state.lead_inner
            share = tf.clip_by_value(tf.math.divide_no_nan(lead, lead - lead_inner), 0.0, 1.0)
            x = state.x_best
            x += SHARE_OF_WAY * per_image(share, x) * (state.x_inner - x)
            z = logits(x)
            lead = -margin(z, state.y)
            broken = leads_by(z, state.y, LEAST_LEAD)
            broken &= tf.math.is_finite(state.distance_best)
            state = self._evaluated(state, x, lead, broken)
            return where(~broken, state, x_inner=x, lead_inner=lead)

        return self._model.iterate(search, state, 0, self.num_search_steps, passes=(0, 1))
