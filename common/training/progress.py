"""The output of a training: printed lines, TensorBoard's summaries, warnings."""

import collections
import contextlib
import dataclasses
import datetime
import errno
import math
import sys
import time
from signal import SIGTERM

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from common.errors import InputError, one_line, reason_of
from common.interruption import SIGPIPE, Interrupted, drop_output
from common.messages import tell

# The loss of a constant prediction; see `PlateauWarning`.
PLATEAU_LOSS = math.log(10)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the errors of a full disk


class Log:
    """Reports a training's steps by printed lines, TensorBoard's summaries and validation.

    As a context manager it shows the progress bar. It prints nothing once the reader of the output
    is gone (`is_heard`).

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        network: the `OneDevice` or `Replicas` in training.
        directory: a `TrainingDirectory`.
        validation: a `Validation`, or None.
        is_silent: whether another worker reports instead.

    Attributes:
        is_heard: whether what is printed still has a reader.
        xent: the last step's mean cross-entropy, a scalar.
    """

    def __init__(self, config, challenge, network, directory, validation=None, is_silent=False):
        self.is_heard, self._failure, self.xent = True, None, 0.0
        self._config = config
        self._bounds = challenge.bounds
        self._network = network
        self._directory = directory
        self._validation = validation
        self._is_silent = is_silent
        self._before = {}
        if not is_silent:
            self._writer = tf.summary.create_file_writer(str(directory.path))
        self._plateau = PlateauWarning()
        self._clock = Clock(config.training_batch_size)

    def __enter__(self):
        step, total = self._directory.first_step, self._config.max_num_training_steps
        if step and not self._is_silent:
            tell(f"resuming at step {step} of {total}")
        with self._heard():
            self._bar = tqdm(total=total, initial=step, unit="step", disable=self._is_silent)
        return self

    def __exit__(self, *error):
        with self._heard():
            self._bar.close()

    def look(self, step, x_nat, y):
        """Computes accuracy and learning rate before the update of `step`, if it is reported."""
        if self._is_output(step) or self._is_summary(step):
            self._before = {
                "accuracy_nat": self._network.natural_accuracy(x_nat, y),
                "learning_rate": self._network.optimizer.learning_rate,
            }

    def record(self, step, x_adv, xent, accuracy):
        """Reports `step` as far as it is due, after the update, by numbers from before it."""
        self.xent = xent
        if not self._is_silent:
            with self._heard():
                self._plateau.watch(xent, self._bar)
        if self._is_output(step) or self._is_summary(step):
            check_finite(xent, step)  # waits for the device
            self._clock.pause()
            numbers = self._numbers(xent, accuracy)
            if self._is_output(step):
                self.say(_lines(step, numbers, self._kind))
            if self._is_summary(step) and not self._is_silent:
                self._write_summary(step, numbers, self._network.images(x_adv))
            self._clock.start()
        self._clock.count += 1
        with self._heard():
            self._bar.update()
        self._validate_if_due(step + 1)

    def say(self, text):
        """Prints `text` above the progress bar."""
        if self._is_silent:
            return
        with self._heard():
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    @contextlib.contextmanager
    def _heard(self):
        try:
            yield
        except OSError as error:  # the reader of a pipe or the terminal is gone, or a disk is full
            self.is_heard, self._failure = False, error
            drop_output()

    def interrupted(self, step, number):
        """Says that the training stopped after `step`; returns the exception that ends it.

        Args:
            step: the last step.
            number: the signal that came, or None if the output is closed or another worker stops.
        """
        if number is None and self._failure is not None and self._failure.errno in _FULL:
            reason = reason_of(self._failure)
            return InputError(f"cannot print: {reason}; the same command resumes at step {step}")
        self.say(f"stopped after step {step}; the same command resumes there")
        return Interrupted(number or (SIGTERM if self.is_heard else SIGPIPE))

    @property
    def _kind(self):
        return "nat" if self._config.adversary == "none" else "adv"

    def _is_output(self, step):
        return step % self._config.num_output_steps == 0

    def _is_summary(self, step):
        return step % self._config.num_summary_steps == 0

    def _numbers(self, xent, accuracy):
        """The numbers of a step by TensorBoard's tag, the originals' tag if they had one."""
        numbers = {name: float(value) for name, value in self._before.items()}
        if self._kind == "adv":
            numbers["accuracy_adv"] = float(accuracy)
        numbers[f"xent_{self._kind}"] = float(xent)
        rate = self._clock.examples_per_second()
        return {**numbers, "examples_per_second": rate} if rate else numbers

    def _write_summary(self, step, numbers, x_adv):
        low, high = self._bounds
        pictures = (x_adv - low) / (high - low)
        with self._events(step):
            tf.summary.image(f"images_{self._kind}_train", pictures, max_outputs=3)
        self._write_scalars(step, numbers)

    def _write_scalars(self, step, numbers):
        with self._events(step):
            for tag, number in numbers.items():
                tf.summary.scalar(tag, number)

    @contextlib.contextmanager
    def _events(self, step):
        """TensorBoard's events of a step; a disk's error does not end the training."""
        try:
            with self._writer.as_default(step=step):
                yield
            self._writer.flush()
        except (OSError, tf.errors.OpError) as error:
            self.say(one_line(f"note: cannot write TensorBoard's events: {reason_of(error)}"))

    def _validate_if_due(self, step):
        if self._validation is None or step % self._config.num_validation_steps:
            return
        check_finite(self.xent, step)
        self._clock.pause()
        entry = self._validation.run(step, self._directory.seconds)
        self.say(self._validation.line(entry))
        numbers = {
            f"accuracy_{kind}_validation": entry[f"{name}_accuracy"] / 100
            for kind, name in (("nat", "natural"), ("adv", "adversarial"))
        }
        self._write_scalars(step, numbers)
        self._clock.start()


