"""The paper's items, one file each, which ends with its `ITEM`, and their order."""

import importlib

NAMES = (
    "figure_1",
    "figure_2",
    "maxima",
    "figure_7",
    "figure_11",
    "figure_12",
    "figure_4",
    "figure_8",
    "table_3",
    "table_4",
    "table_5",
    "figure_6",
    "figure_5",
    "table_1",
    "table_2",
    "figure_9",
    "figure_10",
    "claims",
)


def load(name):
    """Returns the `paper.item.Item` of a name in `NAMES`."""
    return importlib.import_module(f"{__name__}.{name}").ITEM


def load_all():
    """Returns all items, in order."""
    return [load(name) for name in NAMES]
