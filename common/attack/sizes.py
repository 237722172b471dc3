"""The few sizes of batches that an attack is compiled for, if it is compiled for each anew."""

import numpy as np


class Sizes:
    """Batches are padded to few sizes, whatever sizes come.

    The first is compiled as it is, as that of a training's or an evaluation's batches. Where a
    larger one comes, the largest becomes twice as large at least. Smaller ones take what has been
    compiled, or the next half of the largest: 1 to 30 in turn are compiled for 1, 2, 4, 8, 16, 32.

    Args:
        num_parts: once a batch has been as large as the largest, smaller ones take the next of so
            many parts of it instead: for batches that shrink as their examples leave.
    """

    def __init__(self, num_parts=None):
        self._num_parts = num_parts
        self._largest = 0
        self._was_filled = False
        self._used = set()

    def rows(self, numbers):
        """`numbers` (n,), the first repeated up to the size that `n` is padded to."""
        if not len(numbers):
            return numbers
        return np.concatenate([numbers, np.repeat(numbers[:1], self._of(len(numbers)))])

    def _of(self, count):
        """How many rows `count` lack of the size that they are padded to."""
        if count > self._largest:
            self._largest, self._was_filled = max(count, 2 * self._largest), False
        self._was_filled |= count == self._largest
        if self._was_filled and self._num_parts:
            unit = -(-self._largest // self._num_parts)
            sizes = {*range(unit, self._largest, unit), self._largest}
        else:
            sizes = {-(-self._largest // 2**k) for k in range(self._largest.bit_length() + 1)}
        size = min(size for size in sizes | self._used if size >= count)
        self._used.add(size)
        return size - count
