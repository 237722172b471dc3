"""Shows what the library tells: notes on stdout, warnings on stderr."""

import logging
import sys

from common.messages import LOGGER


class _Console(logging.Handler):
    def emit(self, record):
        file = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        print(record.getMessage(), file=file, flush=True)


def show_messages():
    """Prints the messages of `common.messages` from now on."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # absl would print them again
    if not any(isinstance(handler, _Console) for handler in LOGGER.handlers):
        LOGGER.addHandler(_Console())
