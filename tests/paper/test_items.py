"""Items of the paper: each runs to its end, results resume and become stale, pictures repeat."""

import dataclasses
import json
import re
import types

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image

from cifar10_challenge.challenge import CIFAR10
from common.attack import PGD, xent_loss
from common.errors import InputError
from mnist_challenge.challenge import MNIST
from paper import ascent, document, items, reproduce, style
from paper.item import IN_PART, NOT_REPRODUCED, QUESTIONS, REPRODUCED, Item, Part, Work, verdict_of
from paper.items import claims
from paper.networks import FGSM_TRAINED, NATURAL, ROBUST, Network
from paper.results import DONE, IMPOSSIBLE, OPEN, PARTLY, STALE, Result
from tests.helpers import ROOT, error_line, run

# The cheapest items; the others run with -m slow.
BY_DEFAULT = ("figure_10", "figure_12")
WORDS = (REPRODUCED, IN_PART, NOT_REPRODUCED)
SCRIPT = ROOT / "paper" / "reproduce.py"


@pytest.mark.parametrize(
    "name",
    [n if n in BY_DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in items.NAMES],
)
def test_an_item_runs_to_its_end_on_a_sample(name, tmp_path):
    item = items.load(name)
    out = run(SCRIPT, name, "--sample", cwd=tmp_path)
    if item.needs:  # a training, which its own test makes
        assert f"{name}: nothing is made, as it needs" in out
        return
    made = tmp_path / "paper_sample"
    if item.parts is None:
        assert f"### {item.title}" in (made / "README.md").read_text()
        assert not list((made / "results").iterdir())
        return
    result = json.loads((made / "results" / f"{name}.json").read_text())
    settings = {**item.settings, **item.sample}
    assert result["settings"] == settings
    assert list(result["parts"]) == [part.name for part in item.parts(settings)]
    assert any(f"{name}: {word}" in out for word in WORDS)
    page = (made / "README.md").read_text()
    assert f"### {item.title}" in page and "stale" not in page
    section = page.split(f"### {item.title}\n")[1].split("\n### ")[0]
    assert sum(f"\n**{word.capitalize()}" in section for word in WORDS) == 1
    if item.draw is not None:
        picture = plt.imread(made / "figures" / f"{name}.png")
        assert picture.shape[0] > 100 and picture.shape[1] > 300 and picture.std() > 0.05


@pytest.mark.parametrize("name", items.NAMES)
def test_an_item_is_described(name):
    item = items.load(name)
    assert item.name == name and item.question in QUESTIONS
    assert set(item.sample) <= set(item.settings) and "seed" in item.settings
    assert item.claim.endswith(".") and item.rule.endswith(".")
    assert (item.draw is None) == (item.caption == "")
    assert item.note == "" or item.table is not None
    if item.parts is None:
        return
    parts = item.parts(item.settings)
    assert len({part.name for part in parts}) == len(parts) and (parts or item.needs)


@pytest.mark.parametrize("name", items.NAMES)
def test_a_committed_picture_is_that_of_the_results(name, tmp_path):
    item = items.load(name)
    result = Result.read(item, reproduce.HERE)
    committed = reproduce.HERE / "figures" / f"{name}.png"
    if item.draw is None or not result.is_shown():
        assert not committed.exists()
        return
    style.save(item.draw(result), tmp_path / "again.png")
    assert committed.stat().st_size < 200_000
    theirs, ours = plt.imread(committed), plt.imread(tmp_path / "again.png")
    # Another version of matplotlib may place letters elsewhere.
    if is_same := version_of(committed) == version_of(tmp_path / "again.png"):
        np.testing.assert_array_equal(theirs, ours)
    if name in BY_DEFAULT or not is_same:
        style.save(item.draw(result), tmp_path / "third.png")
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / "third.png").read_bytes()


def version_of(path):
    """The version of matplotlib that wrote a picture, in its words."""
    with Image.open(path) as picture:
        return picture.info["Software"]


GHOST = Network(MNIST, "no_such_network", "robust, another")


