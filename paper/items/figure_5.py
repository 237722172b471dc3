"""Figure 5: the loss on adversarial images along a training."""

import functools
import pathlib

import numpy as np
import tensorflow as tf

from common import json_shapes
from common.errors import InputError
from common.json_shapes import COUNT, NUMBER, TEXT
from common.training import runs
from paper import ascent, style
from paper.item import Item, Part, published, verdict_of
from paper.networks import ROBUST, SIMPLE_ROBUST

TRAININGS = {"MNIST": "mnist_training", "CIFAR-10": "cifar10_training"}  # names of settings
COLOURED_AS = {"MNIST": ROBUST, "CIFAR-10": SIMPLE_ROBUST}
# By data set, half the window of the paper's moving average, in training steps: its jumps are
# smeared over that many.
HALF_WINDOW = {"MNIST": 2500, "CIFAR-10": 1000}
TOLERANCE = 2  # times the paper's numbers, as for the mean ends of Figure 11
_CONFIG = {
    "adversary": TEXT,
    "training_batch_size": COUNT,
    "num_steps": COUNT,
    "epsilon": NUMBER,
}


def parts(settings):
    """One part for each training that is named."""
    return [
        Part(name=name, networks=(), compute=functools.partial(losses, name=name))
        for name, setting in TRAININGS.items()
        if settings[setting]
    ]


def losses(work, name):
    """The losses that a training logged for TensorBoard, and how it was trained."""
    setting = TRAININGS[name]
    directory = training_directory(setting, work.settings[setting])
    logged = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == "xent_adv":
                    logged[event.step] = float(tf.make_ndarray(value.tensor))
    if len(logged) < 2:
        raise InputError(
            f"--{setting}: expected the directory of an adversarial training with TensorBoard's "
            f"events, got {directory}"
        )
    config = json_shapes.read(directory / "config.json", _CONFIG)
    own_runs = runs.read(directory)
    return {
        "step": sorted(logged),
        "loss": ascent.rounded([logged[step] for step in sorted(logged)]),
        "config": config,
        "commands": sorted({without_paths(str(run.get("command"))) for run in own_runs}),
        "commits": sorted({str(run.get("commit")) for run in own_runs}),
        "seconds": round(sum(run["seconds"] for run in own_runs), 1),
    }


def training_directory(setting, text):
    """Returns the pathlib.Path of a training.

    Args:
        setting: the name of the setting that holds it.
        text: its path, relative to the current directory: it is written into the results.

    Raises:
        InputError: the path is absolute, or leaves the current directory.
    """
    directory = pathlib.Path(text)
    if directory.is_absolute() or {"..", "~"} & set(directory.parts):
        raise InputError(
            f"--{setting}: expected a path below the current directory, which the results may "
            f"name (a link to the training will do), got {text}"
        )
    return directory


def without_paths(command):
    """Returns a command with the last name of each absolute path in the path's place."""

    def shown(text):
        return pathlib.PurePath(text).name if text.startswith(("/", "~")) else text

    words = (word.partition("=") for word in command.split())
    return " ".join(shown(flag) + equals + shown(value) for flag, equals, value in words)


def smoothed(numbers, name):
    """The moving average of the losses, over as many steps as the paper's or a tenth of all."""
    step, loss = np.array(numbers["step"]), np.array(numbers["loss"])
    half = min(HALF_WINDOW[name], (step[-1] - step[0]) / 20)
    return np.array([loss[np.abs(step - middle) <= half].mean() for middle in step])


def draw(result):
    """A panel a data set, both axes logarithmic; grey: the paper's."""
    figure, axes = style.subplots(1, len(result.numbers), 4.5 * len(result.numbers), 2.8)
    for axis, (name, numbers) in zip(axes[0], result.numbers.items(), strict=True):
        theirs = published("figure_5")[name]
        steps = np.maximum(theirs["step"], 1)
        axis.plot(steps, theirs["loss"], **style.PAPER, label="paper, averaged")
        colour, ours = style.colour_of(COLOURED_AS[name]), np.maximum(numbers["step"], 1)
        axis.plot(ours, numbers["loss"], color=colour, alpha=0.3, linewidth=0.6)
        axis.plot(ours, smoothed(numbers, name), color=colour, label="ours; bold: averaged")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(100, None)
        axis.set_xlabel("training steps")
        note = COLOURED_AS[name].note
        config = numbers["config"]
        axis.set_title(
            f"{name}: {config['training_batch_size']} images a step, training against "
            f"{config['adversary'].upper()}, epsilon {config['epsilon']:g}"
            + f"\n{note}"
            * bool(note)
        )
        axis.legend(loc="lower left")
    axes[0, 0].set_ylabel("cross-entropy of training images\nunder attack, nats")
    return figure


def verdict(result):
    """By the item's rule."""
    criteria = []
    for name, numbers in result.numbers.items():
        theirs, ours = published("figure_5")[name]["loss"], smoothed(numbers, name)
        fall, most = ours[-1] / ours[0], TOLERANCE * theirs[-1] / theirs[0]
        words = f"{name}: falls to {fall:.3f} of its start (at most {most:.3f})"
        criteria.append((fall <= most, words))
        most = TOLERANCE * theirs[-1]
        criteria.append((ours[-1] <= most, f"{name}: ends at {ours[-1]:.3g} (at most {most:.3g})"))
    return verdict_of(*criteria)


ITEM = Item(
    name="figure_5",
    title="Figure 5: loss along the training",
    question="RQ5",
    claim="Training against PGD reduces the loss on adversarial images steadily, to small values "
    "on the training set.",
    minutes=0.1,
    settings={"mnist_training": "", "cifar10_training": "", "seed": 0},
    sample={},
    parts=parts,
    needs="the directory of a training with its TensorBoard events, below the current directory: "
    "`--mnist_training=PATH`, `--cifar10_training=PATH`",
    draw=draw,
    caption="The thin line is the loss of the training batches, from TensorBoard's events. The "
    "bold line is its moving average over as many training steps as in the paper, or over a tenth "
    "of a shorter training. The recipes differ in steps, batch and attack.",
    rule="The averaged loss falls to at most twice the share of its start that the paper's falls "
    "to, and it ends at most at twice the paper's end. The tolerance is that of the mean ends of "
    "Figure 11.",
    verdict=verdict,
)
