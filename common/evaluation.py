"""Natural and adversarial accuracy over every image: the worst case over attacks and restarts."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import pathlib
import time
import zipfile
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from common.attack import (
    as_logits,
    as_raised,
    is_misclassified,
    round_to_8_bits,
    to_labels,
    whole_number,
    xent_loss,
)
from common.attack.ball import select
from common.errors import InputError, one_line, reason_of
from common.files import write_atomically
from common.interruption import Interrupted, Interruption

SAVE_SECONDS = 60  # between two writings of a `State`


@dataclasses.dataclass(frozen=True)
class Trial:
    """An attack as an evaluation runs it.

    Attributes:
        attack: a `common.attack.Attack`; to run it takes `perturb(x_nat, y, seed, index)` alone,
            and to count what that takes `passes(num_examples)` and `num_undefined`. An image that
            it returns and that is not finite counts as the natural one.
        num_restarts: an example withstands the attack if the model is right in every restart.
        eight_bits: round the adversarial images to 256 levels, within the ball.
        name: for people.

    Raises:
        InputError: num_restarts is not a whole number from 1 to 2**31 - 1.
    """

    attack: Any
    num_restarts: int = 1
    eight_bits: bool = False
    name: str = "attack"

    def __post_init__(self):
        count = whole_number("num_restarts", self.num_restarts, 1)
        object.__setattr__(self, "num_restarts", count)

    def settings(self):
        """The attack and how it is run, as a dict for JSON."""
        return {
            **self.attack.settings(),
            "num_restarts": self.num_restarts,
            "round_to_8_bits": self.eight_bits,
        }


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """What one attack of an evaluation did; accuracies in percent of all examples.

    Attributes:
        name: of the `Trial`.
        num_given: how many examples it was given.
        num_broken: how many of these it broke.
        accuracy: in the worst case over this attack and those before it.
        accuracy_alone: under this attack alone, or None where it was not given all examples.
        num_attacks: how many examples it attacked, restarts counted.
        num_gradients: how many gradients of one example each that took.
        num_queries: how many forward passes beside those.
        seconds: the time it took.
        num_undefined: at how many of those that it attacked, restarts counted, a gradient was not a
            number, which makes no step.
    """

    name: str
    num_given: int
    num_broken: int
    accuracy: float
    accuracy_alone: float | None
    num_attacks: int
    num_gradients: int
    num_queries: int
    seconds: float
    num_undefined: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found; `n` examples in the data set's order.

    Attributes:
        natural_correct: bool (n,), whether the image itself is classified correctly.
        adversarial_correct: bool (n,), whether it still is under every attack and restart.
        natural_losses: float32 (n,), cross-entropy of the images.
        adversarial_losses: float32 (n,), cross-entropy of `x_adv`.
        x_adv: float32 (n, height, width, channels): of each example the first that fooled the
            model, by attack and restart, else the one with the highest loss.
        withstood: bool (attacks, n), False where the attack broke the example.
        trials: a `TrialResult` for each attack.
        seconds: the time it took.
    """

    natural_correct: np.ndarray
    adversarial_correct: np.ndarray
    natural_losses: np.ndarray
    adversarial_losses: np.ndarray
    x_adv: np.ndarray
    withstood: np.ndarray
    trials: tuple[TrialResult, ...]
    seconds: float

    @property
    def num_attacks(self):
        """How many examples were attacked, attacks and restarts counted."""
        return sum(trial.num_attacks for trial in self.trials)

    @property
    def confidence_interval(self):
        """[low, high], the 95 % one of the accuracy under all attacks, in percent, for JSON."""
        correct = self.adversarial_correct
        interval = wilson_interval(int(np.count_nonzero(correct)), len(correct))
        return [round(limit, 4) for limit in interval]

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


def wilson_interval(num_correct, num_examples):
    """95 % confidence interval of an accuracy, in percent (Wilson 1927).

    The accuracies that these counts would not surprise, at the normal distribution's 1.96; it
    stays within 0 and 100 and is not empty where all or no examples are correct. It takes the
    examples as drawn at random from those that the accuracy is claimed for.

    Args:
        num_correct: of the examples.
        num_examples: how many, 1 or more.

    Returns:
        (low, high).
    """
    z = 1.959964
    p = num_correct / num_examples
    scale = 1 + z * z / num_examples
    centre = (p + z * z / (2 * num_examples)) / scale
    reach = z / scale * math.sqrt(p * (1 - p) / num_examples + (z / (2 * num_examples)) ** 2)
    return 100 * max(centre - reach, 0.0), 100 * min(centre + reach, 1.0)


