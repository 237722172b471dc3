"""The results of an evaluation as one HTML page.

The page needs no other file: figures are SVG, images PNG within it, and there is no script. It
follows the reader's light or dark setting, and is legible in black and white.
"""

import base64
import dataclasses
import html
import math
import string

import numpy as np
import tensorflow as tf

from common.attack.gradient import as_logits, graph_model
from common.attack.inputs import as_raised
from common.attack.losses import margin
from common.attack.precision import without_tf32
from common.evaluation.report import left_alone
from common.evaluation.results import shown_interval
from common.files import write_atomically

NUM_SHOWN = 12  # images of each kind
MOST_CLASSES = 20  # of a matrix; with more, only the commonest mistakes are listed
NUM_MISTAKES = 20
LONGEST_SIDE = 96  # pixels that an image is shown with at most
LOWEST_LOSS = 1e-4  # the histogram's left end; lower losses count there
NUM_BINS = 30


@dataclasses.dataclass(frozen=True)
class Outputs:
    """A model's outputs for some images.

    Attributes:
        predictions: int (n,), the class of the largest logit.
        margins: float32 (n,), z_y - max_{i != y} z_i, negative if the image is misclassified.
        num_classes: int.
    """

    predictions: np.ndarray
    margins: np.ndarray
    num_classes: int


@without_tf32()
def outputs_of(model, labels, batch_size, *images):
    """Returns the `Outputs` of a model for each of `images`.

    Args:
        model: callable from float32 images to logits of any floating dtype.
        labels: int (n,), the images' classes.
        batch_size: images at a time.
        *images: pairs of images (n, height, width, channels) and a function from them to float32
            pixels.
    """

    model = graph_model(model)

    @tf.function(autograph=False, reduce_retracing=True)
    def outputs(x, y):
        logits = as_logits(model(x), x)
        return tf.argmax(logits, axis=-1), margin(logits, y), tf.shape(logits)[1]

    found = []
    for given, to_pixels in images:
        parts = []
        for i in range(0, len(labels), batch_size):
            batch = slice(i, i + batch_size)
            x = tf.convert_to_tensor(to_pixels(given[batch]))
            with as_raised():
                parts.append([part.numpy() for part in outputs(x, tf.constant(labels[batch]))])
        predictions, margins, counts = zip(*parts, strict=True)
        found.append(Outputs(np.concatenate(predictions), np.concatenate(margins), int(counts[0])))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that the page shows.

    Attributes:
        title: the page's title.
        facts: dict of what was evaluated and how, in words, shown at the top.
        origin: dict of what made it, such as command and commit, shown at the end.
        result: a `common.evaluation.Result`.
        natural, adversarial: the `Outputs` of the images and of `result.x_adv`.
        images: (n, height, width, channels), those that were evaluated.
        to_pixels: function from `images` to float32 pixels in `bounds`.
        labels: int (n,), their classes.
        bounds: (lowest, highest) pixel value.
        class_names: tuple of text, or None for the numbers.
        warnings: list of lines, see `common.evaluation.pitfalls`.
    """

    title: str
    facts: dict
    origin: dict
    result: object
    natural: Outputs
    adversarial: Outputs
    images: np.ndarray
    to_pixels: object
    labels: np.ndarray
    bounds: tuple
    class_names: tuple | None = None
    warnings: list = ()

    def name_of(self, label):
        """The name of a class, as text."""
        names = self.class_names
        return str(names[label]) if names and label < len(names) else str(int(label))

    @property
    def is_broken(self):
        """bool (n,), whether the attacks broke an image that is classified correctly."""
        return self.result.natural_correct & ~self.result.adversarial_correct


def write(path, evaluation):
    """Writes the page of an `Evaluation` to a file, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_atomically(path, page(evaluation).encode())


def page(evaluation):
    """Returns the page of an `Evaluation` as HTML."""
    sections = [
        _warnings(evaluation),
        _accuracies(evaluation),
        _classes(evaluation),
        _losses(evaluation),
        _gallery(evaluation, "Broken", _broken(evaluation)),
        _gallery(evaluation, "Closest to broken", _closest(evaluation)),
    ]
    return _PAGE.substitute(
        title=_text(evaluation.title),
        tiles=_tiles(evaluation),
        facts=_list(evaluation.facts),
        sections="\n".join(sections),
        origin=_list(evaluation.origin),
    )


