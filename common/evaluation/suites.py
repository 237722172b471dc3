"""Attacks as trials: by name, by preset, and in suites, which run in turn on what remains.

Robust accuracy is at most the accuracy under the strongest attack. Which attack is strongest
depends on the network and on the example, so that the worst case over different attacks counts
(Carlini et al. 2019; Croce and Hein 2020).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from common import attack as attacks
from common.attack import APGD, FAB, PGD, FastModel, Square
from common.attack.gradient import as_logits, keras_model_of
from common.evaluation.results import Trial


@dataclasses.dataclass(frozen=True)
class Stage:
    """An attack of a suite.

    Attributes:
        name: its name for people.
        attack: the class, or function that makes it.
        settings: dict of its own arguments, without those that all attacks share.
        num_restarts, share: see `Trial`.
    """

    name: str
    attack: Callable
    settings: dict[str, Any]
    num_restarts: int = 1
    share: float = 1.0


def odi_pgd(model, *, epsilon, **options):
    """PGD on the margin after Output Diversified Initialisation, steps of a tenth of epsilon."""
    margin = {"loss_func": "cw", "kappa": 50.0}
    return PGD(model, epsilon=epsilon, step_size=epsilon / 10, num_steps=100, **margin, **options)


# Aims at the worst case of "standard" in a small part of the time. The attacks that break most
# examples a second come first. The late attacks are given only the examples closest to the
# boundary, as in A3 (Liu et al. 2022, "Practical evaluation of adversarial robustness via adaptive
# auto attack"). No loss changes with the scale of the logits. The numbers were tuned on MNIST's
# adv_trained and CIFAR-10's simple_adv_trained.
FAST = (
    Stage("apgd_xent", APGD, {"loss_func": "scaled_xent", "num_steps": 50}),
    Stage("apgd_targeted", APGD, {"loss_func": "targeted_dlr", "num_steps": 30}, share=0.4),
    Stage(
        "apgd_xent_restarts",
        APGD,
        {"loss_func": "scaled_xent", "num_steps": 50},
        num_restarts=6,  # the first is that of "apgd_xent"
        share=0.1,
    ),
    Stage("apgd_targeted_again", APGD, {"loss_func": "targeted_dlr"}, share=0.05),
    Stage("square", Square, {"schedule_queries": 10_000}, share=0.05),
)
# Stronger than "standard": it has its attacks with the same random numbers, and so breaks all that
# they break up to rounding; more starts and targets, and four times the queries.
STRONG = (
    Stage("apgd_xent", APGD, {"loss_func": "xent"}, num_restarts=10),
    Stage("apgd_scaled_xent", APGD, {"loss_func": "scaled_xent"}, num_restarts=10),
    Stage("apgd_targeted", APGD, {"loss_func": "targeted_dlr"}, num_restarts=3),
    Stage("odi_pgd", odi_pgd, {"odi_steps": 2}, num_restarts=20),
    Stage("square", Square, {"num_queries": 20_000, "schedule_queries": 10_000}),
    Stage("fab_targeted", FAB, {"num_search_steps": 0}),
)
STAGES = {"fast": FAST, "strong": STRONG}
ANY_MODEL = ("standard", *STAGES)  # the suites that do not depend on a challenge
SUITES = ("paper", "leaderboard", *ANY_MODEL)


def with_gradient(model):
    """Returns the same logits, with a gradient of zeros if TensorFlow has none.

    An attack with gradients refuses a model without them, such as one that rounds. In an evaluation
    it fails with a warning instead, and the attacks without gradients follow.

    Args:
        model: see `common.attack.Attack`.
    """
    if isinstance(model, FastModel):  # the challenge's own network
        return model
    known = {}  # by the shape of an image

    def has_gradient(shape):
        def trace(x):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                logits = model(x)
            known[shape] = tape.gradient(logits, x) is not None

        if shape not in known:  # traced, and never run
            images = tf.TensorSpec((None, *shape), tf.float32)
            tf.function(trace, autograph=False).get_concrete_function(images)
        return known[shape]

    network = keras_model_of(model)
    if isinstance(network, keras.Model) and has_gradient(network.input_shape[1:]):
        return model  # which attacks can run in bfloat16, unlike another function

    def logits_of(x):
        logits = as_logits(model(x), x)
        if has_gradient(tuple(x.shape[1:])):
            return logits
        return logits + 0.0 * tf.reduce_sum(x, axis=(1, 2, 3))[:, None]

    return logits_of


def named_trial(name, model, config, challenge, norm=None):
    """Returns the `Trial` of an attack by its name, with the config's settings.

    Args:
        name, model, config: see `common.attack.make_attack`.
        challenge: a `common.challenge.Challenge`.
        norm: see `common.attack.norm_of`.

    Raises:
        InputError: as `make_attack` and `Trial`.
    """
    attack = attacks.make_attack(name, model, config, challenge.bounds, norm=norm)
    num_restarts = config.num_restarts if attack.random_start else 1
    return Trial(attack, num_restarts, config.round_to_8_bits, name)


def preset_trial(name, model, config, challenge):
    """Returns the `Trial` of a challenge's preset, whose settings replace those of the config."""
    settings = {"round_to_8_bits": False, **challenge.presets[name]}
    config = dataclasses.replace(config, **settings)
    return dataclasses.replace(named_trial("pgd", model, config, challenge), name=name)


