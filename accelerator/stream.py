"""The order of the training images, without TensorFlow."""

import numpy as np

from common import philox


class Batches:
    """The images of each step, as in `common.training.batches`.

    Args:
        num_images: number of training images.
        batch_size: images of a step.
        seed: the training's seed.
    """

    def __init__(self, num_images, batch_size, seed):
        self._num_images, self._batch_size, self._seed = num_images, batch_size, seed
        self._epochs = {}

    def indices(self, step):
        """int32 (batch,), the numbers of the images of a step."""
        positions = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, places = np.divmod(positions, self._num_images)
        self._epochs = {e: order for e, order in self._epochs.items() if e >= epochs[0]}
        for epoch in {*epochs.tolist()} - set(self._epochs):
            self._epochs[epoch] = philox.shuffled(self._num_images, (self._seed, epoch))
        orders = np.stack([self._epochs[epoch] for epoch in range(epochs[0], epochs[-1] + 1)])
        return orders[epochs - epochs[0], places].astype(np.int32)

    def of_steps(self, first, count):
        """int32 (count, batch), the numbers of the images of `count` steps from `first` on."""
        return np.stack([self.indices(step) for step in range(first, first + count)])
