"""What eval.py, pgd_attack.py and run_attack.py do, in both challenges."""

import contextlib
import dataclasses
import io
import pathlib
import sys
import time

import numpy as np
import tensorflow as tf
from absl import flags

from common import checkpoint_files, checkpoints, checks, data, submission, suite
from common.attack import ATTACKS, NORMS, as_logits, is_misclassified, maker, split
from common.config import define_path, read_json
from common.errors import InputError, one_line, reason_of
from common.evaluation import Evaluator, State, digest_of
from common.files import check_writable, write_atomically, write_json
from common.original_checkpoints import is_original
from common.provenance import provenance

POLL_SECONDS = 10
ATTACK_SETTINGS = (
    "norm",
    "epsilon",
    "num_steps",
    "step_size",
    "random_start",
    "num_restarts",
    "loss_func",
    "kappa",
    "round_to_8_bits",
)


def define_attack_flags(challenge, flag_values):
    """Declares --preset, --attack and --norm."""
    flags.DEFINE_string(
        "preset", None, "settings of a published row: " + ", ".join(challenge.presets), flag_values
    )
    flags.DEFINE_string(
        "attack",
        "pgd",
        f"one of {', '.join(ATTACKS)}; eval.py takes several, apart by commas",
        flag_values,
    )
    flags.DEFINE_enum(
        "norm",
        None,
        NORMS,
        "of the ball, of --attack or --suite=standard (default: linf, for pgd_l2 and boundary l2); "
        "l2 wants an --epsilon and, for pgd, a --step_size of its own",
        flag_values=flag_values,
    )


def define_eval_flags(challenge, flag_values):
    """Declares the flags of eval.py beside the config's."""
    define_attack_flags(challenge, flag_values)
    flags.DEFINE_string(
        "suite",
        None,
        "the worst case over many attacks: paper or leaderboard, the presets of that name, or "
        "standard, AutoAttack's; --attack=NAME,NAME does the same for these",
        flag_values,
    )
    define_path(
        "source",
        None,
        "model to attack in place of --model_dir, which the examples are then tried on (transfer)",
        flag_values,
    )
    flags.DEFINE_bool(
        "each_alone",
        False,
        "with several attacks: give each what the others broke too, for its accuracy alone",
        flag_values,
    )
    define_path("output_json", None, "file to write the result to", flag_values)
    define_path(
        "state_dir",
        None,
        "directory of the file that an interrupted evaluation goes on from (default: that of "
        "--output_json, or the working directory)",
        flag_values,
    )
    flags.DEFINE_bool("watch", False, "go on with each new checkpoint of a training", flag_values)


def evaluate(challenge, config, flag_values):
    """eval.py: accuracy and mean loss over every image, natural and in the worst case over attacks.

    One attack is evaluated as the original code does, on every image; several, or a suite, on
    those that the model classifies correctly. With --source they attack that model instead. Ctrl-C
    ends it after the batch in hand, and the same command goes on from there. The examples are
    written where --store_adv_path asks for it.

    Raises:
        InputError: no model, no data, no such suite or attack, or one that is out of range.
    """
    is_suite = _check_eval_flags(flag_values)
    if flag_values.watch:
        _watch(challenge, config, flag_values)
        return
    state_dir = _state_dir(flag_values)
    loaded = checkpoints.load_model(challenge, model_path(config, challenge))
    source = _load_source(challenge, flag_values.source)
    images = load_test_images(config, challenge)
    if is_suite:
        _evaluate_suite(challenge, config, flag_values, loaded, images, state_dir, source)
        return
    trial = _make_trial(challenge, config, flag_values, source or loaded)
    evaluator = make_evaluator(challenge, config, [trial], loaded)
    _evaluate_once(challenge, config, flag_values, loaded, images, evaluator, state_dir, source)


def _make_trial(challenge, config, flag_values, attacked):
    """The `Trial` of one --attack on a `LoadedModel`."""
    model = suite.with_gradient(attacked.logits)
    trial = suite.named_trial(flag_values.attack, model, config, challenge, flag_values.norm)
    refuse_unused_restarts(flag_values, [trial])
    return trial


