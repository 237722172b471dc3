"""The page of an evaluation: what is on it, and how a browser shows it."""

import base64
import dataclasses
import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from common.errors import InputError
from common.evaluation import html_report
from common.evaluation.html_report import Evaluation, Outputs, outputs_of, page
from common.evaluation.results import Result, TrialResult, wilson_interval

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
RED = (200, 30, 30)


def evaluation(num_classes=3, shape=(6, 6, 3), count=20, names=("fgsm", "apgd"), **changes):
    """An evaluation of plain red images: one is misclassified, every second broken."""
    channels = shape[2]
    images = np.broadcast_to(np.uint8((RED * channels)[:channels]), (count, *shape)).copy()
    labels = np.arange(count) % num_classes
    natural = np.arange(count) != 0
    stands = natural & (np.arange(count) % 2 == 0)
    x_adv = images.astype(np.float32) + 8 * np.where(np.arange(shape[1]) % 2, 1, -1)[:, None]
    first = natural & (np.arange(count) % 4 != 1)
    withstood = np.stack([first, stands])[: len(names)]
    share, all_of = (100 * float(np.mean(values)) for values in (first, stands))
    trials = [
        TrialResult(names[0], count - 1, 5, share, share, count, 20, 0, 1.0),
        TrialResult(names[1], count - 1, 10, all_of, None, count, 2000, 30, 2.0),
    ]
    wrong = (labels + 1) % num_classes
    values = {
        "title": "MNIST: mine",
        "facts": {"model": "mine"},
        "origin": {"command": "eval.py", "commit": "abc"},
        "result": Result(
            natural,
            stands,
            np.full(count, 0.01, np.float32),
            np.where(stands, 0.5, 3.0).astype(np.float32),
            np.float32(x_adv),
            withstood,
            tuple(trials),
            3.0,
        ),
        "natural": Outputs(np.where(natural, labels, wrong), np.ones(count), num_classes),
        "adversarial": Outputs(
            np.where(stands, labels, wrong), np.where(stands, 1.5, -2.0), num_classes
        ),
        "images": images,
        "to_pixels": lambda images: images.astype(np.float32),
        "labels": labels,
        "bounds": (0.0, 255.0),
        "class_names": ("plane", "ship", "frog")[:num_classes],
        "warnings": [],
    }
    return Evaluation(**{**values, **changes})


class Parsed(html.parser.HTMLParser):
    """The tags of a page, and its text; a tag that is not closed fails."""

    EMPTY = ("meta", "img", "line", "polygon", "polyline")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += f"{data} "


def test_the_numbers_are_on_the_page():
    shown = evaluation()
    parsed = Parsed(page(shown))
    assert "95.00 %" in parsed.text and "45.00 %" in parsed.text  # natural, robust
    low, high = wilson_interval(9, 20)
    assert f"95% interval {low:.2f} to {high:.2f}" in parsed.text
    labels = [
        attributes["aria-label"] for _, attributes in parsed.tags if "aria-label" in attributes
    ]
    assert labels[0].startswith("no attack: 95.00%, 95% interval ")
    assert labels[1].startswith("fgsm: 70.00%, ") and labels[2].startswith("apgd: 45.00%, ")
    widths = re.findall(r"<b class=\w+ style='width:([\d.]+)%'>", page(shown))
    assert [float(width) for width in widths] == [95, 70, 45]
    # Of the 7 planes two stand, see by hand: 0 misclassified, 6, 12, 18 stand; 3, 9, 15 broken.
    assert "plane classified as plane: 3 (42.9%)" in page(shown)
    assert "plane classified as ship: 4 (57.1%)" in page(shown)
    assert "mean 0.0100" in parsed.text
    assert f"mean {np.mean(shown.result.adversarial_losses):.4f}" in parsed.text
    assert "Warnings" not in parsed.text


def test_the_page_needs_nothing_else():
    text = page(evaluation())
    parsed = Parsed(text)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not re.search(r"https?:|url\(|@import|\bon\w+=", text)
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object")
        assert "href" not in attributes
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,") and attributes["alt"]


def test_images_and_perturbations_are_those_of_the_evaluation():
    shown = evaluation()
    tags = [attributes for tag, attributes in Parsed(page(shown)).tags if tag == "img"]
    assert len(tags) == 3 * (10 + 9)
    pngs = [base64.b64decode(tag["src"].partition(",")[2]) for tag in tags]
    image, attacked, added = (tf.io.decode_png(png).numpy() for png in pngs[:3])
    assert (image == RED).all()
    assert (attacked[:, ::2] == np.subtract(RED, 8)).all()
    assert (attacked[:, 1::2] == np.add(RED, 8)).all()
    assert (added[:, ::2] == 0).all() and (added[:, 1::2] == 255).all()


