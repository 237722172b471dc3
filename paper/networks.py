"""The networks of the paper's items: shipped with the project, or not trained yet."""

import dataclasses
import functools
import pathlib
import zlib

from cifar10_challenge.challenge import CIFAR10
from common import cards, checkpoints
from common.challenge import Challenge
from common.config import make_config
from mnist_challenge.challenge import MNIST

_SMALLEST = {MNIST.name: {"scale": 1}, CIFAR10.name: {"width": "simple"}}


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity
class Network:
    """A network by its name among the shipped ones.

    Attributes:
        challenge: a `common.challenge.Challenge`.
        name: the name of its directory in the challenge's models/.
        title: its name for people: "robust", "natural, other seed".
        note: how it differs from the paper's network; "" if only its training differs.
    """

    challenge: Challenge
    name: str
    title: str
    note: str = ""

    @property
    def label(self):
        """Its data set and title, for results and pictures: "MNIST, robust"."""
        return f"{self.challenge.name}, {self.title}"

    @property
    def path(self):
        """The pathlib.Path of its directory."""
        return self.challenge.directory / "models" / self.name

    def exists(self):
        """Whether it is shipped."""
        return (self.path / cards.CARD).is_file()

    def card(self):
        """Its card, which exists, as a dict that nobody may change.

        Raises:
            InputError: the card is damaged.
        """
        return _read_card(self.path, (self.path / cards.CARD).stat().st_mtime_ns)

    def digest(self):
        """The digest of its weights, from its card; None if it is not shipped.

        Raises:
            InputError: the card is damaged.
        """
        return self.card()["weights_digest"] if self.exists() else None

    def load(self):
        """Returns it as a `LoadedModel`."""
        return checkpoints.load_model(self.challenge, str(self.path))

    def load_sample(self):
        """Returns the challenge's smallest network with random weights, which depend on the name.

        It replaces the network in a quick test of an item.
        """
        seed = zlib.crc32(self.name.encode()) % 2**31
        settings = {**_SMALLEST[self.challenge.name], "random_seed": seed}
        config = make_config(self.challenge, ("the sample's network", settings))
        model = self.challenge.build_model(config)
        logits = checkpoints.fast_model(model, self.challenge)
        return checkpoints.LoadedModel(
            logits, model.weights, pathlib.Path("sample") / self.name, model=model
        )


@functools.cache
def _read_card(path, _changed):
    """The card in a directory, read once as long as it does not change."""
    return cards.read_from(path)


SIMPLE = "simple network; the paper's is ten times as wide"

NATURAL = Network(MNIST, "natural", "natural")
ROBUST = Network(MNIST, "adv_trained", "robust")
ROBUST_B = Network(MNIST, "adv_trained_b", "robust, other seed")
FGSM_TRAINED = Network(MNIST, "fgsm_trained", "FGSM-trained")
NATURAL_B = Network(MNIST, "natural_b", "natural, other seed")
FGSM_TRAINED_B = Network(MNIST, "fgsm_trained_b", "FGSM-trained, other seed")
MODEL_B = Network(MNIST, "model_b", "natural, model B")
# Pairs of seeds with twice as many filters.
VERY_LARGE_NATURAL, VERY_LARGE_NATURAL_B, VERY_LARGE_FGSM, VERY_LARGE_FGSM_B = (
    Network(MNIST, f"{training}_very_large{suffix}", f"{title}, very large{seed}")
    for training, title in (("natural", "natural"), ("fgsm", "FGSM-trained"))
    for suffix, seed in (("", ""), ("_b", ", other seed"))
)

SIMPLE_NATURAL = Network(CIFAR10, "simple_natural", "natural", SIMPLE)
SIMPLE_ROBUST = Network(CIFAR10, "simple_adv_trained", "robust", SIMPLE)
SIMPLE_NATURAL_B = Network(CIFAR10, "simple_natural_b", "natural, other seed", SIMPLE)
SIMPLE_ROBUST_B = Network(CIFAR10, "simple_adv_trained_b", "robust, other seed", SIMPLE)
SIMPLE_FGSM_TRAINED = Network(CIFAR10, "simple_fgsm_trained", "FGSM-trained", SIMPLE)
SIMPLE_FGSM_TRAINED_B = Network(
    CIFAR10, "simple_fgsm_trained_b", "FGSM-trained, other seed", SIMPLE
)
(
    (WIDE_NATURAL, WIDE_NATURAL_B),
    (WIDE_FGSM_TRAINED, WIDE_FGSM_TRAINED_B),
    (WIDE_ROBUST, WIDE_ROBUST_B),
) = (
    tuple(
        Network(CIFAR10, f"wide_{training}{suffix}", f"{title}, wide{seed}")
        for suffix, seed in (("", ""), ("_b", ", other seed"))
    )
    for training, title in (
        ("natural", "natural"),
        ("fgsm_trained", "FGSM-trained"),
        ("adv_trained", "robust"),
    )
)
