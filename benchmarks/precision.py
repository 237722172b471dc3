"""Compares attacks in float32 and in bfloat16 on one network: broken examples and time.

    python benchmarks/precision.py --model=mnist --num_images=1000 --output_json=result.json

The paper's PGD, APGD on cross-entropy, and the standard suite run on every image that the network
classifies correctly, first in float32, then in bfloat16. The float32 network decides for both which
examples are broken. The JSON is written after each run, and the same command resumes there;
commands with other --attacks or --seeds may share the file.
"""

import dataclasses
import os
import pathlib
import sys
import time

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import numpy as np
from absl import flags

from benchmarks import measure
from cifar10_challenge.challenge import CIFAR10
from common import checkpoints
from common.config import make_config
from common.errors import InputError, one_line
from common.evaluation import suites
from common.evaluation.presets import make_evaluator
from common.files import check_writable
from common.provenance import provenance
from common.scripts.flags import define_path
from mnist_challenge.challenge import MNIST

MODELS = {"mnist": MNIST, "cifar_simple": CIFAR10}
ATTACKS = ("pgd", "apgd_xent", "suite")
PRECISIONS = ("float32", "bfloat16")

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    flags.DEFINE_enum("model", "mnist", list(MODELS), "challenge of the network under attack")
    define_path("model_dir", None, "as in eval.py; default: the shipped network")
    flags.DEFINE_integer("num_images", 1000, "how many test images, from the first", lower_bound=1)
    flags.DEFINE_list("attacks", list(ATTACKS), f"some of {', '.join(ATTACKS)}")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "random seeds")
    define_path("output_json", None, "file to write the result to")


def main():
    """Runs what the flags ask for."""
    if FLAGS.output_json:
        check_writable("--output_json", FLAGS.output_json)
    if not FLAGS.attacks or not set(FLAGS.attacks) <= set(ATTACKS):
        raise InputError(f"--attacks: expected some of {', '.join(ATTACKS)}, got {FLAGS.attacks}")
    measure.check_seeds(FLAGS.seeds)
    challenge = MODELS[FLAGS.model]
    loaded = checkpoints.load_model(challenge, FLAGS.model_dir or challenge.shipped)
    test = challenge.load("test", allow_sample=True).head(FLAGS.num_images)
    print(one_line(f"{test.source}; {loaded.path}"))
    what = {
        "model": loaded.name,
        "model_digest": loaded.digest(),
        "data": test.name,
        "num_examples": len(test.labels),
        "batch_size": make_config(challenge).eval_batch_size,
    }

    def compared(attack, seed):
        return compare(challenge, loaded, test, attack, seed), lambda: None

    measure.seed_by_seed(FLAGS.output_json, what, FLAGS.attacks, FLAGS.seeds, compared, _line)


def compare(challenge, loaded, test, attack, seed):
    """Runs one attack in both arithmetics.

    Args:
        challenge: a `common.challenge.Challenge`.
        loaded: the `LoadedModel` under attack.
        test: the `common.data.Split` of the images.
        attack: one of `ATTACKS`.
        seed: the random seed.

    Returns:
        A dict for JSON: by arithmetic the accuracy in percent, seconds of the clock and of the
        processor; the examples that only one of the two broke; the processor.
    """
    config = make_config(challenge, ("command line", {"random_seed": seed}))
    withstood, entry = {}, {}
    for precision in PRECISIONS:
        trials = trials_of(attack, challenge, loaded, precision, config)
        evaluator = make_evaluator(
            challenge, config, trials, loaded, spare_misclassified=True, show_progress=False
        )
        begin, cpu_begin = time.perf_counter(), time.process_time()
        result = evaluator.run(test.images, test.labels)
        entry[precision] = {
            "accuracy": 100 * float(np.mean(result.adversarial_correct)),
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": time.process_time() - cpu_begin,
            "attacks": [dataclasses.asdict(trial) for trial in result.trials],
        }
        withstood[precision] = result.adversarial_correct
    only = {
        f"only_{one}_breaks": np.flatnonzero(~withstood[one] & withstood[other]).tolist()
        for one, other in (PRECISIONS, PRECISIONS[::-1])
    }
    processor = provenance()["hardware"]["processor"]
    return {**entry, **only, "processor": processor, "threads": len(os.sched_getaffinity(0))}


def trials_of(attack, challenge, loaded, precision, config):
    """The list of `Trial` of one of `ATTACKS` in an arithmetic."""
    config = dataclasses.replace(config, precision=precision)
    if attack == "suite":
        return suites.suite_trials("standard", loaded.logits, config, challenge)
    if attack == "pgd":
        return [suites.preset_trial(challenge.validation_preset, loaded.logits, config, challenge)]
    return [suites.named_trial(attack, loaded.logits, config, challenge)]


def _line(entry):
    exact, rounded = (entry[precision] for precision in PRECISIONS)
    ratio = exact["cpu_seconds"] / rounded["cpu_seconds"]
    return (
        f"float32 {exact['accuracy']:.2f}%, bfloat16 {rounded['accuracy']:.2f}%; broken by float32 "
        f"alone {len(entry['only_float32_breaks'])}, by bfloat16 alone "
        f"{len(entry['only_bfloat16_breaks'])}; {exact['seconds']:.0f} s and "
        f"{rounded['seconds']:.0f} s, {ratio:.2f} times as fast in CPU time"
    )


if __name__ == "__main__":
    measure.run(main, define_flags)
