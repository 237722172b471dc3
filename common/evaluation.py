"""Natural and adversarial accuracy over every image, in the worst case over restarts."""

import contextlib
import dataclasses
import io
import json
import pathlib
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from common.attack import round_to_8_bits, xent_loss
from common.checkpoints import write_atomically
from common.errors import InputError
from common.interruption import Interruption

SAVE_SECONDS = 60  # between two writings of a `State`


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


@dataclasses.dataclass
class _Found:
    """What an evaluation has found so far: see `Result`, and how far it is.

    Attributes:
        num_natural: how many of the images themselves have been classified.
        turn: the next of `Evaluator._attack_batches`.
    """

    natural_correct: np.ndarray
    natural_losses: np.ndarray
    adversarial_correct: np.ndarray
    adversarial_losses: np.ndarray
    x_adv: np.ndarray
    num_natural: int = 0
    turn: int = 0
    num_attacks: int = 0
    seconds: float = 0.0

    @classmethod
    def nothing(cls, images):
        """Nothing yet about uint8 `images`."""
        count = len(images)
        return cls(
            natural_correct=np.zeros(count, bool),
            natural_losses=np.zeros(count, np.float32),
            adversarial_correct=np.ones(count, bool),
            adversarial_losses=np.full(count, -np.inf, np.float32),
            x_adv=np.zeros(images.shape, np.float32),
        )


class State:
    """A file that keeps what an evaluation has found so far.

    Args:
        path: the .npz file; it need not exist.
        key: dict for JSON, all that decides the result: model, data, attack, seed. The file holds
            it, so that no evaluation goes on from another's.
    """

    def __init__(self, path, key):
        self.path = pathlib.Path(path)
        self._key = json.dumps(key, sort_keys=True)
        self._last = time.monotonic()

    def read(self, found):
        """Puts what the file holds into `found`; there need not be a file.

        Raises:
            InputError: it is damaged, or another evaluation's.
        """
        if not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
        except Exception as error:  # a damaged file may raise anything
            raise self._unusable(error) from error
        if str(arrays.pop("key", "")) != self._key:
            raise self._unusable("it is of another model, attack, seed or data")
        for name, empty in vars(found).items():
            value, expected = arrays.get(name), np.asarray(empty)
            if value is None or (value.shape, value.dtype) != (expected.shape, expected.dtype):
                raise self._unusable(f"expected {name} of {expected.dtype} {expected.shape}")
            setattr(found, name, value if value.shape else value.item())

    def keep(self, found, at_once=False):
        """Writes `found`, atomically, where `at_once` or when the last time is a minute ago."""
        if at_once or time.monotonic() - self._last >= SAVE_SECONDS:
            buffer = io.BytesIO()
            np.savez(buffer, key=self._key, **vars(found))
            write_atomically(self.path, buffer.getbuffer())
            self._last = time.monotonic()

    def _unusable(self, reason):
        reason = " ".join(str(reason).split())
        return InputError(f"cannot go on from {self.path}: {reason}; without it all begins anew")


class Evaluator:
    """Evaluates one model under one attack, compiled once and used for any number of checkpoints.

    Args:
        model: callable from float32 images to logits.
        attack: object with `perturb(x_nat, y, seed, index)`, such as `common.attack.PGD`.
        to_pixels: function from uint8 images to float32 pixels.
        batch_size: images at a time; the last batch may be smaller.
        num_restarts: an example counts as correct if the model is right in every restart; 0
            leaves the attack out.
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

    def run(self, images, labels, state=None):
        """Evaluates uint8 images (n, height, width, channels) with int labels (n,).

        An example that a restart has broken is not attacked again, and batches stay full for as
        long as enough examples stand: where one restart runs out of them, the next begins. As an
        example's random start depends on its number and the restart's, and not on its batch, that
        changes nothing but the time.

        With a `state` Ctrl-C and SIGTERM end the evaluation after the batch in hand, and the next
        call goes on from there to the same result as without a break.

        Args:
            images, labels: the examples.
            state: a `State`, or None to start anew and keep nothing.

        Returns:
            A `Result`.

        Raises:
            InputError: `state` is damaged, or another evaluation's.
            KeyboardInterrupt: it was ended; `state` is up to date.
        """
        found = _Found.nothing(images)
        if state is not None:
            state.read(found)
        begin = time.perf_counter() - found.seconds
        with contextlib.nullcontext() if state is None else Interruption() as interruption:
            for _ in self._steps(images, labels, found):
                found.seconds = time.perf_counter() - begin
                if state is not None:
                    state.keep(found, at_once=interruption.requested)
                    if interruption.requested:
                        raise KeyboardInterrupt
        return Result(
            found.natural_correct,
            found.adversarial_correct,
            found.natural_losses,
            found.adversarial_losses,
            found.x_adv,
            found.num_attacks,
            found.seconds,
        )

    def _steps(self, images, labels, found):
        """Updates `found` batch by batch, and yields after each."""
        count = len(images)
        with self._progress("natural", initial=found.num_natural, total=count) as progress:
            for batch in self._batches(np.arange(found.num_natural, count)):
                x = tf.convert_to_tensor(self.to_pixels(images[batch]))
                correct, losses = self._classify(x, tf.constant(labels[batch], tf.int32))
                found.natural_correct[batch], found.natural_losses[batch] = correct, losses
                found.num_natural += len(batch)
                progress.update(len(batch))
                yield

        standing, losses = found.adversarial_correct, found.adversarial_losses
        if not self.num_restarts:
            return
        with self._progress("attack", initial=found.num_attacks) as progress:
            for batch, restarts in self._attack_batches(standing, found.turn):
                x, correct, new = self._attack(images[batch], labels[batch], batch, restarts)
                better = ~correct | (new > losses[batch])
                found.x_adv[batch[better]] = x[better]
                losses[batch[better]] = new[better]
                standing[batch] = correct
                found.num_attacks += len(batch)
                found.turn = int(restarts[-1] * count + batch[-1] + 1)
                left = np.count_nonzero(standing) * (self.num_restarts - 1 - restarts[-1])
                left += np.count_nonzero(standing[batch[-1] + 1 :])
                progress.total = found.num_attacks + left
                progress.update(len(batch))
                progress.set_postfix(standing=f"{100 * np.mean(standing):.2f}%")
                yield
            progress.total = found.num_attacks

    def _progress(self, what, **options):
        return tqdm(desc=what, unit="image", disable=not self.show_progress, **options)

    def _batches(self, numbers):
        return [numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)]

    def _attack_batches(self, standing, first_turn=0):
        """Yields batches as (examples, the restart of each), for as long as examples stand.

        The turns are the examples of the first restart, then those of the second, and so on.
        """
        batch = {}  # example to restart
        for turn in range(first_turn, self.num_restarts * len(standing)):
            restart, example = divmod(turn, len(standing))
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
