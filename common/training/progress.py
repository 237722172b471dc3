"""What a training shows while it runs: printed lines, TensorBoard's summaries, warnings."""

import collections
import dataclasses
import datetime
import math
import sys
import time

import numpy as np
import tensorflow as tf

from common.errors import InputError

# A constant prediction has the loss ln 10; see `_PlateauWarning`.
PLATEAU_LOSS = math.log(10)


def _check_finite(xent, step):
    if not math.isfinite(xent):
        raise InputError(
            f"the loss became {float(xent)} by step {step}; the newest checkpoint is from before. "
            "What helps: smaller rates in --step_size_schedule"
        )


def _print_output(progress, step, natural, numbers, kind, clock):
    rate = clock.examples_per_second()
    lines = [
        f"Step {step}:    ({datetime.datetime.now():%Y-%m-%d %H:%M:%S})",
        f"    training nat accuracy {100 * natural:.4g}%",
    ]
    if kind == "adv":
        lines.append(f"    training adv accuracy {100 * numbers['accuracy']:.4g}%")
    lines.append(f"    training {kind} loss {numbers['xent']:.4f}")
    if rate:
        lines.append(f"    {rate:.1f} examples per second")
    progress.write("\n".join(lines), file=sys.stdout)
    sys.stdout.flush()


def _write_summary(writer, step, numbers, kind, x, bounds):
    # The originals' tags, each number twice: once to compare with the evaluation of a run, once
    # to compare runs.
    low, high = bounds
    with writer.as_default(step=step):
        for suffix in (f"{kind}_train", kind):
            tf.summary.scalar(f"accuracy_{suffix}", numbers["accuracy"])
            tf.summary.scalar(f"xent_{suffix}", numbers["xent"])
        tf.summary.image(f"images_{kind}_train", (x - low) / (high - low), max_outputs=3)
    writer.flush()


@dataclasses.dataclass
class _Clock:
    """Training speed since the last output, without the time that outputs take."""

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


class _PlateauWarning:
    """Says so when the loss has stayed at ln 10, a constant prediction, for 500 steps."""

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
                "the paper's recipe does so for its first 4,000 to 5,000 steps; what helps: "
                "--epsilon_warmup_steps, another --random_seed, a larger network.",
                file=sys.stderr,
            )
