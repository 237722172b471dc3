"""Damaged cards, kept rows, leaderboards and results are reported in one line, and not lost."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest

from benchmarks import autoattack, measure
from cifar10_challenge.challenge import CIFAR10
from common import cards, json_shapes, leaderboard
from common.errors import InputError
from common.evaluation.presets import make_state_dir
from common.json_shapes import BOOL, COUNT, INTEGER, NUMBER, TEXT, Optional
from mnist_challenge.challenge import MNIST
from paper import readme_tables
from tests.helpers import rows_of

DAMAGED = {
    "empty": b"",
    "half": b'{"name": "mine", "res',
    "null": b"null",
    "list": b"[]",
    "number": b"7",
    "text": b'"text"',
    "not text": b"\xff\xfe",
    "deep lists": b"[" * 300_000,
    "deep objects": b'{"a":' * 300_000,
    "less deep": b'{"a":' * 400 + b"1" + b"}" * 400,
    "twice": b'{"a": 1, "a": 2}',
}
FORGED = "x\nerror: all is lost\x1b[2J| y\u202e\udcff"


def refusal(function, *args, **kwargs):
    """The message of an InputError, which is one line."""
    with pytest.raises(InputError) as error:
        function(*args, **kwargs)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# Shapes.

SHAPE = {"a": [{"n": NUMBER, "t": Optional(TEXT)}], "b": BOOL, "d": Optional([TEXT, ...])}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"a": [], "b": True}, None),
        ({"a": [{"n": 1}, {"n": -2.5, "t": "x", "more": [1]}], "b": False, "c": None}, None),
        ({"a": []}, "expected b, got none"),
        ({"a": [], "b": 1}, "expected true or false as b, got 1"),
        ({"a": {}, "b": True}, "expected a list as a, got an object"),
        ({"a": [[]], "b": True}, "expected an object as a.0, got a list"),
        ({"a": [{"n": 0}, {"n": "1"}], "b": True}, "expected a finite number as a.1.n, got '1'"),
        ({"a": [{"n": True}], "b": True}, "expected a finite number as a.0.n, got True"),
        ({"a": [{"n": math.inf}], "b": True}, "expected a finite number as a.0.n, got inf"),
        ({"a": [{"n": 10**400}], "b": True}, "a finite number as a.0.n, got 1000000"),
        ({"a": [{"n": 1, "t": 5}], "b": True}, "expected text as a.0.t, got 5"),
        ({"a": [], "b": True, "d": []}, "expected a list with an entry as d, got none"),
        ([], "expected an object, got a list"),
    ],
)
def test_a_value_is_as_its_shape_says_or_refused(value, fault, tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(value).replace("Infinity", "1e400"))
    if fault is None:
        assert json_shapes.read(path, SHAPE) == value
    else:
        message = refusal(json_shapes.read, path, SHAPE)
        assert message.startswith(f"{path}: ") and fault in message and len(message) < 300


def test_numbers_by_kind():
    for kind, inside, outside in (
        (COUNT, (0, 2**63), (-1, 1.0, True, "1", None, 2**64)),
        (INTEGER, (-5, 2**63), (0.5, False, 2**64)),
        (NUMBER, (-5, 0.5, 1e18), (math.nan, math.inf, True, 1e30, "1")),
    ):
        assert all(map(kind.includes, inside)) and not any(map(kind.includes, outside))


# Cards.


@pytest.fixture(scope="module")
def card():
    """A shipped card with shortened lists."""
    card = cards.read(MNIST, "adv_trained")
    own = [entry for entry in card["results"] if entry["source"] is None][:3]
    other = [entry for entry in card["results"] if entry["source"] is not None][:1]
    training = {**card["training"], "validation": card["training"]["validation"][:1]}
    return {**card, "results": own + other, "training": training}


def write_card(directory, content):
    if not isinstance(content, bytes):
        content = json.dumps(content).replace("Infinity", "1e400").encode()
    (directory / "card.json").write_bytes(content)


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_card_is_named(content, tmp_path):
    write_card(tmp_path, content)
    assert str(tmp_path / "card.json") in refusal(cards.read_from, tmp_path)
    assert str(tmp_path / "card.json") in refusal(cards.find_card, tmp_path)


def places_in(value, place=()):
    """The paths to everything in a JSON value."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, part in value.items() if isinstance(value, dict) else ():
        yield (*place, key)
        yield from places_in(part, (*place, key))


