"""The style of the paper's figures: one colour a network, one line style an attack.

Lines that share a colour differ in style, so that the pictures are legible in black and white. The
paper's own curves are behind ours: thick, grey, and of the same line style as ours.
"""

import io
import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from common.files import write_atomically
from paper import networks

# By the end of a network's title, of both data sets (the colours of Okabe and Ito).
_COLOURS = {"natural": "#0072B2", "robust": "#D55E00", "FGSM-trained": "#009E73"}
# Of their second networks, darker shades.
_DARK = {"natural": "#003B5C", "robust": "#7A3600", "FGSM-trained": "#004D38"}
_SPARE = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")  # for networks that the project does not know
# By attack, as people write it.
_LINES = {
    "none": {"linestyle": (0, (1, 1)), "marker": "s"},
    "FGSM": {"linestyle": "--", "marker": "^"},
    "PGD": {"linestyle": "-", "marker": "o"},
    "boundary attack": {"linestyle": "-.", "marker": "D"},
    "AutoAttack": {"linestyle": ":", "marker": "v"},
}
NORMS = {"linf": "L-infinity", "l2": "L2"}
PAPER = {"color": "0.72", "linewidth": 3.5, "zorder": 0}
# The range of the paper's runs.
BAND = {"color": PAPER["color"], "alpha": 0.4, "linewidth": 0, "zorder": 0}
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
    """Returns the colour of a `paper.networks.Network`; a second seed's is a darker shade."""
    shades = _DARK if network.title.endswith("other seed") else _COLOURS
    return shades[network.title.partition(",")[0]]


def known_network(challenge, model_dir):
    """Returns the `Network` that the project ships by the name `model_dir`, or None."""
    every = [n for n in vars(networks).values() if isinstance(n, networks.Network)]
    found = [n for n in every if (n.challenge, n.name) == (challenge, model_dir)]
    return found[0] if found else None


def colours_and_titles(challenge, model_dirs):
    """Returns a colour and a title for each of several models, shipped ones or others.

    Args:
        challenge: their `Challenge`.
        model_dirs: the models as --model_dir names them. One that the project does not ship is
            called by its directory's name.
    """
    found = []
    for model_dir in model_dirs:
        network = known_network(challenge, model_dir)
        if network is not None:
            found.append((colour_of(network), network.title))
        else:
            spare = _SPARE[len(found) % len(_SPARE)]
            found.append((spare, pathlib.Path(model_dir).resolve().name))
    return found


def line_of(attack):
    """Returns matplotlib's line style and marker of an attack, as keywords."""
    return dict(_LINES[attack])


def paper_line(attack, network=None):
    """Returns matplotlib's keywords of the paper's curve under an attack, with its legend's entry.

    Args:
        attack: see `line_of`.
        network: a `Network` whose title the legend names, too; natural ones are a lighter grey.
    """
    line = {**PAPER, "linestyle": _LINES[attack]["linestyle"], "label": f"paper: {attack}"}
    if network is not None:
        title = network.title.partition(",")[0]
        line["label"] = f"paper: {title}, {attack}"
        line["color"] = {"natural": "0.82"}.get(title, "0.62")
    return line


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
    kind = path.suffix[1:].lower() or "png"
    options = {
        "png": {"pil_kwargs": {"optimize": True}},
        "pdf": {"metadata": {"CreationDate": None}},
    }.get(kind, {})
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=_DPI, **options)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def note_of(shown):
    """Returns how networks differ from the paper's, for a title; "" if they do not."""
    notes = dict.fromkeys((n.challenge.name, n.note) for n in shown if n.note)
    return "\n".join(f"{name}: {note}" for name, note in notes)


def title(figure, shown, *sentences):
    """Writes a figure's title, with how the networks that are shown differ from the paper's."""
    figure.suptitle("\n".join(filter(None, (*sentences, note_of(shown)))))


def legend_below(figure, *axes, columns=None):
    """Puts one legend of several axes below all axes of the figure.

    Args:
        figure: the figure.
        *axes: the axes whose labels it has, each label once.
        columns: their number; None for one row.
    """
    entries = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = columns or len(entries)
    options = {"loc": "outside lower center", "ncols": columns, "handlelength": 5}
    figure.legend(entries.values(), entries, **options)
