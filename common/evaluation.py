"""Natural and adversarial accuracy over every image, in the worst case over restarts."""

import dataclasses
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from common.attack import round_to_8_bits, xent_loss


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found; `n` examples in the data set's order.

    Attributes:
        natural_correct: bool (n,), whether the image itself is classified correctly.
        adversarial_correct: bool (n,), whether it still is under every restart.
        natural_losses: float32 (n,), cross-entropy of the images.
        adversarial_losses: float32 (n,), cross-entropy of `x_adv`.
        x_adv: float32 (n, height, width, channels): of each example the first restart that fooled
            the model, else the one with the highest loss.
        num_attacks: how many examples were attacked, restarts counted.
        seconds: the time it took.
    """

    natural_correct: np.ndarray
    adversarial_correct: np.ndarray
    natural_losses: np.ndarray
    adversarial_losses: np.ndarray
    x_adv: np.ndarray
    num_attacks: int
    seconds: float

    def summary(self):
        """The numbers as a dict: accuracies in percent, mean losses."""
        return {
            "natural_accuracy": 100 * float(np.mean(self.natural_correct)),
            "adversarial_accuracy": 100 * float(np.mean(self.adversarial_correct)),
            "natural_loss": float(np.mean(self.natural_losses, dtype=np.float64)),
            "adversarial_loss": float(np.mean(self.adversarial_losses, dtype=np.float64)),
            "num_examples": len(self.natural_correct),
            "num_attacks": self.num_attacks,
            "seconds": round(self.seconds, 2),
        }


class Evaluator:
    """Evaluates one model under one attack, compiled once and used for any number of checkpoints.

    Args:
        model: callable from float32 images to logits.
        attack: object with `perturb(x_nat, y, seed, index)`, such as `common.attack.PGD`.
        to_pixels: function from uint8 images to float32 pixels.
        batch_size: images at a time; the last batch may be smaller.
        num_restarts: an example counts as correct if the model is right in every restart.
        seed: int; the result depends on it, and not on `batch_size`.
        eight_bits: round the adversarial images to 256 levels, within the ball.
        show_progress: a bar with the remaining time, on stderr.
    """

    def __init__(
        self,
        model,
        attack,
        *,
        to_pixels,
        batch_size,
        num_restarts=1,
        seed=0,
        eight_bits=False,
        show_progress=True,
    ):
        self.attack = attack
        self.to_pixels = to_pixels
        self.batch_size = batch_size
        self.num_restarts = num_restarts
        self.seed = seed
        self.eight_bits = eight_bits
        self.show_progress = show_progress

        @tf.function(reduce_retracing=True)
        def classify(x, y):
            logits = model(x)
            is_number = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
            correct = (tf.argmax(logits, axis=-1, output_type=tf.int32) == y) & is_number
            return correct, xent_loss(logits, y)

        self._classify = classify

    def run(self, images, labels):
        """Evaluates uint8 images (n, height, width, channels) with int labels (n,).

        An example that a restart has broken is not attacked again, and batches stay full for as
        long as enough examples stand: where one restart runs out of them, the next begins. As an
        example's random start depends on its number and the restart's, and not on its batch, that
        changes nothing but the time.

        Returns:
            A `Result`.
        """
        begin = time.perf_counter()
        count = len(images)
        natural_correct = np.zeros(count, bool)
        natural_losses = np.zeros(count, np.float32)
        for batch in self._batches(np.arange(count)):
            x = tf.convert_to_tensor(self.to_pixels(images[batch]))
            correct, losses = self._classify(x, tf.constant(labels[batch], tf.int32))
            natural_correct[batch], natural_losses[batch] = correct, losses

        standing = np.ones(count, bool)
        losses = np.full(count, -np.inf, np.float32)
        x_adv = np.empty(images.shape, np.float32)
        num_attacks = 0
        with tqdm(unit="image", disable=not self.show_progress) as progress:
            for batch, restarts in self._attack_batches(standing):
                x, correct, new = self._attack(images[batch], labels[batch], batch, restarts)
                better = ~correct | (new > losses[batch])
                x_adv[batch[better]] = x[better]
                losses[batch[better]] = new[better]
                standing[batch] = correct
                num_attacks += len(batch)
                left = np.count_nonzero(standing) * (self.num_restarts - 1 - restarts[-1])
                left += np.count_nonzero(standing[batch[-1] + 1 :])
                progress.total = num_attacks + left
                progress.update(len(batch))
                progress.set_postfix(standing=f"{100 * np.mean(standing):.2f}%")
            progress.total = num_attacks
        return Result(
            natural_correct,
            standing,
            natural_losses,
            losses,
            x_adv,
            num_attacks,
            time.perf_counter() - begin,
        )

    def _batches(self, numbers):
        return [numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)]

    def _attack_batches(self, standing):
        """Yields batches as (examples, the restart of each), for as long as examples stand."""
        batch = {}  # example to restart
        for restart in range(self.num_restarts):
            for example in range(len(standing)):
                if len(batch) == self.batch_size or example in batch:
                    yield np.array(list(batch)), np.array(list(batch.values()))
                    batch = {}
                if standing[example]:
                    batch[example] = restart
        if batch:
            yield np.array(list(batch)), np.array(list(batch.values()))

    def _attack(self, images, labels, numbers, restarts):
        x_nat = tf.convert_to_tensor(self.to_pixels(images))
        y = tf.constant(labels, tf.int32)
        seeds = np.stack([np.full_like(restarts, self.seed), restarts], axis=1)
        x = self.attack.perturb(x_nat, y, seed=seeds, index=numbers)
        if self.eight_bits:
            x = round_to_8_bits(x, x_nat, self.attack.epsilon, self.attack.bounds)
        correct, losses = self._classify(x, y)
        return x.numpy(), correct.numpy(), losses.numpy()