def test_any_part_of_a_card_may_have_another_type(card, tmp_path):
    """It is refused, or the README can be written, and nothing in it passes for another line."""
    num_refused = num_taken = 0
    lines = cards.readme(MNIST, card).splitlines()
    for place in list(places_in(card)):
        for part in ("missing", None, [], {}, FORGED, math.inf, -1, 10**30, True, [{}], ["x"]):
            changed = copy.deepcopy(card)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if part == "missing":
                del inner[place[-1]]
            else:
                inner[place[-1]] = part
            write_card(tmp_path, changed)
            try:
                found = cards.read_from(tmp_path)
            except InputError as error:
                assert len(str(error).splitlines()) == 1
                num_refused += 1
                continue
            text = cards.readme(MNIST, found)
            text.encode()
            assert len(text.splitlines()) <= len(lines) and "\x1b" not in text
            assert not any(line.startswith("error:") for line in text.splitlines())
            for entry in found["results"]:
                assert len(cards.full_title(entry).splitlines()) == 1
                cards.paper_accuracy(MNIST, found["training"]["config"], entry)
                cards.leaderboard_accuracy(MNIST, found["training"]["config"], entry)
            num_taken += 1
    assert num_refused > 300 and num_taken > 300


def test_texts_of_a_card_stay_in_their_places(card):
    forged = copy.deepcopy(card)
    forged["name"] = FORGED
    forged["training"]["runs"][-1]["command"] = "train.py 'a\n```\n# Title' \"open"
    forged["results"][-1]["source"] = FORGED
    before, after = (cards.readme(MNIST, c).splitlines() for c in (card, forged))
    assert len(before) == len(after)
    assert after[0] == "# x error: all is lost\\x1b[2J| y\\u202e\\udcff"
    (row,) = [line for line in after if line.startswith("|") and "all is lost" in line]
    assert "all is lost\\x1b[2J\\| y" in row


def test_a_network_that_is_not_of_the_paper_has_none_of_its_numbers():
    entry = {"row": "natural", "source": None}
    assert cards.paper_accuracy(CIFAR10, {"adversary": "pgd"}, entry) == ""
    assert cards.paper_accuracy(CIFAR10, {"adversary": "pgd", "width": []}, entry) == ""


# Kept rows.

FEW = ("--rows=natural", "--num_eval_examples=5", "--output_json=r.json", "--state_dir=kept")


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_renamed(content, tmp_path, capsys):
    path, aside = tmp_path / "f.json", tmp_path / "f.json.damaged"
    path.write_bytes(content)
    assert json_shapes.read_or_keep_aside(path, SHAPE, "all is new") is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"note: {path}") or f" {path}: " in line
    assert line.endswith("; it is kept as f.json.damaged, and all is new")
    assert aside.read_bytes() == content and not path.exists()
    assert json_shapes.read_or_keep_aside(path, SHAPE, "all is new") is None
    assert capsys.readouterr().out == ""


def test_a_damaged_row_is_reported_renamed_and_evaluated_again(tmp_path, compare):
    compare(*FEW)
    expected = rows_of(tmp_path / "r.json")
    (kept,) = (tmp_path / "kept").glob("natural-*.json")
    whole = json.loads(kept.read_text())
    aside = kept.with_name(f"{kept.name}.damaged")
    for content in (
        kept.read_bytes()[:-20],
        json.dumps({**whole, "key": {"seed": 1}}).encode(),
        json.dumps({**whole, "found": {**whole["found"], "accuracy": None}}).encode(),
    ):
        kept.write_bytes(content)
        out = compare(*FEW)
        (line,) = [line for line in out.splitlines() if line.startswith("note: ")]
        assert str(kept.relative_to(tmp_path)) in line
        assert line.endswith(f"it is kept as {aside.name}, and the row is evaluated anew")
        assert aside.read_bytes() == content
        aside.unlink()
        assert rows_of(tmp_path / "r.json") == expected
        assert json.loads(kept.read_text())["key"] == whole["key"]
    assert "note: " not in compare(*FEW)


