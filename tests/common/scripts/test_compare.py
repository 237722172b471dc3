"""The comparison with the leaderboards: numbers by hand, and compare.py as users run it."""

import dataclasses
import datetime
import hashlib
import json

import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from common import checkpoints
from common.errors import InputError
from common.leaderboard import Entry, rank, read_boards, read_leaderboard, standing, to_csv
from common.scripts.compare import Row, choose_rows, long_rows
from mnist_challenge.challenge import MNIST
from tests.helpers import ROOT, error_line, interrupted_in_its_attack, rows_of, run, start

COMPARE = ROOT / "mnist_challenge" / "compare.py"
BOTH = pytest.mark.parametrize("challenge", [MNIST, CIFAR10], ids=["mnist", "cifar10"])
LONG = "leaderboard_pgd_100x50_xent"


# Numbers.


@pytest.mark.parametrize(
    ("published", "num_examples", "expected"),
    [
        (50, 10000, 0.5),  # 100 sqrt(0.25 / 10000)
        (90, 100, 3.0),  # 100 sqrt(0.09 / 100)
        (98, 196, 1.0),  # 100 sqrt(0.0196 / 196)
    ],
)
def test_the_sampling_error_by_hand(published, num_examples, expected):
    row = Row("natural", published, 0.0, num_examples)
    assert row.sampling_error == pytest.approx(expected)


@pytest.mark.parametrize(
    ("accuracy", "difference", "is_beyond"),
    [(96.1, 6.1, True), (95.9, 5.9, False), (84.1, -5.9, False), (83.9, -6.1, True)],
)
def test_beyond_two_sampling_errors(accuracy, difference, is_beyond):
    row = Row("natural", 90, accuracy, 100)  # the error is 3
    assert row.difference == pytest.approx(difference)
    assert row.is_beyond is is_beyond
    assert row.to_dict() == {
        "row": "natural",
        "published": 90,
        "accuracy": accuracy,
        "difference": difference,
        "sampling_error": 3.0,
        "beyond_two_sampling_errors": is_beyond,
        "num_examples": 100,
    }


# Rows.


@BOTH
def test_rows_are_presets_with_the_leaderboards_numbers(challenge):
    board = {entry.accuracy for entry in read_leaderboard(challenge)["white-box"]}
    names = dict(challenge.published)
    assert names.pop("natural") > max(board)
    assert names.keys() == {name for name in challenge.presets if name.startswith("leaderboard_")}
    assert set(names.values()) <= board


@BOTH
def test_long_rows_are_opt_in(challenge):
    names = list(challenge.published)
    assert long_rows(challenge) == [
        name for name in names if name.partition("_pgd_")[2].startswith(("100x50_", "20x10_"))
    ]
    assert long_rows(challenge)
    assert choose_rows(challenge, None, long=True) == names
    short = choose_rows(challenge, None, long=False)
    assert short == [name for name in names if name not in long_rows(challenge)]
    assert choose_rows(challenge, f"{names[-1]}, natural", long=False) == ["natural", names[-1]]


@pytest.mark.parametrize("names", ["paper_fgsm", "natural,nothing", "", "natural,"])
def test_unknown_rows_are_named(names):
    unknown = names.split(",")[-1]
    with pytest.raises(InputError, match=f"--rows: expected some of natural, .*, got '{unknown}'"):
        choose_rows(MNIST, names, long=False)


# Ranks.


def entries(*accuracies):
    return [Entry("b", f"A{i}", "(initial entry)", a, "", "") for i, a in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("accuracy", "place"),
    [
        (87.99, 1),  # lower is better
        (88.00, 2),  # the older stands first
        (88.004, 2),  # two decimals count
        (88.50, 2),
        (89.62, 4),
        (90.00, 4),
        (93.04, 5),
        (100.0, 5),
    ],
)
def test_ranks_by_hand(accuracy, place):
    assert rank(entries(88.00, 89.62, 89.62, 93.04), accuracy) == place


