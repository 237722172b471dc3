"""Accuracy on images that are not trained on, under a strong attack, while a training runs.

A network that is trained against few or weak steps may withstand only those (label leaking, sudden
collapse); an attack of many small steps shows it.
"""

import dataclasses
import pathlib

from common import json_shapes
from common.attack import make_attack
from common.checkpoints import fast_model
from common.evaluation.evaluator import Evaluator
from common.evaluation.results import Trial
from common.files import write_json
from common.json_shapes import NUMBER

NUM_EXAMPLES = 500
FILE = "validation.json"
_NUMBERS = ("step", "seconds", "natural_accuracy", "adversarial_accuracy")
_SHAPE = [dict.fromkeys(_NUMBERS, NUMBER)]


class Validation:
    """Evaluates a network in training, and keeps the results in validation.json.

    That file holds a list of {"step", "seconds", "natural_accuracy", "adversarial_accuracy"}, in
    percent, under the attack `challenge.validation_preset`; seconds are the training's so far.
    A damaged file is renamed, and a new list begins.

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        model: keras.Model of its network.
        images: a `common.data.Split`; its first 500 images are used.
        directory: the training's directory.
    """

    def __init__(self, config, challenge, model, images, directory):
        logits = fast_model(model, challenge)
        strong = dataclasses.replace(config, **challenge.presets[challenge.validation_preset])
        self._images = images.head(NUM_EXAMPLES)
        self._attack_name = challenge.validation_preset
        self._evaluator = Evaluator(
            logits,
            [Trial(make_attack("pgd", logits, strong, challenge.bounds))],
            to_pixels=challenge.to_pixels,
            batch_size=config.eval_batch_size,
            seed=config.random_seed,
            show_progress=False,
        )
        self._path = pathlib.Path(directory) / FILE
        consequence = "a new one is begun"
        self._entries = json_shapes.read_or_keep_aside(self._path, _SHAPE, consequence) or []

    def run(self, step, seconds):
        """Evaluates the network after `step` steps, and adds the result to validation.json.

        Args:
            step: the training's steps so far.
            seconds: function without arguments that returns the training's time in seconds.

        Returns:
            The new entry of validation.json, a dict.
        """
        summary = self._evaluator.run(self._images.images, self._images.labels).summary()
        entry = {
            "step": step,
            "seconds": round(seconds(), 1),
            "natural_accuracy": summary["natural_accuracy"],
            "adversarial_accuracy": summary["adversarial_accuracy"],
        }
        # A killed training resumes before its last entries.
        self._entries = [entry for entry in self._entries if entry["step"] < step] + [entry]
        write_json(self._path, self._entries)
        return entry

    def line(self, entry):
        """An entry as the line that is printed."""
        return (
            f"    validation after {entry['step']} steps: "
            f"natural {entry['natural_accuracy']:.2f}%, "
            f"{self._attack_name} {entry['adversarial_accuracy']:.2f}%"
        )


def read(directory):
    """The entries of a training directory's validation.json, or an empty list without such a file.

    Raises:
        InputError: the file is damaged.
    """
    path = pathlib.Path(directory) / FILE
    return json_shapes.read(path, _SHAPE) if path.exists() else []