def _tiles(evaluation):
    """The three numbers that come first."""
    result = evaluation.result
    count = len(result.natural_correct)
    tiles = []
    for name, correct in (
        ("natural accuracy", result.natural_correct),
        ("robust accuracy", result.adversarial_correct),
    ):
        low, high = shown_interval(int(np.count_nonzero(correct)), count)
        value = f"{100 * np.mean(correct):.2f}<small>%</small>"
        tiles.append((name, value, f"95% interval {low:.2f} to {high:.2f}"))
    broken = np.count_nonzero(evaluation.is_broken)
    right = np.count_nonzero(result.natural_correct)
    tiles.append(("broken by the attacks", f"{broken:,}", f"of {right:,} classified correctly"))
    return "".join(
        f'<div class="tile"><b>{value}</b><span>{name}</span><i>{note}</i></div>'
        for name, value, note in tiles
    )


def _warnings(evaluation):
    if not evaluation.warnings:
        return ""
    lines = "".join(f"<li>{_text(line)}</li>" for line in evaluation.warnings)
    return (
        '<section class="warnings"><h2>Warnings</h2><p>Signs that the model may be less robust '
        f"than these numbers.</p><ul>{lines}</ul></section>"
    )


def origin_of(record):
    """Returns what made an evaluation, in words, as a dict.

    Args:
        record: dict with `common.provenance.provenance()` and the seed.
    """
    hardware, versions = record["hardware"], record["versions"]
    machine = [hardware["processor"], f"{hardware['cores']} cores", *hardware["gpus"]]
    return {
        "command": record["command"],
        "commit": record["commit"] or "outside a clone",
        "seed": record["seed"],
        "machine": ", ".join(map(str, machine)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        **({"shards": len(record["shards"])} if "shards" in record else {}),
    }


# Accuracy by attack.


def _accuracies(evaluation):
    result = evaluation.result
    count = len(result.natural_correct)
    natural = 100 * float(np.mean(result.natural_correct))
    bars = [_bar("no attack", natural, None, count, "natural")]
    bars += [
        _bar(trial.name, trial.accuracy, trial.accuracy_alone, count, "attacked")
        for trial in result.trials
    ]
    is_alone = len(result.trials) > 1 and all(t.accuracy_alone is not None for t in result.trials)
    alone = " The diamond is the accuracy under the attack alone." if is_alone else ""
    several = (
        "Each bar is the worst case over its attack and those above it."
        if len(result.trials) > 1
        else "The share of correct images, without and under the attack."
    )
    axis = "".join(f'<span style="left:{tick}%">{tick}</span>' for tick in range(0, 101, 20))
    rows = "".join(
        "<tr>"
        + f"<th>{_text(trial.name)}</th>"
        + f"<td>{trial.num_given:,}</td><td>{trial.num_broken:,}</td>"
        + f"<td>{trial.accuracy:.2f}%</td><td>{trial.seconds:,.1f}</td>"
        + f"<td>{trial.num_gradients:,}</td><td>{trial.num_queries:,}</td></tr>"
        for trial in result.trials
    )
    return (
        '<section><h2>Accuracy by attack</h2><p class="note">'
        f"{several} The line is the 95% confidence interval (Wilson), in percent of {count:,} "
        f"images{left_alone(result)}.{alone}</p>"
        f'<div class="bars">{"".join(bars)}<div class="axis"><div>{axis}</div></div></div>'
        '<div class="scroll"><table class="numbers"><thead><tr><th>attack</th><th>given</th>'
        "<th>broken</th><th>accuracy</th><th>seconds</th><th>gradients</th><th>queries</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></div></section>"
    )


def _bar(name, accuracy, alone, count, kind):
    low, high = shown_interval(round(accuracy * count / 100), count)
    diamond = ""
    if alone is not None and abs(alone - accuracy) > 1e-9:
        diamond = f'<s style="left:{alone:.3f}%" title="alone: {alone:.2f}%"></s>'
    label = f"{name}: {accuracy:.2f}%, 95% interval {low:.2f}% to {high:.2f}%"
    return (
        f'<div class="bar" role="img" aria-label="{_text(label)}" title="{_text(label)}">'
        f"<span>{_text(name)}</span><div><b class={kind} style='width:{accuracy:.3f}%'></b>"
        f'<u style="left:{low:.3f}%;width:{high - low:.3f}%"></u>{diamond}</div>'
        f"<em>{accuracy:.2f}%</em></div>"
    )


# Which class becomes which.


def _classes(evaluation):
    labels, predictions = np.asarray(evaluation.labels), evaluation.adversarial.predictions
    num_classes = evaluation.adversarial.num_classes
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    matrix = _matrix(evaluation, counts) if num_classes <= MOST_CLASSES else ""
    return (
        '<section><h2>Which class becomes which</h2><p class="note">The predicted classes of the '
        "attacked images. For a broken image this is the class under the attack that broke it; for "
        "any other, under the attack with the highest loss.</p>"
        f'<div class="columns">{matrix}{_mistakes(evaluation, counts)}</div></section>'
    )


def _matrix(evaluation, counts):
    names = [_text(evaluation.name_of(label)) for label in range(len(counts))]
    head = "".join(f"<th scope=col>{name}</th>" for name in names)
    rows = []
    for label, row in enumerate(counts):
        total = max(int(row.sum()), 1)
        cells = []
        for other, number in enumerate(row):
            share = number / total
            kind = "right" if other == label else "wrong"
            depth = share if other == label else math.sqrt(share)  # few mistakes show, too
            is_dark = " strong" if depth > 0.65 else ""
            title = f"{names[label]} classified as {names[other]}: {number:,} ({100 * share:.1f}%)"
            cells.append(
                f'<td class="{kind}{is_dark}" style="--depth:{100 * depth:.0f}%" title="{title}">'
                f"{f'{number:,}' if number else ''}</td>"
            )
        kept = f"{100 * row[label] / total:.0f}%" if row.sum() else ""
        rows.append(f"<tr><th scope=row>{names[label]}</th>{''.join(cells)}<td>{kept}</td></tr>")
    return (
        '<div class="scroll"><p class="caption">Rows are the images\' classes, columns the '
        'predicted ones; the last column is the share that stays.</p><table class="matrix">'
        f"<thead><tr><td></td>{head}<th>stays</th></tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></div>"
    )


def _mistakes(evaluation, counts):
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")
    most = NUM_MISTAKES if len(counts) > MOST_CLASSES else NUM_MISTAKES // 2
    rows = []
    for label, other in zip(*np.unravel_index(order[:most], wrong.shape), strict=True):
        number = int(wrong[label, other])
        if number:
            share = 100 * number / int(counts[label].sum())
            rows.append(
                f"<tr><th>{_text(evaluation.name_of(label))} &rarr; "
                f"{_text(evaluation.name_of(other))}</th><td>{number:,}</td>"
                f"<td>{share:.1f}%</td></tr>"
            )
    if not rows:
        return '<p class="note">No attacked image is misclassified.</p>'
    return (
        '<div class="scroll"><table class="numbers"><caption>The commonest mistakes</caption>'
        "<thead><tr><th>class becomes</th><th>images</th><th>of its class</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


# Losses.


def _losses(evaluation):
    result = evaluation.result
    natural, adversarial = result.natural_losses, result.adversarial_losses
    both = np.concatenate([natural, adversarial])
    both = both[np.isfinite(both)]
    highest = max(float(both.max(initial=0.0)), 10 * LOWEST_LOSS)
    lowest = max(float(both.min(initial=highest)), LOWEST_LOSS)
    ends = np.array([math.floor(math.log10(lowest) + 1e-9), math.log10(highest * 1.001)])
    edges = np.linspace(*ends, NUM_BINS + 1)

    def heights(losses):
        losses = np.nan_to_num(np.asarray(losses, np.float64), nan=highest, posinf=highest)
        places = np.log10(np.clip(losses, LOWEST_LOSS, highest))
        return np.histogram(places, edges)[0] / len(losses)

    shown = [heights(natural), heights(adversarial)]
    top = max(float(np.max(shown)), 1e-9)
    width, height, left, bottom = 720, 220, 46, 34

    def x_of(place):
        return left + (width - left - 8) * (place - ends[0]) / (ends[1] - ends[0])

    def y_of(share):
        return 8 + (height - bottom - 8) * (1 - share / top)

    def outline(values):
        points = [f"{x_of(edges[0]):.1f},{y_of(0):.1f}"]
        for start, end, value in zip(edges[:-1], edges[1:], values, strict=True):
            points += [f"{x_of(start):.1f},{y_of(value):.1f}", f"{x_of(end):.1f},{y_of(value):.1f}"]
        return " ".join([*points, f"{x_of(edges[-1]):.1f},{y_of(0):.1f}"])

    marks = []
    for power in range(math.ceil(ends[0]), math.floor(ends[1]) + 1):
        x = x_of(power)
        name = f"{10.0**power:g}"
        name = f"&le; {name}" if lowest == LOWEST_LOSS and power == ends[0] else name
        marks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{y_of(0):.1f}" class="grid"/>')
        anchor = "start" if power == ends[0] else "middle"
        marks.append(f'<text x="{x:.1f}" y="{height - 16}" text-anchor="{anchor}">{name}</text>')
    for share in (0.5, 1.0):
        y = y_of(share * top)
        marks.append(f'<line x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        percent = f"{100 * share * top:.0f}%"
        marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{percent}</text>')
    chance = math.log(evaluation.natural.num_classes)
    middle = (left + width) / 2
    return (
        '<section><h2>Losses</h2><p class="note">Cross-entropy of the images and of the attacked '
        f"images, in equal steps of its logarithm. Guessing among {evaluation.natural.num_classes} "
        f"classes gives {chance:.2f}.</p>"
        '<p class="legend"><span><i class="attacked"></i>attacked, mean '
        f'{np.mean(adversarial, dtype=np.float64):.4f}</span><span><i class="natural"></i>natural, '
        f"mean {np.mean(natural, dtype=np.float64):.4f}</span></p>"
        f'<div class="scroll"><svg class="plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Histogram of natural and adversarial losses">{"".join(marks)}'
        f'<polygon class="attacked" points="{outline(shown[1])}"/>'
        f'<polyline class="natural" points="{outline(shown[0])}"/>'
        f'<text x="{middle:.0f}" y="{height - 2}" text-anchor="middle">cross-entropy</text>'
        "</svg></div></section>"
    )


# Images.


def _broken(evaluation):
    """Numbers of broken images: of each class in turn, the one with the lowest margin first."""
    numbers = np.flatnonzero(evaluation.is_broken)
    numbers = numbers[np.argsort(evaluation.adversarial.margins[numbers], kind="stable")]
    seen, turns = {}, []
    for number in numbers:
        label = int(evaluation.labels[number])
        turns.append(seen.setdefault(label, 0))
        seen[label] += 1
    return numbers[np.argsort(turns, kind="stable")][:NUM_SHOWN] if turns else numbers


def _closest(evaluation):
    """Numbers of the unbroken images, those with the least margin under attack first."""
    numbers = np.flatnonzero(evaluation.result.adversarial_correct)
    return numbers[np.argsort(evaluation.adversarial.margins[numbers], kind="stable")][:NUM_SHOWN]


_WHICH = {
    "Broken": (
        "Images that an attack made the model misclassify: of each class in turn the one that is "
        "furthest beyond the boundary.",
        "No image is broken.",
    ),
    "Closest to broken": (
        "Images that withstood every attack, those with the least lead of the right class first.",
        "No image withstood the attacks.",
    ),
}


def _gallery(evaluation, title, numbers):
    words, none = _WHICH[title]
    if not len(numbers):
        return f'<section><h2>{title}</h2><p class="note">{none}</p></section>'
    cards = "".join(_card(evaluation, int(number)) for number in numbers)
    return (
        f'<section><h2>{title}</h2><p class="note">{words} The third image is the perturbation, '
        "scaled to the full range of pixels; grey means no change. lead: logit of the right class "
        "minus the best other.</p>"
        f'<div class="cards">{cards}</div></section>'
    )


def _card(evaluation, number):
    x_nat = np.asarray(evaluation.to_pixels(evaluation.images[number : number + 1]), np.float32)[0]
    x_adv = evaluation.result.x_adv[number]
    low, high = evaluation.bounds
    added = x_adv - x_nat
    most = float(np.max(np.abs(added)))
    stretched = 0.5 + added / (2 * most) if most else np.full_like(added, 0.5)
    label, natural, adversarial = (
        evaluation.name_of(int(value[number]))
        for value in (
            evaluation.labels,
            evaluation.natural.predictions,
            evaluation.adversarial.predictions,
        )
    )
    lead = evaluation.adversarial.margins[number]
    shown = (
        (natural, "image", (x_nat - low) / (high - low)),
        (adversarial, "attacked", (x_adv - low) / (high - low)),
        (f"\u00b1{most:.3g}", "added", stretched),
    )
    images = "".join(
        f"<figure>{_image(pixels, f'{what}, number {number}')}<figcaption><b>{_text(name)}</b>"
        f"<span>{what}</span></figcaption></figure>"
        for name, what, pixels in shown
    )
    return (
        f'<div class="card"><p><b>{_text(label)}</b><span>number {number:,}</span>'
        f"<span>lead {lead:+.2f}</span></p><div>{images}</div></div>"
    )


def _image(pixels, words):
    """An <img> of float pixels (height, width, channels) in [0, 1]."""
    if pixels.shape[-1] not in (1, 3):
        pixels = pixels.mean(axis=-1, keepdims=True)
    longest = max(pixels.shape[:2])
    if longest > LONGEST_SIDE:
        sides = [max(1, round(side * LONGEST_SIDE / longest)) for side in pixels.shape[:2]]
        pixels = tf.image.resize(pixels, sides, method="area").numpy()
    levels = np.rint(255 * np.clip(np.nan_to_num(pixels), 0.0, 1.0)).astype(np.uint8)
    data = base64.b64encode(tf.io.encode_png(levels).numpy()).decode()
    return f'<img alt="{_text(words)}" src="data:image/png;base64,{data}">'


def _list(facts):
    rows = (f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    return f"<dl>{''.join(rows)}</dl>"


def _text(value):
    return html.escape(str(value))


_PAGE = string.Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5b6676; --rule: #dde2e9;
  --accent: #1f5fa8; --pale: #aab7c8; --wrong: #c2541b; --warn: #fff4dc; --warn-rule: #d59a1a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1b212a; --ink: #e8ecf2; --soft: #9aa6b6; --rule: #313a47;
    --accent: #6aa9ef; --pale: #556273; --wrong: #e58a55; --warn: #332a14; --warn-rule: #c99a3a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.45;
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 18px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; }
section, header, footer { background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; padding: 20px 22px; margin: 0 0 16px; }
.note { color: var(--soft); margin: 0 0 14px; max-width: 76ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; }
.tile { border-left: 4px solid var(--accent); padding: 2px 0 2px 14px; }
.tile:first-child { border-color: var(--pale); }
.tile b { display: block; font-size: 34px; line-height: 1.1; font-variant-numeric: tabular-nums; }
.tile b small { font-size: 20px; font-weight: 600; margin-left: 2px; }
.tile span { display: block; font-weight: 600; }
.tile i { color: var(--soft); font-style: normal; font-size: 13px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 18px 0 0;
  font-size: 14px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
footer dl { margin: 10px 0 0; font-size: 13px; }
.warnings { background: var(--warn); border-color: var(--warn-rule); border-left-width: 6px; }
.warnings p { margin: 0; } .warnings ul { margin: 8px 0 0; padding-left: 20px; }
.bars { margin: 0 0 20px; }
.bar, .axis { display: grid; grid-template-columns: minmax(90px, 190px) 1fr 66px; gap: 12px;
  align-items: center; }
.bar { height: 30px; }
.bar > span { text-align: right; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar > div { position: relative; height: 100%; background: linear-gradient(90deg, var(--rule) 1px,
  transparent 1px) 0 0 / 20% 100%; border-right: 1px solid var(--rule); }
.bar b { position: absolute; left: 0; top: 5px; bottom: 5px; border-radius: 0 3px 3px 0; }
.bar b.attacked { background: var(--accent); } .bar b.natural { background: var(--pale); }
.bar u { position: absolute; top: 9px; bottom: 9px; border: solid var(--ink); border-width: 0 2px;
  background: linear-gradient(var(--ink), var(--ink)) center / 100% 2px no-repeat;
  min-width: 2px; box-shadow: 0 0 0 1.5px var(--card); }
.bar s { position: absolute; top: 10px; width: 10px; height: 10px; margin-left: -5px;
  background: var(--card); border: 2px solid var(--ink); transform: rotate(45deg); }
.bar em { font-style: normal; font-weight: 600; font-variant-numeric: tabular-nums; }
.axis > div { grid-column: 2; position: relative; height: 20px; color: var(--soft);
  font-size: 12px; }
.axis span { position: absolute; transform: translateX(-50%); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
caption, .caption { text-align: left; color: var(--soft); font-size: 13px; margin: 0;
  padding-bottom: 6px; }
.numbers { width: 100%; }
.numbers th, .numbers td { text-align: right; padding: 4px 8px; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
.numbers th:first-child { text-align: left; font-weight: 600; }
.numbers thead th { color: var(--soft); font-weight: 500; font-size: 13px; }
.columns { display: flex; flex-wrap: wrap; gap: 26px; align-items: flex-start; }
.columns > * { flex: 0 1 auto; max-width: 100%; }
.columns > :last-child { flex: 1 1 230px; }
.matrix th { font-weight: 500; font-size: 13px; padding: 3px 6px; }
.matrix tbody th { text-align: right; }
.matrix td { min-width: 40px; height: 30px; text-align: center; font-size: 13px; padding: 0 4px;
  border: 1px solid var(--rule); }
.matrix td.wrong { background: color-mix(in srgb, var(--wrong) var(--depth), var(--card)); }
.matrix td.right { background: color-mix(in srgb, var(--accent) var(--depth), var(--card));
  outline: 2px solid var(--ink); outline-offset: -2px; }
.matrix td.strong { color: var(--card); font-weight: 600; }
.matrix td:last-child { border: 0; color: var(--soft); } .matrix thead td { border: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 0 0 6px; font-size: 14px; }
.legend i { display: inline-block; width: 22px; height: 12px; margin-right: 7px; }
.legend i.attacked { background: var(--accent); opacity: .8; }
.legend i.natural { height: 0; border-top: 3px dashed var(--ink); vertical-align: 4px; }
.plot { width: 100%; min-width: 520px; height: auto; display: block; }
.plot text { fill: var(--soft); font-size: 10.5px; }
.plot .grid { stroke: var(--rule); stroke-width: 1; }
.plot .attacked { fill: var(--accent); opacity: .8; }
.plot .natural { fill: none; stroke: var(--ink); stroke-width: 2; stroke-dasharray: 6 3; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(296px, 1fr)); gap: 12px; }
.card { border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px; }
.card > p { display: flex; gap: 12px; align-items: baseline; margin: 0 0 8px; font-size: 13px; }
.card > p b { font-size: 15px; margin-right: auto; } .card > p span { color: var(--soft); }
.card > div { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  image-rendering: pixelated; background: #808080; border-radius: 4px; }
figcaption { font-size: 13px; margin-top: 4px; display: flex; flex-direction: column;
  line-height: 1.25; overflow-wrap: anywhere; }
figcaption span { color: var(--soft); font-size: 12px; }
@media (max-width: 560px) {
  dl { grid-template-columns: 1fr; } dt { margin-top: 6px; }
  .bar, .axis { grid-template-columns: 84px 1fr 60px; gap: 8px; }
}
@media print { body { background: none; } section, header, footer { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<header><h1>$title</h1><div class="tiles">$tiles</div>$facts</header>
$sections
<footer><h2>Where these numbers come from</h2>$origin</footer>
</main>
</body>
</html>
"""
)
