"""Adversarial training: min over weights of E[max over |delta|_inf <= epsilon of loss].

The outer minimisation takes its steps on examples that the inner maximisation has just made; no
natural image is trained on, unless the adversary is "none". Every step is a function of the
config and its number, so that a resumed run goes on exactly as if it had not stopped.
"""

import collections
import dataclasses
import datetime
import json
import math
import pathlib
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

from common import checkpoints
from common.attack import FGSM, PGD, xent_loss
from common.config import NOT_OF_TRAINING
from common.errors import InputError
from common.provenance import provenance

# A constant prediction has the loss ln 10; see `_PlateauWarning`.
PLATEAU_LOSS = math.log(10)


@keras.saving.register_keras_serializable("common")
class PiecewiseSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate given at some steps: kept in between, or changed linearly.

    Args:
        points: ((0, rate), (step, rate), ...) with rising steps.
        linear: False keeps each rate up to and including the next point's step, as TensorFlow 1's
            piecewise_constant does. True interpolates, and keeps the last rate.
    """

    def __init__(self, points, linear=False):
        self.points = tuple((int(step), float(rate)) for step, rate in points)
        self.linear = linear

    def __call__(self, step):
        """The float32 rate at `step`."""
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.points[0][1], tf.float32)
        for (start, before), (end, after) in zip(self.points, self.points[1:]):
            if self.linear:
                part = tf.clip_by_value((step - start) / (end - start), 0.0, 1.0)
                rate = tf.where(step > start, before + part * (after - before), rate)
            else:
                rate = tf.where(step > end, after, rate)
        return rate

    def get_config(self):
        return {"points": self.points, "linear": self.linear}


@keras.saving.register_keras_serializable("common")
class Momentum(keras.optimizers.SGD):
    """TensorFlow 1's momentum: v <- momentum * v + gradient; w <- w - rate * v.

    Keras's SGD keeps the rate inside v instead, so that the two differ for some steps after each
    change of the rate.

    Args:
        learning_rate: float or schedule.
        momentum: float.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Updates `variable` and its velocity."""
        if not self.momentum:  # Keras has no velocities then
            return super().update_step(gradient, variable, learning_rate)
        velocity = self.momentums[self._get_variable_index(variable)]
        rate = keras.ops.cast(learning_rate, variable.dtype)
        self.assign(velocity, self.momentum * velocity + gradient)
        return self.assign_sub(variable, rate * velocity)


def train(config, challenge, *, optimizer, batches, reduce_loss, batch_statistics=False):
    """Trains the challenge's network, or goes on with the training found in `config.model_dir`.

    Writes there: config.json, versions.json (the command and the hardware too), checkpoint-N every
    `num_checkpoint_steps`, TensorBoard summaries, and at the end saved_model/. Ctrl-C or SIGTERM
    ends it after the current step, with a checkpoint. What it prints of a batch is from before its
    step: adversarial numbers in training mode, the natural accuracy in inference mode.

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        optimizer: a keras optimizer.
        batches: function (start_step) to an iterable of (x float32 (batch, height, width,
            channels) in the challenge's bounds, y int32 (batch,)) from that step on.
        reduce_loss: from the cross-entropies of a batch to its loss: tf.reduce_sum or reduce_mean.
        batch_statistics: whether the attack runs the network in training mode, see `PGD`.

    Returns:
        The keras.Model, with the weights it ended with.

    Raises:
        InputError: `model_dir` holds another training or a model; a setting is out of range.
    """
    model = challenge.build_model(config)
    perturb = make_adversary(config, challenge.bounds, model, batch_statistics)
    update = _make_update(model, optimizer, reduce_loss)
    natural_accuracy = tf.function(
        lambda x, y: _accuracy(model(x, training=False), y), reduce_retracing=True
    )
    run = checkpoints.TrainingRun(config.model_dir, model, optimizer)
    _claim(config)
    step = run.restore()
    if step:
        print(f"resuming at step {step} of {config.max_num_training_steps}")
    summaries = tf.summary.create_file_writer(config.model_dir)
    plateau = _PlateauWarning()
    clock = _Clock(config.training_batch_size)
    total = config.max_num_training_steps
    with _Interruption() as interruption, tqdm(total=total, initial=step, unit="step") as progress:
        for x_nat, y in batches(step) if step < total else ():
            x_adv = perturb(x_nat, y, step)
            is_output, is_summary = (
                step % every == 0 for every in (config.num_output_steps, config.num_summary_steps)
            )
            if step % config.num_checkpoint_steps == 0:
                run.save(step)
            natural = natural_accuracy(x_nat, y) if is_output else None
            xent, accuracy = update(x_adv, y)
            plateau.watch(xent, progress)
            if is_output or is_summary:
                xent, accuracy = float(xent), float(accuracy)  # waits for the device
                clock.pause()
                if is_output:
                    _print_output(progress, step, float(natural), accuracy, xent, clock)
                if is_summary:
                    _write_summary(summaries, step, accuracy, xent, x_adv, challenge.bounds)
                clock.start()
            step += 1
            clock.count += 1
            progress.update()
            if interruption.requested:
                break
    run.save(step)
    if step < total:
        print(f"stopped after step {step}; the same command goes on from there")
        return model
    path = pathlib.Path(config.model_dir) / "saved_model"
    checkpoints.export(model, path)
    print(f"trained {step} steps; SavedModel in {path}")
    return model


def define_flags(flag_values):
    """Declares the flag of train.py beside the config's."""
    flags.DEFINE_bool(
        "export", False, "only write saved_model/ from the newest checkpoint", flag_values
    )


def export_newest(config, challenge):
    """Writes `config.model_dir`/saved_model from the newest checkpoint.

    Raises:
        InputError: `model_dir` holds no training.
    """
    directory = pathlib.Path(config.model_dir)
    model, step = checkpoints.restore_training(challenge, directory)
    checkpoints.export(model, directory / "saved_model")
    print(f"step {step}; SavedModel in {directory / 'saved_model'}")


def make_adversary(config, bounds, model, batch_statistics=False):
    """The inner maximisation, as function (x_nat, y, step) to x_adv.

    Args:
        config: the challenge's config: `adversary` is "pgd", "fgsm" or "none".
        bounds: (lowest, highest) pixel value.
        model: keras.Model under attack.
        batch_statistics: see `PGD`.
    """
    if config.adversary == "none":
        return lambda x_nat, y, step: x_nat
    settings = {
        "epsilon": config.epsilon,
        "loss_func": config.loss_func,
        "kappa": config.kappa,
        "bounds": bounds,
        "batch_statistics": batch_statistics,
    }
    if config.adversary == "fgsm":
        attack = FGSM(model, **settings)
    else:
        attack = PGD(
            model,
            step_size=config.step_size,
            num_steps=config.num_steps,
            random_start=config.random_start,
            **settings,
        )

    def perturb(x_nat, y, step):
        scale = min(1.0, (step + 1) / (config.epsilon_warmup_steps or 1))
        return attack.perturb(x_nat, y, seed=(config.random_seed, step), scale=scale)

    return perturb


def _make_update(model, optimizer, reduce_loss):
    optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def update(x, y):
        """One step of the outer minimisation; returns mean cross-entropy and accuracy before it."""
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            xent = xent_loss(logits, y)
            loss = reduce_loss(xent) + tf.add_n(model.losses or [0.0])
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return tf.reduce_mean(xent), _accuracy(logits, y)

    return update


def _accuracy(logits, y):
    hits = tf.argmax(logits, axis=-1, output_type=tf.int32) == y
    return tf.reduce_mean(tf.cast(hits, tf.float32))


def _print_output(progress, step, natural, adversarial, xent, clock):
    rate = clock.examples_per_second()
    lines = [
        f"Step {step}:    ({datetime.datetime.now():%Y-%m-%d %H:%M:%S})",
        f"    training nat accuracy {100 * natural:.4g}%",
        f"    training adv accuracy {100 * adversarial:.4g}%",
        f"    training adv loss {xent:.4f}",
    ]
    if rate:
        lines.append(f"    {rate:.1f} examples per second")
    progress.write("\n".join(lines), file=sys.stdout)
    sys.stdout.flush()


def _write_summary(writer, step, accuracy, xent, x_adv, bounds):
    # The originals' tags, each number twice: once to compare with the evaluation of a run, once
    # to compare runs.
    low, high = bounds
    with writer.as_default(step=step):
        for suffix in ("adv_train", "adv"):
            tf.summary.scalar(f"accuracy_{suffix}", accuracy)
            tf.summary.scalar(f"xent_{suffix}", xent)
        tf.summary.image("images_adv_train", (x_adv - low) / (high - low), max_outputs=3)
    writer.flush()


def _claim(config):
    """Makes `model_dir` this config's, or refuses what is in it."""
    directory = pathlib.Path(config.model_dir)
    path = directory / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is no JSON: {error}") from None
        differing = [
            f"{name} ({json.dumps(old.get(name))} there, {json.dumps(value)} now)"
            for name, value in new.items()
            if name not in NOT_OF_TRAINING and old.get(name) != value
        ]
        if differing:
            raise InputError(
                f"--model_dir: expected a training with the same settings in {directory}, "
                f"got other {', '.join(differing)}; give another directory"
            )
    elif directory.exists() and any(directory.iterdir()):
        raise InputError(
            f"--model_dir: expected a new directory or one of a training, got {directory}, "
            "which holds other files"
        )
    directory.mkdir(parents=True, exist_ok=True)
    checkpoints.write_atomically(path, config.to_json().encode())
    text = json.dumps(provenance(), indent=2) + "\n"
    checkpoints.write_atomically(directory / "versions.json", text.encode())


class _Interruption:
    """Within it Ctrl-C and SIGTERM only set `requested`; a second one acts as ever."""

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._request)
        return self

    def _request(self, number, frame):
        self.requested = True
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error):
        self._restore()


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