def check(challenge, config, images, trials, attacked, large=False):
    """What speaks against trusting an evaluation before it begins; prints it to stderr.

    Args:
        challenge: a `common.challenge.Challenge`.
        config: its config.
        images: the `common.data.Split` to evaluate on, of which the first 200 are looked at.
        trials: list of `Trial`, one or more.
        attacked: the `LoadedModel` that these attack.
        large: see `checks.check_model`.

    Returns:
        List of warnings, each a line.
    """
    few = images.head(checks.NUM_IMAGES)
    short = [checks.short_steps(trial.name, trial.settings()) for trial in trials]
    warnings = [warning for warning in short if warning is not None]
    warnings += checks.check_model(
        attacked.logits,
        challenge.to_pixels(few.images),
        few.labels,
        epsilon=trials[0].attack.epsilon,
        bounds=challenge.bounds,
        batch_size=config.eval_batch_size,
        norm=trials[0].attack.norm,
        seed=config.random_seed,
        large=large,
    )
    _warn(warnings)
    return warnings


def _load_source(challenge, name):
    if name is None:
        return None
    try:
        return checkpoints.load_model(challenge, name)
    except InputError as error:
        raise InputError(str(error).replace("--model_dir", "--source", 1)) from None


def _check_eval_flags(flag_values):
    """Whether several attacks are asked for; raises InputError where the flags do not fit."""
    if flag_values.output_json:
        check_writable("--output_json", flag_values.output_json)
    if flag_values["store_adv_path"].present:
        submission.check_writable("--store_adv_path", flag_values.store_adv_path)
    name = flag_values.suite
    if name is not None:
        if name not in suite.SUITES:
            raise InputError(f"--suite: expected one of {', '.join(suite.SUITES)}, got {name!r}")
        for other in ("attack", "preset"):
            if flag_values[other].present:
                raise InputError(f"--{other}: expected none beside --suite, which names its own")
        allowed = ("norm", "epsilon", "round_to_8_bits") if name == "standard" else ()
        refuse_attack_settings(flag_values, f"--suite={name} has its own", allowed)
    else:
        refuse_unused_settings(flag_values)
    is_suite = name is not None or "," in flag_values.attack
    if flag_values.each_alone and not is_suite:
        raise InputError("--each_alone: expected several attacks, by --suite or --attack=NAME,NAME")
    if flag_values.watch:
        if is_suite:
            raise InputError("--watch: expected one attack, got several")
        for other in ("state_dir", "store_adv_path", "source"):
            if flag_values[other].present:
                raise InputError(f"--{other}: expected none beside --watch, which has no end")
    return is_suite


def refuse_unused_settings(flag_values):
    """Raises InputError where the command line has settings that none of --attack takes."""
    taken = [setting for name in split(flag_values.attack) for setting in maker(name).settings]
    if not taken and "preset" in flag_values and flag_values.preset is not None:
        raise InputError(f"--preset: expected none, as --attack={flag_values.attack} takes none")
    refuse_attack_settings(
        flag_values,
        f"--attack={flag_values.attack} does not take it",
        (*taken, "norm", "epsilon", "num_restarts", "round_to_8_bits"),
    )


def refuse_unused_restarts(flag_values, trials):
    """Raises InputError where the command line asks for restarts that would all be the same."""
    given = int(flag_values.num_restarts or 1)
    if given > 1 and not any(trial.attack.random_start for trial in trials):
        raise InputError(
            f"--num_restarts: expected 1, as --attack={flag_values.attack} always finds the same, "
            f"got {given}"
        )


def refuse_attack_settings(flag_values, reason, allowed=()):
    """Raises InputError where the command line has settings of an attack, but for `allowed`."""
    for name in ATTACK_SETTINGS:
        if name in flag_values and flag_values[name].present and name not in allowed:
            raise InputError(f"--{name}: expected none, as {reason}, got {flag_values[name].value}")


def pgd_attack(challenge, config, flag_values):
    """pgd_attack.py: writes adversarial examples for every test image to an attack file.

    Ctrl-C ends it after the batch in hand, and the same command resumes there. What it has found
    is beside the attack file until that is written.

    Raises:
        InputError: as `evaluate`; nothing is written then.
    """
    target = config.store_adv_path
    submission.check_writable("--store_adv_path", target)
    refuse_unused_settings(flag_values)
    loaded = checkpoints.load_model(challenge, model_path(config, challenge))
    images = load_test_images(config, challenge)
    trial = _make_trial(challenge, config, flag_values, loaded)
    evaluator = make_evaluator(challenge, config, [trial], loaded)
    warnings = check(challenge, config, images, [trial], loaded)
    state = _state(pathlib.Path(target).parent, _key_of_one(config, loaded, images, trial))
    result = run_with_state(evaluator, images, state, "attack")
    summary = result.summary()
    summary["num_undefined"] = result.trials[0].num_undefined
    note = {**record_of(config, loaded, images), "attack": trial.settings(), **summary}
    print(f"Accuracy under attack: {summary['adversarial_accuracy']:.2f}%", flush=True)
    note["warnings"] = warnings + _check_found(result)
    _store(target, result, challenge, note)
    state.remove()