def counting_item(networks, calls, **options):
    """An item that counts its calls, with a part for each network; options of `Item`."""

    def compute(work):
        calls.append(work.models[0].path.name)
        return {"call": len(calls), "count": work.settings["count"]}

    return Item(
        name="counting",
        title="Counting",
        question="RQ1",
        claim="It counts.",
        minutes=1,
        settings={"count": 3, "seed": 0},
        sample={"count": 1},
        parts=lambda settings: [
            Part(name=n.name, networks=(n,), compute=compute, num_images=settings["count"])
            for n in networks
        ],
        rule="It is 3.",
        verdict=lambda result: verdict_of((len(result.numbers) > 1, "more than one part")),
        **options,
    )


@pytest.fixture
def place(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "figures").mkdir()
    return tmp_path


def make(item, place, is_sample=True, afresh=False, **given):
    flag_values = types.SimpleNamespace(sample=is_sample, afresh=afresh, pdf=False)
    source = reproduce.Source(None, is_sample)
    reproduce.make(item, flag_values, given, source, place)
    return Result.read(item, place, source)


def test_interrupted_work_resumes_after_the_last_finished_part(place, capsys):
    calls = []
    item = counting_item((NATURAL, ROBUST), calls)

    def stop(work):
        raise KeyboardInterrupt

    first, second = item.parts(item.settings | item.sample)
    second = dataclasses.replace(second, compute=stop)
    with pytest.raises(KeyboardInterrupt):
        make(dataclasses.replace(item, parts=lambda settings: [first, second]), place)
    assert list(Result.read(item, place).numbers) == ["natural"]
    result = make(item, place)
    assert calls == ["natural", "adv_trained"] and list(result.numbers) == calls
    assert make(item, place).records == result.records and len(calls) == 2
    out = capsys.readouterr().out
    assert "the same command resumes" in out
    assert "counting: reproduced, with count 1\n" in out and "holds: more than one part\n" in out


def test_an_item_may_show_the_parts_that_are_there(place):
    item = counting_item((NATURAL, ROBUST), [], table=lambda result: ["| table |"])
    first, second = item.parts(item.settings)
    make(dataclasses.replace(item, parts=lambda settings: [first]), place, is_sample=False)
    hidden = Result.read(item, place)
    assert document.section(hidden)[-1] == "State: open; 1 of 2 parts are there."
    assert document.cost_of(hidden) == "about 1 min on two cores"
    shown = Result.read(dataclasses.replace(item, shows_parts=True), place)
    lines = document.section(shown)
    assert "| table |" in lines and lines[-1] == "1 of 2 parts are not computed yet."
    assert document.state_of(shown) == "not reproduced; 1 of 2 parts are there"
    assert " so far, of about 1 min" in document.cost_of(shown)


def test_numbers_of_a_card_are_read_if_all_networks_are_the_shipped_ones(place):
    calls = []
    item = counting_item((NATURAL,), calls)
    (part,) = item.parts(item.settings)
    known = dataclasses.replace(part, compute=None, known={"call": 7}, otherwise=(part,))
    item = dataclasses.replace(item, parts=lambda settings: [known])
    assert make(item, place, is_sample=False).numbers == {"natural": {"call": 7}} and not calls
    newer = dataclasses.replace(known, known={"call": 8})
    item = dataclasses.replace(item, parts=lambda settings: [newer])
    assert Result.read(item, place).state() == STALE
    assert make(item, place, is_sample=False).numbers == {"natural": {"call": 8}}
    own = reproduce.Source(None, False, {"natural": "fgsm_trained"})
    flag_values = types.SimpleNamespace(sample=False, afresh=False, pdf=False)
    reproduce.make(item, flag_values, {}, own, place)
    assert calls == ["fgsm_trained"]


