"""Adversarial training: min over weights of E[max over |delta|_inf <= epsilon of loss].

The outer minimisation takes its steps on examples that the inner maximisation has just made; no
natural image is trained on, unless the adversary is "none". Every step is a function of the
config and its number, so that a resumed run goes on exactly as if it had not stopped.
"""

import collections
import contextlib
import dataclasses
import datetime
import json
import math
import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

from common import app, checkpoint_files, checkpoints
from common import config as config_lib
from common import runs as runs_lib
from common import validation as validation_lib
from common.attack import compiles_with_xla, is_misclassified, make_attack, xent_loss
from common.data import training_batches
from common.errors import InputError, one_line, reason_of
from common.files import Lock, keep_aside, write_atomically
from common.interruption import SIGPIPE, Interrupted, Interruption, drop_output
from common.original_checkpoints import is_original

# A constant prediction has the loss ln 10; see `_PlateauWarning`.
PLATEAU_LOSS = math.log(10)


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


def train(
    config,
    challenge,
    images,
    *,
    optimizer,
    reduce_loss,
    model=None,
    augment=None,
    batch_statistics=False,
    validation_images=None,
):
    """Trains the challenge's network, or goes on with the training found in `config.model_dir`.

    Writes there: config.json, runs.json (see `Runs`), checkpoint-N every `num_checkpoint_steps`,
    validation.json every `num_validation_steps` (see `Validation`), TensorBoard summaries, and at
    the end saved_model/. A signal (see `Interruption`), or a closed output, ends it after the
    current step, with a checkpoint. What it prints of a batch is from before its step: adversarial
    numbers in training mode, the natural accuracy in inference mode.

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        images: a `common.data.Split` to train on.
        optimizer: a keras optimizer.
        reduce_loss: from the cross-entropies of a batch to its loss: tf.reduce_sum or reduce_mean.
        model: keras.Model to train, of the challenge's network in another precision; what is
            evaluated and exported has its weights, in float32. None trains in float32.
        augment: see `common.data.training_batches`.
        batch_statistics: whether the attack runs the network in training mode, see `PGD`.
        validation_images: a `common.data.Split` to watch the training on, or None.

    Returns:
        The challenge's keras.Model, with the weights that the training ended with, averaged if
        `average_decay` says so.

    Raises:
        InputError: `model_dir` holds another training or a model, is in use by another process or
            cannot be written; a setting is out of range; a loss or weight is not finite.
        Interrupted: the training was ended before its last step; the same call resumes it.
    """
    directory = pathlib.Path(config.model_dir)
    _check_directory(directory, config, challenge)
    with Lock(directory, "--model_dir"):
        # Another process may have begun a training in between.
        _check_directory(directory, config, challenge)
        return _train(
            config,
            challenge,
            images,
            directory,
            optimizer,
            reduce_loss,
            model,
            augment,
            batch_statistics,
            validation_images,
        )


