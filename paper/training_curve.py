"""Draws a shipped model's accuracy over the time that its training took.

    python paper/training_curve.py mnist --model_dir=adv_trained --output=curve.png

The numbers are those of the model's card: natural, and under the challenge's strong PGD.
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

from common import cards, checkpoints, files
from common.errors import InputError, one_line
from common.provenance import machine
from common.scripts.flags import define_path
from common.training.validation import NUM_EXAMPLES
from paper import challenges, style


def draw(challenge, config, flag_values):
    """Writes the figure to --output."""
    output = pathlib.Path(flag_values.output)
    files.check_writable("--output", output)
    path = checkpoints.find_model(challenge, config.model_dir)
    if not (path / cards.CARD).is_file():
        raise InputError(f"--model_dir: expected a model with {cards.CARD}, got {path}")
    training = cards.read_from(path)["training"]
    entries = training["validation"]
    minutes = [entry["seconds"] / 60 for entry in entries]
    attack = cards.title(challenge.presets[challenge.validation_preset])
    ((colour, title),) = style.colours_and_titles(challenge, [config.model_dir])
    figure, ((axis,),) = style.subplots(1, 1, 6.4, 3.4)
    for name, label, kind in (
        ("natural_accuracy", "natural images", "none"),
        ("adversarial_accuracy", attack, "PGD"),
    ):
        line = {**style.line_of(kind), "color": colour, "label": label}
        axis.plot(minutes, [entry[name] for entry in entries], **line)
    axis.set_xlabel(f"minutes of training on {hardware_of(training)}")
    axis.set_ylabel(f"accuracy on {NUM_EXAMPLES} images, %")
    axis.set_ylim(0, 100)
    axis.set_xlim(0, None)
    axis.legend(loc="lower right")
    network = style.known_network(challenge, config.model_dir)
    epsilon = challenge.epsilon
    style.title(
        figure,
        () if network is None else (network,),
        f"{challenge.name}, {title}; epsilon {epsilon:g} in L-infinity",
    )
    style.save(figure, output)
    print(one_line(f"figure in {output}"))


def hardware_of(training):
    """Returns the machines of a card's training in words, or "an unknown machine"."""
    found = dict.fromkeys(machine(run["hardware"]) for run in training["runs"])
    return " and ".join(found) or "an unknown machine"


def define_flags(challenge, flag_values):
    """Declares --output."""
    define_path("output", "training_curve.png", "image to write", flag_values)


if __name__ == "__main__":
    challenges.run(draw, define_flags)
