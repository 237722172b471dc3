"""The flags that scripts share, and the config that a command line asks for."""

import dataclasses
import json
import pathlib

from absl import flags

from common import files
from common.attack import ATTACKS
from common.attack.ball import NORMS
from common.attack.registry import maker, norm_of
from common.config import make_config, path, path_or_null, read_json
from common.errors import InputError


def split(names):
    """The names in a text that has commas between them."""
    return [name.strip() for name in names.split(",")]


def define_config_flags(challenge, flag_values):
    """Declares --config and a flag for every key of the challenge's config."""
    own = read_json(challenge.directory / "config.json")
    define_path("config", None, "config file, ours or an original's", flag_values)
    for field in dataclasses.fields(challenge.config_class):
        text = f"{field.metadata['help']} (default: {json.dumps(own[field.name])})"
        if isinstance(own[field.name], bool):
            flags.DEFINE_bool(field.name, None, text, flag_values)
        elif field.metadata["parse"] in (path, path_or_null):
            define_path(field.name, None, text, flag_values)
        else:
            flags.DEFINE_string(field.name, None, text, flag_values)


class _PathParser(flags.ArgumentParser):
    """Parses a flag's path as a config file's are."""

    syntactic_help = "a path, in which a leading ~ is the home directory"

    def parse(self, argument):
        """The path, or ValueError."""
        return files.expand_path(argument)


def define_path(name, default, help, flag_values=flags.FLAGS):
    """Declares a flag that is a path; see `files.expand_path`."""
    flags.DEFINE(_PathParser(), name, default, help, flag_values, flags.ArgumentSerializer())


def config_from_flags(challenge, flag_values):
    """The config that the command line asks for.

    A relative model_dir or data_dir of a flag is relative to the working directory, one of a config
    file to that file.

    Raises:
        InputError: as `make_config`; an unknown preset or attack; attacks of different norms, so
            that there is no worst case over them; an L2 ball without a radius of its own.
    """
    layers = []
    places = dict.fromkeys(("model_dir", "data_dir"), challenge.directory)
    if flag_values.config is not None:
        values = read_json(flag_values.config)
        layers.append((flag_values.config, values))
        parent = pathlib.Path(flag_values.config).parent
        places.update((name, parent) for name in places if name in values)
    if "preset" in flag_values and flag_values.preset is not None:
        if flag_values.preset not in challenge.presets:
            raise InputError(
                f"--preset: expected one of {', '.join(challenge.presets)}, "
                f"got {flag_values.preset!r}"
            )
        layers.append((f"--preset={flag_values.preset}", challenge.presets[flag_values.preset]))
    names = [field.name for field in dataclasses.fields(challenge.config_class)]
    given = {name: flag_values[name].value for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    layers.append(("command line", given))
    norm = _norm(flag_values, layers)
    config = make_config(challenge, *layers, norm=norm)
    for name, place in places.items():
        path = getattr(config, name)
        if name not in given and path is not None:  # one that began with ~ is absolute by now
            config = dataclasses.replace(config, **{name: str(place / path)})
    return config


def _norm(flag_values, layers):
    """The norm that --attack and --norm ask for; `layers` are the settings that are given."""
    if "attack" not in flag_values:
        return "linf"
    asked = flag_values.norm if "norm" in flag_values else None
    try:
        norms = sorted({norm_of(name, asked) for name in split(flag_values.attack)})
    except InputError as error:  # names the argument, which here is a flag
        raise InputError(f"--{error}") from None
    if len(norms) > 1:
        raise InputError(f"--attack: expected attacks of one norm, got {' and '.join(norms)}")
    norm = norms[0]
    if norm == "l2" and "norm" in flag_values:  # elsewhere a figure has its own radii
        if flag_values.preset is not None:
            raise InputError(
                "--preset: expected none in L2, as the published rows are L-infinity's"
            )
        if not any("epsilon" in values for _, values in layers):
            raise InputError("--epsilon: expected a radius in L2, as config.json's is L-infinity's")
    return norm


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
