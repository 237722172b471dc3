"""Square Attack: random search with squares, on the logits alone.

Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via
random search".
"""

import functools
import math

import numpy as np
import tensorflow as tf

from common.attack.attacked_model import stage
from common.attack.ball import length, per_image, project
from common.attack.inputs import SMALLEST, real_number, whole_number
from common.attack.losses import is_misclassified, margin
from common.attack.staged import StagedAttack, state_of, where

# The queries, out of 10,000, after which the share of pixels is halved. 500 is in the paper's code,
# which made its numbers, and not in its text.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
BLOCK = 250  # largest number of queries whose random numbers are drawn at once
INITIAL_TILES = 5  # the L2 attack starts with 5 x 5 tiles


def share_of_pixels(query, num_queries, p_init):
    """The paper's schedule of p, the share of pixels that the square of a query covers.

    Args:
        query: int from 0, the start included.
        num_queries: number of queries to which the schedule of 10,000 is rescaled.
        p_init: the first squares' p.
    """
    rescaled = query * 10_000 // num_queries
    return p_init / 2 ** sum(rescaled > halving for halving in HALVINGS)


def bump(size):
    """The L2 attack's update: two bumps of opposite sign, one above the other (paper, Sec. 3.2).

    In each half it is the sum of 1/j**2 for j from d + 1 to n + 1; d is the Chebyshev distance from
    the half's centre and n = floor(size / 2).

    Args:
        size: the square's side, in pixels.

    Returns:
        float64 (size, size) of norm 1.
    """

    def half(h1, h2):
        steps = max(h1, h2) // 2
        rows, columns = np.ogrid[:h1, :h2]
        distance = np.maximum(abs(rows - h1 // 2), abs(columns - h2 // 2))
        heights = np.cumsum([0.0, *(1.0 / j**2 for j in range(steps + 1, 0, -1))])
        values = heights[np.maximum(steps + 1 - distance, 0)]
        return values / np.linalg.norm(values)

    both = np.concatenate([half(size // 2, size), -half(size - size // 2, size)])
    return both / np.linalg.norm(both)


class Square(StagedAttack):
    """Square Attack (Andriushchenko et al. 2020): forward passes only, no gradient.

    Each query changes a square at a random place, and the change is kept if it lowers the margin
    z_y - max_{i != y} z_i. In L-infinity it sets the square to the ball's corner, a random sign
    for each channel, and starts with vertical stripes of such colours. In L2 it moves the
    perturbation of another square there (paper, Algorithm 3) and starts with tiles.

    An example is returned as the first misclassified point, else as that of the least margin.

    Args:
        model, epsilon, bounds, norm, jit_compile, precision: see `Attack`.
        num_queries: number of tried squares; the start counts as the first.
        p_init: the share of pixels that the first squares cover.
        schedule_queries: number of queries of the schedule of p, by default `num_queries`.
    """

    State = state_of(
        "margin_adv",  # at x_adv, the least that float32 has found
        "x",  # the point of the least margin, in the arithmetic of the queries
        "margin",  # at x
        "numbers",  # the random numbers of the next queries, uniform in [-1, 1)
    )
    name = "square"
    random_start = True
    SETTINGS = ("num_queries", "p_init", "schedule_queries")

    def __init__(
        self, model, *, epsilon, num_queries=5000, p_init=0.8, schedule_queries=None, **kwargs
    ):
        super().__init__(model, epsilon=epsilon, **kwargs)
        schedule_queries = num_queries if schedule_queries is None else schedule_queries
        self.p_init = real_number("p_init", p_init, SMALLEST, 1.0)
        self.num_queries = whole_number("num_queries", num_queries, 1)
        self.schedule_queries = whole_number("schedule_queries", schedule_queries, 1)

    def square_size(self, query, height, width):
        """The side of a query's square, in pixels of images of that height and width."""
        share = share_of_pixels(query, self.schedule_queries, self.p_init)
        size = round(math.sqrt(share * height * width))
        if self.norm == "l2":
            size = max(size, 3)
            size += 1 - size % 2
        return min(max(size, 1), height, width)

    def _begin(self, state, logits):
        return state._replace(margin_adv=margin(logits, state.y))

    def _stages(self, num_classes):
        yield self._from_start
        if not self._model.is_exact:
            yield self._judge
        first = 1
        while first < self.num_queries:
            # Broken examples leave often while many break.
            last = min(first + min(max(10, first // 4), BLOCK), self.num_queries)
            yield functools.partial(self._next_queries, first=first, last=last)
            if not self._model.is_exact:
                yield self._judge
            first = last

    def _numbers(self, state, shape, stream):
        return self._draw(tf.constant(shape), state.seed, state.index, tf.constant(stream))

    def _from_start(self, state):
        _, height, width, channels = state.x_nat.shape
        if self.norm == "linf":
            shape = (width, channels)
        else:
            tile = _tile_size(height, width)
            shape = (height // tile, width // tile, channels + 1)
        return self._start(state._replace(numbers=self._numbers(state, shape, 0)))

    def _next_queries(self, state, first, last):
        # Four coordinates, one number for the L2 attack's update, and the channels' signs. A block
        # is always whole, as each shape is compiled anew.
        numbers = self._numbers(state, (BLOCK, 5 + state.x_nat.shape[3]), first)
        _, height, width, _ = state.x_nat.shape
        sizes = [self.square_size(first + i, height, width) for i in range(BLOCK)]
        sizes, count = tf.constant(sizes, tf.int32), tf.constant(last - first)
        return self._search(state._replace(numbers=numbers), sizes, count)

    @stage
    def _start(self, state):
        logits = self._model.prepare()

        def start(_, state):
            x_nat, numbers = state.x_nat, state.numbers
            if self.norm == "linf":
                x = x_nat + self.epsilon * _sign(numbers)[:, None]
            else:
                tiles = _tiles(numbers, *x_nat.shape[1:3])
                x = x_nat + self.epsilon * tf.math.l2_normalize(tiles, axis=(1, 2, 3))
            x = project(x, x_nat, self.epsilon, self.bounds, self.norm)
            state = state._replace(x=x, margin=tf.fill(tf.shape(state.y), np.inf))
            return self._tried(state, x, logits(x))

        state = state._replace(x=state.x_nat, margin=state.margin_adv)
        return self._model.iterate(start, state, 0, 1, passes=(0, 1))

    @stage
    def _search(self, state, sizes, num_queries):
        logits = self._model.prepare()
        height, width = state.x_nat.shape[1:3]
        if self.norm == "l2":
            bumps = _bumps(
                {self.square_size(q, height, width) for q in range(self.num_queries)}, height, width
            )

        def search(i, state):
            numbers = tf.gather(state.numbers, i, axis=1)
            size = sizes[i]
            if self.norm == "linf":
                x = self._with_square(state, size, numbers)
            else:
                x = self._with_bump(state, size, tf.gather(bumps, size), numbers)
            return self._tried(state, x, logits(x))

        return self._model.iterate(search, state, 0, num_queries, passes=(0, 1), ends_early=True)

    def _with_square(self, state, size, numbers):
        x_nat = state.x_nat
        _, height, width, channels = x_nat.shape
        top, left = _place(numbers[:, 0:2], size, x_nat)
        rows, columns = _between(top, size, height), _between(left, size, width)
        # Channels beside columns: arithmetic is several times as fast along long rows.
        window = rows[:, :, None] & tf.repeat(columns, channels, axis=1)[:, None]
        sign = tf.tile(_sign(numbers[:, 5:]), (1, width))[:, None]
        x_nat, x = (
            tf.reshape(images, (-1, height, width * channels)) for images in (x_nat, state.x)
        )
        corner = tf.clip_by_value(x_nat + self.epsilon * sign, *self.bounds)
        return tf.reshape(tf.where(window, corner, x), (-1, height, width, channels))

    def _with_bump(self, state, size, bumps, numbers):
        x_nat = state.x_nat
        delta = state.x - x_nat
        top, left = _place(numbers[:, 0:2], size, x_nat)
        window = _window(top, left, size, x_nat)
        other = _window(*_place(numbers[:, 2:4], size, x_nat), size, x_nat)

        def of_channels(values):
            return tf.sqrt(tf.reduce_sum(tf.square(values), axis=(1, 2), keepdims=True))

        old = tf.where(window, delta, 0.0)
        old = tf.math.divide_no_nan(old, of_channels(old))
        is_transposed = tf.cast(numbers[:, 4] < 0, tf.int32)
        bump = _shifted(tf.gather(bumps, is_transposed), top, left)[..., None]
        new = bump * _sign(numbers[:, None, None, 5:]) + old
        # The part of the ball's radius that the two squares had, and that no pixel has yet.
        spent = tf.square(per_image(length(delta, "l2"), x_nat))
        left_over = tf.nn.relu(self.epsilon**2 - spent) / x_nat.shape[3]
        both = of_channels(tf.where(window | other, delta, 0.0))
        new *= tf.math.divide_no_nan(tf.sqrt(both**2 + left_over), of_channels(new))
        delta = tf.where(window, new, tf.where(other, 0.0, delta))
        size = per_image(length(delta, "l2"), x_nat)
        x = x_nat + self.epsilon * tf.math.divide_no_nan(delta, size)
        return project(x, x_nat, self.epsilon, self.bounds, "l2")

    def _tried(self, state, x, logits):
        """Keeps `x` for the examples whose least margin so far it has."""
        new = margin(logits, state.y)
        state = where(new < state.margin, state, x=x, margin=new)
        if not self._model.is_exact:
            return state
        return self._judged(state, x, logits)

    @stage
    def _judge(self, state):
        """Lets float32 judge the point of the least margin in bfloat16."""
        exact = self._model.prepare(exact=True)

        def judge(_, state):
            return self._judged(state, state.x, exact(state.x))

        return self._model.iterate(judge, state, 0, 1, passes=(0, 1))

    def _judged(self, state, x, logits):
        """Records `x`, by its float32 logits, as broken or as the point of the least margin."""
        broken = is_misclassified(logits, state.y) & ~state.broken
        new = margin(logits, state.y)
        is_better = broken | (new < state.margin_adv)
        state = where(is_better & ~state.broken, state, x_adv=x, margin_adv=new)
        return state._replace(broken=state.broken | broken)


def _sign(numbers):
    return tf.where(numbers < 0, -1.0, 1.0)


def _place(numbers, size, x):
    """Top and left, int32 (batch,), of squares that lie anywhere in the images `x`."""
    room = tf.constant(x.shape[1:3].as_list()) - size
    place = tf.cast((numbers + 1.0) / 2.0 * tf.cast(room + 1, tf.float32), tf.int32)
    return tf.unstack(tf.minimum(place, room), axis=1)


def _window(top, left, size, x):
    """Bool (batch, height, width, 1), True within the square."""
    rows, columns = _between(top, size, x.shape[1]), _between(left, size, x.shape[2])
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def _between(start, size, count):
    """Bool (batch, count), True from `start` (batch,) to below `start + size`."""
    offset = tf.range(count) - start[:, None]
    return (offset >= 0) & (offset < size)


def _bumps(sizes, height, width):
    """Each size's `bump` in the corner, and transposed: (size, 2, height, width)."""
    table = np.zeros((max(sizes) + 1, 2, height, width), np.float32)
    for size in sizes:
        table[size, 0, :size, :size] = bump(size)
        table[size, 1, :size, :size] = bump(size).T
    return tf.constant(table)


def _shifted(images, top, left):
    """Each of `images` (batch, height, width) moved down and right, and round at the edges."""
    height, width = images.shape[1:]
    rows = (tf.range(height) - top[:, None]) % height
    columns = (tf.range(width) - left[:, None]) % width
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


def _tile_size(height, width):
    return max(min(height, width) // INITIAL_TILES, 1)


def _tiles(numbers, height, width):
    """The L2 attack's start: tiles of `bump`, each with its own sign and way up.

    Args:
        numbers: float32 (batch, rows, columns, channels + 1), uniform in [-1, 1).
        height, width: the images' sides, in pixels.

    Returns:
        float32 (batch, height, width, channels).
    """
    size = _tile_size(height, width)
    _, rows, columns, channels = numbers.shape
    bumps = tf.constant(np.stack([bump(size), bump(size).T]), tf.float32)
    tiles = tf.gather(bumps, tf.cast(numbers[..., 0] < 0, tf.int32))
    tiles = tiles[..., None] * _sign(numbers[:, :, :, None, None, 1:])
    tiles = tf.transpose(tiles, (0, 1, 3, 2, 4, 5))
    tiles = tf.reshape(tiles, (-1, rows * size, columns * size, channels - 1))
    top, left = (height - rows * size) // 2, (width - columns * size) // 2
    bottom, right = height - rows * size - top, width - columns * size - left
    return tf.pad(tiles, [[0, 0], [top, bottom], [left, right], [0, 0]])
