"""Figure 2: how the losses at the ends of PGD are spread over very many starts."""

import functools

import numpy as np

from paper import ascent, style
from paper.item import Item, Part, published, verdict_of
from paper.items.figure_1 import PAIRS

CHUNK = 500  # starts that are computed, and kept, at a time
BIN = {"natural": 1.0, "robust": 0.05}  # width of a bin of the histogram, in nats
RESTARTS = {"MNIST": "mnist_restarts", "CIFAR-10": "cifar10_restarts"}  # names of settings
NUM_OF_PAPER = 5  # images
LEAST = 0.02  # nats, the lowest loss in the picture
NETWORKS = {network: robust for natural, robust in PAIRS for network in (natural, robust)}


def parts(settings):
    """For each network and image, a part for each chunk of starts."""
    return [
        Part(
            name=part_name(network, rank, first),
            networks=(network, robust),
            num_images=settings["num_candidates"],
            compute=functools.partial(
                ends, width=BIN[network.title], rank=rank, first=first, last=last
            ),
            weight=last - first,
        )
        for network, robust in NETWORKS.items()
        for rank in range(settings["num_images"])
        for first, last in chunks(settings[RESTARTS[network.challenge.name]])
    ]


def part_name(network, rank, first):
    """The name of a part: its network, which of the images, and its first start."""
    return f"{network.label}, image {rank + 1}, from start {first}"


