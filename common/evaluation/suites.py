"""Suites of attacks, run in turn on what still stands, and the table of what they did.

Robust accuracy is at most what the strongest attack leaves, and which one that is depends on the
network and on the example; so the number that counts is the worst case over different attacks
(Carlini et al. 2019; Croce and Hein 2020).
"""

import dataclasses

import tensorflow as tf

from common import attack as attacks
from common.attack import FastModel
from common.attack.gradient import as_logits
from common.errors import InputError
from common.evaluation.results import Trial

SUITES = ("paper", "leaderboard", "standard")


def with_gradient(model):
    """The same logits, with a gradient of zeros for the images where TensorFlow knows none.

    It knows none of rounding, say, and an attack by gradients refuses such a model; in an
    evaluation it finds nothing, which is warned of, and leaves the model to the attacks that need
    none.

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

    def logits_of(x):
        logits = as_logits(model(x), x)
        if has_gradient(tuple(x.shape[1:])):
            return logits
        return logits + 0.0 * tf.reduce_sum(x, axis=(1, 2, 3))[:, None]

    return logits_of


def named_trial(name, model, config, challenge, norm=None):
    """The `Trial` of an attack by its name, with the config's settings.

    Args:
        name, model, config: see `common.attack.make_attack`.
        challenge: a `common.challenge.Challenge`.
        norm: see `common.attack.norm_of`.

    Raises:
        InputError: as `make_attack`; rounding is asked for, which is L-infinity's, in L2.
    """
    attack = attacks.make_attack(name, model, config, challenge.bounds, norm=norm)
    return _trial(attack, config, name, config.num_restarts if attack.random_start else 1)


def _trial(attack, config, name, num_restarts=1):
    if config.round_to_8_bits and attack.norm != "linf":
        raise InputError(f"--round_to_8_bits: expected an attack in L-infinity, got {name} in L2")
    return Trial(attack, num_restarts, config.round_to_8_bits, name)


def named_trials(names, model, config, challenge, norm=None):
    """The list of `named_trial` of attacks by their names, apart by commas, for one worst case.

    Raises:
        InputError: as `named_trial`.
    """
    names = [name.strip() for name in names.split(",")]
    return [named_trial(name, model, config, challenge, norm) for name in names]


def preset_trial(name, model, config, challenge):
    """The `Trial` of a challenge's preset, whose settings replace those of the config."""
    settings = {"round_to_8_bits": False, **challenge.presets[name]}
    config = dataclasses.replace(config, **settings)
    return dataclasses.replace(named_trial("pgd", model, config, challenge), name=name)


def suite_trials(suite, model, config, challenge, norm=None):
    """The list of `Trial` of a suite.

    Args:
        suite: "paper" or "leaderboard", the challenge's presets of that name, or "standard": the
            standard version of AutoAttack (Croce and Hein 2020) at the config's epsilon.
        model: see `common.attack.PGD`.
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        norm: of the ball of "standard", "linf" (also None) or "l2"; the presets are in L-infinity.

    Raises:
        InputError: rounding is asked for, which is L-infinity's, in L2.
    """
    if suite == "standard":
        named = attacks.standard_suite(
            model, config.epsilon, challenge.bounds, norm or "linf", config.jit_compile
        )
        return [_trial(attack, config, name) for name, attack in named]
    names = [name for name in challenge.presets if name.startswith(f"{suite}_")]
    return [preset_trial(name, model, config, challenge) for name in names]
