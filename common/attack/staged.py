"""The base class of attacks whose examples leave the batch once they are broken."""

import collections

import numpy as np
import tensorflow as tf

from common.attack.attacked_model import drawing
from common.attack.ball import draw, select, uniform_start
from common.attack.base import Attack
from common.attack.losses import is_misclassified, likely_wrong_classes

SIZES = 8  # batches of that many sizes are compiled while a batch shrinks


def state_of(*fields):
    """The type of an attack's state: a named tuple of tensors (batch, ...).

    Args:
        fields: names of what the attack itself keeps of each example; () until a stage sets it.
    """
    common = (
        "x_nat",  # what `perturb` was given
        "y",
        "seed",  # (batch, 2)
        "index",
        "x_adv",  # what it returns, x_nat at first
        "broken",  # bool, whether it is done with the example
        "passes",  # int64 (batch, 2), see `Attack.passes`
        "undefined",  # bool, see `Attack.num_undefined`
        "targets",  # int32 (batch, targets), the likeliest wrong classes, if it has any
    )
    names = (*common, *fields)
    return collections.namedtuple("State", names, defaults=[()] * len(names))


class StagedAttack(Attack):
    """An attack that runs in stages; an example leaves after the stage that breaks it.

    Subclasses have a type `State`, see `state_of`. They implement `_stages`, which yields functions
    from state to state that `perturb` runs one after another, and `_begin`, which sets in the first
    state what they need. An image that is misclassified itself is returned unchanged.

    Float32 decides `broken`. An example that is misclassified in bfloat16 stays under attack until
    float32 confirms it.

    Args:
        model, **kwargs: see `Attack`.
    """

    State = state_of()
    leaves_early = True
    num_targets = 0

    def __init__(self, model, **kwargs):
        super().__init__(model, num_parts=SIZES, **kwargs)

    def perturb(self, x_nat, y, seed=0, index=None):
        return self._run(*self._inputs(x_nat, y, seed, index))

    def _stages(self, num_classes):
        """Yields functions from state to state, which `_run` calls in turn."""
        raise NotImplementedError

    def _begin(self, state, logits):
        """The first state with what the stages need; `logits` are those of the images."""
        return state

    def _run(self, x_nat, y, seed, index, **others):
        """Runs the stages; `others` are further fields of the first state."""
        count = int(tf.shape(x_nat)[0])
        self._passes, self._undefined = np.zeros(2, np.int64), np.zeros(count, bool)
        if not count:
            return x_nat
        seed = tf.broadcast_to(seed, (count, 2))
        state = self.State(
            x_nat=x_nat,
            y=y,
            seed=seed,
            index=index,
            x_adv=x_nat,
            passes=tf.zeros((count, 2), tf.int64),
            undefined=tf.zeros((count,), tf.bool),
            **others,
        )
        state = _take(state, self._model.padded(np.arange(count)))
        logits = self._model.logits_of_padded(state.x_nat)
        state = state._replace(broken=is_misclassified(logits, state.y))
        if self.num_targets:
            num_targets = len(self._ranks(logits.shape[-1]))
            targets = likely_wrong_classes(logits, state.y, num_targets)
            state = state._replace(targets=targets)
        state = self._begin(state, logits)

        x_adv, passes = np.empty(x_nat.shape, np.float32), np.zeros((count, 2), np.int64)
        numbers = np.arange(count)  # of the examples that are the state's first rows

        def write():
            x_adv[numbers] = state.x_adv[: len(numbers)]
            passes[numbers] = state.passes[: len(numbers)]
            self._undefined[numbers] = state.undefined[: len(numbers)]

        for stage in self._stages(logits.shape[-1]):
            standing = np.flatnonzero(~state.broken.numpy()[: len(numbers)])
            rows = self._model.padded(standing)
            if len(rows) < len(state.y):
                write()
                if not len(standing):
                    break
                numbers, state = numbers[standing], _take(state, rows)
            new = stage(state)  # a broken one that is still in the batch counts no more
            state = where(state.broken, new, passes=state.passes)
        write()
        self._passes = passes.sum(axis=0)
        return tf.constant(x_adv)

    @drawing
    def _draw(self, shape, seed, index, stream, is_normal=False):
        """Random numbers for each example, see `common.attack.ball.draw`."""
        return draw(shape, seed, index, stream, is_normal)

    def _ranks(self, num_classes):
        """The places of the targets among `targets`, the likeliest first."""
        return range(min(self.num_targets, num_classes - 1))

    def _towards(self, state, rank):
        """The state at the start of the climb towards the target of a rank, an int tensor."""
        target = tf.gather(state.targets, rank, axis=1)
        return state._replace(x=self._start_of(state, rank, self.epsilon), target=target)

    def _start_of(self, state, stream, radius):
        """A random point within `radius`, or the image if the attack has no random start."""
        x_nat, seed, index = state.x_nat, state.seed, state.index
        if not self.random_start:
            return x_nat
        return uniform_start(x_nat, radius, self.bounds, seed, index, self.norm, stream)


def _take(state, rows):
    return tf.nest.map_structure(lambda values: tf.gather(values, rows), state)


def where(condition, state, **values):
    """`state` with `values` where `condition` holds: one bool, or one for each example."""
    return state._replace(
        **{name: select(condition, new, getattr(state, name)) for name, new in values.items()}
    )
