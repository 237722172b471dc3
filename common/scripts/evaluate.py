"""eval.py: natural accuracy, and accuracy in the worst case over attacks."""

import pathlib

from absl import flags

from common import cards, checkpoints, config, submission
from common.errors import InputError
from common.evaluation import pitfalls, suites
from common.evaluation.presets import make_evaluator, run_with_state
from common.evaluation.report import arithmetic, describe, line, table, warn
from common.evaluation.state import State
from common.evaluation.subject import key_of, line_of, load_test_images, model_path, record_of
from common.files import check_writable, write_json
from common.scripts import watch
from common.scripts.attack_file import store
from common.scripts.flags import (
    ATTACK,
    EVALUATION,
    MODEL,
    define_attack_flags,
    define_path,
    make_trial,
    refuse_attack_settings,
    refuse_unused_restarts,
    refuse_unused_settings,
    split,
)

USES = (config.ATTACK, config.EVALUATION, config.ATTACK_FILE)


def define_eval_flags(challenge, flag_values):
    """Declares the flags of eval.py beside the config's."""
    define_attack_flags(challenge, flag_values)
    flags.DEFINE_string(
        "suite",
        None,
        "the worst case over many attacks: paper or leaderboard, the presets of that name, or "
        "standard, AutoAttack's; --attack=NAME,NAME does the same for the named attacks",
        flag_values,
        module_name=ATTACK,
    )
    define_path(
        "source",
        None,
        "model to attack in place of --model_dir, on which the examples are then tried (transfer)",
        flag_values,
        MODEL,
    )
    flags.DEFINE_bool(
        "each_alone",
        False,
        "several attacks: give each what the others broke, too, for its accuracy alone",
        flag_values,
        module_name=EVALUATION,
    )
    define_path("output_json", None, "file to write the result to", flag_values, EVALUATION)
    define_path(
        "state_dir",
        None,
        "directory of the file that an interrupted evaluation resumes from (default: the directory "
        "of --output_json, or the working directory)",
        flag_values,
        EVALUATION,
    )
    flags.DEFINE_bool(
        "watch",
        False,
        "evaluate each new checkpoint of a training, until Ctrl-C",
        flag_values,
        module_name=EVALUATION,
    )