def test_other_images_replace_nothing_unless_asked_to(place, monkeypatch):
    calls = []
    item = counting_item((NATURAL,), calls)
    first = make(item, place)
    load = reproduce.Source.images

    def images(source, challenge, count):
        split = load(source, challenge, count)
        return dataclasses.replace(split, labels=split.labels[::-1], name="others")

    monkeypatch.setattr(reproduce.Source, "images", images)
    with pytest.raises(InputError, match="^--data_dir: expected .*, or --afresh, .*; got others"):
        make(item, place)
    assert Result.read(item, place).records == first.records
    make(item, place, afresh=True)
    assert len(calls) == 2


def test_other_settings_replace_nothing_unless_asked_to(place):
    calls = []
    item = counting_item((NATURAL,), calls)
    make(item, place, count=2)
    with pytest.raises(InputError, match="--count: expected 2, with which .*; got 1"):
        make(item, place, count=1)
    assert make(item, place).settings["count"] == 2 and len(calls) == 1
    assert make(item, place, afresh=True, count=1).numbers == {"natural": {"call": 2, "count": 1}}


def test_a_result_is_stale_once_its_network_or_computation_has_changed(place, monkeypatch):
    calls = []
    item = counting_item((NATURAL, GHOST), calls)
    assert Result.read(item, place).state() == OPEN
    assert Result.read(counting_item((GHOST,), calls), place).state() == IMPOSSIBLE
    result = make(item, place, is_sample=False)
    assert result.state() == PARTLY and result.is_whole() and len(calls) == 1
    sure = dataclasses.replace(item, verdict=lambda result: verdict_of((True, "always")))
    assert Result.read(sure, place).verdict().word == IN_PART
    assert make(counting_item((NATURAL,), calls), place, is_sample=False).state() == DONE
    monkeypatch.setattr(Network, "digest", lambda network: "another")
    result = Result.read(counting_item((NATURAL,), calls), place)
    assert result.state() == STALE and "stale" in document.state_of(result)
    monkeypatch.undo()
    newer = dataclasses.replace(item, version=2)
    assert Result.read(newer, place).state() == STALE
    assert make(newer, place, is_sample=False).state() == PARTLY and len(calls) == 2


@pytest.fixture(params=[MNIST, CIFAR10], ids=["mnist", "cifar10"])
def linear(request):
    """A challenge, and a linear model of its images."""
    challenge = request.param
    size = int(np.prod(challenge.image_shape))
    kernel = np.random.default_rng(0).normal(size=(size, 10)).astype(np.float32)
    kernel /= 30 * challenge.bounds[1]
    return challenge, types.SimpleNamespace(
        logits=lambda x: tf.reshape(x, (-1, size)) @ kernel, digest=lambda: "linear"
    )


def test_the_loss_is_that_along_pgd(linear):
    challenge, loaded = linear
    image = np.asarray(challenge.to_pixels(challenge.load("sample").images[:1]), np.float32)
    y = np.array([3])
    along = ascent.losses_along_pgd(loaded, challenge, image[0], 3, 5, num_restarts=2, num_steps=6)
    for num_steps in (0, 1, 6):
        pgd = PGD(
            loaded.logits,
            epsilon={"MNIST": 0.3, "CIFAR-10": 8}[challenge.name],
            step_size={"MNIST": 0.01, "CIFAR-10": 0.3}[challenge.name],
            num_steps=num_steps,
            bounds=challenge.bounds,
        )
        for number in range(2):
            x = pgd.perturb(image, y, seed=5, index=[number])
            expected = xent_loss(loaded.logits(x), y)
            np.testing.assert_allclose(along[num_steps, number], expected[0], rtol=1e-4)
    ends = ascent.maxima(loaded, challenge, image[0], 3, 5, [0, 1], num_steps=6)
    losses = ascent.losses_at(loaded, ends, np.array([3, 3]))
    np.testing.assert_allclose(losses, along[-1], rtol=1e-4)
    assert (along[-1] > along[0]).all()