def test_the_rank_in_words(tmp_path):
    board = entries(88.00, 89.62)
    board[1] = Entry("b", "Attack", "Someone", 89.62, "", "")
    assert standing("white-box", board, 80.0) == (
        "would be 1st of 3 on the white-box board, before A0 (88.00)"
    )
    assert standing("white-box", board, 88.0) == (
        "would be 2nd of 3 on the white-box board, after A0 (88.00), before "
        "Attack by Someone (89.62)"
    )
    assert standing("black-box", board, 99.0) == (
        "would be 3rd of 3 on the black-box board, after Attack by Someone (89.62)"
    )
    on_fewer = Entry("b", "Fast", "this project", 80.0, "", "", num_examples=1000)
    assert standing("white-box", [on_fewer, *board], 80.0) == standing("white-box", board, 80.0)
    path = tmp_path / "board.csv"
    some = [dataclasses.replace(entry, board="white-box") for entry in (on_fewer, *board)]
    path.write_text(to_csv(some))
    assert [entry.accuracy for entry in read_boards(path)["white-box"]] == [88.0, 89.62, 80.0]
    twelve = standing("black-box", entries(*range(12)), 10.5)
    assert twelve.startswith(
        "would be 12th of 13 on the black-box board, after A10 (10.00), before"
    )


@BOTH
def test_the_leaderboards_are_whole(challenge):
    boards = read_leaderboard(challenge)
    sizes = {board: len(entries) for board, entries in boards.items()}
    best = {board: entries[0].accuracy for board, entries in boards.items()}
    if challenge is MNIST:
        assert sizes == {"black-box": 8, "white-box": 18}
        assert best == {"black-box": 92.76, "white-box": 88.00}
    else:
        assert sizes == {"black-box": 4, "white-box": 11}
        assert best == {"black-box": 63.39, "white-box": 43.95}
    for board in boards.values():
        accuracies = [entry.accuracy for entry in board]
        assert accuracies == sorted(accuracies)
        assert all(entry.date.endswith(("2017", "2018", "2019", "2020", "2021")) for entry in board)
        assert all(link.startswith("https://") for entry in board for link in entry.links.split())


# The script.


@pytest.mark.slow
def test_an_interrupted_comparison_resumes_to_the_same_result(tmp_path, compare):
    settings = ("--num_eval_examples=3", "--eval_batch_size=2", f"--rows=natural,{LONG}")
    command = (COMPARE, *settings)
    (tmp_path / "parts").mkdir()
    process = start(*command, cwd=tmp_path / "parts")
    out, err = interrupted_in_its_attack(process)
    assert process.returncode == 130 and err.endswith("interrupted\n")
    assert "stopped; the same command resumes there" in out
    state = tmp_path / "parts" / "comparison.json.state"
    (npz,) = state.glob("*.npz")
    with np.load(npz, allow_pickle=False) as file:
        turn, num_attacks = int(file["turn"]), int(file["num_attacks"].sum())
    assert 0 < turn < 150 and 0 < num_attacks <= turn
    assert len(list(state.glob("natural-*.json"))) == 1
    assert not (tmp_path / "parts" / "comparison.json").exists()

    out = run(*command, cwd=tmp_path / "parts")
    assert f"{LONG}: resuming from comparison.json.state" in out
    assert "resuming from" not in compare(*settings)
    parts, whole = tmp_path / "parts" / "comparison.json", tmp_path / "comparison.json"
    assert rows_of(parts) == rows_of(whole)
    assert [row["row"] for row in rows_of(whole)] == ["natural", LONG]
    assert rows_of(whole)[1]["num_attacks"] > num_attacks
    assert not list(state.glob("*.npz"))

    # Finished rows are not run again, however the result was lost.
    before = json.loads(parts.read_text())["rows"]
    parts.unlink()
    compare(*settings, f"--output_json={parts}")
    assert json.loads(parts.read_text())["rows"] == before


