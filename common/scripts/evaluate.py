"""eval.py: natural accuracy, and accuracy in the worst case over attacks."""

from absl import flags

from common import cards, checkpoints, config, submission
from common.errors import InputError, one_line
from common.evaluation import html_report, pitfalls, suites
from common.evaluation.presets import make_evaluator, resumable
from common.evaluation.report import arithmetic, describe, describe_settings, line, table, warn
from common.evaluation.subject import key_of, line_of, load_test_images, model_path, record_of
from common.files import check_writable, write_json
from common.scripts import sharded, watch
from common.scripts.attack_file import store
from common.scripts.flags import (
    ATTACK,
    EVALUATION,
    MODEL,
    define_attack_flags,
    define_path,
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
        "the worst case over many attacks: paper or leaderboard, the presets of that name; "
        "standard, AutoAttack's; fast, which aims at the same worst case in less time; or strong, "
        "which has more starts and queries; --attack=NAME,NAME does it for the named attacks",
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
        "several attacks: give each what the others broke, too, for its accuracy alone; "
        "--suite=paper always does",
        flag_values,
        module_name=EVALUATION,
    )
    define_path("output_json", None, "file to write the result to", flag_values, EVALUATION)
    define_path(
        "report",
        None,
        "file for a page to look at, FILE.html: accuracies, classes, losses and images",
        flag_values,
        EVALUATION,
    )
    sharded.define_shard_flags(flag_values)
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
    ends it after the current batch, and the same command resumes there. --store_adv_path writes the
    examples, --report a web page. --shard evaluates a part of the images, and --merge joins all.

    Raises:
        InputError: there is no model, no data, no such suite or attack, or a setting is out of
            range.
    """
    is_suite = _check_eval_flags(flag_values)
    if flag_values.watch:
        _watch(challenge, config, flag_values)
        return
    shard = sharded.asked_shard(flag_values, ("output_json", "report", "store_adv_path"))
    state_dir = sharded.state_dir(flag_values, flag_values.output_json)
    loaded = checkpoints.load_model(challenge, model_path(config, challenge))
    source = _load_source(challenge, flag_values.source)
    images = load_test_images(config, challenge)
    attacked = source or loaded
    # The rows of the paper's tables are accuracies under one attack each.
    each_alone = flag_values.each_alone or flag_values.suite == "paper"
    trials = _trials(challenge, config, flag_values, attacked)
    fixed = flag_values.fixed_batches
    options = {"spare_misclassified": is_suite, "each_alone": each_alone, "fixed_batches": fixed}
    evaluator = make_evaluator(challenge, config, trials, loaded, **options)
    record = record_of(config, loaded, images, source)
    key = key_of(config, loaded, images, trials, source, each_alone if is_suite else None, fixed)
    state, parts = sharded.state_or_parts(flag_values, state_dir, images, trials, key)
    presets = [_preset_of(challenge, flag_values, trial) for trial in trials]
    _print_models(loaded, source)
    if is_suite:
        print(f"attacks: {', '.join(trial.name for trial in trials)}")
    else:
        _print_attack(*trials, *presets)
    print(arithmetic(trials))

    def check():
        if is_suite:
            count = min(pitfalls.NUM_IMAGES, len(images.images))
            print(f"checking the model on {count} images", flush=True)
        return warn(pitfalls.before(challenge, config, images, trials, attacked, large=is_suite))

    name = (flag_values.suite or flag_values.attack) if is_suite else "attack"
    report = _print_line if is_suite else None
    if shard is not None:
        sharded.run(shard, state_dir, images, key, evaluator, check, report)
        return
    warnings = check()
    if parts is not None:
        record["shards"] = parts.provenance
        result = evaluator.join(parts.found, report)
    else:
        with resumable(state, name):
            result = evaluator.run(images.images, images.labels, state, report)
    numbers = _published(challenge, images, presets, loaded, source)
    if is_suite:
        late = pitfalls.check_result(result, trials) if source is None else []
        warnings += warn(late + pitfalls.undefined_gradients_in(result))
        print(table(trials, result, numbers), flush=True)
        found = {"suite": flag_values.suite, "each_alone": each_alone, **describe(trials, result)}
    else:
        found = _print_result(*trials, result, numbers)
        warnings += warn(pitfalls.after(result))
    record = {**record, **found, "warnings": warnings}
    if flag_values.report:
        settings = trials[0].settings() if len(trials) == 1 else None
        page = _page(challenge, config, loaded, images, result, record, settings)
        html_report.write(flag_values.report, page)
        print(one_line(f"report written to {flag_values.report}"), flush=True)
    _write(flag_values, challenge, result, record, state)


def _page(challenge, config, loaded, images, result, record, settings):
    """Returns what --report shows, an `html_report.Evaluation`; `settings` of the one attack."""
    both = (images.images, challenge.to_pixels), (result.x_adv, lambda x: x)
    natural, adversarial = html_report.outputs_of(
        loaded.logits, images.labels, config.eval_batch_size, *both
    )
    attacks = [trial.name for trial in result.trials]
    how = ", ".join(attacks) if settings is None else describe_settings(settings)
    return html_report.Evaluation(
        title=f"{challenge.name}: {loaded.name}",
        facts={
            "model": line_of(loaded),
            **({"attacked in its place": record["source"]} if "source" in record else {}),
            "images": images.name,
            "attack" if len(attacks) == 1 else "attacks": how,
        },
        origin=html_report.origin_of(record),
        result=result,
        natural=natural,
        adversarial=adversarial,
        images=images.images,
        to_pixels=challenge.to_pixels,
        labels=images.labels,
        bounds=challenge.bounds,
        class_names=challenge.class_names,
        warnings=record["warnings"],
    )


def _trials(challenge, config, flag_values, attacked):
    """Returns the list of `Trial` that the command line asks for, on a `LoadedModel`."""
    model, norm = suites.with_gradient(attacked.logits), flag_values.norm
    if flag_values.suite is not None:
        return suites.suite_trials(flag_values.suite, model, config, challenge, norm)
    names = split(flag_values.attack)
    trials = [suites.named_trial(name, model, config, challenge, norm) for name in names]
    refuse_unused_restarts(flag_values, trials)
    return trials


def _check_eval_flags(flag_values):
    """Returns whether several attacks are asked for; raises InputError if the flags do not fit."""
    for name in ("output_json", "report"):
        if flag_values[name].value:
            check_writable(f"--{name}", flag_values[name].value)
    if flag_values["store_adv_path"].present:
        submission.check_writable("--store_adv_path", flag_values.store_adv_path)
    name = flag_values.suite
    if name is not None:
        if name not in suites.SUITES:
            raise InputError(f"--suite: expected one of {', '.join(suites.SUITES)}, got {name!r}")
        for other in ("attack", "preset"):
            if flag_values[other].present:
                raise InputError(f"--{other}: expected none beside --suite, which names its own")
        is_any = name in suites.ANY_MODEL
        allowed = ("norm", "epsilon", "round_to_8_bits") if is_any else ()
        refuse_attack_settings(flag_values, f"--suite={name} has its own", allowed)
    else:
        refuse_unused_settings(flag_values)
    is_suite = name is not None or "," in flag_values.attack
    if flag_values.each_alone and not is_suite:
        raise InputError("--each_alone: expected several attacks, by --suite or --attack=NAME,NAME")
    if flag_values.watch:
        if is_suite:
            raise InputError("--watch: expected one attack, got several")
        others = ("state_dir", "store_adv_path", "source", "shard", "merge", "report")
        for other in (*others, "fixed_batches"):
            if flag_values[other].present:
                raise InputError(f"--{other}: expected none beside --watch, which has no end")
    return is_suite


def _load_source(challenge, name):
    if name is None:
        return None
    try:
        return checkpoints.load_model(challenge, name)
    except InputError as error:
        raise InputError(str(error).replace("--model_dir", "--source", 1)) from None


def _preset_of(challenge, flag_values, trial):
    """Returns a `Trial`'s preset, or None; --preset goes before others with its settings."""
    preset = flag_values.preset
    if preset is not None and suites.is_preset(trial, challenge, preset):
        return preset
    return suites.preset_of(trial, challenge)


