"""Model cards: what export_model.py does, in both challenges.

A shipped model is a directory with a SavedModel, its card.json and a README.md made from that. The
card says what the network was trained on and how, and holds its accuracy under the challenge's
`card_rows`, each with attack, number of images, time, hardware and commit.
"""

import json
import os
import pathlib
import shlex

import numpy as np

from common import checkpoints, json_shapes
from common.attack import is_misclassified
from common.config import NOT_OF_TRAINING, read_json
from common.errors import InputError, one_line
from common.files import write_atomically, write_json
from common.json_shapes import BOOL, COUNT, INTEGER, NUMBER, TEXT, Nullable, Optional
from common.training import runs, validation

CARD = "card.json"
# What `config.adversary` means, in words.
TRAINING = {
    "pgd": "trained against PGD",
    "fgsm": "trained against FGSM",
    "none": "trained on natural images",
}
# The shapes of what a card holds and its readers rely on.
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
}
_ATTACK = {
    "loss_func": TEXT,
    "kappa": Optional(NUMBER),
    "num_steps": COUNT,
    "step_size": NUMBER,
    "random_start": BOOL,
    "num_restarts": COUNT,
}
_SHAPE = {
    "name": TEXT,
    "parameters": COUNT,
    "weights_digest": TEXT,
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
            "attack": Nullable(_ATTACK),
            "seconds": NUMBER,
        }
    ],
}


def load_source(challenge, name):
    """The card of a shipped model and its `LoadedModel`.

    Raises:
        InputError: there is no such model, or it has no card of `export_model`, or a damaged one.
    """
    path = checkpoints.find_model(challenge, name)
    card = _read_card(path)
    if card is None:
        raise InputError(f"--sources: expected models with a {CARD} of export_model.py, got {path}")
    return card, checkpoints.load_model(challenge, path)


def describe(challenge, training, loaded):
    """The part of a card that tells what the network is and how it was trained.

    Raises:
        InputError: one of the training's records is damaged.
    """
    own_runs = _runs_of(training)
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
    """The card of a shipped model, as a dict.

    Raises:
        InputError: it has none, or one that is damaged.
    """
    return read_from(challenge.directory / "models" / name)


def read_from(directory):
    """The card in the directory of a model, as a dict.

    Raises:
        InputError: there is none, or one that is damaged.
    """
    return json_shapes.read(pathlib.Path(directory) / CARD, _SHAPE)


def write(challenge, directory, card):
    """Writes card.json and README.md."""
    write_json(directory / CARD, card)
    write_atomically(directory / "README.md", readme(challenge, card).encode())


def find(card, row, source=None):
    """The card's result of a row, or None."""
    for entry in card["results"]:
        if (entry["row"], entry["source"]) == (row, source):
            return entry
    return None


def readme(challenge, card):
    """A model's README, as Markdown."""
    training = card["training"]
    config, run = training["config"], training["runs"][-1]
    shape = ", ".join(str(n) for n in ("batch", *challenge.image_shape))
    low, high = challenge.bounds
    minutes = training["seconds"] / 60
    commands = dict.fromkeys(run["command"] for run in training["runs"])
    lines = [
        f"# {_shown(card['name'])}",
        "",
        f"The paper's {challenge.name} network ({card['parameters']:,} parameters), "
        f"{TRAINING[config['adversary']]}, on: {_shown(training['data'])}. A SavedModel: signature "
        f"`serving_default`, input `image` (float32, ({shape}), pixels in [{low:g}, {high:g}]), "
        "output `logits` (float32, (batch, 10)).",
        "",
        "```",
        *(f"python {_command(command)}" for command in commands),
        "```",
        "",
        f"{training['steps']:,} steps of {config['training_batch_size']} images in {minutes:.0f} "
        f"minutes on {_machine(run)}; seed {config['random_seed']}, commit "
        f"`{_shown(str(run['commit']))}`. All "
        f"settings, and all that is below, are in [{CARD}]({CARD}).",
        "",
        f"This is a recipe for a {'GPU' if run['hardware']['gpus'] else 'CPU'}. From the paper's, "
        f"[config.json](../../config.json), it differs in: {_differences(challenge, config)}.",
        "",
        f"Accuracy in percent on the first images of the {challenge.name} test set:",
        "",
        *table(challenge, card),
        "",
        f"Attacks have epsilon {config['epsilon']:g}. An example counts as correct if it "
        'withstands every restart. "paper" is its number for a network trained in the same way, '
        '"leaderboard" the original challenge\'s for its secret network under the same attack.',
        "",
    ]
    return "\n".join(lines)


