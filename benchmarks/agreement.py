"""Attacks one network in several ways: by `evaluate`, eval.py and the peers.

    python benchmarks/agreement.py --model_dir=adv_trained --output_json=result.json

PGD has no random start, so that no random number differs. `common.robust.evaluate` attacks the
keras.Model, in float32 and in bfloat16; eval.py attacks the path; CleverHans, Foolbox and ART, if
they are installed, attack its SavedModel. In all cases the SavedModel decides in float32 which
examples are broken.
"""

import pathlib
import subprocess
import sys
import tempfile

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measure, peers
from cifar10_challenge.challenge import CIFAR10
from common import checkpoints
from common.attack import PGD
from common.attack.gradient import as_logits
from common.errors import InputError
from common.files import check_writable
from common.robust import evaluate
from common.scripts.flags import define_path
from mnist_challenge.challenge import MNIST

CHALLENGES = {"mnist": MNIST, "cifar10": CIFAR10}
PEERS = ("CleverHans tf2", "Foolbox TensorFlow", "ART TensorFlow")

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    flags.DEFINE_enum("challenge", "mnist", list(CHALLENGES), "which images")
    define_path("model_dir", None, "as in eval.py; default: the shipped network")
    flags.DEFINE_integer("num_images", 500, "how many test images, from the first", lower_bound=1)
    flags.DEFINE_float("epsilon", 0.3, "the radius", lower_bound=0.0)
    flags.DEFINE_float("step_size", 0.01, "the length of a step", lower_bound=0.0)
    flags.DEFINE_integer("num_steps", 40, "how many steps", lower_bound=1)
    define_path("output_json", None, "file to write the result to")


def main():
    """Attacks the network in every way."""
    if FLAGS.output_json:
        check_writable("--output_json", FLAGS.output_json)
    challenge = CHALLENGES[FLAGS.challenge]
    path = FLAGS.model_dir or challenge.shipped
    test = challenge.load("test", allow_sample=True).head(FLAGS.num_images)
    x, y = challenge.to_pixels(test.images), test.labels
    settings = {name: FLAGS[name].value for name in ("epsilon", "step_size", "num_steps")}
    result = {"model": pathlib.Path(path).stem, "num_examples": len(x), "data": test.name}
    with tempfile.TemporaryDirectory() as folder:
        model = _keras_model(challenge, path)
        checkpoints.export(model, pathlib.Path(folder) / "exported")
        serve = tf.saved_model.load(str(pathlib.Path(folder) / "exported"))
        logits = _logits_of(serve)
        natural = np.argmax(logits(x), axis=1) == y
        found = {}
        for precision in ("float32", "bfloat16"):
            name = f"evaluate in {precision}"
            found[name] = _by_evaluate(model, x, y, challenge.bounds, settings, precision)
        found["eval.py"] = _by_script(challenge, path, folder, settings)
    used = [name for name in PEERS if name in peers.importable()]
    for name in used:
        attack = peers.make(
            name, logits, x, y.astype(np.int64), **settings, bounds=challenge.bounds
        )
        found[name] = peers.to_images(attack())
    result |= {**settings, "natural_accuracy": 100 * np.mean(natural), "doors": {}}
    print(f"{result['model']}, {len(x)} images, natural {result['natural_accuracy']:.2f}%")
    ours = _withstands(logits, found["evaluate in float32"], y) & natural
    for name, x_adv in found.items():
        distance = np.abs(x_adv - x).max()
        if distance > FLAGS.epsilon * (1 + 1e-4):
            raise InputError(f"{name}: expected images within epsilon, got {distance:g}")
        stands = _withstands(logits, x_adv, y) & natural
        entry = {
            "accuracy": 100 * np.mean(stands),
            "num_other_verdicts": int((stands != ours).sum()),
        }
        result["doors"][name] = entry
        print(f"  {name:20} {entry['accuracy']:.2f}%, {entry['num_other_verdicts']} other verdicts")
    if FLAGS.output_json:
        measure.save(FLAGS.output_json, result, sorted({p for n in used for p in peers.PEERS[n]}))


def _keras_model(challenge, path):
    """The network at a path, as a keras.Model."""
    if str(path).endswith(".keras"):
        return keras.models.load_model(path, compile=False)
    return checkpoints.load_keras_model(challenge, path)


def _logits_of(served):
    """A loaded SavedModel as a function; the peers call it with further arguments."""
    function = served.signatures["serving_default"]
    (given,) = function.structured_input_signature[1]
    (returned,) = function.structured_outputs
    return lambda x, **kwargs: as_logits(function(**{given: tf.cast(x, tf.float32)})[returned])


def _withstands(logits, x, y):
    return np.argmax(logits(x), axis=1) == y


def _by_evaluate(model, x, y, bounds, settings, precision):
    """The images that `common.robust.evaluate` finds."""

    def attack(logits):
        return PGD(logits, random_start=False, bounds=bounds, precision=precision, **settings)

    options = {"epsilon": settings["epsilon"], "bounds": bounds, "show_progress": False}
    return evaluate(model, x, y, suite=[attack], **options).result.x_adv


def _by_script(challenge, path, folder, settings):
    """The images that eval.py finds."""
    target = pathlib.Path(folder) / "attack.npy"
    command = [
        sys.executable,
        challenge.directory / "eval.py",
        f"--model_dir={path}",
        f"--num_eval_examples={FLAGS.num_images}",
        "--norandom_start",
        "--precision=float32",
        f"--store_adv_path={target}",
        *(f"--{name}={value}" for name, value in settings.items()),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return np.load(target).reshape(-1, *challenge.image_shape)


if __name__ == "__main__":
    measure.run(main, define_flags)