def test_the_table_and_the_json(tmp_path, compare):
    common = ("--num_eval_examples=50", "--output_json=r.json", "--state_dir=kept")
    out = compare(*common, "--rows=leaderboard_fgsm_cw,natural")
    result = json.loads((tmp_path / "r.json").read_text())
    natural, fgsm = result["rows"]
    assert [natural["row"], fgsm["row"]] == ["natural", "leaderboard_fgsm_cw"]
    assert (natural["published"], fgsm["published"]) == (98.53, 96.40)
    assert natural["accuracy"] > 90 and fgsm["accuracy"] > 80
    assert natural["attack"] is None
    assert fgsm["attack"]["loss_func"] == "cw" and fgsm["attack"]["kappa"] == 50
    assert fgsm["attack"]["epsilon"] == fgsm["attack"]["step_size"] == 0.3
    assert result["model"] == "mnist_challenge/models/adv_trained" and result["seed"] == 4557077
    assert "shipped sample" in result["data"]
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    for row in result["rows"]:
        assert lines[row["row"]][1:5] == [
            f"{row['published']:.2f}",
            f"{row['accuracy']:.2f}",
            f"{row['accuracy'] - row['published']:+.2f}",
            f"{row['sampling_error']:.2f}",
        ]
    assert "published: the original MNIST challenge's secret network" in out
    assert "secret network" in result["note"]
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} == {".json"}

    # Other images are another result, which the state does not mix up with the first.
    before = {path.name for path in (tmp_path / "kept").iterdir()}
    compare(*common[1:], "--num_eval_examples=30", "--rows=natural")
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert row["num_examples"] == 30
    assert len({path.name for path in (tmp_path / "kept").iterdir()} - before) == 1


