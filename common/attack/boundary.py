"""Boundary attack: a random walk along the decision boundary towards the image, on classes alone.

Brendel et al. 2018, "Decision-based adversarial attacks: reliable attacks against black-box machine
learning models", in Foolbox's implementation (https://github.com/bethgelab/foolbox).
"""

import numpy as np
import tensorflow as tf

from common.attack.ball import draw, length, select
from common.attack.base import Attack
from common.attack.inputs import whole_number
from common.attack.losses import is_misclassified
from common.errors import InputError

START_TRIES = 20


class Boundary(Attack):
    """Boundary attack (Brendel et al. 2018), L2: no gradient and no logit, only the class.

    It starts at uniform noise that the model takes for another class, of `START_TRIES`, else at an
    image of the batch that it takes for another one, and walks from there towards the image, by
    steps that stay on the other side of the boundary. An image whose batch has no such start comes
    back as it is.

    Its walk depends on the seed and number of the batch's first example, and on the batch; it sets
    TensorFlow's global seed.

    Args:
        model, epsilon, bounds, norm, jit_compile: see `Attack`; the norm is "l2".
        num_steps: of the walk, of one query each, and of two in every tenth.

    Raises:
        InputError: Foolbox is not installed; a number is out of range; another norm.
    """

    name = "boundary"
    random_start = True
    depends_on_batch = True

    def __init__(self, model, *, epsilon, num_steps=25_000, norm="l2", **kwargs):
        super().__init__(model, epsilon=epsilon, norm=norm, **kwargs)
        if norm != "l2":
            raise InputError(f"norm: expected l2, which the boundary attack is for, got {norm!r}")
        self.num_steps = whole_number("num_steps", num_steps, 1)
        # Beside the starts and the walk: which starts hold, twice, and what the walk ended with.
        self.num_queries = START_TRIES + 3 + self.num_steps + self.num_steps // 10
        self._foolbox = _foolbox()
        self._is_fast = False  # it ends on the boundary, where the fast form may round otherwise
        self._draw = self._compiled(draw, has_random_numbers=True)

    def settings(self):
        return {**super().settings(), "num_steps": self.num_steps}

    def closest(self, x_nat, y, seed=0, index=None):
        """The closest misclassified points that are found, at whatever distance.

        Args:
            x_nat, y, seed, index: see `perturb`.

        Returns:
            float32 tensor, the shape of `x_nat`: where none was found the image; and the distances,
            float32 (batch,), infinite where none was found, 0 where the image is misclassified.
        """
        x_nat, y, seed, index = self._inputs(x_nat, y, seed, index)
        logits = self._logits_of(x_nat)
        broken = is_misclassified(logits, y).numpy()
        x = x_nat.numpy()
        start, has_start = self._starts(x_nat, y, seed, index, np.argmax(logits, axis=1))
        rows = np.flatnonzero(has_start & ~broken)
        rows = rows[self._is_broken(start[rows], tf.gather(y, rows))]
        if len(rows):
            walk = self._foolbox.attacks.BoundaryAttack(steps=self.num_steps)
            first, second = np.reshape(seed, (-1, 2))[0].tolist()
            tf.random.set_seed((first * 1_000_003 + second) * 1_000_003 + int(index[0]))
            # int64 as argmax returns: where types differ, Foolbox 3.3 fails with NumPy 2.
            labels = tf.cast(tf.gather(y, rows), tf.int64)
            x[rows] = walk.run(
                self._foolbox.TensorFlowModel(self._logits_of, bounds=self.bounds),
                tf.gather(x_nat, rows),
                self._foolbox.criteria.Misclassification(labels),
                starting_points=tf.constant(start[rows]),
            )
        broken = self._is_broken(x, y)
        x = select(tf.constant(broken), x, x_nat)
        return x, tf.where(broken, length(x - x_nat, "l2"), np.inf)

    def _perturb(self, x_nat, y, seed, index):
        x, distance = self.closest(x_nat, y, seed, index)
        return select(distance <= self.epsilon, x, x_nat)

    def _is_broken(self, x, y):
        return is_misclassified(self._logits_of(tf.constant(x)), y).numpy()

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