def test_mnist_examples_are_those_that_pgd_breaks(linear):
    challenge, loaded = linear
    images = challenge.load("sample").head(30)
    x_nat = np.asarray(challenge.to_pixels(images.images), np.float32)
    labels = np.argmax(loaded.logits(x_nat), axis=1).astype(np.int32)
    labels[0] = (labels[0] + 1) % 10  # misclassified before any attack
    images = dataclasses.replace(images, labels=labels)
    settings = {"num_images": 4, "num_steps": 3, "seed": 0}
    work = Work(challenge, (loaded,), images, settings)
    if challenge is CIFAR10:
        assert ascent.examples(work, loaded) == [0, 1, 2, 3]
        return
    x_adv = ascent.pgd(loaded, challenge, 3).perturb(x_nat, labels, seed=0)
    broken = np.flatnonzero(np.argmax(loaded.logits(x_adv), axis=1) != labels)
    others = np.setdiff1d(np.arange(30), broken[1:])
    assert broken[0] == 0 and 3 < len(broken) < 30, broken
    assert ascent.examples(work, loaded) == [*broken[1:], *others][:4]


def test_words_that_are_no_item_are_refused(tmp_path):
    err = run(SCRIPT, "figure_99", cwd=tmp_path, code=1)
    assert error_line(err).endswith("got 'figure_99'") and "expected some of figure_1, " in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, given, message",
    [
        ("figure_1", "--num_images=3", "--num_images: expected an item that has it, got figure_1"),
        ("figure_1", "--all", "--all: expected no names of items beside it, got figure_1"),
        (
            "figure_1",
            f"--sample --output_dir={SCRIPT.parent}",
            f"--output_dir: expected another place for a sample, got {SCRIPT.parent}",
        ),
        (
            "figure_1",
            "--own_models=adv_trained=/tmp/x",
            "--own_models: expected an --output_dir for their results, got none",
        ),
        (
            "figure_1",
            f"--own_models=adv_trained=/tmp/x --output_dir={SCRIPT.parent}",
            f"--output_dir: expected another place for models of yours, got {SCRIPT.parent}",
        ),
        (
            "figure_1",
            "--own_models=model_b=/tmp/x --output_dir=here",
            "--own_models: expected an item that has model_b, got figure_1",
        ),
        ("figure_1", "--networks_dir=no", "--networks_dir: expected a directory, got no"),
    ],
)
def test_flags_that_do_not_go_with_the_items_are_refused(
    words, given, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flag_values = flags.FlagValues()
    reproduce.define_flags(flag_values)
    flag_values(["reproduce.py", *given.split()])
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        reproduce.main(words.split(), flag_values)
    assert not list(tmp_path.iterdir())


def test_the_listing_has_each_items_needs_and_state(capsys):
    flag_values = flags.FlagValues()
    reproduce.define_flags(flag_values)
    flag_values(["reproduce.py"])
    reproduce.main([], flag_values)
    out = capsys.readouterr().out
    for name in items.NAMES:
        assert f"{name}: {items.load(name).title}\n    state: " in out
    assert "needs: MNIST, natural; MNIST, robust; CIFAR-10, natural" in out


def test_own_models_replace_a_network(place):
    calls = []
    item = counting_item((ROBUST,), calls)
    source = reproduce.Source(None, False, {"adv_trained": "fgsm_trained"})
    flag_values = types.SimpleNamespace(sample=False, afresh=False, pdf=False)
    reproduce.make(item, flag_values, {"count": 1}, source, place)
    result = Result.read(item, place, source)
    assert calls == ["fgsm_trained"] and result.state() == DONE
    assert Result.read(item, place).state() == STALE  # the shipped network is another


def test_a_directory_has_networks_that_are_not_shipped(place, tmp_path):
    calls, networks_dir = [], tmp_path / "networks"
    networks_dir.mkdir()
    (networks_dir / GHOST.name).symlink_to(FGSM_TRAINED.path)
    (networks_dir / NATURAL.name).symlink_to(FGSM_TRAINED.path)  # the shipped one comes first
    source = reproduce.Source(None, False, networks_dir=networks_dir)
    flag_values = types.SimpleNamespace(sample=False, afresh=False, pdf=False)
    item = counting_item((NATURAL, GHOST), calls)
    reproduce.make(item, flag_values, {"count": 1}, source, place)
    assert calls == ["natural", GHOST.name]
    assert Result.read(item, place, source).state() == DONE
    assert Result.read(item, place).state() == DONE  # without the directory there is no other
    (networks_dir / GHOST.name).unlink()
    (networks_dir / GHOST.name).symlink_to(NATURAL.path)
    source = reproduce.Source(None, False, networks_dir=networks_dir)
    assert Result.read(item, place, source).state() == STALE


@pytest.mark.parametrize("flag", ["adv_trained", "adv_trained=", "no_such=x", "=x"])
def test_own_models_have_a_networks_name_and_a_path(flag):
    flag_values = types.SimpleNamespace(own_models=[flag], output_dir="x")
    with pytest.raises(InputError, match=f"--own_models: expected NAME=PATH .* got {flag}"):
        reproduce.own_models(flag_values)


def test_results_of_other_settings_name_them_in_their_command(place):
    item = counting_item((NATURAL,), [])
    result = make(item, place, count=2)
    assert document.command_of(result) == "python paper/reproduce.py counting --count=2"
    assert document.state_of(result) == "not reproduced, with count 2"
    assert document.cost_of(result).startswith("less than a minute on ")
    other = dataclasses.replace(item, settings={"count": 3, "seed": 0, "new": 1})
    assert Result.read(other, place).state() == OPEN
    before = (place / "results" / "counting.json").read_bytes()
    with pytest.raises(
        InputError, match="^counting: expected numbers of its settings, count, seed, "
    ):
        make(other, place)
    assert (place / "results" / "counting.json").read_bytes() == before
    assert make(other, place, afresh=True).settings == {"count": 1, "seed": 0, "new": 1}


def test_numbers_of_another_attack_are_stale(place):
    item = counting_item((NATURAL,), [])

    def with_attack(**attack):
        def parts(settings):
            return [dataclasses.replace(part, attack=attack) for part in item.parts(settings)]

        return dataclasses.replace(item, parts=parts)

    def state(item):
        return Result.read(item, place, reproduce.Source(None, True)).state()

    make(item, place)
    assert state(with_attack(num_steps=40)) == DONE  # an earlier version did not keep it
    make(with_attack(num_steps=40), place, afresh=True)
    assert state(with_attack(num_steps=40)) == DONE
    assert state(with_attack(num_steps=41)) == STALE


def test_a_stale_item_has_no_headline_claim(place, monkeypatch):
    source = reproduce.HERE / "results" / "table_1.json"
    (place / "results" / "table_1.json").write_text(source.read_text())
    result = Result(claims.ITEM, {"seed": 0}, directory=place)
    assert claims.claims(result)[0].ours is not None
    monkeypatch.setattr(Network, "digest", lambda network: "another")
    assert claims.claims(result)[0].ours is None


def test_all_items_are_tried_although_one_fails(tmp_path, monkeypatch, caplog):
    tried = []

    def make_or_fail(item, *arguments):
        tried.append(item.name)
        if item.name == items.NAMES[0]:
            raise InputError("no data")

    monkeypatch.setattr(reproduce, "make", make_or_fail)
    flag_values = flags.FlagValues()
    reproduce.define_flags(flag_values)
    flag_values(["reproduce.py", "--all", f"--output_dir={tmp_path}"])
    with pytest.raises(InputError, match=f"to be made, got errors in {items.NAMES[0]}$"):
        reproduce.main([], flag_values)
    assert len(tried) == len(items.NAMES) and (tmp_path / "README.md").exists()
    assert f"error: {items.NAMES[0]}: no data" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"item": "counting", "settings": {}, "runs": [], "parts": {"a": {}}}',
        '{"item": "figure_1", "settings": {}, "runs": [], "parts": {}}',
    ],
)
def test_damaged_results_are_refused_by_their_name(content, place):
    path = place / "results" / "counting.json"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(str(path))):
        make(counting_item((NATURAL,), []), place)
    assert path.read_text() == content
