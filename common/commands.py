"""What eval.py, pgd_attack.py and run_attack.py do, in both challenges."""

import contextlib
import dataclasses
import io
import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import flags

from common import checkpoints, data, submission
from common.attack import make_attack
from common.config import read_json
from common.errors import InputError
from common.evaluation import Evaluator
from common.original_checkpoints import is_original
from common.provenance import provenance

POLL_SECONDS = 10


def define_attack_flags(challenge, flag_values):
    """Declares --preset and --attack."""
    flags.DEFINE_string(
        "preset", None, "settings of a published row: " + ", ".join(challenge.presets), flag_values
    )
    flags.DEFINE_string(
        "attack",
        "pgd",
        "pgd, or fgsm: one step of size epsilon from the image itself",
        flag_values,
    )


def define_eval_flags(challenge, flag_values):
    """Declares the flags of eval.py beside the config's."""
    define_attack_flags(challenge, flag_values)
    flags.DEFINE_string("output_json", None, "file to write the result to", flag_values)
    flags.DEFINE_bool("watch", False, "go on with each new checkpoint of a training", flag_values)


def evaluate(challenge, config, flag_values):
    """eval.py: prints natural and adversarial accuracy and mean loss over every image.

    Raises:
        InputError: no model, no data, or an attack that is out of range.
    """
    if flag_values.output_json:
        check_writable("--output_json", flag_values.output_json)
    if flag_values.watch:
        _watch(challenge, config, flag_values)
        return
    loaded = checkpoints.load_model(challenge, model_path(config, challenge))
    images = load_test_images(config, challenge)
    evaluator = make_evaluator(challenge, config, flag_values.attack, loaded)
    _evaluate_once(config, flag_values, loaded, images, evaluator)


def pgd_attack(challenge, config, flag_values):
    """pgd_attack.py: writes adversarial examples for every test image to an attack file.

    Raises:
        InputError: as `evaluate`; nothing is written then.
    """
    target = config.store_adv_path
    check_writable("--store_adv_path", target)
    loaded = checkpoints.load_model(challenge, model_path(config, challenge))
    images = load_test_images(config, challenge)
    evaluator = make_evaluator(challenge, config, flag_values.attack, loaded)
    result = evaluator.run(images.images, images.labels)
    summary = result.summary()
    note = {
        **record_of(config, loaded, images),
        "attack": attack_settings(evaluator),
        **summary,
    }
    submission.save(target, result.x_adv, challenge, note)
    print(f"Accuracy under attack: {summary['adversarial_accuracy']:.2f}%")
    print(f"Examples stored at {target}, their description at {target}.json")


def run_attack(challenge, config, flag_values):
    """run_attack.py: checks an attack file by the challenge's rules and scores it.

    Raises:
        InputError: the file breaks a rule; nothing is written then.
    """
    check_writable("pred.npy", "pred.npy")
    scored = score(challenge, config, config.store_adv_path)
    print(f"Accuracy: {scored.accuracy:.2f}%")
    buffer = io.BytesIO()
    np.save(buffer, scored.predictions)
    checkpoints.write_atomically("pred.npy", buffer.getvalue())
    print("Output saved at pred.npy")


@dataclasses.dataclass(frozen=True)
class Scored:
    """An attack file that obeys the rules, and what the model takes its images for.

    Attributes:
        predictions: int64 classes (n,).
        accuracy: of these, in percent.
        loaded: the `LoadedModel`.
        images: the `common.data.Split` that the file was checked against.
    """

    predictions: np.ndarray
    accuracy: float
    loaded: checkpoints.LoadedModel
    images: data.Split


def score(challenge, config, path):
    """Checks an attack file by the challenge's rules and classifies its images.

    Returns:
        A `Scored`.

    Raises:
        InputError: no model, no data, or the file breaks a rule.
    """
    x_adv = submission.load(path)
    loaded = checkpoints.load_model(challenge, model_path(config, challenge))
    images = load_test_images(config, challenge)
    if images.is_sample and len(x_adv) > len(images.images):
        raise InputError(
            f"scoring {len(x_adv):,} images needs the full test set: {images.place}; "
            "give the place with --data_dir or TFDS_DATA_DIR"
        )
    submission.check(x_adv, challenge.to_pixels(images.images), challenge, config.epsilon)
    made_on = submission.load_note(path)
    if made_on.get("model_digest", loaded.digest()) != loaded.digest():
        print(
            f"note: these examples were made on another model, {made_on.get('model')}: "
            "the accuracy is that of a transfer attack"
        )
    x_adv = x_adv.reshape(-1, *challenge.image_shape)
    predict = tf.function(lambda x: tf.argmax(loaded.logits(x), axis=-1), reduce_retracing=True)
    predictions = np.concatenate(
        [
            predict(tf.constant(x_adv[i : i + config.eval_batch_size], tf.float32)).numpy()
            for i in range(0, len(x_adv), config.eval_batch_size)
        ]
    )
    accuracy = 100 * float(np.mean(predictions == images.labels))
    return Scored(predictions, accuracy, loaded, images)


