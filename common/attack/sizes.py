"""The batch sizes that an attack is compiled for."""

import numpy as np


class Sizes:
    """Pads batches to few sizes, since an attack is compiled for each size.

    The first size is kept, as trainings and evaluations have batches of one size. A larger batch
    makes the largest size at least twice as large. A smaller one takes a size that has been used,
    or the next half of the largest: 1 to 30 in turn are padded to 1, 2, 4, 8, 16, 32.

    Args:
        num_parts: once a batch has filled the largest size, smaller ones are padded to the next
            multiple of 1 / `num_parts` of it, for batches that shrink as examples leave.
    """

    def __init__(self, num_parts=None):
        self._num_parts = num_parts
        self._largest = 0
        self._was_filled = False
        self._used = set()
        self.fixed = 0  # every batch of up to that many is padded to it, if it is not 0

    def rows(self, numbers):
        """`numbers` (n,), the first repeated up to the size that `n` is padded to."""
        if not len(numbers):
            return numbers
        return np.concatenate([numbers, np.repeat(numbers[:1], self._padding(len(numbers)))])

    def _padding(self, count):
        """How many rows pad `count`."""
        if count <= self.fixed:
            return self.fixed - count
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