def _train(
    config,
    challenge,
    images,
    directory,
    optimizer,
    reduce_loss,
    model,
    augment,
    batch_statistics,
    validation_images,
):
    """`train` in a directory that is checked and locked."""
    result = challenge.build_model(config)
    averaged = result if config.average_decay or model is not None else None
    model = model or (challenge.build_model(config) if averaged else result)
    perturb = make_adversary(config, challenge, model, batch_statistics)
    update = make_update(config, model, optimizer, reduce_loss, averaged)
    natural_accuracy = tf.function(
        lambda x, y: _accuracy(model(x, training=False), y), reduce_retracing=True
    )
    run = checkpoints.TrainingRun(directory, result, optimizer, model if averaged else None)
    step, total = run.restore() or 0, config.max_num_training_steps
    checkpoint_files.tidy(directory)
    batches = training_batches(
        images.images,
        images.labels,
        batch_size=config.training_batch_size,
        seed=config.random_seed,
        start_step=min(step, total),
        num_steps=total,
        to_pixels=challenge.to_pixels,
        augment=augment,
    )
    _write_config(directory, config)
    runs = runs_lib.Runs(directory, step, images.name)
    validation = None
    if config.num_validation_steps and validation_images is not None:
        validation = validation_lib.Validation(
            config, challenge, result, validation_images, directory
        )
    if step:
        print(f"resuming at step {step} of {total}")
    summaries = tf.summary.create_file_writer(str(directory))
    kind = "nat" if config.adversary == "none" else "adv"
    plateau = _PlateauWarning()
    clock = _Clock(config.training_batch_size)
    xent, is_heard = 0.0, True
    with Interruption() as interruption:
        try:
            with tqdm(total=total, initial=step, unit="step") as progress:
                for x_nat, y in batches:
                    if step % config.num_checkpoint_steps == 0:
                        _check_finite(xent, step)
                        run.save(step)
                        runs.update(step)
                    is_output, is_summary = (
                        step % every == 0
                        for every in (config.num_output_steps, config.num_summary_steps)
                    )
                    x_adv = perturb(x_nat, y, step)
                    natural = natural_accuracy(x_nat, y) if is_output else None
                    xent, accuracy = update(x_adv, y)
                    step += 1
                    plateau.watch(xent, progress)
                    if is_output or is_summary:
                        _check_finite(xent, step - 1)  # waits for the device
                        clock.pause()
                        numbers = {"accuracy": float(accuracy), "xent": float(xent)}
                        if is_output:
                            _print_output(progress, step - 1, float(natural), numbers, kind, clock)
                        if is_summary:
                            _write_summary(
                                summaries, step - 1, numbers, kind, x_adv, challenge.bounds
                            )
                        clock.start()
                    clock.count += 1
                    progress.update()
                    if validation is not None and step % config.num_validation_steps == 0:
                        _check_finite(xent, step)
                        clock.pause()
                        progress.write(validation.run(step, runs.seconds), file=sys.stdout)
                        sys.stdout.flush()
                        clock.start()
                    if interruption.requested:
                        break
        except OSError:  # of printing: the reader of a pipe or the terminal is gone
            is_heard = False
            drop_output()
        _check_finite(xent, step)
        run.save(step)
        runs.update(step)
    if step < total:
        with contextlib.suppress(OSError):
            print(f"stopped after step {step}; the same command resumes there", flush=True)
        raise Interrupted(interruption.requested or SIGPIPE)
    checkpoints.export(result, directory / "saved_model")
    if is_heard:
        print(one_line(f"trained {step} steps; SavedModel in {directory / 'saved_model'}"))
    return result


def run_script(train, challenge):
    """Runs a challenge's train.py: its flags, then `train(config)`, or --export alone."""

    def define_flags(challenge, flag_values):
        flags.DEFINE_bool(
            "export", False, "only write saved_model/ from the newest checkpoint", flag_values
        )

    def main(challenge, config, flag_values):
        if flag_values.export:
            export_newest(config, challenge)
        else:
            train(config)

    app.run(main, challenge, define_flags)


def export_newest(config, challenge):
    """Writes `config.model_dir`/saved_model from the newest checkpoint.

    Raises:
        InputError: `model_dir` holds no training.
    """
    directory = pathlib.Path(config.model_dir)
    model, step = checkpoints.restore_training(challenge, directory)
    checkpoints.export(model, directory / "saved_model")
    print(one_line(f"step {step}; SavedModel in {directory / 'saved_model'}"))


def make_adversary(config, challenge, model, batch_statistics=False):
    """The inner maximisation, as function (x_nat, y, step) to x_adv.

    Args:
        config: the challenge's config: `adversary` is "pgd", "fgsm" or "none".
        challenge: a `common.challenge.Challenge`.
        model: keras.Model of its network.
        batch_statistics: see `PGD`.
    """
    if config.adversary == "none":
        return lambda x_nat, y, step: x_nat
    attacked = model if batch_statistics else checkpoints.fast_model(model, challenge)
    schedule = config.attack_schedule or ((0, config.num_steps, config.step_size),)
    attacks = {
        first: make_attack(
            config.adversary,
            attacked,
            dataclasses.replace(config, num_steps=num_steps, step_size=step_size),
            challenge.bounds,
            batch_statistics,
        )
        for first, num_steps, step_size in schedule
    }

    def perturb(x_nat, y, step):
        attack = attacks[max(first for first in attacks if first <= step)]
        scale = min(1.0, (step + 1) / (config.epsilon_warmup_steps or 1))
        return attack.perturb(x_nat, y, seed=(config.random_seed, step), scale=scale)

    return perturb