@pytest.mark.parametrize("name", ["nul\0", "x" * 300, "none/below", "file"])
def test_a_state_dir_that_cannot_be_made(name, tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(make_state_dir, tmp_path / name)
    assert message.startswith("--state_dir: cannot make ")


# The leaderboards.

HEADER = "board,attack,submitted_by,accuracy_pct,date,links\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        HEADER.encode(),
        b"board,attack\nwhite-box,PGD\n",
        HEADER.encode() + b"white-box,PGD,Me\n",
        HEADER.encode() + b"white-box,PGD,Me,many,2017,\n",
        HEADER.encode() + b"white-box,PGD,Me,nan,2017,\n",
        HEADER.encode() + b"white-box,PGD,Me,1e400,2017,\n",
        HEADER.encode() + b"white-box,PGD,Me,88.0,2017,,too,many\n",
        HEADER.encode() + b'white-box,"PGD\nwould be 1st",Me,88.0,2017,\n',
        HEADER.encode() + b"white-box,\x1b[2J,Me,88.0,2017,\n",
        HEADER.encode() + b"\xff\xfe,PGD,Me,88.0,2017,\n",
        HEADER.encode() + b"x" * 200_000 + b",PGD,Me,88.0,2017,\n",
        HEADER.encode() + b'"white-box,PGD',
    ],
)
def test_a_damaged_leaderboard_is_named(content, tmp_path):
    (tmp_path / "leaderboard.csv").write_bytes(content)
    challenge = dataclasses.replace(MNIST, directory=tmp_path)
    message = refusal(leaderboard.read_leaderboard, challenge)
    assert message.startswith(f"{tmp_path / 'leaderboard.csv'} is damaged: ")


def test_a_leaderboard_that_is_not_there_is_named(tmp_path):
    challenge = dataclasses.replace(MNIST, directory=tmp_path)
    path = tmp_path / "leaderboard.csv"
    message = refusal(leaderboard.read_leaderboard, challenge)
    assert message == f"cannot read {path}: No such file or directory"
    path.write_bytes(b"\xef\xbb\xbf" + (MNIST.directory / "leaderboard.csv").read_bytes())
    assert leaderboard.read_leaderboard(challenge) == leaderboard.read_leaderboard(MNIST)


# Results of benchmarks.


def test_a_result_that_is_not_a_number_is_null(tmp_path):
    result = {"a": np.float32(1.5), "b": [np.int64(3), np.float64("nan")], "c": {"d": math.inf}}
    measure.save(tmp_path / "r.json", result)
    text = (tmp_path / "r.json").read_text()
    found = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert (found["a"], found["b"], found["c"]) == (1.5, [3, None], {"d": None})


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_result_is_not_replaced(content, tmp_path):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    message = refusal(measure.earlier_entries, str(path), {"model": "mnist"}, autoattack.worst_case)
    assert message == f"--output_json: expected a new file, got {path}"


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_tables_are_not_made_of_damaged_results(content, tmp_path, monkeypatch):
    monkeypatch.setattr(readme_tables, "SPEED", tmp_path)
    (tmp_path / "autoattack_x.json").write_bytes(content)
    path = readme_tables.ROOT / "benchmarks" / "README.md"
    before = path.read_bytes()
    assert str(tmp_path) in refusal(readme_tables.main)
    assert str(tmp_path) in refusal(readme_tables.fill_in, path)
    assert path.read_bytes() == before
