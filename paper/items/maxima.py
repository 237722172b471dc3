"""What Section 3 says of the maxima that PGD finds, without numbers: here with them."""

import functools
import itertools

import numpy as np
import tensorflow as tf

from common.attack import xent_loss
from common.attack.ball import uniform_start
from common.attack.gradient import value_and_gradient
from paper import ascent
from paper.item import Item, Part, verdict_of
from paper.items.figure_2 import NETWORKS

NUM_POINTS = 11  # of a segment
SCALES = (0.125, 0.5)  # of epsilon, at which the correlation with the gradient is taken, too


def parts(settings):
    """One part for each network and image."""
    return [
        Part(
            name=f"{network.label}, image {rank + 1}",
            networks=(network, robust),
            num_images=settings["num_candidates"],
            compute=functools.partial(statistics, rank=rank),
        )
        for network, robust in NETWORKS.items()
        for rank in range(settings["num_images"])
    ]


def statistics(work, rank):
    """Distances, angles, losses between maxima, and inner products with the gradient."""
    model, robust = work.models
    settings, number = work.settings, ascent.examples(work, robust)[rank]
    image, label, count = work.x_nat[number], work.y[number], settings["num_restarts"]
    index, seed = np.arange(count), settings["seed"]
    find = functools.partial(ascent.maxima, model, work.challenge, image, label, seed, index)
    x = find(settings["num_steps"])
    x_nat = np.repeat(image[None], count, axis=0)
    epsilon, bounds = work.challenge.epsilon, work.challenge.bounds
    # Other points than the starts of the maxima, to which these may have stayed near.
    start = uniform_start(x_nat, epsilon, bounds, tf.constant([seed + 1, 0]), index).numpy()
    gradient = gradient_at(model, image, label)
    by_scale = {str(scale): find(settings["num_steps"], scale=scale) for scale in SCALES}
    by_scale = {scale: cosines(points - image, gradient) for scale, points in by_scale.items()}
    to_gradient = cosines(x - image, gradient)
    return {
        "image": number,
        "distance": float(np.mean(distances(x))),
        "distance of random points": float(np.mean(distances(start))),
        "angle": ascent.rounded(mean_and_deviation(angles(x - image))),
        "angle of random points": ascent.rounded(mean_and_deviation(angles(start - image))),
        **segments(model, x, label, settings["num_segments"]),
        "loss of random points": float(np.mean(losses_of(model, start, label))),
        "negative inner products": float(np.mean(to_gradient < 0)),
        "cosine with the gradient": {
            **{scale: float(np.mean(values)) for scale, values in by_scale.items()},
            "1": float(np.mean(to_gradient)),
        },
    }


def losses_of(model, x, label):
    """The cross-entropy of images of one label, float32 (n,)."""
    return ascent.losses_at(model, x, np.full(len(x), label))


def gradient_at(model, image, label):
    """The gradient of the loss at an image, float32 (height, width, channels)."""
    x = tf.constant(image[None])
    logits = ascent.logits_of(model)
    _, _, gradient, _ = value_and_gradient(lambda z: xent_loss(z, [label]), logits, x)
    return gradient[0].numpy()


def pairs(x):
    """Both entries of every pair, (n, pixels) each."""
    x = x.reshape(len(x), -1)
    first, second = zip(*itertools.combinations(range(len(x)), 2), strict=True)
    return x[list(first)], x[list(second)]


def distances(x):
    """The L2 distances of every pair of points."""
    first, second = pairs(x)
    return np.linalg.norm(first - second, axis=1)


def angles(delta):
    """The angles of every pair of perturbations, in degrees."""
    first, second = pairs(delta)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = np.sum(first * second, axis=1) / np.maximum(lengths, 1e-12)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def cosines(delta, gradient):
    """The cosine of each perturbation and the gradient."""
    delta, gradient = delta.reshape(len(delta), -1), gradient.ravel()
    # In two steps, as the squares of a confident network's gradient are 0 in float32.
    gradient = gradient / max(np.abs(gradient).max(), 1e-38)
    lengths = np.linalg.norm(delta, axis=1) * np.linalg.norm(gradient)
    return delta @ gradient / np.maximum(lengths, 1e-12)


def mean_and_deviation(values):
    """Both, as a list."""
    return [float(np.mean(values)), float(np.std(values))]


