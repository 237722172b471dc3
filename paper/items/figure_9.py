"""Figure 9: the filters of the first two layers of natural and robust MNIST networks."""

import numpy as np

from paper import ascent, style
from paper.item import Item, Part, published, verdict_of
from paper.networks import NATURAL, ROBUST, ROBUST_B

NETWORKS = (NATURAL, ROBUST, ROBUST_B)
NON_ZERO = (
    0.2  # of the layer's largest weight; the paper's weights are below 0.1 or above 0.4 of it
)
SHOWN = 32  # filters of the second layer


def parts(settings):
    """One part a network."""
    return [Part(name=n.label, networks=(n,), compute=filters) for n in NETWORKS]


def filters(work):
    """The first layer's filters, and those of the second layer for the strongest of them."""
    first, _, second, *_ = (np.asarray(weight) for weight in work.models[0].model.weights)
    size = np.abs(first).max((0, 1, 2))
    is_not_zero = np.abs(first[:, :, 0]) >= NON_ZERO * size.max()
    counts = is_not_zero.sum((0, 1))
    return {
        "first": [ascent.rounded(first[..., 0, number]) for number in range(first.shape[-1])],
        "non-zero weights": counts.tolist(),
        "second": [
            ascent.rounded(second[:, :, size.argmax(), number])
            for number in range(min(SHOWN, second.shape[-1]))
        ],
    }


def draw(result):
    """A column of pictures for each layer, a row for each network; grey is 0."""
    there = [network for network in NETWORKS if network.label in result.numbers]
    figure, axes = style.subplots(len(there), 2, 8, 2.1 * len(there))
    for row, network in zip(axes, there, strict=True):
        numbers = result.numbers[network.label]
        for axis, layer in zip(row, ("first", "second"), strict=True):
            images = np.array(numbers[layer])
            largest = np.abs(images).max()
            axis.imshow(_mosaic(images), cmap="gray", vmin=-largest, vmax=largest)
            axis.set_title(
                f"{network.label}: {layer} layer, black is {-largest:.2g}, white +{largest:.2g}"
            )
            axis.set_axis_off()
    return figure


def _mosaic(images):
    """Filters (n, 25) side by side in rows of at most 8, with white lines between them."""
    rows = -(-len(images) // 8)
    board = np.full((rows * 6 + 1, min(len(images), 8) * 6 + 1), np.nan)
    for number, image in enumerate(images):
        top, left = 6 * (number // 8) + 1, 6 * (number % 8) + 1
        board[top : top + 5, left : left + 5] = image.reshape(5, 5)
    return board


def _live(numbers):
    return [count for count in numbers["non-zero weights"] if count]


def ends_of(numbers):
    """The least and the largest weight of the filters that are shown, as the paper's are."""
    return np.min(numbers["second"]), np.max(numbers["second"])


def _width(numbers):
    low, high = ends_of(numbers)
    return high - low


def table(result):
    """The numbers of live filters and of their weights."""
    paper = published("figure_9")
    lows_highs = paper["second layer, shown filters"]
    lines = [
        "| network | | filters with a weight above a fifth of the layer's largest | such weights "
        "of each | second layer, filters shown |",
        "|---|---|---|---|---|",
        f"| natural | paper | all | many | {_range(lows_highs['natural'])} |",
        *(
            f"| robust, {name} | paper | {paper['live filters of 32']} of 32 | 1 | "
            f"{_range(lows_highs[name])} |"
            for name in ("public", "secret")
        ),
    ]
    for name, numbers in result.numbers.items():
        live, weights = _live(numbers), sorted(set(_live(numbers)))
        shown = f"{weights[0]} to {weights[-1]}" if len(weights) > 1 else f"{weights[0]}"
        lines.append(
            f"| {name.removeprefix('MNIST, ')} | ours | {len(live)} of {len(numbers['first'])} | "
            f"{shown} | {_range(ends_of(numbers))} |"
        )
    return lines


def _range(pair):
    return f"{pair[0]:.2g} to {pair[1]:.2g}"


def verdict(result):
    """By the item's rule."""
    paper, numbers = published("figure_9"), result.numbers
    most, natural = 2 * paper["live filters of 32"], numbers[NATURAL.label]
    ranges = paper["second layer, shown filters"]
    width = {name: high - low for name, (low, high) in ranges.items()}
    needed = min(width["public"], width["secret"]) / width["natural"] / 2
    share = len(_live(natural)) / len(natural["first"])
    criteria = [(share > 0.5, f"natural: {share:.0%} of the filters live (needed: over 50%)")]
    for network in (ROBUST, ROBUST_B):
        own, name = numbers[network.label], network.title
        live = _live(own)
        wide = _width(own) / _width(natural)
        criteria += [
            (len(live) <= most, f"{name}: {len(live)} live filters (at most {most})"),
            (np.median(live) == 1, f"{name}: {np.median(live):.0f} weight in the median (1)"),
            (wide >= needed, f"{name}: layer 2 is {wide:.2f} times as wide (needed {needed:.2f})"),
        ]
    return verdict_of(*criteria)


ITEM = Item(
    name="figure_9",
    title="Figure 9: filters of MNIST networks",
    question="RQ5",
    claim="In robust networks 3 of the 32 filters of the first layer are not zero, each with one "
    "non-zero weight: they are thresholds, which small changes of a pixel do not pass. The weights "
    "of the second layer are sparse and have a wider range.",
    minutes=0.1,
    settings={"seed": 0},
    sample={},
    parts=parts,
    draw=draw,
    table=table,
    caption="The picture has all filters of the first layer, and 32 of the second, those for the "
    "first layer's filter with the largest weight. A weight counts as zero below a fifth of its "
    "layer's largest; the paper's are below a tenth or above two fifths.",
    rule="In robust networks at most twice the paper's number of filters are live, with one weight "
    "in the median, and the range of the shown filters of the second layer grows by at least half "
    "the paper's factor; in the natural network most filters are live.",
    verdict=verdict,
)
