"""Attacks as trials: by name, by preset, and in suites that run in turn on what still stands.

Robust accuracy is at most what the strongest attack leaves. Which attack that is depends on the
network and on the example, and therefore the worst case over different attacks is what counts
(Carlini et al. 2019; Croce and Hein 2020).
"""

import dataclasses

import keras
import tensorflow as tf

from common import attack as attacks
from common.attack import FastModel
from common.attack.gradient import as_logits, keras_model_of
from common.evaluation.results import Trial

SUITES = ("paper", "leaderboard", "standard")


def with_gradient(model):
    """Returns the same logits, with a gradient of zeros if TensorFlow knows no gradient.

    TensorFlow has no gradient of rounding, for example, and an attack by gradients refuses such a
    model. In an evaluation it finds nothing instead, with a warning, and the attacks without
    gradients follow.

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
        suite: "paper" or "leaderboard", the challenge's presets of that name, or "standard": the
            standard version of AutoAttack (Croce and Hein 2020) at the config's epsilon.
        model: see `common.attack.PGD`.
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        norm: the norm of "standard", "linf" (also None) or "l2"; the presets are in L-infinity.

    Raises:
        InputError: as `Trial`.
    """
    if suite == "standard":
        named = attacks.standard_suite(
            model,
            config.epsilon,
            challenge.bounds,
            norm or "linf",
            config.jit_compile,
            config.precision,
        )
        return [Trial(attack, 1, config.round_to_8_bits, name) for name, attack in named]
    names = [name for name in challenge.presets if name.startswith(f"{suite}_")]
    return [preset_trial(name, model, config, challenge) for name in names]
