"""The challenge that a script of this folder is about: the first word of its command line."""

import sys

from cifar10_challenge.challenge import CIFAR10
from common.errors import InputError
from common.scripts import app
from mnist_challenge.challenge import MNIST

CHALLENGES = {"mnist": MNIST, "cifar10": CIFAR10}


def run(main, define_flags):
    """`common.scripts.app.run` for the challenge that the first word names."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else "nothing"
    if name not in CHALLENGES:
        app.fail(InputError(f"expected {' or '.join(CHALLENGES)} as the first word, got {name!r}"))
    app.run(main, CHALLENGES[name], define_flags)
