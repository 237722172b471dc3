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

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from common import cards, checkpoints, files
from common.errors import InputError, one_line
from common.scripts.flags import define_path
from common.training.validation import NUM_EXAMPLES
from paper import challenges


def draw(challenge, config, flag_values):
    """Writes the figure to --output."""
    output = pathlib.Path(flag_values.output)
    files.check_writable("--output", output)
    path = checkpoints.find_model(challenge, config.model_dir)
    if not (path / cards.CARD).is_file():
        raise InputError(f"--model_dir: expected a model with {cards.CARD}, got {path}")
    entries = cards.read_from(path)["training"]["validation"]
    minutes = [entry["seconds"] / 60 for entry in entries]
    attack = cards.title(challenge.presets[challenge.validation_preset])
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for name, label, colour in (
        ("natural_accuracy", "natural", "tab:blue"),
        ("adversarial_accuracy", attack, "tab:red"),
    ):
        axes.plot(
            minutes, [entry[name] for entry in entries], "o-", ms=3, color=colour, label=label
        )
    axes.set_xlabel("minutes of training")
    axes.set_ylabel(f"accuracy on {NUM_EXAMPLES} images, %")
    axes.set_ylim(0, 100)
    axes.set_xlim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    print(one_line(f"figure in {output}"))


def define_flags(challenge, flag_values):
    """Declares --output."""
    define_path("output", "training_curve.png", "image to write", flag_values)


if __name__ == "__main__":
    challenges.run(draw, define_flags)
