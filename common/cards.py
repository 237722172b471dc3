"""Model cards: what a network was trained on and how, and its accuracy under published attacks.

A shipped model is a directory with a SavedModel, its card.json and a README.md made from the card,
all written by export_model.py. The card holds the accuracy under the challenge's `card_rows`, each
with its attack, number of images, time, hardware and commit. The README of a robust model also
lists the leaderboard beside it, see `common.leaderboard`.
"""

import json
import os
import pathlib
import shlex

import numpy as np

from common import checkpoints, json_shapes, leaderboard
from common.attack import is_misclassified
from common.attack.precision import without_tf32
from common.config import NOT_OF_TRAINING, parsed, read_json
from common.errors import InputError, one_line
from common.files import write_atomically, write_json
from common.json_shapes import BOOL, COUNT, INTEGER, NUMBER, TEXT, Nullable, Optional
from common.provenance import machine
from common.training import runs, validation

CARD = "card.json"
# The meaning of `config.adversary`, in words.
TRAINING = {
    "pgd": "trained against PGD",
    "fgsm": "trained against FGSM",
    "none": "trained on natural images",
}
# The shapes of those parts of a card that code reads.
_CONFIG = {
    "adversary": json_shapes.one_of(TRAINING),
    "training_batch_size": COUNT,
    "random_seed": INTEGER,
    "epsilon": NUMBER,
}
_RUN = {
    "command": TEXT,
    "commit": Nullable(TEXT),
    "hardware": {"processor": TEXT, "cores": Nullable(COUNT), "gpus": [TEXT]},
    "versions": {"tensorflow": TEXT},
    "data": TEXT,
    "seconds": NUMBER,
    "peak_memory_gib": Optional(NUMBER),
}
_ATTACK = {
    "loss_func": TEXT,
    "kappa": Optional(NUMBER),
    "num_steps": COUNT,
    "step_size": NUMBER,
    "random_start": BOOL,
    "num_restarts": COUNT,
    "precision": Optional(TEXT),
}
# Suites of attacks in words.
SUITES = {
    "standard": "standard suite: AutoAttack's four attacks",
    "fast": "fast suite",
    "strong": "strong suite",
}
# Points that the standard suite may leave below PGD, and Square below the attacks by gradients.
_MOST_BELOW_PGD, _MOST_BY_SQUARE = 3, 2
SHAPE = {
    "name": TEXT,
    "parameters": COUNT,
    "weights_digest": TEXT,
    "is_rounded": Optional(BOOL),
    "training": {
        "data": TEXT,
        "config": _CONFIG,
        "steps": COUNT,
        "seconds": NUMBER,
        "runs": [_RUN, ...],
        "validation": [
            {"seconds": NUMBER, "natural_accuracy": NUMBER, "adversarial_accuracy": NUMBER}
        ],
    },
    "results": [
        {
            "row": TEXT,
            "source": Nullable(TEXT),
            "source_digest": Optional(TEXT),
            "source_adversary": Optional(TEXT),
            "num_examples": COUNT,
            "accuracy": NUMBER,
            "attack": Nullable(_ATTACK),  # None of natural images and of a suite
            # Of a suite.
            "attacks": Optional([{"name": TEXT, "attack": {}, "accuracy": Optional(NUMBER)}]),
            "seconds": NUMBER,
        }
    ],
}


def load_source(challenge, name):
    """Returns the card of a shipped model, and its `LoadedModel`.

    Raises:
        InputError: there is no such model, or its card is missing, damaged or a fetched model's.
    """
    path = checkpoints.find_model(challenge, name)
    card = find_card(path)
    if card is None:
        raise InputError(f"--sources: expected models with a {CARD} of export_model.py, got {path}")
    return card, checkpoints.load_model(challenge, path)


@without_tf32()
def describe(challenge, training, loaded):
    """Returns the part of a card about the network and its training.

    Raises:
        InputError: one of the training's records is damaged.
    """
    own_runs = runs_of(training)
    config = json_shapes.read(training / "config.json", _CONFIG)
    parameters = int(sum(np.prod(weight.shape) for weight in loaded.model.trainable_weights))
    sample = challenge.load("sample")
    logits = loaded.logits(challenge.to_pixels(sample.images))
    accuracy = 100 * float(np.mean(~is_misclassified(logits, sample.labels)))
    return {
        "challenge": challenge.name,
        "parameters": parameters,
        "weights_digest": loaded.digest(),
        "training": {
            "data": own_runs[-1]["data"],
            "config": config,
            "steps": loaded.step,
            "seconds": round(sum(run["seconds"] for run in own_runs), 1),
            "runs": own_runs,
            "validation": validation.read(training),
        },
        "sample": {"natural_accuracy": accuracy, "num_examples": len(sample.images)},
    }


