"""What several scripts do with models and images: find, load, show, check, warn."""

import pathlib

from common import checkpoints, submission
from common.config import read_json
from common.errors import InputError, one_line
from common.evaluation import pitfalls, suites
from common.evaluation.presets import key_of, record_of, run_with_state
from common.evaluation.report import _warn
from common.evaluation.state import State, digest_of
from common.files import check_writable, write_json
from common.scripts.flags import refuse_unused_restarts


def _make_trial(challenge, config, flag_values, attacked):
    """The `Trial` of one --attack on a `LoadedModel`."""
    model = suites.with_gradient(attacked.logits)
    trial = suites.named_trial(flag_values.attack, model, config, challenge, flag_values.norm)
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
    few = images.head(pitfalls.NUM_IMAGES)
    short = [pitfalls.short_steps(trial.name, trial.settings()) for trial in trials]
    warnings = [warning for warning in short if warning is not None]
    warnings += pitfalls.check_model(
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


def _check_found(result):
    """What speaks against the `Result` of one attack, as list of lines; prints it to stderr."""
    summary = result.summary()
    found = [
        pitfalls.above_natural(summary["natural_accuracy"], summary["adversarial_accuracy"]),
        *(pitfalls.undefined_gradients(done) for done in result.trials),
    ]
    warnings = [warning for warning in found if warning is not None]
    _warn(warnings)
    return warnings


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


def _write(flag_values, challenge, result, record, state):
    """Writes what is asked for, and only then removes the state."""
    if flag_values.output_json:
        write_json(flag_values.output_json, record)
    if flag_values["store_adv_path"].present:
        _store(flag_values.store_adv_path, result, challenge, record)
    if state is not None:
        state.remove()


def _store(target, result, challenge, note):
    submission.save(target, result.x_adv, challenge, note)
    print(one_line(f"Examples stored at {target}, their description at {target}.json"))
    attack = note.get("attack") or note["attacks"][0]["attack"]
    if attack.get("norm") == "l2":
        print("note: these are within an L2 ball, where run_attack.py asks for L-infinity's")
