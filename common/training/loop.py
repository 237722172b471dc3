"""Adversarial training: min over weights of E[max over |delta|_inf <= epsilon of loss].

The outer minimisation takes its steps on examples that the inner maximisation has just made; no
natural image is trained on, unless the adversary is "none". Every step is a function of the
config and its number, so that a resumed run goes on exactly as if it had not stopped.
"""

import contextlib
import pathlib
import sys

import tensorflow as tf
from tqdm import tqdm

from common import checkpoint_files, checkpoints
from common.errors import one_line
from common.files import Lock
from common.interruption import SIGPIPE, Interrupted, Interruption, drop_output
from common.training import runs, validation
from common.training.batches import training_batches
from common.training.directory import _check_directory, _write_config
from common.training.progress import (
    _check_finite,
    _Clock,
    _PlateauWarning,
    _print_output,
    _write_summary,
)
from common.training.steps import _accuracy, make_adversary, make_update


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
    own_runs = runs.Runs(directory, step, images.name)
    watched = None
    if config.num_validation_steps and validation_images is not None:
        watched = validation.Validation(config, challenge, result, validation_images, directory)
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
                        own_runs.update(step)
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
                    if watched is not None and step % config.num_validation_steps == 0:
                        _check_finite(xent, step)
                        clock.pause()
                        progress.write(watched.run(step, own_runs.seconds), file=sys.stdout)
                        sys.stdout.flush()
                        clock.start()
                    if interruption.requested:
                        break
        except OSError:  # of printing: the reader of a pipe or the terminal is gone
            is_heard = False
            drop_output()
        _check_finite(xent, step)
        run.save(step)
        own_runs.update(step)
    if step < total:
        with contextlib.suppress(OSError):
            print(f"stopped after step {step}; the same command resumes there", flush=True)
        raise Interrupted(interruption.requested or SIGPIPE)
    checkpoints.export(result, directory / "saved_model")
    if is_heard:
        print(one_line(f"trained {step} steps; SavedModel in {directory / 'saved_model'}"))
    return result
