"""The flags that scripts share, their --help, and the config that a command line asks for."""

import dataclasses
import inspect
import json
import pathlib

from absl import flags

from common import files
from common.attack import ATTACKS
from common.attack.ball import NORMS
from common.attack.registry import maker, norm_of
from common.config import GROUPS, make_config, path, path_or_null, read_json
from common.errors import InputError

MODEL, ATTACK, EVALUATION, TRAINING = GROUPS.values()  # for `define_path` and absl's module_name
_OWN = "This script"  # the heading of a script's other flags in --help


def split(names):
    """Returns the names in a text that separates them by commas."""
    return [name.strip() for name in names.split(",")]


class _SettingParser(flags.ArgumentParser):
    """Takes the text of a setting, which the config parses.

    Args:
        form: what --help shows behind the flag.
    """

    def __init__(self, form):
        self.form = form


class _PathParser(_SettingParser):
    """Parses a flag's path as a config file's are."""

    def __init__(self):
        super().__init__("PATH")

    def parse(self, argument):
        """Returns the path; raises ValueError if it cannot be one."""
        return files.expand_path(argument)


def define_path(name, default, help, flag_values=flags.FLAGS, group=_OWN):
    """Declares a flag that is a path; see `files.expand_path`. --help lists it under `group`."""
    serializer = flags.ArgumentSerializer()
    flags.DEFINE(_PathParser(), name, default, help, flag_values, serializer, module_name=group)


def define_flags(challenge, flag_values, uses=None):
    """Declares --config, and a flag for every setting that a script uses.

    Args:
        challenge: a `common.challenge.Challenge`.
        flag_values: absl's FlagValues.
        uses: the kinds of work that the script does, see `common.config.key`; None declares every
            setting.
    """
    own = read_json(challenge.directory / "config.json")
    text = "config file, ours or an original's, which may hold the settings of every script"
    define_path("config", None, text, flag_values, MODEL)
    for field in dataclasses.fields(challenge.config_class):
        name, setting = field.name, field.metadata
        if uses is not None and not set(uses) & set(setting["used_by"]):
            continue
        text = f"{setting['help']} (default: {json.dumps(own[name])})"
        group, parse = GROUPS[setting["group"]], setting["parse"]
        if isinstance(own[name], bool):
            flags.DEFINE_bool(name, None, text, flag_values, module_name=group)
        elif parse in (path, path_or_null):
            define_path(name, None, text, flag_values, group)
        else:
            parser, serializer = _SettingParser(parse.form), flags.ArgumentSerializer()
            flags.DEFINE(parser, name, None, text, flag_values, serializer, module_name=group)


def help_text(flag_values, script, description):
    """Returns what --help shows: the script's description, and its flags in groups.

    Args:
        flag_values: absl's FlagValues.
        script: path of the script, under which absl keeps the flags that it declares itself.
        description: the script's docstring.
    """
    lines = [inspect.cleandoc(description or "")]
    declared = flag_values.flags_by_module_dict()
    for group in (*GROUPS.values(), _OWN):
        # A script and the modules that it calls may declare flags without a group.
        modules = [group] if group != _OWN else [group, script, "__main__", *_own_modules(declared)]
        found = [flag for module in modules for flag in declared.get(module, ())]
        found = [flag for flag in found if flag.name != "help"]
        lines += ["", f"{group}:"] * bool(found)
        for flag in found:
            default = "" if flag.default in (None, False, []) else f" (default: {_as_text(flag)})"
            text = flag.help.partition(">: ")[2] if flag.help.startswith("<") else flag.help
            lines.append(f"  {_form(flag)}")
            lines.append(flags.text_wrap(text + default, 100, " " * 6))
    return "\n".join([*lines, "", "--helpfull shows absl's and TensorFlow's flags, too."])


def _own_modules(declared):
    return [name for name in declared if name.startswith(("common.", "paper.", "benchmarks."))]


def _as_text(flag):
    value = flag.default
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _form(flag):
    """Returns a flag as a command line has it, such as --num_steps=N."""
    if flag.boolean:
        return f"--[no]{flag.name}"
    forms = {flags.ListParser: "A,B,...", flags.IntegerParser: "N", flags.FloatParser: "X"}
    parser = flag.parser
    if isinstance(parser, flags.EnumParser):
        form = "|".join(parser.enum_values)
    elif isinstance(parser, _SettingParser):
        form = parser.form
    else:
        form = next((form for kind, form in forms.items() if isinstance(parser, kind)), "TEXT")
    return f"--{flag.name}={form}"


def config_from_flags(challenge, flag_values):
    """Returns the config that the command line asks for.

    A relative model_dir or data_dir of a flag is relative to the working directory, one of a config
    file to that file.

    Raises:
        InputError: as `make_config`; a preset or attack is unknown; the attacks have different
            norms, so that there is no worst case over them; an L2 ball has no radius of its own.
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
    given = {name: flag_values[name].value for name in names if name in flag_values}
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
    """Returns the norm that --attack and --norm ask for; `layers` are the given settings."""
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
        "preset",
        None,
        f"settings of a published row, one of {', '.join(challenge.presets)}",
        flag_values,
        module_name=ATTACK,
    )
    flags.DEFINE_string(
        "attack",
        "pgd",
        f"one of {', '.join(ATTACKS)}; eval.py takes several with commas between them",
        flag_values,
        module_name=ATTACK,
    )
    flags.DEFINE_enum(
        "norm",
        None,
        NORMS,
        "the ball's norm, for --attack and the suites standard, fast and strong (default: linf, "
        "but l2 for pgd_l2 and boundary); l2 wants an --epsilon and, for pgd, a --step_size",
        flag_values=flag_values,
        module_name=ATTACK,
    )


def refuse_unused_settings(flag_values):
    """Raises InputError if the command line has settings that none of --attack takes."""
    taken = [setting for name in split(flag_values.attack) for setting in maker(name).settings]
    if not taken and "preset" in flag_values and flag_values.preset is not None:
        raise InputError(f"--preset: expected none, as --attack={flag_values.attack} takes none")
    refuse_attack_settings(
        flag_values,
        f"--attack={flag_values.attack} does not take it",
        (*taken, "norm", "epsilon", "num_restarts", "round_to_8_bits"),
    )


def refuse_unused_restarts(flag_values, trials):
    """Raises InputError if the command line asks for restarts that would all be the same."""
    given = int(flag_values.num_restarts or 1)
    if given > 1 and not any(trial.attack.random_start for trial in trials):
        raise InputError(
            f"--num_restarts: expected 1, as --attack={flag_values.attack} always finds the same, "
            f"got {given}"
        )


def refuse_attack_settings(flag_values, reason, allowed=()):
    """Raises InputError if the command line has settings of an attack other than `allowed`."""
    for name in ATTACK_SETTINGS:
        if name in flag_values and flag_values[name].present and name not in allowed:
            raise InputError(f"--{name}: expected none, as {reason}, got {flag_values[name].value}")