def _store(target, result, challenge, note):
    submission.save(target, result.x_adv, challenge, note)
    print(one_line(f"Examples stored at {target}, their description at {target}.json"))
    attack = note.get("attack") or note["attacks"][0]["attack"]
    if attack.get("norm") == "l2":
        print("note: these are within an L2 ball, where run_attack.py asks for L-infinity's")


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
    """An attack file that obeys the rules, and what the model takes its images for.

    Attributes:
        predictions: int64 classes (n,), those of the largest logits.
        accuracy: in percent; an image of which `common.attack.is_misclassified` says that there is
            no prediction counts as wrong.
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

    @tf.function(reduce_retracing=True)
    def predict(x, y):
        logits = loaded.logits(x)
        return tf.argmax(logits, axis=-1), ~is_misclassified(as_logits(logits, x), y)

    parts = [
        predict(tf.constant(x_adv[batch], tf.float32), tf.constant(images.labels[batch], tf.int32))
        for batch in (
            slice(i, i + config.eval_batch_size)
            for i in range(0, len(x_adv), config.eval_batch_size)
        )
    ]
    predictions, is_correct = map(np.concatenate, zip(*parts))
    accuracy = 100 * float(np.mean(is_correct))
    return Scored(predictions, accuracy, loaded, images)


def model_path(config, challenge):
    """The configured model: the shipped one where none is named and none was trained."""
    own = challenge.directory / read_json(challenge.directory / "config.json")["model_dir"]
    shipped = challenge.directory / "models" / challenge.shipped
    if pathlib.Path(config.model_dir) == own and not own.exists() and shipped.exists():
        print(one_line(f"no model of your own in {own}: taking the shipped {challenge.shipped}"))
        return shipped
    return config.model_dir


def load_test_images(config, challenge):
    """The first `num_eval_examples` test images, or those of the sample; prints which."""
    images = challenge.load("test", data_dir=config.data_dir, allow_sample=True)
    images = images.head(config.num_eval_examples)
    print(one_line(images.source))
    return images


def make_evaluator(challenge, config, trials, loaded, **options):
    """An `Evaluator` of a `LoadedModel` under `trials`; `options` are further ones of it."""
    return Evaluator(
        loaded.logits,
        trials,
        to_pixels=challenge.to_pixels,
        batch_size=config.eval_batch_size,
        seed=config.random_seed,
        **options,
    )


def key_of(config, loaded, images, trials, source=None):
    """What decides the result of `trials` beside their settings, for the key of a `State`."""
    depends_on_batch = any(trial.attack.depends_on_batch for trial in trials)
    return {
        "model_digest": loaded.digest(),
        **({} if source is None else {"source_digest": source.digest()}),
        "seed": config.random_seed,
        "data_sha256": images.digest(),
        "num_examples": len(images.images),
        **({"batch_size": config.eval_batch_size} if depends_on_batch else {}),
    }


def run_with_state(evaluator, images, state, name, report=None):
    """`Evaluator.run`, which goes on from a `State` and says so; `name` is for people.

    All that was found is in the state then, for the caller to remove once a result is written.

    Raises:
        KeyboardInterrupt: it was ended.
    """
    if state.path.exists():
        print(one_line(f"{name}: going on with {state.path}"), flush=True)
    try:
        result = evaluator.run(images.images, images.labels, state, report)
    except KeyboardInterrupt:
        line = f"stopped; the same command goes on from there, with {state.path}"
        print(one_line(line), flush=True)
        raise
    try:
        state.keep_last()
    except InputError as error:  # the result can be shown all the same
        print(f"note: {error}", file=sys.stderr, flush=True)
    return result


def _state_dir(flag_values):
    output = flag_values.output_json
    place = flag_values.state_dir or (pathlib.Path(output).parent if output else pathlib.Path())
    check_writable("--state_dir", pathlib.Path(place) / "evaluation.npz")
    return pathlib.Path(place)


def _state(state_dir, key):
    return State(state_dir / f"evaluation-{digest_of(key)}.npz", key)


def _key_of_one(config, loaded, images, trial, source=None):
    """The key of the `State` of one attack."""
    return {**key_of(config, loaded, images, [trial], source), "attack": trial.settings()}


def _print_model(loaded, source=None):
    for what, model in (("model", loaded), ("attacked in its place", source)):
        if model is not None:
            step = "" if model.step is None else f", step {model.step}"
            print(one_line(f"{what}: {model.path}{step}"))


def _evaluate_once(
    challenge, config, flag_values, loaded, images, evaluator, state_dir=None, source=None
):
    (trial,) = evaluator.trials
    record = {**record_of(config, loaded, images, source), "attack": trial.settings()}
    _print_model(loaded, source)
    print("attack: " + ", ".join(f"{name} {value}" for name, value in record["attack"].items()))
    warnings = check(challenge, config, images, [trial], source or loaded)
    state = None
    if state_dir is None:
        result = evaluator.run(images.images, images.labels)
    else:
        state = _state(state_dir, _key_of_one(config, loaded, images, trial, source))
        result = run_with_state(evaluator, images, state, "attack")
    summary = result.summary()
    (done,) = result.trials
    low, high = result.confidence_interval
    print(
        f"{summary['num_examples']:,} images, {done.num_gradients:,} gradients; 95% confidence "
        f"interval of the adversarial accuracy: {low:.2f}% to {high:.2f}%"
    )
    print(f"natural: {summary['natural_accuracy']:.2f}%")
    print(f"adversarial: {summary['adversarial_accuracy']:.2f}%")
    print(f"avg nat loss: {summary['natural_loss']:.4f}")
    print(f"avg adv loss: {summary['adversarial_loss']:.4f}", flush=True)
    warnings += _check_found(result)
    summary |= {
        "confidence_interval": result.confidence_interval,
        "num_gradients": done.num_gradients,
        "num_queries": done.num_queries,
        "warnings": warnings,
        "num_undefined": done.num_undefined,
    }
    _write(flag_values, challenge, result, {**record, **summary}, state)
    return summary


def _evaluate_suite(challenge, config, flag_values, loaded, images, state_dir, source):
    """Runs several attacks in turn and prints a table; checks whether it may flatter."""
    name, attacked = flag_values.suite, suite.with_gradient((source or loaded).logits)
    if name is None:
        name = flag_values.attack
        trials = suite.named_trials(name, attacked, config, challenge, flag_values.norm)
        refuse_unused_restarts(flag_values, trials)
    else:
        trials = suite.suite_trials(name, attacked, config, challenge, flag_values.norm)
    record = record_of(config, loaded, images, source)
    attacks = [{"name": trial.name, "attack": trial.settings()} for trial in trials]
    key = {
        **key_of(config, loaded, images, trials, source),
        "attacks": attacks,
        "each_alone": flag_values.each_alone,
    }
    state = _state(state_dir, key)
    _print_model(loaded, source)
    print(f"attacks: {', '.join(trial.name for trial in trials)}")
    count = min(checks.NUM_IMAGES, len(images.images))
    print(f"checking the model on {count} images", flush=True)
    warnings = check(challenge, config, images, trials, source or loaded, large=True)
    evaluator = make_evaluator(
        challenge,
        config,
        trials,
        loaded,
        spare_misclassified=True,
        each_alone=flag_values.each_alone,
    )
    result = run_with_state(
        evaluator, images, state, name, lambda trial: print(suite.line(trial), flush=True)
    )
    late = checks.check_result(result, trials) if source is None else []
    undefined = [checks.undefined_gradients(done) for done in result.trials]
    late += [warning for warning in undefined if warning is not None]
    _warn(late)
    print(suite.table(trials, result), flush=True)
    described = {
        "suite": flag_values.suite,
        "each_alone": flag_values.each_alone,
        **suite.describe(trials, result),
        "warnings": warnings + late,
    }
    _write(flag_values, challenge, result, {**record, **described}, state)


def _check_found(result):
    """What speaks against the `Result` of one attack, as list of lines; prints it to stderr."""
    summary = result.summary()
    found = [
        checks.above_natural(summary["natural_accuracy"], summary["adversarial_accuracy"]),
        *(checks.undefined_gradients(done) for done in result.trials),
    ]
    warnings = [warning for warning in found if warning is not None]
    _warn(warnings)
    return warnings


def _warn(warnings):
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def warn_of_gradients(result):
    """Prints a line for each attack of a `Result` that met gradients that are not numbers."""
    _warn(checks.undefined_gradients(done) for done in result.trials)


def _write(flag_values, challenge, result, record, state):
    """Writes what is asked for, and only then removes the state."""
    if flag_values.output_json:
        write_json(flag_values.output_json, record)
    if flag_values["store_adv_path"].present:
        _store(flag_values.store_adv_path, result, challenge, record)
    if state is not None:
        state.remove()


def record_of(config, loaded, images, source=None):
    """What was evaluated and on what, as a dict for JSON; `source` was attacked in its place."""
    names = {} if source is None else {"source": source.name, "source_digest": source.digest()}
    return {
        "model": loaded.name,
        "model_digest": loaded.digest(),
        **names,
        "step": loaded.step,
        "data": images.name,
        "seed": config.random_seed,
        **provenance(),
    }


def _watch(challenge, config, flag_values):
    """Evaluates each checkpoint of a training as it appears, until Ctrl-C."""
    path = pathlib.Path(config.model_dir)
    with contextlib.suppress(InputError):  # it may be yet to be made
        path = checkpoints.find_model(challenge, path)
    if path.is_file() or (path / "saved_model.pb").exists() or is_original(path):
        raise InputError(f"--watch: expected a training directory as --model_dir, got {path}")
    images = load_test_images(config, challenge)
    loaded, evaluator, writer, seen = None, None, None, set()
    while True:
        before, loaded = loaded, _wait_for_checkpoint(challenge, path, loaded, seen)
        if before is None or loaded.model is not before.model:
            trial = _make_trial(challenge, config, flag_values, loaded)
            evaluator = make_evaluator(challenge, config, [trial], loaded)
        summary = _evaluate_once(challenge, config, flag_values, loaded, images, evaluator)
        writer = _write_events(path / "eval", writer, loaded.step, summary)


def _write_events(directory, writer, step, summary):
    """Writes the numbers of a checkpoint for TensorBoard, and says so if that fails.

    Args:
        directory: where to.
        writer: what the last call returned, or None.
        step: of the checkpoint.
        summary: dict of its numbers.

    Returns:
        The writer for the next call, or None.
    """
    try:
        if writer is None or not directory.is_dir():
            writer = tf.summary.create_file_writer(str(directory))
        # The originals' tags.
        with writer.as_default(step=step):
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
        return writer
    except (OSError, tf.errors.OpError) as error:
        line = f"note: cannot write TensorBoard's events in {directory}: {reason_of(error)}"
        print(one_line(line), file=sys.stderr, flush=True)
        return None


def _wait_for_checkpoint(challenge, path, loaded, seen):
    """Waits for the next checkpoint of a training, and loads it.

    A directory that is gone for a while, and a checkpoint that is not whole, are waited for: the
    training may be begun anew, and the files be on another machine's disk.

    Args:
        challenge: a `common.challenge.Challenge`.
        path: of the training's directory, which need not be there yet.
        loaded: the `LoadedModel` of the last checkpoint, or None.
        seen: set of the checkpoints that there were so far, which are not taken again; it is
            updated.

    Returns:
        A `LoadedModel`: `loaded` with other weights, or a new one if the directory has come to
        hold another network.

    Raises:
        InputError: a checkpoint that is whole cannot be loaded, at the second try either.
    """
    said = failed = None
    while True:
        line, there = f"waiting for the next checkpoint in {path}", _checkpoints(path)
        newest = max(there, default=None)
        if newest is not None and newest not in seen:
            fault = checkpoint_files.fault_of(path, newest[0])
            if fault is None:
                try:
                    found = _load_newest(challenge, path, loaded)
                    if found.step == newest[0]:
                        seen.update(there)
                        return found
                    continue  # another one came or went meanwhile
                except InputError as error:
                    # The directory may be about to be removed, with this file as the last.
                    if failed == newest:
                        raise
                    failed, fault = newest, error
            line += f", as checkpoint-{newest[0]} cannot be taken: {fault}"
        elif newest is None and seen:
            line += ", which has none now"
        if line != said:
            print(one_line(f"{line} ..."), flush=True)
            said = line
        time.sleep(POLL_SECONDS)


def _load_newest(challenge, path, loaded):
    if loaded is not None:
        with contextlib.suppress(InputError):  # it may be of another network than before
            return loaded.restore_newest()
    return checkpoints.load_model(challenge, path)


def _checkpoints(path):
    """The checkpoints in a directory, as pairs of their step and of what tells another's file."""
    found = []
    # A file may be removed meanwhile, and a disk be out of reach for a while.
    with contextlib.suppress(InputError, OSError):
        for step in checkpoint_files.steps_in(path):
            status = (path / f"checkpoint-{step}.index").stat()
            found.append((step, (status.st_mtime_ns, status.st_ino)))
    return found
