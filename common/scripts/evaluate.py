"""eval.py: natural accuracy, and accuracy in the worst case over attacks."""

from absl import flags

from common import checkpoints, submission
from common.errors import InputError
from common.evaluation import pitfalls, suites
from common.evaluation.presets import key_of, make_evaluator, record_of, run_with_state
from common.evaluation.report import _warn, describe, line, table
from common.files import check_writable
from common.scripts.flags import (
    define_attack_flags,
    define_path,
    refuse_attack_settings,
    refuse_unused_restarts,
    refuse_unused_settings,
)
from common.scripts.models import (
    _evaluate_once,
    _load_source,
    _make_trial,
    _print_model,
    _state,
    _state_dir,
    _write,
    check,
    load_test_images,
    model_path,
)
from common.scripts.watch import _watch


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


def _check_eval_flags(flag_values):
    """Whether several attacks are asked for; raises InputError where the flags do not fit."""
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


def _evaluate_suite(challenge, config, flag_values, loaded, images, state_dir, source):
    """Runs several attacks in turn and prints a table; checks whether it may flatter."""
    name, attacked = flag_values.suite, suites.with_gradient((source or loaded).logits)
    if name is None:
        name = flag_values.attack
        trials = suites.named_trials(name, attacked, config, challenge, flag_values.norm)
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
    state = _state(state_dir, key)
    _print_model(loaded, source)
    print(f"attacks: {', '.join(trial.name for trial in trials)}")
    count = min(pitfalls.NUM_IMAGES, len(images.images))
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
        evaluator, images, state, name, lambda trial: print(line(trial), flush=True)
    )
    late = pitfalls.check_result(result, trials) if source is None else []
    undefined = [pitfalls.undefined_gradients(done) for done in result.trials]
    late += [warning for warning in undefined if warning is not None]
    _warn(late)
    print(table(trials, result), flush=True)
    described = {
        "suite": flag_values.suite,
        "each_alone": flag_values.each_alone,
        **describe(trials, result),
        "warnings": warnings + late,
    }
    _write(flag_values, challenge, result, {**record, **described}, state)
