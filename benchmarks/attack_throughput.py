"""Times PGD: ours, a plain loop with a plain Keras network, and the installed peers.

    python benchmarks/attack_throughput.py --model=mnist --batch_size=50,200,500

All run in one process and in turn, round by round. The unit is the example-step: one forward and
one input-gradient pass of one image and one update of its pixels. `share` is its rate of operations
over that of the machine's matrix product in the same rounds and arithmetic, with two passes of two
operations for each multiplication and addition of the network.
"""

import functools
import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measure, peers, plain
from benchmarks.measure import OURS, OURS_BFLOAT16, OURS_KERAS, OURS_KERAS_BFLOAT16, PLAIN
from cifar10_challenge.challenge import CIFAR10
from common import checkpoints
from common.attack import PGD
from common.attack.precision import bfloat16_unit
from common.config import make_config
from common.errors import InputError
from common.files import check_writable
from common.scripts.flags import define_path
from mnist_challenge.challenge import MNIST

# Challenge, size, settings of PGD.
MODELS = {
    "mnist": (MNIST, {"scale": 16}, {"epsilon": 0.3, "step_size": 0.01, "num_steps": 40}),
    "cifar_simple": (
        CIFAR10,
        {"width": 1},
        {"epsilon": 8.0, "step_size": 2.0, "num_steps": 10},
    ),
    "cifar_wide": (CIFAR10, {"width": 10}, {"epsilon": 8.0, "step_size": 2.0, "num_steps": 1}),
}
OWN = (OURS, OURS_BFLOAT16, OURS_KERAS, OURS_KERAS_BFLOAT16, PLAIN)
COMPARED = "CleverHans tf2"  # the others' speeds are divided by its speed, round by round

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    flags.DEFINE_enum("model", "mnist", list(MODELS), "network under attack")
    define_path(
        "model_dir", None, "as in eval.py; default: the shipped network if it is of that size"
    )
    flags.DEFINE_list("batch_size", None, "images at a time; default 50,200,500 or 100 (CIFAR-10)")
    flags.DEFINE_integer("rounds", 7, "how often each is timed", lower_bound=1)
    flags.DEFINE_list("implementations", None, "which to time; default: all that are installed")
    flags.DEFINE_integer(
        "matmul_size", 4096, "rows of the matrix product's matrices", lower_bound=1
    )
    define_path("output_json", None, "file to write the result to")
    flags.DEFINE_bool("print_peak_memory", False, "run once; the last line is the memory in GiB")


def main():
    """Times what the flags ask for."""
    if FLAGS.output_json:
        check_writable("--output_json", FLAGS.output_json)
    challenge, size, settings = MODELS[FLAGS.model]
    names, sizes = _implementations(), _batch_sizes(challenge)
    model = _network(challenge, size, FLAGS.model_dir)
    test = challenge.load("test", allow_sample=True)
    make_attack = _attacks(challenge, model, settings)
    batches = []
    for count in sizes:
        numbers = np.arange(count) % len(test.images)
        x_nat, y = challenge.to_pixels(test.images[numbers]), test.labels[numbers].astype(np.int64)
        attacks = {name: make_attack(name, x_nat, y) for name in names}
        if FLAGS.print_peak_memory:
            for attack in attacks.values():
                attack()
        else:
            batches.append(_measure(attacks, model, y, settings["num_steps"]))
    if FLAGS.print_peak_memory:
        print(measure.own_peak_memory())
    elif FLAGS.output_json:
        result = {
            "model": FLAGS.model,
            "model_dir": FLAGS.model_dir,
            "num_steps": settings["num_steps"],
            "megaflop_per_example_step": _operations(model) / 1e6,
            "rounds": FLAGS.rounds,
            "batches": batches,
        }
        used = {package for name in names if name in peers.PEERS for package in peers.PEERS[name]}
        measure.save(FLAGS.output_json, result, sorted(used))


def _implementations():
    """The names of the implementations that are timed."""
    names = FLAGS.implementations
    if not names:
        names = [*OWN, *peers.importable()]
        if bfloat16_unit() is None:
            names = [name for name in names if "bfloat16" not in name]
    known = [*OWN, *peers.PEERS]
    for name in names:
        if name not in known:
            raise InputError(
                f"--implementations: expected some of {', '.join(known)}, got {name!r}"
            )
        if name in peers.PEERS and name not in peers.importable():
            raise InputError(f"--implementations: {name} needs {' and '.join(peers.PEERS[name])}")
    return names


def _batch_sizes(challenge):
    sizes = FLAGS.batch_size or (["50", "200", "500"] if challenge is MNIST else ["100"])
    if not all(text.isdigit() and int(text) for text in sizes):
        raise InputError(f"--batch_size: expected whole numbers, got {','.join(sizes)}")
    return [int(text) for text in sizes]