@dataclasses.dataclass
class _Found:
    """What an evaluation has found so far: see `Result`, and how far it is.

    Attributes:
        adversarial_correct: as in `Result`, by what has been run.
        num_natural: how many of the images themselves have been classified.
        trial: the attack that is being run.
        turn: its next of `Evaluator._attack_batches`.
        num_attacks, num_undefined, trial_seconds: of each attack.
        passes: int64 (attacks, 2), the gradients and queries of each.
    """

    natural_correct: np.ndarray
    natural_losses: np.ndarray
    adversarial_correct: np.ndarray
    adversarial_losses: np.ndarray
    x_adv: np.ndarray
    withstood: np.ndarray
    num_attacks: np.ndarray
    num_undefined: np.ndarray
    passes: np.ndarray
    trial_seconds: np.ndarray
    num_natural: int = 0
    trial: int = 0
    turn: int = 0
    seconds: float = 0.0

    @classmethod
    def nothing(cls, images, num_trials):
        """Nothing yet about uint8 `images`."""
        count = len(images)
        return cls(
            natural_correct=np.zeros(count, bool),
            natural_losses=np.zeros(count, np.float32),
            adversarial_correct=np.ones(count, bool),
            adversarial_losses=np.full(count, -np.inf, np.float32),
            x_adv=np.zeros(images.shape, np.float32),
            withstood=np.ones((num_trials, count), bool),
            num_attacks=np.zeros(num_trials, np.int64),
            num_undefined=np.zeros(num_trials, np.int64),
            passes=np.zeros((num_trials, 2), np.int64),
            trial_seconds=np.zeros(num_trials),
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
        self._key = _as_text(key)
        self._last = time.monotonic()
        self._found, self._is_written = None, True

    def read(self, found):
        """Puts what the file holds into `found`; there need not be a file.

        Raises:
            InputError: it is damaged, or another evaluation's.
        """
        try:
            with zipfile.ZipFile(self.path) as file:
                text = np.asarray(self._key)
                if self._array(file, "key", text.dtype, text.shape) != self._key:
                    raise InputError("it is of another model, attack, seed or data")
                values = {}
                for name, empty in vars(found).items():
                    expected = np.asarray(empty)
                    value = self._array(file, name, expected.dtype, expected.shape)
                    if value is None:
                        raise InputError(f"expected {name} of {expected.dtype} {expected.shape}")
                    values[name] = value if value.shape else value.item()
                if not (
                    0 <= values["num_natural"] <= len(values["natural_correct"])
                    and 0 <= values["trial"] <= len(values["num_attacks"])
                    and values["turn"] >= 0
                    and values["seconds"] >= 0
                    and np.all(values["num_attacks"] >= 0)
                    and np.all(values["passes"] >= 0)
                    and np.all(values["trial_seconds"] >= 0)
                ):
                    raise InputError("its counts are not those of an evaluation")
        except FileNotFoundError:
            return
        except Exception as error:  # a damaged file may raise anything
            raise self._unusable(error) from error
        vars(found).update(values)

    def keep(self, found, at_once=False):
        """Writes `found`, atomically, where `at_once` or when the last time is a minute ago.

        Raises:
            InputError: it cannot be written; what was kept before is still there.
        """
        self._found, self._is_written = found, False
        if at_once or time.monotonic() - self._last >= SAVE_SECONDS:
            self.keep_last()

    def keep_last(self):
        """Writes what `keep` was last given, so that it outlives a result that cannot be written.

        Raises:
            InputError: as `keep`.
        """
        if self._is_written:
            return
        buffer = io.BytesIO()
        np.savez(buffer, key=self._key, **vars(self._found))
        write_atomically(self.path, buffer.getbuffer())
        self._last, self._is_written = time.monotonic(), True

    def remove(self):
        """Removes the file, if there is one, as its evaluation's result is written.

        Raises:
            InputError: it cannot be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot remove {self.path}: {reason_of(error)}") from error

    @staticmethod
    def _array(file, name, dtype, shape):
        """An array in a zip file, or None unless it is of that type and shape.

        What the file says of its size is looked at first, so that it cannot fill the memory.
        """
        with file.open(f"{name}.npy") as member:
            # Later versions only have longer headers.
            if np.lib.format.read_magic(member) != (1, 0):
                return None
            found_shape, _, found_dtype = np.lib.format.read_array_header_1_0(member)
        if (found_shape, found_dtype) != (shape, dtype):
            return None
        with file.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    def _unusable(self, reason):
        return InputError(
            f"cannot go on from {self.path}: {one_line(reason)}; without it all begins anew"
        )


def digest_of(key):
    """16 hex digits that tell one `State`'s key from another, for its name."""
    return hashlib.sha256(_as_text(key).encode()).hexdigest()[:16]


def _as_text(key):
    return json.dumps(key, sort_keys=True)


class Evaluator:
    """Evaluates one model under attacks, compiled once and used for any number of checkpoints.

    The random numbers of an example do not depend on `batch_size`. The rounding of float32 may:
    it can flip the sign of a tiny gradient, and with it single pixels, so that single images come
    out otherwise with another size.

    Args:
        model: callable from float32 images to logits of any floating dtype.
        trials: list of `Trial`, run in turn; none leaves natural accuracy.
        to_pixels: function from uint8 images to float32 pixels.
        batch_size: images at a time; the last batch may be smaller.
        seed: int within int32, which decides the random numbers.
        spare_misclassified: an example that the model misclassifies as it is counts as broken, and
            is not attacked. Otherwise it is, as the original code does, and counts as correct
            where all attacks happen to correct it.
        each_alone: give every attack what the others broke too. That changes nothing but the time
            and `TrialResult.accuracy_alone`.
        show_progress: a bar with the remaining time, on stderr.

    Raises:
        InputError: batch_size or seed is not a whole number of its range.
    """

    def __init__(
        self,
        model,
        trials,
        *,
        to_pixels,
        batch_size,
        seed=0,
        spare_misclassified=False,
        each_alone=False,
        show_progress=True,
    ):
        self.trials = list(trials)
        self.to_pixels = to_pixels
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.seed = whole_number("seed", seed, -(2**31))
        self.spare_misclassified = spare_misclassified
        self.each_alone = each_alone
        self.show_progress = show_progress

        @tf.function(reduce_retracing=True)
        def classify(x, y):
            logits = as_logits(model(x), x)
            num_classes = tf.shape(logits)[1]
            # Whether the labels are classes is only known once this has run.
            y = tf.minimum(y, num_classes - 1)
            return ~is_misclassified(logits, y), xent_loss(logits, y), num_classes

        self._classifier = classify
        self._num_classes = None

    def run(self, images, labels, state=None, report=None):
        """Evaluates uint8 images (n, height, width, channels).

        An example once broken is not attacked again, and batches stay full for as long as enough
        examples stand: where one restart runs out of them, the next begins. As an example's random
        start depends on its number and the restart's, and not on its batch, that changes nothing
        but the time.

        With a `state` Ctrl-C and SIGTERM end the evaluation after the batch in hand, and the next
        call goes on from there to the same result as without a break.

        Args:
            images: the examples.
            labels: of these, as `common.attack.Attack.perturb` takes them.
            state: a `State`, or None to start anew and keep nothing.
            report: function that is called with each attack's `TrialResult` when it is done; after
                a break with those of before it, too.

        Returns:
            A `Result`.

        Raises:
            InputError: labels are not classes of the model, one for each image; the model does not
                return logits; `state` is damaged, or another evaluation's; as the attacks.
            Interrupted: it was ended; `state` is up to date.
        """
        to_labels(labels, len(images), self._num_classes, "labels")
        found = _Found.nothing(images, len(self.trials))
        if state is not None:
            state.read(found)
        begin = time.perf_counter() - found.seconds
        results = []

        def done(number):
            results.append(self._trial_result(found, number))
            if report is not None:
                report(results[-1])

        with contextlib.nullcontext() if state is None else Interruption() as interruption:
            for _ in self._steps(images, labels, found, done):
                found.seconds = time.perf_counter() - begin
                if state is not None:
                    state.keep(found, at_once=interruption.requested)
                    if interruption.requested:
                        raise Interrupted(interruption.requested)
        return Result(
            found.natural_correct,
            found.adversarial_correct,
            found.natural_losses,
            found.adversarial_losses,
            found.x_adv,
            found.withstood,
            tuple(results),
            found.seconds,
        )

    def _steps(self, images, labels, found, done):
        """Updates `found` batch by batch, and yields after each; calls `done(number of trial)`."""
        count, given = len(images), labels
        labels = to_labels(given, count, self._num_classes, "labels")
        with self._progress("natural", initial=found.num_natural, total=count) as progress:
            for batch in self._batches(np.arange(found.num_natural, count)):
                x = tf.convert_to_tensor(self.to_pixels(images[batch]))
                correct, losses = self._classify(x, labels[batch])
                to_labels(given, count, self._num_classes, "labels")
                found.natural_correct[batch], found.natural_losses[batch] = correct, losses
                if self.spare_misclassified:
                    broken = batch[~correct.numpy()]
                    found.adversarial_correct[broken] = False
                    found.adversarial_losses[broken] = found.natural_losses[broken]
                    found.x_adv[broken] = x.numpy()[~correct.numpy()]
                found.num_natural += len(batch)
                progress.update(len(batch))
                yield

        for number in range(len(self.trials)):
            if number > found.trial:
                found.trial, found.turn = number, 0
            if number == found.trial:
                yield from self._attack_steps(images, labels, found)
            done(number)

    def _attack_steps(self, images, labels, found):
        """The part of `_steps` that is `found.trial`."""
        number, count = found.trial, len(images)
        trial, withstood = self.trials[number], found.withstood[number]
        standing = self._given(found, number) & withstood
        before = time.perf_counter() - found.trial_seconds[number]
        name = trial.name if len(self.trials) > 1 else "attack"
        with self._progress(name, initial=int(found.num_attacks[number])) as progress:
            for batch, restarts in self._attack_batches(standing, trial.num_restarts, found.turn):
                x, correct, losses = self._attack(trial, images, labels, batch, restarts)
                if hasattr(trial.attack, "passes"):
                    found.passes[number] += trial.attack.passes(len(batch))
                found.num_undefined[number] += getattr(trial.attack, "num_undefined", 0)
                # What an earlier attack has broken keeps its image.
                worse = ~correct | (losses > found.adversarial_losses[batch])
                worse &= found.adversarial_correct[batch]
                found.x_adv[batch[worse]] = x[worse]
                found.adversarial_losses[batch[worse]] = losses[worse]
                found.adversarial_correct[batch] &= correct
                standing[batch] = withstood[batch] = correct
                found.num_attacks[number] += len(batch)
                found.turn = int(restarts[-1] * count + batch[-1] + 1)
                found.trial_seconds[number] = time.perf_counter() - before
                left = np.count_nonzero(standing) * (trial.num_restarts - 1 - restarts[-1])
                left += np.count_nonzero(standing[batch[-1] + 1 :])
                progress.total = found.num_attacks[number] + left
                progress.update(len(batch))
                progress.set_postfix(standing=f"{100 * np.mean(found.adversarial_correct):.2f}%")
                yield
            progress.total = found.num_attacks[number]

    def _given(self, found, number):
        """bool (n,), which examples a trial is given."""
        given = np.ones_like(found.natural_correct)
        if self.spare_misclassified:
            given &= found.natural_correct
        if not self.each_alone:
            given &= found.withstood[:number].all(axis=0)
        return given

    def _trial_result(self, found, number):
        withstood, given = found.withstood[: number + 1], self._given(found, number)
        to_break = found.natural_correct if self.spare_misclassified else np.ones_like(given)
        is_alone = number == 0 or self.each_alone
        return TrialResult(
            name=self.trials[number].name,
            num_given=int(np.count_nonzero(given)),
            num_broken=int(np.count_nonzero(given & ~withstood[-1])),
            accuracy=100 * float(np.mean(to_break & withstood.all(axis=0))),
            accuracy_alone=100 * float(np.mean(to_break & withstood[-1])) if is_alone else None,
            num_attacks=int(found.num_attacks[number]),
            num_gradients=int(found.passes[number, 0]),
            num_queries=int(found.passes[number, 1]),
            seconds=float(found.trial_seconds[number]),
            num_undefined=int(found.num_undefined[number]),
        )

    def _progress(self, what, **options):
        return tqdm(desc=what, unit="image", disable=not self.show_progress, **options)

    def _batches(self, numbers):
        return [numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)]

    def _attack_batches(self, standing, num_restarts, first_turn=0):
        """Yields batches as (examples, the restart of each), for as long as examples stand.

        The turns are the examples of the first restart, then those of the second, and so on.
        """
        batch = {}  # example to restart
        for turn in range(first_turn, num_restarts * len(standing)):
            restart, example = divmod(turn, len(standing))
            if example == 0 and not standing.any():
                break
            if len(batch) == self.batch_size or example in batch:
                yield np.array(list(batch)), np.array(list(batch.values()))
                batch = {}
            if standing[example]:
                batch[example] = restart
        if batch:
            yield np.array(list(batch)), np.array(list(batch.values()))

    def _attack(self, trial, images, labels, numbers, restarts):
        x_nat = tf.convert_to_tensor(self.to_pixels(images[numbers]))
        y = tf.constant(labels[numbers])
        seeds = np.stack([np.full_like(restarts, self.seed), restarts], axis=1)
        x = tf.cast(trial.attack.perturb(x_nat, y, seed=seeds, index=numbers), tf.float32)
        is_finite = tf.reduce_all(tf.math.is_finite(x), axis=list(range(1, x.shape.rank)))
        x = select(is_finite, x, x_nat)
        if trial.eight_bits:
            x = round_to_8_bits(x, x_nat, trial.attack.epsilon, trial.attack.bounds)
        correct, losses = self._classify(x, y)
        return x.numpy(), correct.numpy(), losses.numpy()

    def _classify(self, x, y):
        """Whether images are classified correctly, and their cross-entropy."""
        with as_raised():
            correct, losses, num_classes = self._classifier(x, tf.convert_to_tensor(y))
        self._num_classes = int(num_classes)
        return correct, losses
