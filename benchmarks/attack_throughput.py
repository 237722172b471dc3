"""Times PGD: ours, a plain loop over a plain Keras net, and the peers that are installed.

    python benchmarks/attack_throughput.py --model=mnist --batch_size=50,200,500

All run in one process and in turn, round by round. The unit is the example-step: one forward and
one input-gradient pass of one image and one update of its pixels. `share` is the part of the
machine's float32 matrix product rate, measured in the same rounds, that this amounts to, counting
two passes of two operations for each multiplication and addition of the network.
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import common  # noqa: F401  first, since it quiets TensorFlow

# isort: split
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measure, peers, plain
from cifar10_challenge.challenge import CIFAR10
from common import checkpoints
from common.attack import PGD
from common.commands import check_writable
from common.config import make_config
from common.errors import InputError
from mnist_challenge.challenge import MNIST

# Challenge, size, settings of PGD, millions of operations of an example-step.
MODELS = {
    "mnist": (MNIST, {"scale": 16}, (0.3, 0.01, 40)),
    "cifar_simple": (CIFAR10, {"width": "simple"}, (8.0, 2.0, 10)),
    "cifar_wide": (CIFAR10, {"width": "wide"}, (8.0, 2.0, 1)),
}
OURS, PLAIN = "ours", "plain tf.function"

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    flags.DEFINE_enum("model", "mnist", list(MODELS), "network under attack")
    flags.DEFINE_list("batch_size", None, "images at a time; default 50,200,500 or 100 (CIFAR-10)")
    flags.DEFINE_integer("rounds", 7, "how often each is timed", lower_bound=1)
    flags.DEFINE_list("implementations", None, "which to time; default: all that are installed")
    flags.DEFINE_string("output_json", None, "file to write the result to")
    flags.DEFINE_bool("print_peak_memory", False, "run once; the last line is the memory in GiB")


def main():
    """Times what the flags ask for."""
    if FLAGS.output_json:
        check_writable("--output_json", FLAGS.output_json)
    challenge, size, settings = MODELS[FLAGS.model]
    names = FLAGS.implementations or [OURS, PLAIN, *peers.importable()]
    known = [OURS, PLAIN, *peers.PEERS]
    for name in names:
        if name not in known:
            raise InputError(
                f"--implementations: expected some of {', '.join(known)}, got {name!r}"
            )
        if name in peers.PEERS and name not in peers.importable():
            raise InputError(f"--implementations: {name} needs {' and '.join(peers.PEERS[name])}")
    sizes = FLAGS.batch_size or (["50", "200", "500"] if challenge is MNIST else ["100"])
    if not all(text.isdigit() and int(text) for text in sizes):
        raise InputError(f"--batch_size: expected whole numbers, got {','.join(sizes)}")
    model, test = _network(challenge, size), challenge.load("test", allow_sample=True)
    if FLAGS.print_peak_memory:
        for count in sizes:
            for attack in _attacks(
                names, challenge, size, model, test, int(count), settings
            ).values():
                attack()
        print(measure.own_peak_memory())
        return
    operations = 2 * 2 * _multiplications(model)
    result = {
        "model": FLAGS.model,
        "num_steps": settings[2],
        "megaflop_per_example_step": operations / 1e6,
        "rounds": FLAGS.rounds,
        "batches": [
            _measure(names, challenge, size, model, test, int(count), settings, operations)
            for count in sizes
        ],
    }
    if FLAGS.output_json:
        used = {package for name in names if name in peers.PEERS for package in peers.PEERS[name]}
        measure.save(FLAGS.output_json, result, sorted(used))


def _network(challenge, size):
    """The shipped network where there is one of this size, else one with initial weights."""
    shipped = challenge.directory / "models" / checkpoints.SHIPPED
    if shipped.exists():
        return checkpoints.load_model(challenge, shipped).model
    return challenge.build_model(make_config(challenge, ("size", size)))


def _attacks(names, challenge, size, model, test, count, settings):
    """Name to a function that attacks the first images of the test set."""
    epsilon, step_size, num_steps = settings
    numbers = np.arange(count) % len(test.images)
    x_nat = challenge.to_pixels(test.images[numbers])
    y = test.labels[numbers].astype(np.int64)
    x_tf, y_tf = tf.constant(x_nat), tf.constant(y, tf.int32)
    pgd = {
        "epsilon": epsilon,
        "step_size": step_size,
        "num_steps": num_steps,
        "bounds": challenge.bounds,
    }
    weights = model.get_weights()
    if challenge is MNIST:
        plain_model = plain.mnist_model(weights)
    else:
        plain_model = plain.cifar10_model(size["width"], weights)
    attacks = {}
    for name in names:
        if name == OURS:
            ours = PGD(checkpoints.fast_model(model, challenge), random_start=False, **pgd)
            attacks[name] = lambda: ours.perturb(x_tf, y_tf)
        elif name == PLAIN:
            perturb = plain.pgd(plain_model, **pgd)
            attacks[name] = lambda: perturb(x_tf, y_tf)
        else:
            attacks[name] = peers.make(name, plain_model, x_nat, y, **pgd)
    return attacks


def _measure(names, challenge, size, model, test, count, settings, operations):
    attacks = _attacks(names, challenge, size, model, test, count, settings)
    labels = test.labels[np.arange(count) % len(test.labels)]
    multiply, multiply_operations = measure.matmul_rate()
    seconds = measure.in_turn({"matmul": multiply, **attacks}, FLAGS.rounds)
    matmul = measure.rates(seconds.pop("matmul"), multiply_operations)
    print(f"batch {count}: matmul {matmul['median'] / 1e9:.0f} GFLOP/s")
    result = {"batch_size": count, "matmul_flop_per_second": matmul, "implementations": {}}
    for name, attack in attacks.items():
        rate = measure.rates(seconds[name], count * settings[2])
        x_adv = tf.constant(peers.to_images(attack()), tf.float32)
        correct = np.argmax(model(x_adv, training=False), axis=-1) == labels
        entry = {
            "example_steps_per_second": rate,
            "share": rate["median"] * operations / matmul["median"],
            "adversarial_accuracy": 100 * np.mean(correct),
        }
        if FLAGS.model == "cifar_wide":
            entry["peak_memory_gib"] = measure.peak_memory(
                __file__,
                f"--model={FLAGS.model}",
                f"--batch_size={count}",
                f"--implementations={name}",
            )
        result["implementations"][name] = entry
        memory = f", {entry['peak_memory_gib']:.1f} GiB" if "peak_memory_gib" in entry else ""
        print(
            f"  {name:20} {rate['median']:8.1f} example-steps/s "
            f"({rate['lowest']:.1f} to {rate['highest']:.1f}), {100 * entry['share']:.0f}% of "
            f"matmul{memory}, accuracy {entry['adversarial_accuracy']:.1f}%",
            flush=True,
        )
    return result


def _multiplications(model):
    """Multiplications and additions of convolutions and dense layers for one image."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            height, width = layer.output.shape[1:3] if len(layer.output.shape) == 4 else (1, 1)
            total += height * width * int(np.prod(layer.kernel.shape))
    return total


if __name__ == "__main__":
    measure.run(main, define_flags)