def segments(model, x, label, count):
    """The losses on the segments between the first `count` pairs of maxima.

    Returns:
        dict: the mean loss at the ends and in the middle; the share of segments whose middle is
        below both ends; the share of inner points that lie below the straight line between the
        ends' losses, as all of a convex function's do.
    """
    chosen = itertools.islice(itertools.combinations(range(len(x)), 2), count)
    first, second = (x[list(numbers)][:, None] for numbers in zip(*chosen, strict=True))
    shares = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)
    points = first + shares[:, None, None, None] * (second - first)  # (pairs, NUM_POINTS, ...)
    losses = losses_of(model, points.reshape(-1, *x.shape[1:]), label).reshape(-1, NUM_POINTS)
    chord = losses[:, :1] + shares * (losses[:, -1:] - losses[:, :1])
    middle = losses[:, NUM_POINTS // 2]
    return {
        "loss at the ends": float(np.mean(losses[:, [0, -1]])),
        "loss in the middle": float(np.mean(middle)),
        "middles below both ends": float(np.mean(middle < losses[:, [0, -1]].min(1))),
        "inner points below the line": float(np.mean((losses <= chord)[:, 1:-1])),
    }


def by_network(result):
    """The statistics of each network that is there, a list over its images."""
    found = {}
    for network in NETWORKS:
        names = [f"{network.label}, image {k + 1}" for k in range(result.settings["num_images"])]
        entries = [result.numbers[name] for name in names if name in result.numbers]
        if entries:
            found[network] = entries
    return found


def means(entries):
    """The statistics that the rule is about, each a mean over images."""

    def mean(value):
        return float(np.mean([value(entry) for entry in entries]))

    return {
        "distance": mean(lambda e: e["distance"] / max(e["distance of random points"], 1e-12)),
        "angle": mean(lambda e: e["angle"][0]),
        "below": mean(lambda e: e["inner points below the line"]),
        "middle": mean(lambda e: e["loss in the middle"] / max(e["loss at the ends"], 1e-12)),
        "random": mean(lambda e: e["loss of random points"] / max(e["loss in the middle"], 1e-12)),
        "negative": mean(lambda e: e["negative inner products"]),
        "cosine": mean(lambda e: e["cosine with the gradient"]["1"]),
        "cosine, small": mean(lambda e: e["cosine with the gradient"][str(SCALES[0])]),
    }


def table(result):
    """One row a network, means over its images."""
    lines = [
        "| network | distance of maxima, over that of random points | angle of maxima (of random "
        "points), degrees | inner points of segments below the line between their ends | middle's "
        "loss over the ends' | random point's loss over the middle's | negative inner products "
        f"with the gradient | cosine with the gradient, at epsilon (at {SCALES[0]:g} of it) |",
        "|---" * 8 + "|",
    ]
    for network, entries in by_network(result).items():
        m = means(entries)
        other = np.mean([entry["angle of random points"][0] for entry in entries])
        lines.append(
            f"| {network.label} | {m['distance']:.2f} | {m['angle']:.0f} ({other:.0f}) | "
            f"{m['below']:.0%} | {m['middle']:.2f} | {m['random']:.3f} | {m['negative']:.0%} | "
            f"{m['cosine']:.3f} ({m['cosine, small']:.3f}) |"
        )
    return lines


def verdict(result):
    """By the item's rule."""
    criteria = []
    for network, entries in by_network(result).items():
        m = means(entries)
        of_network = [
            (
                0.75 <= m["distance"] <= 4 / 3,
                f"distances {m['distance']:.2f} of random points' (0.75 to 1.33)",
            ),
            (70 <= m["angle"] <= 110, f"angle {m['angle']:.0f} degrees (70 to 110)"),
            (m["below"] >= 0.9, f"{m['below']:.0%} of inner points below the line (90%)"),
            (
                m["random"] <= 0.5,
                f"random points at {m['random']:.2f} of the middle's loss (at most 0.5)",
            ),
            (m["negative"] > 0, f"{m['negative']:.0%} negative inner products (some)"),
            (
                m["cosine"] < m["cosine, small"],
                f"cosine with the gradient {m['cosine']:.3f} at epsilon, {m['cosine, small']:.3f} "
                f"at {SCALES[0]:g} of it (lower)",
            ),
        ]
        criteria += [(holds, f"{network.label}: {words}") for holds, words in of_network]
    return verdict_of(*criteria)


ITEM = Item(
    name="maxima",
    title="Section 3: the maxima in numbers",
    question="RQ1",
    claim="The maxima that PGD finds are distinct: as far apart as random points of the ball, at "
    "angles near 90 degrees; on the segment between two the loss is convex, lower in the middle by "
    "a constant factor, and still far above a random point's; some have a negative inner product "
    "with the gradient at the image, and the correlation with it falls as epsilon grows.",
    minutes=28,
    settings={
        "num_images": 5,
        "num_candidates": 200,
        "num_restarts": 10,
        "num_segments": 20,
        "num_steps": 100,
        "seed": 0,
    },
    sample={
        "num_images": 1,
        "num_candidates": 3,
        "num_restarts": 3,
        "num_segments": 2,
        "num_steps": 2,
    },
    parts=parts,
    table=table,
    note="Means over five images with ten starts each. On MNIST the box of pixel values clips the "
    "ball, so that also random points have an angle of 72 degrees.",
    tried="The angles are smaller than the paper suggests on every network. On MNIST the bounds of "
    "the pixels make perturbations one-sided, so that the limit of 70 degrees is hardly within "
    "reach: random points of the ball are 72 degrees apart. On the robust "
    "CIFAR-10 network the maxima nearly coincide. No inner product is negative among the 50 maxima "
    "of a network; the paper had up to 100,000 starts.",
    shows_parts=True,
    rule="The paper's statements, on every network, as means over images: distances are 0.75 to "
    "1.33 times those of random points; angles are 70 to 110 degrees; 90 % of the inner points of "
    "segments are below the line between their ends; random points have at most half the middle's "
    "loss; some inner products are negative; the cosine with the gradient is lower at epsilon than "
    "at an eighth of it.",
    verdict=verdict,
)