def check_finite(xent, step):
    """Raises InputError if a loss is infinite or NaN."""
    if not math.isfinite(xent):
        raise InputError(
            f"the loss became {float(xent)} by step {step}; the newest checkpoint is from before. "
            "Try smaller rates in --step_size_schedule"
        )


def _lines(step, numbers, kind):
    """The numbers of a step as the text that is printed."""
    lines = [
        f"Step {step}:    ({datetime.datetime.now():%Y-%m-%d %H:%M:%S})",
        f"    training nat accuracy {100 * numbers['accuracy_nat']:.4g}%",
    ]
    if kind == "adv":
        lines.append(f"    training adv accuracy {100 * numbers['accuracy_adv']:.4g}%")
    lines.append(f"    training {kind} loss {numbers[f'xent_{kind}']:.4f}")
    if "examples_per_second" in numbers:
        lines.append(f"    {numbers['examples_per_second']:.1f} examples per second")
    return "\n".join(lines)


@dataclasses.dataclass
class Clock:
    """The training's speed since the last report, without the time of reporting."""

    batch_size: int
    count: int = 0
    seconds: float = 0.0
    since: float = dataclasses.field(default_factory=time.perf_counter)

    def pause(self):
        self.seconds += time.perf_counter() - self.since

    def start(self):
        self.since = time.perf_counter()

    def examples_per_second(self):
        rate = self.count * self.batch_size / self.seconds if self.count else None
        self.count, self.seconds = 0, 0.0
        return rate


class PlateauWarning:
    """Warns if the loss has stayed at ln 10, that of a constant prediction, for 500 steps."""

    WINDOW = 500
    TOLERANCE = 0.02

    def __init__(self):
        self.losses = collections.deque(maxlen=self.WINDOW)
        self.count = 0

    def watch(self, loss, progress):
        """Takes a scalar loss tensor; reads it from the device only at the end of a window."""
        self.losses.append(loss)
        self.count += 1
        if self.count % self.WINDOW:
            return
        mean = float(np.mean([float(value) for value in self.losses]))
        if abs(mean - PLATEAU_LOSS) < self.TOLERANCE:
            progress.write(
                f"warning: the loss stays at {mean:.2f} = ln 10, a constant prediction. On MNIST "
                "the paper's recipe does so for its first 4,000 to 5,000 steps. Try "
                "--epsilon_warmup_steps, another --random_seed, or a larger network.",
                file=sys.stderr,
            )
