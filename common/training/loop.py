"""Adversarial training: min over weights of E[max over |delta|_inf <= epsilon of loss].

The outer minimisation takes its steps on examples that the inner maximisation has just made, and on
natural images if `adversary` is "none" or `natural_share` or `loss` includes them. Every step
depends only on the config and its number, so that a resumed run equals an uninterrupted one.
"""

from common import checkpoints
from common.errors import one_line
from common.interruption import Interruption
from common.training.batches import training_batches
from common.training.directory import TrainingDirectory, with_precision
from common.training.distribution import OneDevice, Replicas, devices_of
from common.training.progress import Log
from common.training.validation import Validation


def train(
    config,
    challenge,
    images,
    *,
    optimizer,
    reduce_loss,
    augment=None,
    batch_statistics=False,
    validation_images=None,
    timed=None,
):
    """Trains the challenge's network, or resumes the training found in `config.model_dir`.

    Writes there: config.json, runs.json (see `Runs`), checkpoint-N every `num_checkpoint_steps`,
    validation.json every `num_validation_steps` (see `Validation`), TensorBoard summaries, and at
    the end saved_model/. A signal (see `Interruption`), or a closed output, ends it after the
    current step, with a checkpoint. The printed numbers of a batch are from before its update:
    adversarial ones in training mode, the natural accuracy in inference mode.

    With `config.distribute` several devices share each batch, see `common.training.distribution`;
    only the first worker, the chief, writes and prints.

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        images: a `common.data.Split` to train on.
        optimizer: a keras optimizer.
        reduce_loss: maps the examples' losses to the batch's: tf.reduce_sum or tf.reduce_mean.
        augment: see `training_batches`.
        batch_statistics: whether the attack runs the network in training mode, see `PGD`.
        validation_images: a `common.data.Split` for `Validation`, or None.
        timed: None, or a function that wraps `perturb` and `update` to time them.

    Returns:
        The challenge's keras.Model with the final weights, averaged if `average_decay` is not 0.

    Raises:
        InputError: `model_dir` holds another training or a model, is in use by another process or
            cannot be written; a setting is out of range; a loss or weight is not finite.
        Interrupted: the training was ended before its last step; the same call resumes it.
    """
    devices = devices_of(config)
    config = with_precision(config, challenge)
    with TrainingDirectory(config, challenge, devices) as directory:
        result, model = build_networks(config, challenge)
        recipe = (config, challenge, model, result, optimizer, reduce_loss, batch_statistics)
        network = _on_devices(devices, *recipe)
        perturb, update = network.perturb, network.update
        if timed is not None:
            perturb, update = timed(perturb), timed(update)
        directory.restore(result, optimizer, model)
        network.begin()
        step, total = directory.first_step, config.max_num_training_steps
        batches = _batches(config, challenge, images, augment, devices, first=min(step, total))
        directory.begin(images.name)
        validation = None
        if config.num_validation_steps and validation_images is not None and devices.is_chief:
            validation = Validation(config, challenge, result, validation_images, directory.path)
        log = Log(config, challenge, network, directory, validation, not devices.is_chief)

        with Interruption() as interruption:
            with log:
                for x_nat, y in network.split(batches):
                    if step % config.num_checkpoint_steps == 0:
                        network.collect()
                        directory.save(step, log.xent)

                    x_adv = perturb(x_nat, y, step)  # inner maximisation
                    log.look(step, x_nat, y)
                    metrics = update(x_nat, x_adv, y)  # outer minimisation

                    log.record(step, x_adv, *metrics)
                    step += 1
                    if network.agree_to_stop(interruption.requested or not log.is_heard):
                        break
            network.collect()
            directory.save(step, log.xent)
        if step < total:
            devices.total(0)  # no worker ends before all are done
            raise log.interrupted(step, interruption.requested)
        _export(result, directory.path / "saved_model", step, devices, log)
        return result


def build_networks(config, challenge):
    """The network that a training returns, and the one that its optimizer updates.

    They are one keras.Model, unless the weights are averaged or the steps are in bfloat16.
    """
    result = model = challenge.build_model(config)
    if _policy(config) != "float32" or config.average_decay:
        model = challenge.build_model(config, _policy(config))
    return result, model


def _policy(config):
    return "mixed_bfloat16" if config.precision == "bfloat16" else "float32"


def _on_devices(devices, config, challenge, *recipe):
    """The network in training, see `OneDevice` for the arguments."""
    if devices.strategy is None:
        return OneDevice(config, challenge, *recipe)
    policy = _policy(config)

    def build():
        return challenge.build_model(config, policy)

    return Replicas(devices, build, config, challenge, *recipe)


def _batches(config, challenge, images, augment, devices, first):
    """The batches from the step `first` on, of which each worker gets its rows."""
    return training_batches(
        images.images,
        images.labels,
        batch_size=config.training_batch_size,
        seed=config.random_seed,
        start_step=first,
        num_steps=config.max_num_training_steps,
        to_pixels=challenge.to_pixels,
        augment=augment,
        rows=devices.rows(config.training_batch_size),
    )


def _export(result, path, num_steps, devices, log):
    """Writes the SavedModel, which takes ten seconds; all workers wait for it."""
    log.say(one_line(f"exporting the SavedModel {path}"))
    if devices.is_chief:
        checkpoints.export(result, path)
    devices.total(0)
    log.say(one_line(f"trained {num_steps} steps; SavedModel in {path}"))