def _print_attack(trial, preset):
    """Prints the settings of the only attack, and its preset, if any."""
    if preset is not None:
        print(f"preset: {preset}")
    print(f"attack: {describe_settings(trial.settings())}")


def _print_line(done):
    """Prints the `TrialResult` of one of several attacks."""
    print(line(done), flush=True)


def _published(challenge, images, presets, loaded, source=None):
    """Returns the published numbers as `table` takes them, for the images and for each preset.

    They are of the whole test set, so that there are none for the sample.
    """
    if images.is_sample or not any(presets):
        return [{}] * (1 + len(presets))
    source_path = source and source.path
    return [
        cards.published(challenge, "natural", loaded.path),
        *(cards.published(challenge, preset, loaded.path, source_path) for preset in presets),
    ]


def _print_result(trial, result, numbers):
    """Prints one attack's numbers beside the published ones; returns them as a dict for JSON."""
    summary, (done,) = result.summary(), result.trials
    natural, adversarial = map(_in_brackets, numbers)
    low, high = result.confidence_interval
    print(
        f"{summary['num_examples']:,} images, {done.num_gradients:,} gradients; 95% confidence "
        f"interval of the adversarial accuracy: {low:.2f}% to {high:.2f}%"
    )
    print(f"natural: {summary['natural_accuracy']:.2f}%{natural}")
    print(f"adversarial: {summary['adversarial_accuracy']:.2f}%{adversarial}")
    print(f"avg nat loss: {summary['natural_loss']:.4f}")
    print(f"avg adv loss: {summary['adversarial_loss']:.4f}", flush=True)
    return {
        "attack": trial.settings(),
        **summary,
        "confidence_interval": result.confidence_interval,
        "num_gradients": done.num_gradients,
        "num_queries": done.num_queries,
        "num_undefined": done.num_undefined,
    }


