"""Times a step of adversarial training: ours, the plain implementation, and torch's if installed.

    python benchmarks/training_throughput.py --model=mnist|cifar_simple|cifar_wide

A step is the attack of the challenge's config.json on a batch, and the update of the weights. The
unit is examples per second. `loop_share` is the part of a real training's time, from its second to
its last step, that attack and update take; the rest is input, logging, progress and other Python.
"""

import dataclasses
import pathlib
import sys
import tempfile
import time

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measure, peers, plain
from benchmarks.measure import OURS, OURS_BFLOAT16, PLAIN
from cifar10_challenge import train as cifar10
from cifar10_challenge.challenge import CIFAR10
from common.config import make_config
from common.errors import InputError
from common.files import check_writable
from common.scripts.flags import define_path
from common.training import steps, train
from mnist_challenge import train as mnist
from mnist_challenge.challenge import MNIST

# Challenge, size, module of its train.py, reduction of the loss.
MODELS = {
    "mnist": (MNIST, {"scale": 16}, mnist, tf.reduce_sum),
    "cifar_simple": (CIFAR10, {"width": 1}, cifar10, tf.reduce_mean),
    "cifar_wide": (CIFAR10, {"width": 10}, cifar10, tf.reduce_mean),
}

TORCH = "torch channels_last in bfloat16"

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    flags.DEFINE_enum("model", "mnist", list(MODELS), "network in training")
    flags.DEFINE_integer(
        "batch_size", None, "images in a step; default: as in config.json", lower_bound=1
    )
    flags.DEFINE_integer("rounds", 7, "how often a step of each is timed", lower_bound=1)
    flags.DEFINE_integer("loop_steps", 200, "steps of the real training; 0: none", lower_bound=0)
    flags.DEFINE_list(
        "implementations",
        None,
        f"which to time, of {OURS}, {OURS_BFLOAT16}, {PLAIN} and, if torch is installed, {TORCH}; "
        "default: all",
    )
    define_path("output_json", None, "file to write the result to")
    flags.DEFINE_bool("print_peak_memory", False, "one step; the last line is the memory in GiB")


def main():
    """Times what the flags ask for."""
    if FLAGS.output_json:
        check_writable("--output_json", FLAGS.output_json)
    challenge, size, script, reduce_loss = MODELS[FLAGS.model]
    makers = {OURS: our_step, OURS_BFLOAT16: our_bfloat16_step, PLAIN: plain_step}
    if TORCH in peers.importable():
        makers[TORCH] = torch_step
    names = FLAGS.implementations or list(makers)
    if not set(names) <= set(makers):
        raise InputError(f"--implementations: expected {', '.join(makers)}, got {names}")
    if FLAGS.batch_size:
        size = {**size, "training_batch_size": FLAGS.batch_size}
    config = make_config(challenge, ("size", size))
    # Times do not depend on the images, and these are always available.
    batch = challenge.load("test", allow_sample=True).head(config.training_batch_size)
    x, y = tf.constant(challenge.to_pixels(batch.images)), tf.constant(batch.labels, tf.int32)
    steps = {name: makers[name](challenge, config, reduce_loss, x, y) for name in names}
    if FLAGS.print_peak_memory:
        for step in steps.values():
            step()
        print(measure.own_peak_memory())
        return
    seconds = measure.in_turn(steps, FLAGS.rounds)
    result = {
        "model": FLAGS.model,
        "batch_size": config.training_batch_size,
        "num_steps": config.num_steps,
        "rounds": FLAGS.rounds,
        "implementations": {},
    }
    for name in steps:
        rate = measure.rates(seconds[name], config.training_batch_size)
        memory = measure.peak_memory(
            __file__,
            f"--model={FLAGS.model}",
            f"--batch_size={config.training_batch_size}",
            f"--implementations={name}",
        )
        result["implementations"][name] = {
            "examples_per_second": rate,
            "peak_memory_gib": memory,
        }
        print(
            f"{name:31} {rate['median']:.2f} examples/s ({rate['lowest']:.2f} to "
            f"{rate['highest']:.2f}), {memory:.2f} GiB",
            flush=True,
        )
    if FLAGS.loop_steps:
        result["loop_steps"] = FLAGS.loop_steps
        result["loop_share"] = loop_share(challenge, config, script, reduce_loss)
        print(
            f"attack and update take {100 * result['loop_share']:.2f}% of {FLAGS.loop_steps} steps"
        )
    if FLAGS.output_json:
        measure.save(FLAGS.output_json, result)