def preset_of(trial, challenge):
    """Returns the name of the challenge's first preset that has a `Trial`'s settings, or None."""
    return next((name for name in challenge.presets if is_preset(trial, challenge, name)), None)


def is_preset(trial, challenge, name):
    """Returns whether a `Trial` has the settings of a challenge's preset."""
    plain = {"name": "pgd", "norm": "linf", "odi_steps": 0, "target": None}
    settings = {**plain, **trial.settings()}
    if settings["name"] == "fgsm":  # PGD of one step, as the presets have it
        settings["name"] = "pgd"
    expected = {**plain, "num_restarts": 1, "round_to_8_bits": False, **challenge.presets[name]}
    return expected.items() <= settings.items()


def suite_trials(suite, model, config, challenge, norm=None):
    """Returns the list of `Trial` of a suite.

    Args:
        suite: "paper" or "leaderboard", the challenge's presets of that name, or one of
            `ANY_MODEL` at the config's epsilon, see `trials_of`.
        model: see `common.attack.PGD`.
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        norm: the norm of `ANY_MODEL`, "linf" (also None) or "l2"; the presets are in L-infinity.

    Raises:
        InputError: as `Trial`.
    """
    if suite in ANY_MODEL:
        return trials_of(
            suite,
            model,
            eight_bits=config.round_to_8_bits,
            epsilon=config.epsilon,
            bounds=challenge.bounds,
            norm=norm or "linf",
            jit_compile=config.jit_compile,
            precision=config.precision,
        )
    names = [name for name in challenge.presets if name.startswith(f"{suite}_")]
    return [preset_trial(name, model, config, challenge) for name in names]


def trials_of(suite, model, *, eight_bits=False, num_classes=10, **options):
    """Returns the list of `Trial` of a suite for any model.

    Args:
        suite: "standard", the standard version of AutoAttack (Croce and Hein 2020); "fast", which
            aims at the same worst case in less time; or "strong", with more starts and queries.
        model: see `common.attack.PGD`.
        eight_bits: see `Trial`.
        num_classes: the model's number of classes, see `common.attack.fitting`.
        **options: epsilon, bounds, norm, jit_compile and precision, see `common.attack.Attack`.

    Raises:
        InputError: as the attacks and `Trial`.
    """
    if suite == "standard":
        named = attacks.standard_suite(model, num_classes=num_classes, **options)
        return [Trial(attack, 1, eight_bits, name) for name, attack in named]
    fitted = [(stage, attacks.fitting(stage.settings, num_classes)) for stage in STAGES[suite]]
    return [
        Trial(
            stage.attack(model, **settings, **options),
            stage.num_restarts,
            eight_bits,
            stage.name,
            stage.share,
        )
        for stage, settings in fitted
        if settings is not None
    ]
