"""Runs the standard suite's attacks and those of the public AutoAttack package on one network.

    python benchmarks/autoattack.py --model=mnist --num_images=1000 --output_json=result.json

Attack by attack, ours runs first and then theirs, each on every image that the network classifies
correctly: ours as in `eval.py --suite=standard`, with tracing and compiling, theirs by its own
`run_standard_evaluation`. The plain Keras network decides for both which examples are broken; an
image outside the ball or the pixel range does not count. The JSON is written after each attack, and
the same command resumes there; commands with other --attacks may share the file.
"""

import importlib.metadata
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
import tensorflow as tf
from absl import flags

from benchmarks import measure, peers
from cifar10_challenge.challenge import CIFAR10
from common import attack as attacks
from common import checkpoints
from common.attack.precision import PRECISIONS
from common.config import make_config
from common.errors import InputError, one_line
from common.evaluation.evaluator import Evaluator
from common.evaluation.results import Trial
from common.files import check_writable
from common.provenance import provenance
from common.scripts.flags import define_path
from mnist_challenge.challenge import MNIST

MODELS = {"mnist": MNIST, "cifar_simple": CIFAR10}
THEIR_NAMES = {
    "apgd_xent": "apgd-ce",
    "apgd_targeted": "apgd-t",
    "fab_targeted": "fab-t",
    "square": "square",
}
PACKAGES = ("pyautoattack", "torch")
SUITE = "suite"  # all four in turn, each on the examples that the earlier ones left
THEIR_BATCH_SIZE = 250  # the package's default
TOLERANCE = 1e-6  # part of the pixel range, for the rounding of x + delta and of the scaling

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    flags.DEFINE_enum("model", "mnist", list(MODELS), "challenge of the network under attack")
    define_path("model_dir", None, "as in eval.py; default: the shipped network")
    flags.DEFINE_integer("num_images", 1000, "how many test images, from the first", lower_bound=1)
    flags.DEFINE_integer(
        "batch_size", None, "our batch size; default: eval_batch_size of config.json", lower_bound=1
    )
    flags.DEFINE_integer(
        "random_seed", None, "seed for both; default: random_seed of config.json", lower_bound=0
    )
    flags.DEFINE_enum("precision", "auto", PRECISIONS, "arithmetic of ours, as in eval.py")
    flags.DEFINE_list(
        "attacks",
        list(THEIR_NAMES),
        f"some of {', '.join(THEIR_NAMES)} and {SUITE}: all four in turn",
    )
    define_path("output_json", None, "file to write the result to")