def evaluate(challenge, config, flag_values):
    """eval.py: accuracy and mean loss over every image, natural and in the worst case over attacks.

    One attack is evaluated on every image, as in the original code; several, or a suite, on the
    images that the model classifies correctly. With --source they attack that model instead. Ctrl-C
    ends it after the batch in hand, and the same command resumes there. The examples are written
    if --store_adv_path asks for it.

    Raises:
        InputError: there is no model, no data, no such suite or attack, or a setting is out of
            range.
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
    trial = make_trial(challenge, config, flag_values, source or loaded)
    evaluator = make_evaluator(challenge, config, [trial], loaded)
    _evaluate_one(challenge, config, flag_values, loaded, images, evaluator, state_dir, source)


def _check_eval_flags(flag_values):
    """Returns whether several attacks are asked for; raises InputError if the flags do not fit."""
    if flag_values.output_json:
        check_writable("--output_json", flag_values.output_json)
    if flag_values["store_adv_path"].present:
        submission.check_writable("--store_adv_path", flag_values.store_adv_path)
    name = flag_values.suite
    if name is not None:
        if name not in suites.SUITES:
            raise InputError(f"--suite: expected one of {', '.join(suites.SUITES)}, got {name!r}")
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


def _state_dir(flag_values):
    output = flag_values.output_json
    place = flag_values.state_dir or (pathlib.Path(output).parent if output else pathlib.Path())
    check_writable("--state_dir", pathlib.Path(place) / "evaluation.npz")
    return pathlib.Path(place)


def _load_source(challenge, name):
    if name is None:
        return None
    try:
        return checkpoints.load_model(challenge, name)
    except InputError as error:
        raise InputError(str(error).replace("--model_dir", "--source", 1)) from None


def _evaluate_one(
    challenge, config, flag_values, loaded, images, evaluator, state_dir=None, source=None
):
    """Runs one attack and prints its numbers beside the published ones; returns them as a dict."""
    (trial,) = evaluator.trials
    record = {**record_of(config, loaded, images, source), "attack": trial.settings()}
    _print_models(loaded, source)
    preset, natural, adversarial = flag_values.preset, "", ""
    if preset is None or not suites.is_preset(trial, challenge, preset):
        preset = suites.preset_of(trial, challenge)
    if preset is not None:
        print(f"preset: {preset}")
        natural = _published(challenge, "natural", loaded)
        adversarial = _published(challenge, preset, loaded, source)
    print("attack: " + ", ".join(f"{name} {value}" for name, value in record["attack"].items()))
    print(arithmetic([trial]))
    warnings = warn(pitfalls.before(challenge, config, images, [trial], source or loaded))
    state = None
    if state_dir is None:
        result = evaluator.run(images.images, images.labels)
    else:
        key = {**key_of(config, loaded, images, [trial], source), "attack": trial.settings()}
        state = State.in_directory(state_dir, key)
        result = run_with_state(evaluator, images, state, "attack")
    summary = result.summary()
    (done,) = result.trials
    low, high = result.confidence_interval
    print(
        f"{summary['num_examples']:,} images, {done.num_gradients:,} gradients; 95% confidence "
        f"interval of the adversarial accuracy: {low:.2f}% to {high:.2f}%"
    )
    print(f"natural: {summary['natural_accuracy']:.2f}%{natural}")
    print(f"adversarial: {summary['adversarial_accuracy']:.2f}%{adversarial}")
    print(f"avg nat loss: {summary['natural_loss']:.4f}")
    print(f"avg adv loss: {summary['adversarial_loss']:.4f}", flush=True)
    warnings += warn(pitfalls.after(result))
    summary |= {
        "confidence_interval": result.confidence_interval,
        "num_gradients": done.num_gradients,
        "num_queries": done.num_queries,
        "warnings": warnings,
        "num_undefined": done.num_undefined,
    }
    _write(flag_values, challenge, result, {**record, **summary}, state)
    return summary


def _published(challenge, row, loaded, source=None):
    """Returns the published numbers of a row in brackets, or "" if there are none."""
    words = cards.published(challenge, row, loaded.path, source and source.path)
    return f" ({words})" if words else ""


def _evaluate_suite(challenge, config, flag_values, loaded, images, state_dir, source):
    """Runs several attacks in turn and prints a table; checks whether it may flatter."""
    name, attacked = flag_values.suite, suites.with_gradient((source or loaded).logits)
    if name is None:
        name = flag_values.attack
        trials = [
            suites.named_trial(one, attacked, config, challenge, flag_values.norm)
            for one in split(name)
        ]
        refuse_unused_restarts(flag_values, trials)
    else:
        trials = suites.suite_trials(name, attacked, config, challenge, flag_values.norm)
    record = record_of(config, loaded, images, source)
    attacks = [{"name": trial.name, "attack": trial.settings()} for trial in trials]
    key = {
        **key_of(config, loaded, images, trials, source),
        "attacks": attacks,
        "each_alone": flag_values.each_alone,
    }
    state = State.in_directory(state_dir, key)
    _print_models(loaded, source)
    print(f"attacks: {', '.join(trial.name for trial in trials)}")
    print(arithmetic(trials))
    count = min(pitfalls.NUM_IMAGES, len(images.images))
    print(f"checking the model on {count} images", flush=True)
    warnings = warn(
        pitfalls.before(challenge, config, images, trials, source or loaded, large=True)
    )
    evaluator = make_evaluator(
        challenge,
        config,
        trials,
        loaded,
        spare_misclassified=True,
        each_alone=flag_values.each_alone,
    )
    result = run_with_state(
        evaluator, images, state, name, lambda trial: print(line(trial), flush=True)
    )
    late = pitfalls.check_result(result, trials) if source is None else []
    late = warn(late + pitfalls.undefined_gradients_in(result))
    print(table(trials, result), flush=True)
    described = {
        "suite": flag_values.suite,
        "each_alone": flag_values.each_alone,
        **describe(trials, result),
        "warnings": warnings + late,
    }
    _write(flag_values, challenge, result, {**record, **described}, state)


def _watch(challenge, config, flag_values):
    """Evaluates each checkpoint of a training as it appears, until Ctrl-C."""
    path = watch.training_directory(challenge, config.model_dir)
    images = load_test_images(config, challenge)
    loaded, evaluator, writer, seen = None, None, None, set()
    while True:
        before, loaded = loaded, watch.wait_for_checkpoint(challenge, path, loaded, seen)
        if before is None or loaded.model is not before.model:
            trial = make_trial(challenge, config, flag_values, loaded)
            evaluator = make_evaluator(challenge, config, [trial], loaded)
        summary = _evaluate_one(challenge, config, flag_values, loaded, images, evaluator)
        writer = watch.write_events(path / "eval", writer, loaded.step, summary)


def _print_models(loaded, source):
    print(f"model: {line_of(loaded)}")
    if source is not None:
        print(f"attacked in its place: {line_of(source)}")


def _write(flag_values, challenge, result, record, state):
    """Writes what is asked for, and only then removes the state."""
    if flag_values.output_json:
        write_json(flag_values.output_json, record)
    if flag_values["store_adv_path"].present:
        store(flag_values.store_adv_path, result, challenge, record)
    if state is not None:
        state.remove()