def _network(challenge, size, model_dir=None):
    """The given network, or the shipped one if it is of this size, or one with initial weights."""
    path = model_dir or challenge.directory / "models" / challenge.shipped
    if model_dir or path.exists():
        model = checkpoints.load_model(challenge, path).model
        if model and challenge.size_of([tuple(weight.shape) for weight in model.weights]) == size:
            return model
        if model_dir:
            raise InputError(f"--model_dir: expected the network of --model, got {model_dir}")
    return challenge.build_model(make_config(challenge, ("size", size)))


def _attacks(challenge, model, settings):
    """A function from a name, NumPy images and labels to a function that attacks them."""
    settings = {**settings, "bounds": challenge.bounds}
    plain_model = plain.build_model(challenge, model.get_weights())
    fast = checkpoints.fast_model(model, challenge)

    def ours(attacked, precision):
        attack = PGD(attacked, random_start=False, precision=precision, **settings)
        return attack.perturb

    perturbs = {
        OURS: ours(fast, "float32"),
        OURS_BFLOAT16: ours(fast, "bfloat16"),
        OURS_KERAS: ours(plain_model, "float32"),
        OURS_KERAS_BFLOAT16: ours(plain_model, "bfloat16"),
        PLAIN: plain.pgd(plain_model, **settings),
    }

    def make(name, x_nat, y):
        if name in perturbs:
            return functools.partial(perturbs[name], tf.constant(x_nat), tf.constant(y, tf.int32))
        return peers.make(name, plain_model, x_nat, y, **settings)

    return make


def _measure(attacks, model, y, num_steps):
    """Times the attacks on a batch in turn; returns the result as a dict."""
    count, operations = len(y), _operations(model)
    dtypes = ("float32", "bfloat16")
    matmuls = {dtype: measure.matmul(dtype, FLAGS.matmul_size) for dtype in dtypes}
    cpu = {}
    seconds = measure.in_turn({**matmuls, **attacks}, FLAGS.rounds, cpu)
    matmul = {
        dtype: measure.rates(seconds.pop(dtype), 2 * FLAGS.matmul_size**3) for dtype in dtypes
    }
    described = [f"{rate['median'] / 1e9:.0f} in {dtype}" for dtype, rate in matmul.items()]
    print(f"batch {count}: matmul, GFLOP/s: {', '.join(described)}")
    result = {
        "batch_size": count,
        "matmul_flop_per_second": matmul["float32"],
        "bfloat16_matmul_flop_per_second": matmul["bfloat16"],
        "implementations": {},
    }
    for name, attack in attacks.items():
        rate = measure.rates(seconds[name], count * num_steps)
        x_adv = tf.constant(peers.to_images(attack()), tf.float32)
        correct = np.argmax(model(x_adv, training=False), axis=-1) == y
        dtype = "bfloat16" if "bfloat16" in name else "float32"
        entry = {
            "example_steps_per_second": rate,
            "share": rate["median"] * operations / matmul[dtype]["median"],
            "adversarial_accuracy": 100 * np.mean(correct),
        }
        if COMPARED in seconds:
            entry["times_as_fast"] = measure.rates(seconds[name], np.array(seconds[COMPARED]))
            entry["times_as_fast_in_cpu_time"] = measure.rates(cpu[name], np.array(cpu[COMPARED]))
        if FLAGS.model == "cifar_wide":
            entry["peak_memory_gib"] = measure.peak_memory(
                __file__,
                f"--model={FLAGS.model}",
                f"--batch_size={count}",
                f"--implementations={name}",
            )
        result["implementations"][name] = entry
        times = [entry.get(key) for key in ("times_as_fast", "times_as_fast_in_cpu_time")]
        times = [f"{ratio['median']:.2f}" for ratio in times if ratio]
        times = f", {' (in CPU time '.join(times)}) times {COMPARED}" if times else ""
        memory = f", {entry['peak_memory_gib']:.1f} GiB" if "peak_memory_gib" in entry else ""
        print(
            f"  {name:31} {rate['median']:8.1f} example-steps/s "
            f"({rate['lowest']:.1f} to {rate['highest']:.1f}), {100 * entry['share']:.0f}% of "
            f"matmul{times}{memory}, accuracy {entry['adversarial_accuracy']:.1f}%",
            flush=True,
        )
    return result


def _operations(model):
    """Operations of an example-step: 2 passes x 2 for each multiplication and addition."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            height, width = layer.output.shape[1:3] if len(layer.output.shape) == 4 else (1, 1)
            total += height * width * int(np.prod(layer.kernel.shape))
    return 2 * 2 * total


if __name__ == "__main__":
    measure.run(main, define_flags)