def test_the_broken_and_the_closest_come_in_order():
    margins = np.where(np.arange(20) % 2 == 0, 20.0, -1.0) - np.arange(20) * 0.1
    shown = evaluation()
    shown = dataclasses.replace(
        shown, adversarial=dataclasses.replace(shown.adversarial, margins=margins)
    )
    text = Parsed(page(shown)).text
    broken, closest = text[text.index("Broken") :].split("Closest to broken")
    # Of each class in turn, the furthest beyond the boundary first: 19, 17, 15 are of three.
    assert re.findall(r"number (\d+) +lead", broken)[:4] == ["19", "17", "15", "13"]
    assert re.findall(r"number (\d+) +lead", closest) == [str(n) for n in range(18, 0, -2)]


def test_names_and_warnings_are_text():
    odd = "<b>&\"'</b><script>alert(1)</script>"
    names = (odd,) * 3
    text = page(
        evaluation(title=odd, facts={odd: odd}, class_names=names, warnings=[odd], names=(odd, odd))
    )
    assert "<script" not in text and '<b>&"' not in text
    assert Parsed(text).text.count(odd) > 10


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("shape", [(1, 1, 1), (28, 28, 1), (64, 200, 3), (5, 4, 4), (5, 5, 2)])
def test_any_size_and_number_of_classes(num_classes, shape):
    text = page(evaluation(num_classes, shape, class_names=None))
    tags = [attributes for tag, attributes in Parsed(text).tags if tag == "img"]
    image = tf.io.decode_png(base64.b64decode(tags[0]["src"].partition(",")[2]))
    height, width = shape[:2]
    scale = min(1, 96 / max(height, width))
    assert image.shape[:2] == (round(height * scale), round(width * scale))
    assert ('class="matrix"' in text) == (num_classes <= 20)


def test_all_or_nothing_broken_and_losses_without_end():
    shown = evaluation()
    everything, nothing = (
        dataclasses.replace(shown.result, adversarial_correct=np.full(20, value))
        for value in (False, True)
    )
    assert "No image withstood the attacks." in page(dataclasses.replace(shown, result=everything))
    nothing = dataclasses.replace(nothing, natural_correct=np.zeros(20, bool))
    assert "No image is broken." in page(dataclasses.replace(shown, result=nothing))
    losses = np.float32([np.inf, np.nan, 0.0, *np.ones(17)])
    endless = dataclasses.replace(
        shown.result, adversarial_losses=losses, natural_losses=np.zeros_like(losses)
    )
    Parsed(page(dataclasses.replace(shown, result=endless)))
    right = dataclasses.replace(shown.adversarial, predictions=shown.labels)
    text = page(dataclasses.replace(shown, adversarial=right))
    assert "No attacked image is misclassified." in text


def test_outputs_are_those_of_the_model():
    images = np.arange(24, dtype=np.float32).reshape(6, 2, 2, 1)

    def model(x):
        return tf.reshape(x, (-1, 4))[:, :3] * [1.0, -1.0, 0.5]

    labels = np.int32([0, 1, 2, 0, 1, 2])
    first, second = outputs_of(
        model, labels, 4, (images, lambda x: x), (images, lambda x: np.float32(-x))
    )
    logits = np.array(model(images))
    assert first.predictions.tolist() == logits.argmax(axis=1).tolist()
    assert second.predictions.tolist() == (-logits).argmax(axis=1).tolist()
    own = logits[np.arange(6), labels]
    logits[np.arange(6), labels] = -np.inf
    np.testing.assert_allclose(first.margins, own - logits.max(axis=1))
    assert first.num_classes == 3


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match="^cannot write "):
        html_report.write(tmp_path / "no" / "r.html", evaluation())


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_it_in_light_and_dark(tmp_path):
    html_report.write(tmp_path / "r.html", evaluation(warnings=["masked gradients"]))

    def seen(width, scheme):
        picture = tmp_path / f"{width}-{scheme}.png"
        subprocess.run(
            [
                *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}"),
                *(f"--window-size={width},2600", f"--user-data-dir={tmp_path / 'profile'}"),
                f"file://{tmp_path / 'r.html'}",
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        return tf.io.decode_png(picture.read_bytes(), channels=3).numpy()

    def share(image, color):
        return np.mean((np.abs(image.astype(int) - color) <= 2).all(axis=-1))

    dark, light = seen(1100, 0), seen(1100, 1)
    for image in (dark, light):
        assert share(image, RED) > 0.01  # the images
    for image, card, accent in (
        (light, (255, 255, 255), (31, 95, 168)),
        (dark, (27, 33, 42), (106, 169, 239)),
    ):
        assert share(image, card) > 0.3 and share(image, accent) > 0.002
    narrow = seen(500, 1)
    assert share(narrow, RED) > 0.01
    assert (narrow[:, -4:] == narrow[:1, -1:]).all()  # nothing runs over the edge