def make_update(config, model, optimizer, reduce_loss, averaged=None):
    """The outer minimisation, as function (x, y) to the cross-entropy and accuracy before its step.

    Args:
        config: the challenge's config.
        model: keras.Model.
        optimizer: keras optimizer.
        reduce_loss: from the cross-entropies of a batch to its loss.
        averaged: keras.Model of the same network, whose weights a, with batch norm's averages,
            become d a + (1 - d) w after step t, with d = min(`average_decay`, (1 + t) / (10 + t));
            with no `average_decay` they are w.
    """
    optimizer.build(model.trainable_variables)
    jit_compile = compiles_with_xla(config.jit_compile)

    @tf.function(reduce_retracing=not jit_compile, jit_compile=jit_compile)
    def update(x, y):
        """One step of the outer minimisation; returns mean cross-entropy and accuracy before it."""
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            xent = xent_loss(logits, y)
            loss = reduce_loss(xent) + tf.add_n(model.losses or [0.0])
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        if averaged is not None:
            count = tf.cast(optimizer.iterations, tf.float32)
            decay = tf.minimum(config.average_decay, (1.0 + count) / (10.0 + count))
            for mean, weight in zip(averaged.weights, model.weights):
                mean.assign(decay * mean + (1.0 - decay) * weight)
        return tf.reduce_mean(xent), _accuracy(logits, y)

    return update


def _accuracy(logits, y):
    return tf.reduce_mean(tf.cast(~is_misclassified(logits, y), tf.float32))


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


def _check_directory(directory, config, challenge):
    """Refuses a `model_dir` that holds anything but a training with these settings."""
    try:
        if directory.exists() and not directory.is_dir():
            raise InputError(f"--model_dir: expected a directory, got the file {directory}")
        names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    except OSError as error:
        raise InputError(f"--model_dir: cannot read {directory}: {reason_of(error)}") from None
    if is_original(directory):
        raise InputError(
            f"--model_dir: expected a new directory or one of a training, got {directory}, which "
            "holds a TensorFlow 1 checkpoint: eval.py takes it, but no training can resume from it"
        )
    is_training = "config.json" in names and bool(checkpoint_files.steps_in(directory))
    others = [name for name in names if not is_training and not _is_of_training(name, names)]
    if others:
        raise InputError(
            f"--model_dir: expected a new directory or one of a training, got {directory}, "
            f"which holds other files, such as {min(others)}"
        )
    if not is_training:
        return
    try:
        old = config_lib.read_json(directory / "config.json")
    except InputError:  # it is kept aside when the new one is written
        return
    # A setting that came later had the value that config.json has now.
    old = {**config_lib.read_json(challenge.directory / "config.json"), **old}
    differing = [
        f"{name} ({json.dumps(old.get(name))} there, {json.dumps(value)} now)"
        for name, value in json.loads(config.to_json()).items()
        if name not in config_lib.NOT_OF_TRAINING and old.get(name) != value
    ]
    if differing:
        raise InputError(
            f"--model_dir: expected a training with the same settings in {directory}, "
            f"got other {', '.join(differing)}; give another directory"
        )


def _is_of_training(name, names):
    """Whether a training that ended before its first checkpoint, or `eval.py --watch`, left it."""
    return (
        name in (Lock.NAME, "eval", "config.json", runs_lib.FILE, validation_lib.FILE)
        or name.startswith("events.out.tfevents.")
        or checkpoint_files.is_left_over(name)
        # Without its settings a checkpoint tells nothing of its training.
        or ("config.json" in names and checkpoint_files.is_of_checkpoint(name))
    )


def _write_config(directory, config):
    data_dir = None if config.data_dir is None else str(pathlib.Path(config.data_dir).resolve())
    # Paths in a config file are relative to it.
    config = dataclasses.replace(config, model_dir=".", data_dir=data_dir)
    path = directory / "config.json"
    if path.exists():
        try:
            config_lib.read_json(path)
        except InputError as error:
            aside = keep_aside(path).name
            print(f"note: {error}; it is kept as {aside}, and this command's settings count")
    write_atomically(path, config.to_json().encode())


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