def _differences(challenge, config):
    """The settings of a training that are not those of the challenge's config.json, in words."""
    of_evaluation = NOT_OF_TRAINING - {"max_num_training_steps"}
    differences = [
        f"`{name}` {json.dumps(config[name])} ({json.dumps(value)})"
        for name, value in read_json(challenge.directory / "config.json").items()
        if name in config and name not in of_evaluation and config[name] != value
    ]
    return ", ".join(differences) or "nothing"


def table(challenge, card):
    """The table of a card's results, as lines of Markdown."""
    settings = card["training"]["config"]
    lines = [
        "| attack | made on | accuracy | paper | leaderboard | images | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in card["results"]:
        is_natural = entry["row"] == "natural"
        white_box = "" if is_natural else "itself"
        lines.append(
            f"| {title(entry['attack'])} | {_cell(entry['source'] or white_box)} | "
            f"{entry['accuracy']:.2f} | {paper_accuracy(challenge, settings, entry)} | "
            f"{leaderboard_accuracy(challenge, settings, entry)} | {entry['num_examples']:,} | "
            f"{_duration(entry['seconds'])} |"
        )
    return lines


def paper_accuracy(challenge, settings, entry):
    """The paper's number for a result, for a network trained with `settings`; "" for none."""
    try:
        numbers = challenge.paper(settings)
    except (KeyError, TypeError):  # a network that is not the paper's
        return ""
    return numbers.get((entry["row"], entry.get("source_adversary")), "")


def leaderboard_accuracy(challenge, settings, entry):
    """The original leaderboard's number for the same attack on its robust network; "" for none."""
    if settings["adversary"] != "pgd" or entry["source"]:
        return ""
    same = challenge.presets.get(entry["row"])
    for name, accuracy in challenge.published.items():
        if name == entry["row"] or (same is not None and challenge.presets.get(name) == same):
            return accuracy
    return ""


def title(settings):
    """An attack's settings in words, as the paper's tables name them: "CW+, 40 steps of 0.01"."""
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


def full_title(entry):
    """A result's attack in words, and whose examples it is where they are another model's."""
    text = title(entry["attack"])
    return f"{text}, made on {_shown(entry['source'])}" if entry["source"] else text


def _read_card(directory):
    """The card in a directory, or None if it has none, or that of a fetched model.

    Raises:
        InputError: it is damaged.
    """
    path = directory / CARD
    if not os.path.lexists(path):
        return None
    is_fetched = "archive" in json_shapes.read(path, {})
    return None if is_fetched else read_from(directory)


def _runs_of(training):
    """The entries of runs.json, as a card holds them.

    Raises:
        InputError: it is damaged.
    """
    own_runs = runs.read(training)
    json_shapes.check(own_runs, [_RUN], training / runs.FILE)
    return own_runs


def _shown(text):
    """Text of a file as it can stand in a line of its own reader."""
    return text if text.isprintable() else one_line(text)


def _machine(run):
    hardware = run["hardware"]
    where = ", ".join(hardware["gpus"]) or f"{hardware['cores']} cores of {hardware['processor']}"
    return _shown(f"{where}, TensorFlow {run['versions']['tensorflow']}")


def _command(command):
    """A run's command, quoted for a shell."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation mark without its other
        words = [command]
    return shlex.join(map(_shown, words))


def _cell(text):
    """Text of a file as a cell of a table."""
    return _shown(text).replace("|", "\\|")


def _duration(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
