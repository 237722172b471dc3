"""Times a step of adversarial training on several devices, beside one without `tf.distribute`.

    python benchmarks/distribution.py --model=mnist|cifar_simple|cifar_wide [--devices=1,2,4]

The devices are parts of one processor, whose cores they share: the work is the same for any number
of them. The difference is the cost of the strategy itself and of smaller batches, less what is
gained as the parts run side by side. Each number of devices has a process of its own. A step is
that of training_throughput.py; the unit is examples per second.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import tensorflow as tf
from absl import flags

from benchmarks import measure, training_throughput
from common.config import make_config
from common.errors import InputError
from common.files import check_writable
from common.scripts.flags import define_path
from common.training import distribution

FLAGS = flags.FLAGS
NONE = 0  # devices of a step without a strategy


def define_flags():
    """Declares the flags."""
    models = list(training_throughput.MODELS)
    flags.DEFINE_enum("model", "mnist", models, "network in training")
    flags.DEFINE_integer("batch_size", 48, "images in a step, of all devices", lower_bound=1)
    flags.DEFINE_list("devices", ["1", "2", "4"], "numbers of devices")
    flags.DEFINE_enum(
        "batch_norm", "synchronized", ["synchronized", "per_replica"], "see train.py; CIFAR-10's"
    )
    flags.DEFINE_integer("rounds", 7, "how often a step of each is timed", lower_bound=1)
    define_path("output_json", None, "file to write the result to")
    flags.DEFINE_integer("only", None, "time this number of devices here; 0: none; print JSON")


def main():
    """Times what the flags ask for."""
    if FLAGS.only is not None:
        print(json.dumps(seconds_of(FLAGS.only)))
        return
    if FLAGS.output_json:
        check_writable("--output_json", FLAGS.output_json)
    if not all(word.isdecimal() and int(word) for word in FLAGS.devices):
        raise InputError(f"--devices: expected numbers of 1 or more, got {FLAGS.devices}")
    result = {
        "model": FLAGS.model,
        "batch_size": FLAGS.batch_size,
        "rounds": FLAGS.rounds,
        "devices": {},
    }
    if FLAGS.model != "mnist":
        result["batch_norm"] = FLAGS.batch_norm
    for count in (NONE, *map(int, FLAGS.devices)):
        settings = ("model", "batch_size", "rounds", "batch_norm")
        words = [f"--{name}={FLAGS[name].value}" for name in settings]
        command = [sys.executable, __file__, *words, f"--only={count}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise InputError(f"{count} devices could not be timed, see above")
        rate = measure.rates(json.loads(done.stdout.splitlines()[-1]), FLAGS.batch_size)
        result["devices"]["none" if count == NONE else str(count)] = rate
        share = rate["median"] / result["devices"]["none"]["median"]
        name = "without tf.distribute" if count == NONE else f"{count} devices"
        print(
            f"{name:22} {rate['median']:.2f} examples/s ({rate['lowest']:.2f} to "
            f"{rate['highest']:.2f}), {100 * share:.0f}%",
            flush=True,
        )
    if FLAGS.output_json:
        measure.save(FLAGS.output_json, result)


def seconds_of(count):
    """The seconds of each round's step on `count` devices."""
    challenge, size, _, reduce_loss = training_throughput.MODELS[FLAGS.model]
    if FLAGS.model != "mnist":
        size = {**size, "batch_norm": FLAGS.batch_norm}
    if count != NONE:
        size = {**size, "distribute": "mirrored", "num_devices": count}
    size = {**size, "training_batch_size": FLAGS.batch_size}
    config = dataclasses.replace(make_config(challenge, ("size", size)), precision="float32")
    devices = distribution.devices_of(config)
    batch = challenge.load("test", allow_sample=True).head(config.training_batch_size)
    x, y = tf.constant(challenge.to_pixels(batch.images)), tf.constant(batch.labels, tf.int32)
    model = challenge.build_model(config)
    recipe = (
        config,
        challenge,
        model,
        model,
        training_throughput.optimizer_of(challenge, config),
        reduce_loss,
        training_throughput.batch_statistics_of(config),
    )
    if count == NONE:
        network = distribution.OneDevice(*recipe)
    else:
        network = distribution.Replicas(devices, lambda: challenge.build_model(config), *recipe)
        network.begin()
    ((x_nat, y),) = network.split([(x, y)])

    def step():
        return float(network.update(x_nat, network.perturb(x_nat, y, 0), y)[0])

    return measure.in_turn({f"{count} devices": step}, FLAGS.rounds)[f"{count} devices"]


if __name__ == "__main__":
    measure.run(main, define_flags)