def read(challenge, name):
    """Returns the card of a shipped model, as a dict.

    Raises:
        InputError: there is no card, or it is damaged.
    """
    return read_from(challenge.directory / "models" / name)


def read_from(directory):
    """Returns the card in a model's directory, as a dict.

    Raises:
        InputError: there is no card, or it is damaged.
    """
    return json_shapes.read(pathlib.Path(directory) / CARD, SHAPE)


def write(challenge, directory, card):
    """Writes card.json and README.md."""
    boards = find_boards(directory)
    write_json(directory / CARD, card)
    write_atomically(directory / "README.md", readme(challenge, card, boards).encode())


def find_boards(directory):
    """Returns the leaderboards in a model's directory, see `leaderboard.read_boards`; {} if none.

    Raises:
        InputError: the file is damaged.
    """
    path = pathlib.Path(directory) / leaderboard.BOARD
    return leaderboard.read_boards(path) if os.path.lexists(path) else {}


def find(card, row, source=None):
    """Returns the card's result of a row, or None."""
    for entry in card["results"]:
        if (entry["row"], entry["source"]) == (row, source):
            return entry
    return None


def readme(challenge, card, boards=None):
    """Returns a model's README, as Markdown; `boards` are from `find_boards`."""
    training = card["training"]
    config, run = training["config"], training["runs"][-1]
    shape = ", ".join(str(n) for n in ("batch", *challenge.image_shape))
    low, high = challenge.bounds
    minutes = training["seconds"] / 60
    commands = dict.fromkeys(run["command"] for run in training["runs"])
    lines = [
        f"# {_shown(card['name'])}",
        "",
        f"{_shown(challenge.described(config))} ({card['parameters']:,} parameters), "
        f"{TRAINING[config['adversary']]}, on: {_shown(training['data'])}. "
        f"{'Weights' if card.get('is_rounded') else 'A SavedModel'}: "
        f"{'' if card.get('is_rounded') else 'signature `serving_default`, '}"
        f"input `image` (float32, ({shape}), pixels in [{low:g}, {high:g}]), "
        "output `logits` (float32, (batch, 10)).",
        "",
        *_loading_lines(challenge, card),
        "",
        "```",
        *(f"python {_command(command)}" for command in commands),
        "```",
        "",
        f"{training['steps']:,} steps of {config['training_batch_size']} images in {minutes:.0f} "
        f"minutes on {_machine(run)}{_memory(training['runs'])}; seed {config['random_seed']}, "
        f"commit `{_shown(str(run['commit']))}`. [{CARD}]({CARD}) has all settings and results.",
        "",
        f"This is a recipe for a {'GPU' if run['hardware']['gpus'] else 'CPU'}. It differs from "
        f"the paper's, [config.json](../../config.json), in: {_differences(challenge, config)}.",
        "",
        f"Accuracy in percent on the first images of the {challenge.name} test set:",
        "",
        *table(challenge, card),
        "",
        f"Attacks have epsilon {challenge.epsilon:g}. {_rounded_attacks(card)}An example counts "
        'as correct if it withstands every restart. "paper" is the paper\'s number for a network '
        'trained in the same way, "leaderboard" the original challenge\'s for its secret network '
        "under the same attack.",
        "",
        *hidden_gradients(card),
        *_board_lines(boards or {}),
    ]
    return "\n".join(lines)


def _loading_lines(challenge, card):
    """Returns lines of Markdown on loading the model; the last one introduces its training."""
    trained = "The network was trained by this command, at the commit below:"
    name = json.dumps(_shown(card["name"]))
    if card.get("is_rounded"):
        package = challenge.directory.name
        constant = challenge.name.replace("-", "")
        return [
            "The kernels are rounded to bfloat16, and every number below is of the rounded "
            "network. `--model_dir` takes this directory. These lines convert it to a SavedModel:",
            "",
            "```python",
            "from common.checkpoints import export, load_keras_model",
            f"from {package}.challenge import {constant}",
            "",
            f'export(load_keras_model({constant}, {name}), "saved_model")  # its path',
            "```",
            "",
            trained,
        ]
    return [
        "```python",
        f"model = tf.saved_model.load({name})  # this directory's path",
        f"x = tf.ensure_shape(x, {(None, *challenge.image_shape)})  # float32",
        'logits = model.signatures["serving_default"](image=x)["logits"]',
        "```",
        "",
        f"TensorFlow does not check the shape itself; a wrong one may crash Python. {trained}",
    ]