def model_path(config, challenge):
    """The configured model: the shipped one where none is named and none was trained."""
    own = challenge.directory / read_json(challenge.directory / "config.json")["model_dir"]
    shipped = challenge.directory / "models" / challenge.shipped
    if pathlib.Path(config.model_dir) == own and not own.exists() and shipped.exists():
        print(f"no model of your own in {own}: taking the shipped {challenge.shipped}")
        return shipped
    return config.model_dir


def check_writable(name, path):
    """Raises InputError, before any work is done, where a file could not be written."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"{name}: expected a file, got the directory {path}")
    try:
        tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except OSError as error:
        raise InputError(f"{name}: cannot write {path}: {error.strerror}") from None


def load_test_images(config, challenge):
    """The first `num_eval_examples` test images, or those of the sample; prints which."""
    images = challenge.load("test", data_dir=config.data_dir, allow_sample=True)
    images = images.head(config.num_eval_examples)
    print(images.source)
    return images


def make_evaluator(challenge, config, attack_name, loaded, source=None):
    """An `Evaluator` of a `LoadedModel` under the attack that the config describes.

    The attack is on the `LoadedModel` `source`, by default on the same.
    """
    attack = make_attack(attack_name, (source or loaded).logits, config, challenge.bounds)
    return Evaluator(
        loaded.logits,
        attack,
        to_pixels=challenge.to_pixels,
        batch_size=config.eval_batch_size,
        num_restarts=config.num_restarts if attack.random_start else 1,
        seed=config.random_seed,
        eight_bits=config.round_to_8_bits,
    )


def _evaluate_once(config, flag_values, loaded, images, evaluator):
    record = {**record_of(config, loaded, images), "attack": attack_settings(evaluator)}
    print(f"model: {loaded.path}" + (f", step {loaded.step}" if loaded.step is not None else ""))
    print("attack: " + ", ".join(f"{name} {value}" for name, value in record["attack"].items()))
    summary = evaluator.run(images.images, images.labels).summary()
    print(f"natural: {summary['natural_accuracy']:.2f}%")
    print(f"adversarial: {summary['adversarial_accuracy']:.2f}%")
    print(f"avg nat loss: {summary['natural_loss']:.4f}")
    print(f"avg adv loss: {summary['adversarial_loss']:.4f}", flush=True)
    if flag_values.output_json:
        checkpoints.write_json(flag_values.output_json, {**record, **summary})
    return summary


def record_of(config, loaded, images):
    """What was evaluated and on what, as a dict for JSON."""
    return {
        "model": loaded.name,
        "model_digest": loaded.digest(),
        "step": loaded.step,
        "data": images.name,
        "seed": config.random_seed,
        **provenance(),
    }


def attack_settings(evaluator):
    """The attack of an `Evaluator`, as a dict for JSON."""
    return {
        **evaluator.attack.settings(),
        "num_restarts": evaluator.num_restarts,
        "round_to_8_bits": evaluator.eight_bits,
    }


def _watch(challenge, config, flag_values):
    """Evaluates each checkpoint of a training as it appears, until Ctrl-C."""
    path = pathlib.Path(config.model_dir)
    with contextlib.suppress(InputError):  # it may be yet to be made
        path = checkpoints.find_model(challenge, path)
    if path.is_file() or (path / "saved_model.pb").exists() or is_original(path):
        raise InputError(f"--watch: expected a training directory as --model_dir, got {path}")
    images = load_test_images(config, challenge)
    _wait_for_checkpoint(path, None)
    loaded = checkpoints.load_model(challenge, path)
    evaluator = make_evaluator(challenge, config, flag_values.attack, loaded)
    writer = tf.summary.create_file_writer(str(path / "eval"))
    while True:
        summary = _evaluate_once(config, flag_values, loaded, images, evaluator)
        # The originals' tags.
        with writer.as_default(step=loaded.step):
            for tag, name in (
                ("xent_adv_eval", "adversarial_loss"),
                ("xent_adv", "adversarial_loss"),
                ("xent_nat", "natural_loss"),
            ):
                tf.summary.scalar(tag, summary[name])
            for tag, name in (
                ("accuracy_adv_eval", "adversarial_accuracy"),
                ("accuracy_adv", "adversarial_accuracy"),
                ("accuracy_nat", "natural_accuracy"),
            ):
                tf.summary.scalar(tag, summary[name] / 100)
        writer.flush()
        _wait_for_checkpoint(path, loaded.step)
        loaded = loaded.restore_newest()


def _wait_for_checkpoint(path, seen):
    """Returns once `path` has a checkpoint of another step than `seen`."""

    def newest():
        name = tf.train.latest_checkpoint(str(path))
        return None if name is None else checkpoints.step_of(name)

    if newest() == seen:
        print(f"waiting for the next checkpoint in {path} ...", flush=True)
        while newest() == seen:
            time.sleep(POLL_SECONDS)