def main():
    """Runs what the flags ask for."""
    if FLAGS.output_json:
        check_writable("--output_json", FLAGS.output_json)
    for name in FLAGS.attacks:
        if name not in (*THEIR_NAMES, SUITE):
            known = ", ".join((*THEIR_NAMES, SUITE))
            raise InputError(f"--attacks: expected some of {known}, got {name!r}")
    if not FLAGS.attacks:
        raise InputError("--attacks: expected one or more, got none")
    peers.require(*PACKAGES)
    challenge = MODELS[FLAGS.model]
    given = {
        "eval_batch_size": FLAGS.batch_size,
        "random_seed": FLAGS.random_seed,
        "precision": FLAGS.precision,
    }
    given = {name: value for name, value in given.items() if value is not None}
    config = make_config(challenge, ("command line", given))
    loaded = checkpoints.load_model(challenge, FLAGS.model_dir or challenge.shipped)
    if loaded.model is None:
        raise InputError(f"--model_dir: expected the challenge's own network, got {loaded.path}")
    test = challenge.load("test", allow_sample=True).head(FLAGS.num_images)
    print(one_line(f"{test.source}; {loaded.path}"))
    both = Comparison(challenge, config, loaded, test)
    what = {
        "model": loaded.name,
        "model_digest": loaded.digest(),
        "data": test.name,
        "epsilon": config.epsilon,
        "precision": both.precision,
        "seed": config.random_seed,
        "batch_size": {"ours": config.eval_batch_size, "theirs": THEIR_BATCH_SIZE},
        "num_examples": len(test.labels),
        "num_correct": int(both.natural_correct.sum()),
        "settings": both.settings(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }

    def earlier():
        return measure.earlier_entries(FLAGS.output_json, what, worst_case)

    entries = earlier()
    for name in FLAGS.attacks:
        if name not in entries:
            entry = both.run(name)
            entries = {**entries, **earlier(), name: entry}
            entries = {name: entries[name] for name in (*THEIR_NAMES, SUITE) if name in entries}
            if FLAGS.output_json:
                result = {**what, "attacks": entries, "worst_case": worst_case(entries)}
                measure.save(FLAGS.output_json, result, PACKAGES)
        print(f"{name:14} {_line(entries[name])}", flush=True)
    print(f"{'worst case':14} {_line(worst_case(entries))}")


def worst_case(entries):
    """`agreement` over all attacks that ran alone, or else of the suite, and their total times."""
    alone = {name: entry for name, entry in entries.items() if name != SUITE} or entries
    withstood = {
        who: np.all([_from_bits(entry["withstood"][who]) for entry in alone.values()], axis=0)
        for who in ("ours", "theirs")
    }
    times = {
        kind: {who: sum(entry[kind][who] for entry in alone.values()) for who in withstood}
        for kind in ("seconds", "cpu_seconds")
    }
    return {"attacks": list(alone), **agreement(**withstood), **times, **_ratios(**times)}


def agreement(ours, theirs):
    """Compares two attacks on the same examples.

    Args:
        ours, theirs: bool (n,), whether the network is right under the attack.

    Returns:
        Dict: each attack's accuracy in percent, the examples that withstood it as a string of 0 and
        1, and the numbers of the examples that only one of them broke.
    """
    return {
        "accuracy": {"ours": 100 * float(np.mean(ours)), "theirs": 100 * float(np.mean(theirs))},
        "withstood": {"ours": _to_bits(ours), "theirs": _to_bits(theirs)},
        "only_ours_breaks": np.flatnonzero(~ours & theirs).tolist(),
        "only_theirs_breaks": np.flatnonzero(ours & ~theirs).tolist(),
    }


def is_outside(x_adv, x_nat, epsilon, bounds):
    """Whether each image is not within `epsilon` (L-infinity) or not within `bounds`, bool (n,).

    Args:
        x_adv, x_nat: images (n, height, width, channels).
        epsilon: the radius, in the units of `bounds`.
        bounds: (lowest, highest) pixel value.
    """
    tolerance = TOLERANCE * (bounds[1] - bounds[0])
    distance = np.abs(x_adv.astype(np.float64) - x_nat)
    # NaN counts as outside in this form.
    inside = (distance <= epsilon + tolerance) & (x_adv >= bounds[0]) & (x_adv <= bounds[1])
    return ~inside.all(axis=(1, 2, 3))


class Comparison:
    """Both suites on the same network and images.

    Args:
        challenge: a `common.challenge.Challenge`.
        config: its config.
        loaded: the `LoadedModel` under attack, the challenge's own network.
        test: the `common.data.Split` of the images.

    Attributes:
        precision: the arithmetic of our attacks, "float32" or "bfloat16".
        natural_correct: bool (n,), whether the network classifies the image itself correctly.
    """

    def __init__(self, challenge, config, loaded, test):
        self._challenge, self._config, self._loaded, self._test = challenge, config, loaded, test
        self._x, self._y = challenge.to_pixels(test.images), test.labels.astype(np.int64)
        suite = attacks.standard_suite(
            loaded.logits,
            config.epsilon,
            challenge.bounds,
            jit_compile=config.jit_compile,
            precision=config.precision,
        )
        self._trials = {name: Trial(attack, name=name) for name, attack in suite}
        (self.precision,) = {attack.precision.name for _, attack in suite}
        # The package takes pixels in [0, 1].
        self._width = challenge.bounds[1] - challenge.bounds[0]
        self._torch_model = peers.scaled_torch_network(loaded.model, self._width)
        keras_logits = tf.function(lambda x: loaded.model(x, training=False), reduce_retracing=True)
        prepare = loaded.logits.prepare
        fast_logits = tf.function(lambda x: prepare("float32")(x), reduce_retracing=True)
        self._logits = {
            "keras": lambda x: keras_logits(tf.constant(x)).numpy(),
            "fast": lambda x: fast_logits(tf.constant(x)).numpy(),
            "torch": lambda x: self._torch_model(self._to_torch(x)).numpy(),
        }
        self.natural_correct = self._predictions("keras", self._x) == self._y

    def settings(self):
        """The settings of our attacks, by name."""
        return {name: trial.settings() for name, trial in self._trials.items()}

    def run(self, name):
        """Runs one attack of both packages, ours first.

        Args:
            name: one of `THEIR_NAMES`, or `SUITE`.

        Returns:
            A dict for JSON: `agreement`, the times, the number of examples that each claims to have
            found, what the networks make of these, and the processor.
        """
        names = list(THEIR_NAMES) if name == SUITE else [name]
        seconds, cpu_seconds, found, withstood = {}, {}, {}, {}
        for who, attack in (("ours", self._ours), ("theirs", self._theirs)):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            x_adv, is_found = attack(names)
            seconds[who] = time.perf_counter() - begin
            cpu_seconds[who] = time.process_time() - cpu_begin
            found[who], withstood[who] = self.verified(x_adv, is_found)
        return {
            **agreement(**withstood),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            **_ratios(seconds, cpu_seconds),
            "found": found,
            "processor": provenance()["hardware"]["processor"],
            "threads": len(os.sched_getaffinity(0)),
        }

    def _ours(self, names):
        """The images, and bool (n,), whether the attack calls them adversarial examples."""
        evaluator = Evaluator(
            self._loaded.logits,
            [self._trials[name] for name in names],
            to_pixels=self._challenge.to_pixels,
            batch_size=self._config.eval_batch_size,
            seed=self._config.random_seed,
            spare_misclassified=True,
            show_progress=False,
        )
        result = evaluator.run(self._test.images, self._test.labels)
        return result.x_adv, result.natural_correct & ~result.adversarial_correct

    def _theirs(self, names):
        import pyautoattack
        import torch

        suite = pyautoattack.AutoAttack(
            self._torch_model, eps=self._config.epsilon / self._width, seed=self._config.random_seed
        )
        suite.attacks_to_run = [THEIR_NAMES[name] for name in names]
        given = np.flatnonzero(self.natural_correct)
        x, y = self._to_torch(self._x[given]), torch.tensor(self._y[given])
        found, classes = suite.run_standard_evaluation(x, y, batch_size=THEIR_BATCH_SIZE)
        x_adv, is_found = self._x.copy(), np.zeros(len(self._y), bool)
        x_adv[given] = peers.to_images(found * self._width)
        is_found[given] = (classes != y).numpy()
        return x_adv, is_found

    def verified(self, x_adv, is_found):
        """A dict of counts, and bool (n,), whether the network withstood the attack."""
        numbers = np.flatnonzero(is_found)
        x, y = x_adv[numbers], self._y[numbers]
        outside = is_outside(x, self._x[numbers], self._config.epsilon, self._challenge.bounds)
        wrong = {name: self._predictions(name, x) != y for name in self._logits}
        withstood = self.natural_correct.copy()
        withstood[numbers] &= outside | ~wrong["keras"]
        verdicts = np.stack(list(wrong.values()))
        counts = {
            "num_found": len(numbers),
            "num_outside": int(outside.sum()),
            "num_misclassified": {name: int(verdict.sum()) for name, verdict in wrong.items()},
            "num_disputed": int((verdicts.any(axis=0) & ~verdicts.all(axis=0)).sum()),
        }
        return counts, withstood

    def _predictions(self, name, x):
        """The int64 classes (n,) that one formulation of the network predicts."""
        size = self._config.eval_batch_size
        parts = [self._logits[name](x[i : i + size]) for i in range(0, len(x), size)]
        return np.concatenate([np.zeros((0, 10)), *parts]).argmax(axis=1)

    def _to_torch(self, x):
        import torch

        return torch.tensor(x.transpose(0, 3, 1, 2).copy()) / self._width


def _ratios(seconds, cpu_seconds):
    return {
        "ratio": seconds["theirs"] / seconds["ours"],
        "cpu_ratio": cpu_seconds["theirs"] / cpu_seconds["ours"],
    }


def _to_bits(values):
    return "".join("01"[int(value)] for value in values)


def _from_bits(text):
    return np.array([digit == "1" for digit in text])


def _line(entry):
    accuracy, seconds = entry["accuracy"], entry["seconds"]
    text = (
        f"accuracy {accuracy['ours']:.2f}% (theirs {accuracy['theirs']:.2f}%), broken by ours only "
        f"{len(entry['only_ours_breaks'])}, by theirs only {len(entry['only_theirs_breaks'])}"
    )
    text += (
        f"; {seconds['ours']:.1f} s (theirs {seconds['theirs']:.1f} s), "
        f"{entry['ratio']:.2f} times as fast, in CPU time {entry['cpu_ratio']:.2f}"
    )
    for name in ("num_outside", "num_disputed") if "found" in entry else ():
        count = sum(counts[name] for counts in entry["found"].values())
        text += f", {name.removeprefix('num_')} {count}"
    return text


if __name__ == "__main__":
    measure.run(main, define_flags)