def chunks(count):
    """The first start of each chunk, and the one after its last."""
    return [(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]


def ends(work, width, rank, first, last):
    """The histogram of the end losses of some starts, and their sums."""
    model, robust = work.models
    number = ascent.examples(work, robust)[rank]
    settings, image, label = work.settings, work.x_nat[number], work.y[number]
    x = ascent.maxima(
        *(model, work.challenge, image, label, settings["seed"]),
        np.arange(first, last),
        settings["num_steps"],
    )
    losses = ascent.losses_at(model, x, np.full(len(x), label)).astype(np.float64)
    bins = np.floor(losses / width).astype(int)
    return {
        "image": number,
        "first bin": int(bins.min()),
        "counts": np.bincount(bins - bins.min()).tolist(),
        "sum": float(losses.sum()),
        "squares": float(np.sum(losses**2)),
        "lowest": float(losses.min()),
        "highest": ascent.rounded(np.sort(losses)[-10:]),
    }


def merged(result, network, rank):
    """The end losses of all starts of an image, or None without any.

    Returns:
        dict: "image", its number; "count" of starts; "bins", the lower edges in nats, and
        "counts"; "mode", the middle of the fullest bin; "mean", "deviation", "lowest", "highest";
        "largest", the ten highest losses.
    """
    number_of = result.settings[RESTARTS[network.challenge.name]]
    names = [part_name(network, rank, first) for first, _ in chunks(number_of)]
    found = [result.numbers[name] for name in names if name in result.numbers]
    if not found:
        return None
    width, first = BIN[network.title], min(part["first bin"] for part in found)
    last = max(part["first bin"] + len(part["counts"]) for part in found)
    counts = np.zeros(last - first, int)
    for part in found:
        offset = part["first bin"] - first
        counts[offset : offset + len(part["counts"])] += part["counts"]
    total = int(counts.sum())
    mean = sum(part["sum"] for part in found) / total
    squares = sum(part["squares"] for part in found) / total
    largest = sorted(loss for part in found for loss in part["highest"])[-10:]
    return {
        "image": found[0]["image"],
        "count": total,
        "bins": width * np.arange(first, last),
        "counts": counts,
        "mode": width * (first + int(counts.argmax()) + 0.5),
        "mean": mean,
        "deviation": float(np.sqrt(max(squares - mean**2, 0))),
        "lowest": min(part["lowest"] for part in found),
        "highest": largest[-1],
        "largest": largest,
    }


def draw(result):
    """A panel a data set and image: both networks' histograms; grey: the paper's ranges."""
    count = result.settings["num_images"]
    figure, axes = style.subplots(2, count, 2 * count, 4.8, sharey=True)
    for row, pair in zip(axes, PAIRS, strict=True):
        for rank, axis in enumerate(row):
            titles = []
            for network, hatch in zip(pair, ("", "////"), strict=True):
                ours = merged(result, network, rank)
                if ours is None:
                    continue
                theirs = published("figure_2")[network.label][rank % NUM_OF_PAPER]
                ends = max(theirs["lowest"], LEAST), theirs["highest"]
                axis.axvspan(*ends, **style.BAND, label="paper: ranges of 100,000 starts")
                edges = np.append(ours["bins"], ours["bins"][-1] + BIN[network.title])
                colour = style.colour_of(network)
                axis.stairs(
                    *(ours["counts"], np.maximum(edges, LEAST)),
                    fill=not hatch,
                    color=colour,
                    hatch=hatch,
                    label=f"ours, {network.title}",
                )
                titles.append(f"test image {ours['image']}, {ours['count']:,} starts")
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlim(LEAST, 200)
            axis.set_title("\n".join(dict.fromkeys(titles)))
        row[0].set_ylabel(f"{pair[0].challenge.name}: starts in the bin")
    for axis in axes[-1]:
        axis.set_xlabel("cross-entropy, nats")
    style.title(
        figure,
        NETWORKS,
        "losses at the ends of " + ascent.settings_text(NETWORKS, result.settings["num_steps"]),
        f"bins of {BIN['natural']:g} nat (natural) and {BIN['robust']:g} nats (robust)",
    )
    style.legend_below(figure, *axes.flat)
    return figure


def every(result):
    """`merged` of all networks and images that are there, by network."""
    ranks = range(result.settings["num_images"])
    found = {network: [merged(result, network, rank) for rank in ranks] for network in NETWORKS}
    return {network: of_it for network, of_it in found.items() if None not in of_it}


def outliers(entry):
    """How many of the ten highest losses lie above the mean by over 6 standard deviations."""
    limit = entry["mean"] + 6 * entry["deviation"]
    return sum(loss > limit for loss in entry["largest"])


def table(result):
    """The spread of each image's ends, beside the paper's."""
    lines = [
        "| network | test image | starts | mean ± deviation | lowest to highest | outliers | "
        "paper, lowest to highest of 100,000 starts at another image |",
        "|---|---|---|---|---|---|---|",
    ]
    for network, entries in every(result).items():
        for rank, entry in enumerate(entries):
            theirs = published("figure_2")[network.label][rank % NUM_OF_PAPER]
            lines.append(
                f"| {network.label} | {entry['image']} | {entry['count']:,} | {entry['mean']:.3g} "
                f"± {entry['deviation']:.2g} | {entry['lowest']:.3g} to {entry['highest']:.3g} | "
                f"{outliers(entry)} | {theirs['lowest']:g} to {theirs['highest']:g} |"
            )
    return lines


def verdict(result):
    """By the item's rule."""
    paper, criteria, found = published("figure_2"), [], every(result)

    def relative(entries):
        return max((e["highest"] - e["lowest"]) / e["mode"] for e in entries)

    for network, entries in found.items():
        if network.title == "natural":
            widest, width = 1.25 * relative(paper[network.label]), relative(entries)
            words = f"{network.label}: range {width:.2f} of the mode (at most {widest:.2f})"
            criteria.append((width <= widest, words))
        else:
            most = 1.25 * max(e["highest"] - e["lowest"] for e in paper[network.label])
            width = max(e["highest"] - e["lowest"] for e in entries)
            words = f"{network.label}: range {width:.2f} nats (at most {most:.2f})"
            criteria.append((width <= most, words))
        count = sum(outliers(entry) for entry in entries)
        criteria.append((count == 0, f"{network.label}: {count} outliers (none)"))
    for natural, robust in PAIRS:
        if natural in found and robust in found:
            above = min(e["lowest"] for e in found[natural])
            below = max(e["highest"] for e in found[robust])
            words = f"{robust.label}: highest {below:.3g}, natural: lowest {above:.3g} (above it)"
            criteria.append((below < above, words))
    return verdict_of(*criteria)


ITEM = Item(
    name="figure_2",
    title="Figure 2: losses at the maxima",
    question="RQ1",
    claim="Over 100,000 starts the losses at the ends of PGD are concentrated, without outliers, "
    "and far lower on robust networks.",
    minutes=260,
    settings={
        "num_images": 5,
        "num_candidates": 200,
        "mnist_restarts": 10000,
        "cifar10_restarts": 10000,
        "num_steps": 100,
        "seed": 0,
    },
    sample={
        "num_images": 2,
        "num_candidates": 3,
        "mnist_restarts": 4,
        "cifar10_restarts": 3,
        "num_steps": 2,
    },
    parts=parts,
    draw=draw,
    table=table,
    caption="The images and steps are chosen as for Figure 1. Both axes are logarithmic. The "
    "paper's ranges are of 100,000 starts and of five other images. Ours are of 10,000 starts on "
    "MNIST and of 1,000 on CIFAR-10. More starts can only widen a range, so that the comparison "
    "favours ours. `--mnist_restarts=100000`, the paper's number, takes ten times as long. An "
    "outlier lies above the mean by over 6 standard deviations; at most ten are counted.",
    rule="On each data set the widest range of an image's ends is at most the paper's widest "
    "there, with a tolerance of a quarter: as a share of the mode on natural networks, and in nats "
    "on robust ones. There are no outliers. Every end on the natural network is above every end on "
    "the robust one.",
    verdict=verdict,
)
