"""What the library has to tell a person: notes and warnings, through Python's logging.

Scripts show them, see `common.scripts.console`. Elsewhere Python shows warnings alone, unless the
program configures the logger "common".
"""

import logging

from common.errors import one_line

LOGGER = logging.getLogger("common")


def tell(text):
    """Tells `text`, a str, as one line."""
    LOGGER.info(one_line(text))


def warn(text):
    """Warns of `text`, a str, as one line."""
    LOGGER.warning(one_line(text))
