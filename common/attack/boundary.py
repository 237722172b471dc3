"""Boundary attack: a random walk along the decision boundary towards the image, by classes only.

Brendel et al. 2018, "Decision-based adversarial attacks: reliable attacks against black-box machine
learning models", in Foolbox's implementation (https://github.com/bethgelab/foolbox).
"""

import numpy as np
import tensorflow as tf

from common.attack.attacked_model import drawing
from common.attack.ball import draw, length, select
from common.attack.base import Attack
from common.attack.fast import FastModel
from common.attack.inputs import whole_number
from common.attack.losses import is_misclassified
from common.attack.precision import Precision, check_precision
from common.attack.staged import SIZES
from common.errors import InputError

START_TRIES = 20


class Boundary(Attack):
    """Boundary attack (Brendel et al. 2018), L2: no gradient and no logit, only the class.

    It starts at uniform noise of another class, within `START_TRIES` draws, or else at an image of
    the batch with another predicted class, and walks from there towards the image by steps that
    stay misclassified. An image without such a start is returned unchanged.

    Its walk depends on the seed and number of the batch's first example, and on the batch; it sets
    TensorFlow's global seed.

    Args:
        model, epsilon, bounds, norm, jit_compile, precision: see `Attack`; the norm is "l2", and
            every query is a verdict, in float32.
        num_steps: number of steps of the walk, of one query each; every tenth takes two.

    Raises:
        InputError: Foolbox is not installed; a number is out of range; another norm.
    """

    name = "boundary"
    random_start = True
    depends_on_batch = True
    SETTINGS = ("num_steps",)

    def __init__(self, model, *, epsilon, num_steps=25_000, norm="l2", precision="auto", **kwargs):
        check_precision(precision)
        if isinstance(model, FastModel):
            model = model.model  # it ends on the boundary, where the fast form may round otherwise
        kwargs |= {"norm": norm, "precision": "float32"}
        super().__init__(model, epsilon=epsilon, num_parts=SIZES, **kwargs)
        self._model.precision = Precision("float32", "each of its queries is a verdict")
        if norm != "l2":
            raise InputError(f"norm: expected l2, which the boundary attack is for, got {norm!r}")
        self.num_steps = whole_number("num_steps", num_steps, 1)
        # Beside the starts and the walk: which starts hold, twice, and what the walk ended with.
        self.num_queries = START_TRIES + 3 + self.num_steps + self.num_steps // 10
        self._foolbox = _foolbox()

    def perturb(self, x_nat, y, seed=0, index=None):
        x_nat, y, seed, index = self._inputs(x_nat, y, seed, index)
        x, distance = self._closest(x_nat, y, seed, index)
        return select(distance <= self.epsilon, x, x_nat)

    def closest(self, x_nat, y, seed=0, index=None):
        """The closest misclassified points that are found, at whatever distance.

        Args:
            x_nat, y, seed, index: see `perturb`.

        Returns:
            float32 tensor, the shape of `x_nat`, with the image itself if no point was found; and
            the distances, float32 (batch,), infinite if no point was found, 0 if the image is
            misclassified.
        """
        return self._closest(*self._inputs(x_nat, y, seed, index))

    def _closest(self, x_nat, y, seed, index):
        logits = self._model.logits(x_nat)
        broken = is_misclassified(logits, y).numpy()
        x = x_nat.numpy()
        start, has_start = self._starts(x_nat, y, seed, index, np.argmax(logits, axis=1))
        rows = np.flatnonzero(has_start & ~broken)
        if len(rows):  # a convolution may refuse a batch without images
            rows = rows[self._is_broken(start[rows], tf.gather(y, rows))]
        if len(rows):
            walk = self._foolbox.attacks.BoundaryAttack(steps=self.num_steps)
            first, second = np.reshape(seed, (-1, 2))[0].tolist()
            tf.random.set_seed((first * 1_000_003 + second) * 1_000_003 + int(index[0]))
            # int64 as argmax returns: if types differ, Foolbox 3.3 fails with NumPy 2.
            labels = tf.cast(tf.gather(y, rows), tf.int64)
            x[rows] = walk.run(
                self._foolbox.TensorFlowModel(self._model.logits, bounds=self.bounds),
                tf.gather(x_nat, rows),
                self._foolbox.criteria.Misclassification(labels),
                starting_points=tf.constant(start[rows]),
            )
        broken = self._is_broken(x, y)
        x = select(tf.constant(broken), x, x_nat)
        return x, tf.where(broken, length(x - x_nat, "l2"), np.inf)

    def _is_broken(self, x, y):
        return is_misclassified(self._model.logits(tf.constant(x)), y).numpy()

    @drawing
    def _draw(self, shape, seed, index, stream):
        return draw(shape, seed, index, stream)

    def _starts(self, x_nat, y, seed, index, classes):
        """Misclassified points (batch, ...), and bool (batch,), whether there is one."""
        start, has_start = x_nat.numpy(), np.zeros(len(y), bool)
        low, high = self.bounds
        shape = tf.shape(x_nat)[1:]
        for number in range(START_TRIES):
            noise = self._draw(shape, seed, index, tf.constant(number))
            noise = low + (noise + 1.0) / 2.0 * (high - low)
            found = self._is_broken(noise, y) & ~has_start
            start[found], has_start = noise.numpy()[found], has_start | found
            if has_start.all():
                return start, has_start
        for row in np.flatnonzero(~has_start):
            others = np.flatnonzero(classes != y[row])
            if len(others):
                start[row], has_start[row] = x_nat[int(others[0])], True
        return start, has_start


def _foolbox():
    try:
        import foolbox
    except ImportError as error:
        raise InputError(
            f"boundary: expected Foolbox ({error}); pip install -e '.[boundary]' installs it"
        ) from None
    return foolbox