def our_step(challenge, config, reduce_loss, x, y, precision="float32"):
    """A step of `common.training.train`, as a function without arguments."""
    config = dataclasses.replace(config, precision=precision)
    policy = "mixed_bfloat16" if precision == "bfloat16" else precision
    model, optimizer = challenge.build_model(config, policy), optimizer_of(challenge, config)
    perturb = steps.make_adversary(config, challenge, model, batch_statistics_of(config))
    update = steps.make_update(config, model, optimizer, reduce_loss)
    return lambda: float(update(x, perturb(x, y, 0), y)[0])


def our_bfloat16_step(challenge, config, reduce_loss, x, y):
    """The same step with --precision=bfloat16."""
    return our_step(challenge, config, reduce_loss, x, y, "bfloat16")


def plain_step(challenge, config, reduce_loss, x, y):
    """The same step in plain TensorFlow; its attack has no random start."""
    model = plain.build_model(challenge, challenge.build_model(config).get_weights())
    perturb = plain.pgd(
        model,
        epsilon=config.epsilon,
        step_size=config.step_size,
        num_steps=config.num_steps,
        bounds=challenge.bounds,
        training=batch_statistics_of(config),
    )
    update = plain.update(model, optimizer_of(challenge, config), reduce_loss)
    return lambda: float(update(perturb(x, y), y))


def torch_step(challenge, config, reduce_loss, x, y):
    """The same step in torch, channels last, under autocast; see `plain_step`."""
    plain_model = plain.build_model(challenge, challenge.build_model(config).get_weights())
    return peers.training_step(
        plain_model,
        x.numpy(),
        y.numpy().astype(np.int64),
        epsilon=config.epsilon,
        step_size=config.step_size,
        num_steps=config.num_steps,
        bounds=challenge.bounds,
        batch_statistics=batch_statistics_of(config),
        is_summed=reduce_loss is tf.reduce_sum,
        rate=config.step_size_schedule[0][1],
        momentum=getattr(config, "momentum", None),
        weight_decay=getattr(config, "weight_decay", 0.0),
    )


def optimizer_of(challenge, config):
    """A challenge's optimizer at its first learning rate."""
    rate = config.step_size_schedule[0][1]
    if challenge is MNIST:
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(rate, momentum=config.momentum)


def batch_statistics_of(config):
    """Whether a challenge's attack runs the network in training mode."""
    return getattr(config, "batch_statistics", False)


def loop_share(challenge, config, script, reduce_loss):
    """The part of a real training's time that its attacks and updates take."""
    begins, ends = [], []

    def timed(function):
        def call(*args):
            begins.append(time.perf_counter())
            result = function(*args)
            ends.append(time.perf_counter())
            return result

        return call

    with tempfile.TemporaryDirectory() as directory:
        settings = {"model_dir": f"{directory}/model", "max_num_training_steps": FLAGS.loop_steps}
        train(
            dataclasses.replace(config, precision="float32", **settings),
            challenge,
            challenge.load("test", allow_sample=True),
            optimizer=optimizer_of(challenge, config),
            reduce_loss=reduce_loss,
            augment=getattr(script, "augment", None),
            batch_statistics=batch_statistics_of(config),
            timed=timed,
        )
    skip = 2  # the first step, an attack and an update, compiles
    return np.sum(np.array(ends[skip:]) - begins[skip:]) / (ends[-1] - begins[skip])


if __name__ == "__main__":
    measure.run(main, define_flags)
