"""Runs suites of attacks on one network, seed by seed, for accuracy and time.

    python benchmarks/suites.py --model=mnist --num_images=1000 --output_json=result.json

Each suite runs as `eval.py --suite=NAME` does, on every image that the network classifies
correctly; "pgd" is the paper's attack alone, "apgd_xent" APGD on cross-entropy. The float32 network
decides which examples are broken, whatever arithmetic --precisions names. The JSON is written after
each run, and the same command resumes there, also within a run; commands with other --suites,
--precisions or --seeds may share it.
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
import itertools

from absl import flags

from benchmarks import measure
from cifar10_challenge.challenge import CIFAR10
from common import checkpoints
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
SUITES = ("pgd", "apgd_xent", *suites.ANY_MODEL)
PRECISIONS = ("float32", "bfloat16")

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    flags.DEFINE_enum("model", "mnist", list(MODELS), "challenge of the network under attack")
    define_path("model_dir", None, "as in eval.py; default: the shipped network")
    flags.DEFINE_integer("num_images", 1000, "how many test images, from the first", lower_bound=1)
    flags.DEFINE_list("suites", ["fast", "standard"], f"some of {', '.join(SUITES)}")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "random seeds")
    flags.DEFINE_list("precisions", ["float32"], f"one or both of {', '.join(PRECISIONS)}")
    define_path("output_json", None, "file to write the result to")


def main():
    """Runs what the flags ask for."""
    if not FLAGS.output_json:
        raise InputError("--output_json: expected a file to write the result to, got none")
    check_writable("--output_json", FLAGS.output_json)
    for flag, known in (("suites", SUITES), ("precisions", PRECISIONS)):
        given = FLAGS[flag].value
        if not given or not set(given) <= set(known):
            raise InputError(f"--{flag}: expected some of {', '.join(known)}, got {given}")
    if not all(text.isdigit() and int(text) < 2**31 for text in FLAGS.seeds):
        raise InputError(f"--seeds: expected whole numbers below 2**31, got {FLAGS.seeds}")
    challenge = MODELS[FLAGS.model]
    loaded = checkpoints.load_model(challenge, FLAGS.model_dir or challenge.shipped)
    test = challenge.load("test", allow_sample=True).head(FLAGS.num_images)
    print(one_line(f"{test.source}; {loaded.path}"))
    config = make_config(challenge)
    what = {
        "model": loaded.name,
        "model_digest": loaded.digest(),
        "data": test.name,
        "num_examples": len(test.labels),
        "epsilon": config.epsilon,
        "batch_size": config.eval_batch_size,
    }
    path = FLAGS.output_json
    entries = measure.earlier_entries(path, what)
    for seed, suite, precision in itertools.product(FLAGS.seeds, FLAGS.suites, FLAGS.precisions):
        name = f"{suite}, {precision}, seed {seed}"
        if name not in entries:
            own = dataclasses.replace(config, random_seed=int(seed), precision=precision)
            entry, state = evaluate(challenge, own, loaded, test, suite)
            # Another command may have written further entries meanwhile.
            entries = {**entries, **measure.earlier_entries(path, what), name: entry}
            measure.save(path, {**what, "attacks": entries})
            state.remove()
        print(f"{name}: {_line(entries[name])}", flush=True)


def evaluate(challenge, config, loaded, test, suite):
    """Runs one suite with the config's seed and precision.

    Args:
        challenge: a `common.challenge.Challenge`.
        config: its config.
        loaded: the `LoadedModel` under attack.
        test: the `common.data.Split` of the images.
        suite: one of `SUITES`.

    Returns:
        A dict for JSON: the accuracy in percent; the examples that withstood as a string of 0 and
        1; seconds of the clock and of the processor; each attack's numbers and settings; the
        processor and the number of threads. Then the evaluation's `State`.

    Raises:
        KeyboardInterrupt: the evaluation was ended; the same command resumes there.
    """
    trials = trials_of(suite, challenge, loaded, config)
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


def trials_of(suite, challenge, loaded, config):
    """The list of `Trial` of one of `SUITES`."""
    if suite == "pgd":
        return [suites.preset_trial(challenge.validation_preset, loaded.logits, config, challenge)]
    if suite == "apgd_xent":
        return [suites.named_trial(suite, loaded.logits, config, challenge)]
    return suites.suite_trials(suite, loaded.logits, config, challenge)


def _line(entry):
    return (
        f"accuracy {entry['accuracy']:.2f}%, {entry['seconds']:.0f} s, of the processor "
        f"{entry['cpu_seconds']:.0f} s"
    )


if __name__ == "__main__":
    measure.run(main, define_flags)
