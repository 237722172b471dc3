"""The model and the images that a config names for an evaluation, and what identifies them."""

import pathlib

from common.config import read_json
from common.errors import one_line
from common.messages import tell
from common.provenance import provenance


def model_path(config, challenge):
    """Returns the configured model's path, or the shipped model's if there is nothing at config's.

    The shipped model replaces only config.json's own; a message says so.
    """
    own = challenge.directory / read_json(challenge.directory / "config.json")["model_dir"]
    shipped = challenge.directory / "models" / challenge.shipped
    if pathlib.Path(config.model_dir) == own and not own.exists() and shipped.exists():
        tell(f"no model of your own in {own}: taking the shipped {challenge.shipped}")
        return shipped
    return config.model_dir


def load_test_images(config, challenge):
    """Returns the first `num_eval_examples` test images, or sample images; a message says which."""
    images = challenge.load("test", data_dir=config.data_dir, allow_sample=True)
    images = images.head(config.num_eval_examples)
    tell(images.source)
    return images


def line_of(loaded):
    """Returns a `LoadedModel` in words: its path, and its step if it is a checkpoint."""
    return one_line(f"{loaded.path}" + ("" if loaded.step is None else f", step {loaded.step}"))


def key_of(config, loaded, images, trials, source=None, each_alone=None, fixed_batches=False):
    """Returns what decides the result of `trials`, as a `State`'s key.

    Args:
        config: the challenge's config.
        loaded: the `LoadedModel` under evaluation.
        images: the `common.data.Split` to evaluate on.
        trials: list of `Trial`.
        source: the `LoadedModel` that is attacked in its place, or None.
        each_alone: see `Evaluator`, for several attacks in turn; None for one attack, or none.
        fixed_batches: see `Evaluator`.
    """
    settings = [trial.settings() for trial in trials]
    if each_alone is None:
        what = {"attack": settings[0] if settings else None}
    else:
        named = zip(trials, settings, strict=True)
        attacks = [{"name": trial.name, "attack": own} for trial, own in named]
        what = {"attacks": attacks, "each_alone": each_alone}
    return {
        "model_digest": loaded.digest(),
        **({} if source is None else {"source_digest": source.digest()}),
        "seed": config.random_seed,
        "data_sha256": images.digest(),
        "num_examples": len(images.images),
        **({"fixed_batches": config.eval_batch_size} if fixed_batches else {}),
        **what,
    }


def record_of(config, loaded, images, source=None):
    """Returns what was evaluated and on what, as a dict for JSON; arguments as in `key_of`."""
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