def _in_brackets(numbers):
    """Returns published numbers as text behind our own: " (paper 98.8, leaderboard 98.53)"."""
    words = ", ".join(f"{where} {number}" for where, number in numbers.items())
    return f" ({words})" if words else ""


def _watch(challenge, config, flag_values):
    """Evaluates each checkpoint of a training as it appears, until Ctrl-C."""
    path = watch.training_directory(challenge, config.model_dir)
    images = load_test_images(config, challenge)
    loaded, evaluator, writer, seen = None, None, None, set()
    while True:
        before, loaded = loaded, watch.wait_for_checkpoint(challenge, path, loaded, seen)
        if before is None or loaded.model is not before.model:
            trials = _trials(challenge, config, flag_values, loaded)
            evaluator = make_evaluator(challenge, config, trials, loaded)
        record = record_of(config, loaded, images)
        presets = [_preset_of(challenge, flag_values, trial) for trial in trials]
        _print_models(loaded)
        _print_attack(*trials, *presets)
        print(arithmetic(trials))
        warnings = warn(pitfalls.before(challenge, config, images, trials, loaded))
        result = evaluator.run(images.images, images.labels)
        numbers = _published(challenge, images, presets, loaded)
        found = _print_result(*trials, result, numbers)
        warnings += warn(pitfalls.after(result))
        _write(flag_values, challenge, result, {**record, **found, "warnings": warnings})
        writer = watch.write_events(path / "eval", writer, loaded.step, found)


def _print_models(loaded, source=None):
    print(f"model: {line_of(loaded)}")
    if source is not None:
        print(f"attacked in its place: {line_of(source)}")


def _write(flag_values, challenge, result, record, state=None):
    """Writes the files that the flags ask for, and only then removes the state."""
    if flag_values.output_json:
        write_json(flag_values.output_json, record)
    if flag_values["store_adv_path"].present:
        store(flag_values.store_adv_path, result, challenge, record)
    if state is not None:
        state.remove()
