"""Runs suites of attacks on one network, seed by seed, for accuracy and time.

    python benchmarks/suites.py --model=mnist --num_images=1000 --output_json=result.json

Each suite runs as `eval.py --suite=NAME` does, on every image that the network classifies
correctly. The JSON is written after each run, and the same command resumes there, also within a
run; commands with other --suites or --seeds may share it.
"""

import os
import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import dataclasses

from absl import flags

from benchmarks import measure
from cifar10_challenge.challenge import CIFAR10
from common import checkpoints
from common.attack.precision import PRECISIONS
from common.config import make_config
from common.errors import InputError, one_line
from common.evaluation import suites
from common.evaluation.presets import make_evaluator, resumable
from common.evaluation.report import line
from common.evaluation.state import State
from common.evaluation.subject import key_of
from common.files import check_writable
from common.provenance import provenance
from common.scripts.flags import define_path
from mnist_challenge.challenge import MNIST

MODELS = {"mnist": MNIST, "cifar_simple": CIFAR10}

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    flags.DEFINE_enum("model", "mnist", list(MODELS), "challenge of the network under attack")
    define_path("model_dir", None, "as in eval.py; default: the shipped network")
    flags.DEFINE_integer("num_images", 1000, "how many test images, from the first", lower_bound=1)
    flags.DEFINE_list("suites", ["fast", "standard"], f"some of {', '.join(suites.ANY_MODEL)}")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "random seeds")
    flags.DEFINE_enum("precision", "auto", PRECISIONS, "arithmetic, as in eval.py")
    define_path("output_json", None, "file to write the result to")


def main():
    """Runs what the flags ask for."""
    if not FLAGS.output_json:
        raise InputError("--output_json: expected a file to write the result to, got none")
    check_writable("--output_json", FLAGS.output_json)
    if not FLAGS.suites or not set(FLAGS.suites) <= set(suites.ANY_MODEL):
        known = ", ".join(suites.ANY_MODEL)
        raise InputError(f"--suites: expected some of {known}, got {FLAGS.suites}")
    measure.check_seeds(FLAGS.seeds)
    challenge = MODELS[FLAGS.model]
    loaded = checkpoints.load_model(challenge, FLAGS.model_dir or challenge.shipped)
    test = challenge.load("test", allow_sample=True).head(FLAGS.num_images)
    print(one_line(f"{test.source}; {loaded.path}"))
    config = make_config(challenge, ("command line", {"precision": FLAGS.precision}))
    what = {
        "model": loaded.name,
        "model_digest": loaded.digest(),
        "data": test.name,
        "num_examples": len(test.labels),
        "epsilon": config.epsilon,
        "batch_size": config.eval_batch_size,
        "precision": FLAGS.precision,
    }

    def evaluated(suite, seed):
        own = dataclasses.replace(config, random_seed=seed)
        entry, state = evaluate(challenge, own, loaded, test, suite)
        return entry, state.remove

    measure.seed_by_seed(FLAGS.output_json, what, FLAGS.suites, FLAGS.seeds, evaluated, _line)


def evaluate(challenge, config, loaded, test, suite):
    """Runs one suite with the config's seed and precision.

    Args:
        challenge: a `common.challenge.Challenge`.
        config: its config.
        loaded: the `LoadedModel` under attack.
        test: the `common.data.Split` of the images.
        suite: one of `suites.ANY_MODEL`.

    Returns:
        A dict for JSON: the accuracy in percent; the examples that withstood as a string of 0 and
        1; seconds of the clock and of the processor; each attack's numbers and settings; the
        processor and the number of threads. Then the evaluation's `State`.

    Raises:
        KeyboardInterrupt: the evaluation was ended; the same command resumes there.
    """
    trials = suites.suite_trials(suite, loaded.logits, config, challenge)
    evaluator = make_evaluator(challenge, config, trials, loaded, spare_misclassified=True)
    key = key_of(config, loaded, test, trials, each_alone=False)
    state = State.in_directory(pathlib.Path(FLAGS.output_json).parent, key)
    with resumable(state, suite):
        result = evaluator.run(
            test.images, test.labels, state, lambda done: print(line(done), flush=True)
        )
    return {
        "accuracy": result.summary()["adversarial_accuracy"],
        "withstood": "".join("01"[int(value)] for value in result.adversarial_correct),
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "num_left_alone": result.num_left_alone,
        "precision": trials[0].attack.precision.name,
        "attacks": [
            {**dataclasses.asdict(done), "attack": trial.settings()}
            for trial, done in zip(trials, result.trials, strict=True)
        ],
        "processor": provenance()["hardware"]["processor"],
        "threads": len(os.sched_getaffinity(0)),
    }, state


def _line(entry):
    return (
        f"accuracy {entry['accuracy']:.2f}%, {entry['seconds']:.0f} s, of the processor "
        f"{entry['cpu_seconds']:.0f} s"
    )


if __name__ == "__main__":
    measure.run(main, define_flags)
