"""The challenge of a script of this folder, which the first word of its command line names."""

import sys

from cifar10_challenge.challenge import CIFAR10
from common import config
from common.errors import InputError
from common.scripts import app
from mnist_challenge.challenge import MNIST

CHALLENGES = {"mnist": MNIST, "cifar10": CIFAR10}
HELP = ("h", "help", "helpshort", "helpfull")


def run(main, define_flags):
    """Runs `app.run` for the challenge that the first word names; --help needs no such word."""
    name = sys.argv[1] if len(sys.argv) > 1 else "nothing"
    if name.startswith("-") and name.lstrip("-") in HELP:
        name = "mnist"
    elif name in CHALLENGES:
        sys.argv.pop(1)
    else:
        app.fail(InputError(f"expected {' or '.join(CHALLENGES)} as the first word, got {name!r}"))
    app.run(main, CHALLENGES[name], define_flags, (config.ATTACK, config.EVALUATION))