def test_an_attack_file_is_scored_and_ranked(tmp_path, compare):
    sample = MNIST.load("test", allow_sample=True, data_dir=None)
    assert sample.is_sample
    x = MNIST.to_pixels(sample.images[:40]).reshape(40, 784)
    np.save(tmp_path / "mine.npy", x)  # natural images: nearly all are classified correctly
    settings = ("--attack_file=mine.npy", "--num_eval_examples=40")
    out = compare(*settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.npy"]
    accuracy = float(out.split("Accuracy: ")[1].split("%")[0])
    assert accuracy > 90
    expected = standing("white-box", read_leaderboard(MNIST)["white-box"], accuracy)
    assert expected in out.splitlines()
    assert "of 9 on the black-box board, after" in out
    assert "and all 10,000 test images" in out and "adv_trained on 40." in out
    compare(*settings, "--output_json=r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["accuracy"] == accuracy and result["boards"]["white-box"]["text"] == expected

    # The network's own board, and what is missing for an entry there.
    own = read_boards(MNIST.directory / "models" / "adv_trained" / "leaderboard.csv")
    expected = standing("adv_trained white-box", own["white-box"], accuracy)
    assert expected in out.splitlines() and expected.endswith(("images)", "FGSM (95.51)"))
    place = result["own_boards"]["white-box"]
    assert place["text"] == expected and f" of {place['of']} on the " in expected
    assert place["of"] < len(own["white-box"]) + 1  # some entries are on fewer images
    assert "counts 10,000 test images; this is on 40." in out
    assert "sha256:" not in out

    np.save(tmp_path / "mine.npy", np.asfortranarray(x, ">f8"))
    assert compare(*settings) == out

    x[3, 0] = 0.5  # a corner is black
    np.save(tmp_path / "mine.npy", x)
    (tmp_path / "r.json").unlink()
    with pytest.raises(InputError, match=r"at most 0.3 from the test image, found 0.5 \(image 3"):
        compare(*settings, "--output_json=r.json")
    assert not (tmp_path / "r.json").exists()


def test_a_whole_attack_file_gets_the_line_to_hand_in(tmp_path, compare, data_dir):
    test = MNIST.load("test", data_dir=data_dir)
    np.save(tmp_path / "mine.npy", MNIST.to_pixels(test.images).reshape(-1, 784))
    settings = ("--attack_file=mine.npy", f"--data_dir={data_dir}")
    out = compare(*settings, "--model_dir=adv_trained_b", "--output_json=r.json")
    accuracy = json.loads((tmp_path / "r.json").read_text())["accuracy"]
    digest = hashlib.sha256((tmp_path / "mine.npy").read_bytes()).hexdigest()
    today = datetime.date.today().isoformat()
    (line,) = [line for line in out.splitlines() if "sha256:" in line]
    assert line == (f"BOARD,ATTACK,NAME,{accuracy:.2f},10000,sha256:{digest},{today},LINK")
    assert "white-box or black-box in place of BOARD" in out
    # With a board it is a line of such a file.
    path = tmp_path / "leaderboard.csv"
    path.write_text(to_csv([]) + line + "\n")
    with pytest.raises(InputError, match="expected a board white-box or black-box, got BOARD"):
        read_boards(path)
    path.write_text(to_csv([]) + line.replace("BOARD", "white-box") + "\n")
    (entry,) = read_boards(path)["white-box"]
    assert entry.made_by == f"sha256:{digest}" and entry.accuracy == round(accuracy, 2)
    assert to_csv([entry]) == path.read_text()


@pytest.mark.parametrize(
    ("challenge", "settings", "message"),
    [
        (MNIST, ("--long", "--attack_file=a.npy"), "--long: expected none beside --attack_file"),
        (MNIST, ("--attack_file=a.npy",), "cannot read the attack file a.npy"),
        (MNIST, ("--output_json=no/r.json",), "--output_json: cannot write no/r.json"),
        (CIFAR10, ("--model_dir=none",), "--model_dir: expected a training directory"),
    ],
)
def test_wrong_use_leaves_nothing(challenge, settings, message, tmp_path, compare):
    with pytest.raises(InputError, match=message):
        compare(*settings, challenge=challenge)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_row_is_one_line_and_exit_code_1(tmp_path):
    err = run(ROOT / "cifar10_challenge" / "compare.py", "--rows=fgsm", cwd=tmp_path, code=1)
    expected = "error: --rows: expected some of natural, leaderboard_fgsm_xent, "
    assert error_line(err).startswith(expected) and error_line(err).endswith("got 'fgsm'")
    assert list(tmp_path.iterdir()) == []


def test_settings_of_an_attack_are_refused_as_the_rows_have_their_own(tmp_path):
    err = run(COMPARE, "--num_steps=3", cwd=tmp_path, code=1)
    assert error_line(err).startswith("error: --num_steps: expected a setting that compare.py uses")
    assert list(tmp_path.iterdir()) == []


def test_undefined_gradients_are_counted_in_the_rows(tmp_path, compare, monkeypatch):
    @tf.custom_gradient
    def undefined(z):
        return tf.identity(z), lambda dz: dz * np.nan

    def load_model(challenge, path):
        loaded = load(challenge, path)
        return dataclasses.replace(loaded, logits=lambda x: undefined(loaded.logits(x)))

    load = checkpoints.load_model
    monkeypatch.setattr(checkpoints, "load_model", load_model)
    command = ("--rows=natural,leaderboard_fgsm_xent", "--num_eval_examples=5")
    compare(*command)
    assert [row["num_undefined"] for row in rows_of(tmp_path / "comparison.json")] == [0, 5]
    compare(*command)  # the rows that were kept
    assert [row["num_undefined"] for row in rows_of(tmp_path / "comparison.json")] == [0, 5]


def test_a_state_dir_that_is_a_file_is_refused(tmp_path, compare):
    (tmp_path / "kept").write_text("")
    with pytest.raises(InputError, match="--state_dir: cannot make kept: File exists"):
        compare("--num_eval_examples=5", "--state_dir=kept")


def test_settings_of_a_config_file_do_not_change_the_rows(tmp_path, compare):
    (tmp_path / "own.json").write_text(json.dumps({"epsilon": 0.1, "num_restarts": 3, "a": 0.1}))
    compare("--rows=leaderboard_fgsm_xent", "--num_eval_examples=5", "--config=own.json")
    (row,) = rows_of(tmp_path / "comparison.json")
    preset = MNIST.presets["leaderboard_fgsm_xent"]
    assert {name: row["attack"][name] for name in preset} == preset
    assert row["attack"]["num_restarts"] == 1 and row["num_attacks"] == 5
