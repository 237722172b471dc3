"""pgd_attack.py and run_attack.py, which write and score attack files."""

import dataclasses
import io

import numpy as np
import tensorflow as tf

from common import checkpoints, config, data, submission
from common.attack import is_misclassified
from common.attack.gradient import as_logits, graph_model
from common.attack.precision import without_tf32
from common.errors import InputError, one_line
from common.evaluation import pitfalls, suites
from common.evaluation.presets import make_evaluator, resumable
from common.evaluation.report import arithmetic, warn
from common.evaluation.subject import key_of, load_test_images, model_path, record_of
from common.files import check_writable, write_atomically
from common.scripts import sharded
from common.scripts.flags import (
    define_attack_flags,
    refuse_unused_restarts,
    refuse_unused_settings,
)

USES = (config.ATTACK, config.EVALUATION, config.ATTACK_FILE)
SCORING = (config.SCORING,)


def define_attack_file_flags(challenge, flag_values):
    """Declares the flags of pgd_attack.py beside the config's."""
    define_attack_flags(challenge, flag_values)
    sharded.define_shard_flags(flag_values)


def pgd_attack(challenge, config, flag_values):
    """pgd_attack.py: writes adversarial examples for every test image to an attack file.

    Ctrl-C ends it after the current batch, and the same command resumes there, from a file beside
    the attack file. --shard attacks a part of the images, and --merge writes the file of all.

    Raises:
        InputError: as `evaluate`; nothing is written then.
    """
    target = config.store_adv_path
    shard = sharded.asked_shard(flag_values, ("store_adv_path",))
    if shard is None:
        submission.check_writable("--store_adv_path", target)
    state_dir = sharded.state_dir(flag_values, target)
    refuse_unused_settings(flag_values)
    loaded = checkpoints.load_model(challenge, model_path(config, challenge))
    images = load_test_images(config, challenge)
    model = suites.with_gradient(loaded.logits)
    trial = suites.named_trial(flag_values.attack, model, config, challenge, flag_values.norm)
    refuse_unused_restarts(flag_values, [trial])
    fixed = flag_values.fixed_batches
    evaluator = make_evaluator(challenge, config, [trial], loaded, fixed_batches=fixed)
    key = key_of(config, loaded, images, [trial], fixed_batches=fixed)
    record = record_of(config, loaded, images)
    state, parts = sharded.state_or_parts(flag_values, state_dir, images, [trial], key)
    print(arithmetic([trial]))

    def check():
        return warn(pitfalls.before(challenge, config, images, [trial], loaded))

    if shard is not None:
        sharded.run(shard, state_dir, images, key, evaluator, check)
        return
    warnings = check()
    if parts is not None:
        record["shards"] = parts.provenance
        result = evaluator.join(parts.found)
    else:
        with resumable(state, "attack"):
            result = evaluator.run(images.images, images.labels, state)
    summary = result.summary()
    summary["num_undefined"] = result.trials[0].num_undefined
    note = {**record, "attack": trial.settings(), **summary}
    print(f"Accuracy under attack: {summary['adversarial_accuracy']:.2f}%", flush=True)
    note["warnings"] = warnings + warn(pitfalls.after(result))
    store(target, result, challenge, note)
    if state is not None:
        state.remove()


def store(path, result, challenge, note):
    """Writes the examples of a `Result` to an attack file with its note, and prints that it did."""
    submission.save(path, result.x_adv, challenge, note)
    print(one_line(f"Examples stored at {path}, their description at {path}.json"))
    attack = note.get("attack") or note["attacks"][0]["attack"]
    if attack.get("norm") == "l2":
        print("note: these are within an L2 ball, but run_attack.py asks for an L-infinity ball")


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
    write_atomically("pred.npy", buffer.getvalue())
    print("Output saved at pred.npy")


@dataclasses.dataclass(frozen=True)
class Scored:
    """An attack file that obeys the rules, with the model's predictions.

    Attributes:
        predictions: int64 classes (n,), those of the largest logits.
        accuracy: in percent; an image counts as wrong if it is `common.attack.is_misclassified`,
            also for a logit that is not a number.
        loaded: the `LoadedModel`.
        images: the `common.data.Split` that the file was checked against.
    """

    predictions: np.ndarray
    accuracy: float
    loaded: checkpoints.LoadedModel
    images: data.Split


@without_tf32()
def score(challenge, config, path):
    """Checks an attack file by the challenge's rules and classifies its images.

    Returns:
        A `Scored`.

    Raises:
        InputError: there is no model or no data, or the file breaks a rule.
    """
    x_adv = submission.load(path)
    loaded = checkpoints.load_model(challenge, model_path(config, challenge))
    images = load_test_images(config, challenge)
    if images.is_sample and len(x_adv) > len(images.images):
        raise InputError(
            f"scoring {len(x_adv):,} images needs the full test set: {images.place}; "
            "give its place with --data_dir or TFDS_DATA_DIR"
        )
    submission.check(x_adv, challenge.to_pixels(images.images), challenge, config.epsilon)
    note = submission.load_note(path)
    made_on = "source" if "source_digest" in note else "model"
    if note.get(f"{made_on}_digest", loaded.digest()) != loaded.digest():
        name = note.get(made_on)
        name = one_line(name) if isinstance(name, str) else "which its note does not name"
        print(
            f"note: these examples were made on another model, {name}: "
            "the accuracy is that of a transfer attack"
        )
    x_adv = x_adv.reshape(-1, *challenge.image_shape)

    model = graph_model(loaded.logits)

    @tf.function(autograph=False, reduce_retracing=True)
    def predict(x, y):
        logits = model(x)
        return tf.argmax(logits, axis=-1), ~is_misclassified(as_logits(logits, x), y)

    parts = [
        predict(tf.constant(x_adv[batch], tf.float32), tf.constant(images.labels[batch], tf.int32))
        for batch in (
            slice(i, i + config.eval_batch_size)
            for i in range(0, len(x_adv), config.eval_batch_size)
        )
    ]
    predictions, is_correct = map(np.concatenate, zip(*parts, strict=True))
    accuracy = 100 * float(np.mean(is_correct))
    return Scored(predictions, accuracy, loaded, images)
