"""What the scripts need to know about a challenge; each challenge folder defines one."""

import dataclasses
import pathlib
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Challenge:
    """A data set, its pixels, its network and its rules.

    Attributes:
        name: "MNIST" or "CIFAR-10".
        directory: the challenge's folder, with config.json and models/.
        config_class: the dataclass of its settings.
        bounds: (lowest, highest) pixel value.
        image_shape: (height, width, channels).
        class_names: the names of its ten classes, in the order of the labels.
        submission_shape: the shape of one image in an attack file.
        load: function (split, *, data_dir, allow_sample) to a `common.data.Split`.
        to_pixels: function from uint8 images to float32 pixels in `bounds`.
        build_model: function (config, precision) to a new keras.Model; precision is Keras's dtype
            policy for what is between pixels and logits, by default "float32".
        size_of: function from the shapes of a network's weights, in Keras's order, to a dict of
            the settings of its size, or None if they are another network's.
        original_names: function (keras.Model) to the names of its weights in the original's
            checkpoints, in the order of `weights`.
        fast_logits: function (keras.Model, "float32" or "bfloat16") to its logits in the form that
            a CPU runs fastest, see `common.attack.FastModel`.
        shipped: the model that is evaluated if none is named and none was trained.
        presets: the published rows, a dict from names to settings.
        validation_preset: the preset of the attack in `common.training.validation`.
        card_rows: the rows of a shipped model's card, "natural" and presets.
        transfer_rows: presets that a card also has with examples made on other models.
        described: function from a training's settings, a dict, to the network's name in words.
        paper: function from a training's settings, a dict, to the paper's accuracies in percent
            of a network trained that way: a dict by (row, `Config.adversary` of the network that
            the examples were made on, or None for the same network).
        published: the original challenge's accuracies of its secret network, in percent: on the
            images themselves ("natural") and under presets.
    """

    name: str
    directory: pathlib.Path
    config_class: type
    bounds: tuple[float, float]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    submission_shape: tuple[int, ...]
    load: Callable
    to_pixels: Callable
    build_model: Callable
    size_of: Callable
    original_names: Callable
    fast_logits: Callable
    shipped: str
    presets: dict[str, dict]
    validation_preset: str
    card_rows: tuple[str, ...]
    transfer_rows: tuple[str, ...]
    described: Callable
    paper: Callable
    published: dict[str, float]

    @property
    def epsilon(self):
        """The radius of the paper's attacks in L-infinity, in the units of `bounds`."""
        return self.presets[self.validation_preset]["epsilon"]