def _board_lines(boards):
    if not boards:
        return []
    lines = [
        "## Leaderboard",
        "",
        f"Accuracy in percent on the first images of the test set; lower is better. "
        f"[{leaderboard.BOARD}]({leaderboard.BOARD}) has each entry's command, or its file's "
        "sha256. [How to hand one in](../../README.md#hand-in-an-attack).",
        "",
        "| board | attack | by | accuracy | images | date |",
        "|---|---|---|---|---|---|",
    ]
    for board, entries in sorted(boards.items()):
        for entry in entries:
            lines.append(
                f"| {_cell(board)} | {_cell(entry.attack)} | {_cell(entry.submitted_by)} | "
                f"{entry.accuracy:.2f} | {entry.num_examples:,} | {_cell(entry.date)} |"
            )
    return [*lines, ""]


def published(challenge, row, path, source_path=None):
    """Returns the published numbers beside a model's own: {"paper": 91.8, "leaderboard": 92.52}.

    Args:
        challenge: a `common.challenge.Challenge`.
        row: "natural", or a preset of the challenge; None, as for another attack, has no numbers.
        path: the model's path; its card or config.json says how it was trained.
        source_path: the path of the model that the examples are made on; None for the same model.

    Returns:
        dict, without a number that is not published, or if it is not known how the model was
        trained.
    """
    settings = _training_settings(path)
    entry = {"row": row, "source": None, "source_adversary": None}
    if source_path is not None:
        source = _training_settings(source_path)
        entry.update(source="another", source_adversary=source and source["adversary"])
    if settings is None or (entry["source"] and entry["source_adversary"] is None):
        return {}
    numbers = {
        "paper": paper_accuracy(challenge, settings, entry),
        "leaderboard": leaderboard_accuracy(challenge, settings, entry),
    }
    return {where: number for where, number in numbers.items() if number != ""}


def _training_settings(path):
    """Returns the config that a model was trained with, or None if that is not known."""
    try:
        card = find_card(path)
        if card is not None:
            return card["training"]["config"]
        return json_shapes.read(path / "config.json", {"adversary": json_shapes.one_of(TRAINING)})
    except InputError:
        return None


def _differences(challenge, config):
    """Returns the settings in which a training differs from config.json, in words."""
    of_evaluation = NOT_OF_TRAINING - {"max_num_training_steps"}
    papers = read_json(challenge.directory / "config.json")
    own, of_paper = parsed(challenge, config), parsed(challenge, papers)
    differences = [
        f"`{name}` {json.dumps(config[name])} ({json.dumps(value)})"
        for name, value in papers.items()
        if name in config
        and name not in of_evaluation
        and own[name] != of_paper[name]
        # The machine may decide the precision; float32 is the paper's.
        and (name, own[name]) != ("precision", "float32")
    ]
    return ", ".join(differences) or "nothing"


