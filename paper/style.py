"""The style of the paper's figures: one colour a network, one line style an attack.

Lines that share a colour differ in style, so that the pictures are legible in black and white. The
paper's own curves are behind ours, thick and grey.
"""

import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from common.files import write_atomically

# By the end of a network's title, of both data sets (the colours of Okabe and Ito).
_COLOURS = {"natural": "#0072B2", "robust": "#D55E00", "FGSM-trained": "#009E73"}
# By attack, as people write it.
_LINES = {
    "none": {"linestyle": (0, (1, 1)), "marker": "s"},
    "FGSM": {"linestyle": "--", "marker": "^"},
    "PGD": {"linestyle": "-", "marker": "o"},
    "boundary attack": {"linestyle": "-.", "marker": "D"},
    "AutoAttack": {"linestyle": ":", "marker": "v"},
}
PAPER = {"color": "0.72", "linewidth": 3.5, "zorder": 0}
_DPI = 100
_SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "figure.titlesize": 8,
}


def colour_of(network):
    """Returns the colour of a `paper.networks.Network`."""
    return _COLOURS[network.title.partition(",")[0]]


def line_of(attack):
    """Returns matplotlib's line style and marker of an attack, as keywords."""
    return dict(_LINES[attack])


def subplots(rows, columns, width, height, **options):
    """Returns a figure of the project's style and its axes, always as a (rows, columns) array.

    Args:
        rows, columns: numbers of axes.
        width, height: the figure's size, in inches of 100 pixels.
        **options: further arguments of `plt.subplots`.
    """
    matplotlib.rcdefaults()  # whatever the user's own style is
    plt.rcParams.update(_SETTINGS)
    return plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
    )


def save(figure, path):
    """Writes a figure as PNG or PDF, by the path's ending; the same figure gives the same bytes."""
    is_pdf = path.suffix == ".pdf"
    metadata = {"CreationDate": None} if is_pdf else {}
    options = {} if is_pdf else {"pil_kwargs": {"optimize": True}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=_DPI, metadata=metadata, **options)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def note_of(networks):
    """Returns how networks differ from the paper's, for a title; "" if they do not."""
    notes = dict.fromkeys((n.challenge.name, n.note) for n in networks if n.note)
    return "\n".join(f"{name}: {note}" for name, note in notes)


def title(figure, networks, *sentences):
    """Writes a figure's title, with how its networks differ from the paper's."""
    figure.suptitle("\n".join(filter(None, (*sentences, note_of(networks)))))


def legend_below(figure, axis):
    """Puts an axis's legend below all axes of the figure, in one row."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