def table(challenge, card):
    """Returns the table of a card's results, as lines of Markdown."""
    settings = card["training"]["config"]
    lines = [
        "| attack | made on | accuracy | paper | leaderboard | images | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in card["results"]:
        is_natural = entry["row"] == "natural"
        white_box = "" if is_natural else "itself"
        lines.append(
            f"| {_title(entry)} | {_cell(entry['source'] or white_box)} | "
            f"{entry['accuracy']:.2f} | {paper_accuracy(challenge, settings, entry)} | "
            f"{leaderboard_accuracy(challenge, settings, entry)} | {entry['num_examples']:,} | "
            f"{_duration(entry['seconds'])} |"
        )
    return lines


def hidden_gradients(card):
    """Returns lines of Markdown on whether a network hides its gradient from attacks, or none.

    It needs the standard suite's row, and PGD's on as many images. A network whose gradients are
    hidden withstands PGD, but neither the suite nor Square, which sees no gradient.
    """
    suite, pgd = find(card, "standard"), None
    left = [one.get("accuracy") for one in suite.get("attacks", ())] if suite else []
    for entry in card["results"]:
        is_pgd = entry["attack"] is not None and entry["source"] is None
        if suite and is_pgd and entry["num_examples"] == suite["num_examples"]:
            pgd = entry if pgd is None else min(pgd, entry, key=lambda one: one["accuracy"])
    if pgd is None or len(left) < 2 or None in left:  # an earlier version did not keep them
        return []
    below, by_square = pgd["accuracy"] - suite["accuracy"], left[-2] - left[-1]
    is_hidden = below > _MOST_BELOW_PGD or by_square > _MOST_BY_SQUARE
    sign = "This network may hide its gradient" if is_hidden else "No sign of a hidden gradient"
    return [
        f"The standard suite's accuracy is {abs(below):.2f} points "
        f"{'below' if below >= 0 else 'above'} that of {_title(pgd)}. Its last attack, Square, "
        f"which sees no gradient, breaks {by_square:.2f}% that its other attacks left. **{sign}** "
        f"(this project's limits: {_MOST_BELOW_PGD} points and {_MOST_BY_SQUARE}%).",
        "",
    ]


def _rounded_attacks(card):
    """A sentence on the rows whose gradients are bfloat16's, or ""."""
    attacks = [entry for entry in card["results"] if entry["row"] != "natural"]
    count = sum(precision_of(entry) == "bfloat16" for entry in attacks)
    if not count:
        return ""
    which = "Their" if count == len(attacks) else f"In {count} of {len(attacks)} rows their"
    return f"{which} gradients are computed in bfloat16, and float32 decides. "


def paper_accuracy(challenge, settings, entry):
    """Returns the paper's number for a result of a network trained with `settings`, or ""."""
    try:
        numbers = challenge.paper(settings)
    except (KeyError, TypeError, ValueError):  # a network that is not the paper's
        return ""
    return numbers.get((entry["row"], entry.get("source_adversary")), "")


def leaderboard_accuracy(challenge, settings, entry):
    """Returns the original leaderboard's number under the same attack, or "".

    The leaderboard's network is robust; other networks have no number.
    """
    if settings["adversary"] != "pgd" or entry["source"]:
        return ""
    same = challenge.presets.get(entry["row"])
    for name, accuracy in challenge.published.items():
        if name == entry["row"] or (same is not None and challenge.presets.get(name) == same):
            return accuracy
    return ""


def title(settings):
    """Returns an attack's settings in the words of the paper's tables: "CW+, 40 steps of 0.01"."""
    if settings is None:
        return "none: natural images"
    is_cw = settings["loss_func"] == "cw"
    name = ("CW+" if settings.get("kappa") else "CW") if is_cw else ""
    if settings["num_steps"] == 1:
        start = " from a random start" if settings["random_start"] else ""
        return f"FGSM{start}" + (f" on the {name} loss" if name else "")
    text = f"{name or 'PGD'}, {settings['num_steps']} steps of {settings['step_size']:g}"
    restarts = settings.get("num_restarts", 1)
    return text + (f", {restarts} restarts" if restarts > 1 else "")


def precision_of(entry):
    """Returns the arithmetic of a result's attacks, "float32" or "bfloat16"."""
    of_suite = [named["attack"] for named in entry.get("attacks", ())]
    return (entry["attack"] or next(iter(of_suite), {})).get("precision", "float32")


def _title(entry):
    return SUITES.get(entry["row"]) or title(entry["attack"])


def full_title(entry):
    """Returns a result's attack in words, with the source's name in a transfer."""
    text = _title(entry)
    return f"{text}, made on {_shown(entry['source'])}" if entry["source"] else text


def find_card(directory):
    """Returns the card in a directory, or None if there is none or it is a fetched model's.

    Raises:
        InputError: the card is damaged.
    """
    path = directory / CARD
    if not os.path.lexists(path):
        return None
    is_fetched = "archive" in json_shapes.read(path, {})
    return None if is_fetched else read_from(directory)


def runs_of(training):
    """Returns the entries of runs.json, as a card holds them.

    Raises:
        InputError: the file is damaged.
    """
    own_runs = runs.read(training)
    json_shapes.check(own_runs, [_RUN], training / runs.FILE)
    return own_runs


def _shown(text):
    """Returns a file's text as it can stand in a line of ours."""
    return text if text.isprintable() else one_line(text)


def _memory(runs):
    found = [run["peak_memory_gib"] for run in runs if "peak_memory_gib" in run]
    return f", peak memory {max(found):.1f} GiB" if found else ""


def _machine(run):
    return _shown(f"{machine(run['hardware'])}, TensorFlow {run['versions']['tensorflow']}")


def _command(command):
    """Returns a run's command, quoted for a shell."""
    try:
        words = shlex.split(command)
    except ValueError:  # an unbalanced quotation mark
        words = [command]
    return shlex.join(map(_shown, words))


def _cell(text):
    """Returns a file's text as a cell of a table."""
    return _shown(text).replace("|", "\\|")


def _duration(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
