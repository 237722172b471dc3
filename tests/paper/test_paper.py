"""The figures' commands run, and the tables in the READMEs are those of the results."""

import dataclasses
import json
import re
import types

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from common import cards
from common.attack import PGD
from common.config import make_config
from common.errors import InputError
from common.leaderboard import OURS, Entry, read_boards
from mnist_challenge.challenge import MNIST
from paper import accuracy_against_epsilon, leaderboards, readme_tables
from tests.common.keras_models import examples, network
from tests.helpers import ROOT, run

MODELS = {"mnist": "adv_trained", "cifar10": "simple_adv_trained"}


@pytest.mark.parametrize("path", readme_tables.TABLES, ids=lambda path: path.parent.name)
def test_tables_are_those_of_the_results(path):
    assert readme_tables.fill_in(path) == path.read_text()


def test_suites_stand_beside_the_standard_one_of_the_same_images_and_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_tables, "SPEED", tmp_path)
    assert "not run" in readme_tables.suites_table()
    what = {"model": "mnist_challenge/models/m", "data": "first 4", "num_examples": 4}
    assert "not run" in readme_tables.precision_table()
    run = {"processor": "A", "threads": 1, "num_left_alone": 0}
    fast = {**run, "accuracy": 50.0, "withstood": "0011", "cpu_seconds": 2, "num_left_alone": 1}
    standard = {**run, "accuracy": 25.0, "withstood": "1000", "cpu_seconds": 25}
    entries = {
        "fast, float32, seed 0": fast,
        "standard, float32, seed 0": standard,
        "fast, bfloat16, seed 0": {**fast, "withstood": "0101", "cpu_seconds": 1},
        "fast, float32, seed 7": fast,
    }
    (tmp_path / "suites_m.json").write_text(json.dumps({**what, "attacks": entries}))
    worst = {"attacks": ["a", "b", "c", "d"], "withstood": {"ours": "0010"}}
    suite = {"threads": 1, "processor": "A", "cpu_seconds": {"ours": 3, "theirs": 50}}
    theirs = {**what, "seed": 7, "worst_case": worst, "attacks": {"suite": suite}}
    (tmp_path / "autoattack_m.json").write_text(json.dumps(theirs))
    rows = readme_tables.suites_table().splitlines()[2:]
    assert rows == [
        "| m, 4, 0 | fast, float32 | 50.00 | 25.00 | 1 | 2 | 1 | 2 | 12.5 | 25.0 |",
        "| m, 4, 0 | standard, float32 | 25.00 |  |  |  |  | 25 |  | 2.0 |",
        "| m, 4, 0 | fast, bfloat16 | 50.00 |  |  |  | 1 | 1 |  | 50.0 |",
        # Against autoattack.py's verdicts.
        "| m, 4, 7 | fast, float32 | 50.00 | 25.00 | 0 | 1 | 1 | 2 |  | 25.0 |",
        "",
        "Threads and processor: 1 of A.",
    ]
    rows = readme_tables.precision_table().splitlines()[2:]
    assert rows == [
        "| m, 4, 0 | fast | 50.00 | 50.00 | 1 | 1 | 2 and 1 | 2.0 |",
        "",
        "Threads and processor: 1 of A.",
    ]


BOARDS = {
    f"{challenge.name} {path.parent.name}": (challenge, path)
    for challenge in (MNIST, CIFAR10)
    for path in sorted((challenge.directory / "models").glob("*/leaderboard.csv"))
}


@pytest.mark.parametrize("challenge, path", BOARDS.values(), ids=BOARDS)
def test_a_networks_board_holds_what_its_card_says(challenge, path):
    card = cards.read(challenge, path.parent.name)
    boards = read_boards(path)
    ours = [e for entries in boards.values() for e in entries if e.submitted_by == OURS]
    expected = [entry for entry in card["results"] if entry["row"] != "natural"]
    for found in expected:
        is_suite = found["row"] in cards.SUITES
        flags = [f"--{'suite' if is_suite else 'preset'}={found['row']}"]
        flags += [f"--source={found['source']}"] if found["source"] else []
        of_row = [e for e in ours if set(flags) <= set(e.made_by.split())]
        if not found["source"]:
            of_row = [e for e in of_row if "--source=" not in e.made_by]
        (entry,) = of_row
        assert entry.accuracy == round(found["accuracy"], 2)
        assert entry.num_examples == found["num_examples"]
        is_few = is_suite or found["num_examples"] < 10000
        assert ("--num_eval_examples" in entry.made_by) == is_few
        assert entry.board == ("black-box" if found["source"] else "white-box")
        ours.remove(entry)
    assert all("--suite=" in entry.made_by for entry in ours)
    # The same command writes board and README again.
    texts = leaderboards.texts(challenge)
    for written in (path, path.parent / "README.md"):
        assert written.read_text() == texts[written], "run python paper/readme_tables.py"


def test_every_robust_network_has_a_board_and_no_other():
    paths = {*leaderboards.texts(MNIST), *leaderboards.texts(CIFAR10)}
    boards = {path for path in paths if path.name == "leaderboard.csv"}
    assert boards == {path for _, path in BOARDS.values()}
    names = {path.parent.name for path in boards}
    assert names >= {"adv_trained", "adv_trained_b", "simple_adv_trained"}
    assert not names & {"natural", "fgsm_trained", "simple_fgsm_trained"}
    assert "pgd_constant_epsilon_scale_1_seed_0" not in names  # it predicts one class


def test_the_run_of_a_suite_on_most_images_is_on_the_board(tmp_path, monkeypatch):
    monkeypatch.setattr(leaderboards, "RESULTS", tmp_path)
    card = cards.read(MNIST, "adv_trained")
    assert leaderboards.suite_entries(MNIST, card) == []
    attack = {"name": "a", "attack": {"precision": "bfloat16"}}
    row = {"row": "standard", "accuracy": 50.0, "num_examples": 10000, "seed": 4, "attack": None}
    on_card = {**card, "results": [*card["results"], {**row, "source": None, "attacks": [attack]}]}
    (entry,) = leaderboards.suite_entries(MNIST, on_card)
    assert entry.accuracy == 50 and entry.made_by.endswith(
        "--suite=standard --precision=bfloat16 --num_eval_examples=10000 --random_seed=4"
    )
    model = "mnist_challenge/models/adv_trained"

    def write(name, count, **accuracies):
        entries = {
            run.replace("_", ", bfloat16, seed "): {"accuracy": accuracy}
            for run, accuracy in accuracies.items()
        }
        result = {"model": model, "num_examples": count, "attacks": entries}
        (tmp_path / f"suites_{name}.json").write_text(json.dumps(result))

    write("a", 100, fast_0=10.0, strong_0=20.0, pgd_0=5.0)
    write("b", 1000, fast_1=31.0, fast_2=30.0)
    fast, strong = leaderboards.suite_entries(MNIST, card)
    assert (fast.accuracy, fast.num_examples, strong.num_examples) == (30.0, 1000, 100)
    assert fast.made_by == (
        "python mnist_challenge/eval.py --model_dir=adv_trained --suite=fast --precision=bfloat16 "
        "--num_eval_examples=1000 --random_seed=2"
    )
    worst = {"attacks": ["suite"], "accuracy": {"ours": 29.0}}
    result = {"model": model, "num_examples": 2000, "seed": 5, "precision": "bfloat16"}
    (tmp_path / "autoattack_a.json").write_text(json.dumps({**result, "worst_case": worst}))
    standard = leaderboards.suite_entries(MNIST, card)[0]
    assert standard.accuracy == 29 and standard.made_by.endswith(
        "--suite=standard --precision=bfloat16 --num_eval_examples=2000 --random_seed=5"
    )
    (tmp_path / "suites_c.json").write_text("{}")
    with pytest.raises(InputError, match="suites_c.json is damaged: KeyError: 'model'"):
        leaderboards.texts(MNIST)


def test_a_submission_stays_on_its_board_and_ours_is_made_anew():
    card = cards.read(MNIST, "adv_trained")
    before = read_boards(BOARDS["MNIST adv_trained"][1])
    theirs = Entry(
        "white-box",
        "A new one",
        "Somebody",
        88.01,
        "2030-01-01",
        "https://x.org",
        10000,
        "sha256:0",
    )
    pgd = next(e for e in before["white-box"] if "paper_pgd_40 " in e.made_by)
    stale = dataclasses.replace(pgd, accuracy=50.0, date="2020-01-01")
    kept = [e for e in before["white-box"] if e is not pgd]
    kept = [dataclasses.replace(e, date="2020-02-02") for e in kept]
    after = leaderboards.in_boards(MNIST, card, {**before, "white-box": [*kept, stale, theirs]})
    assert theirs == after["white-box"][0] and stale not in after["white-box"]
    dates = {
        e.date for e in after["white-box"] if e.submitted_by == OURS and "pgd_40 " not in e.made_by
    }
    assert dates == {"2020-02-02"}
    (anew,) = [e for e in after["white-box"] if "paper_pgd_40 " in e.made_by]
    assert anew.accuracy == pgd.accuracy and anew.date >= "2026"
    assert after["black-box"] == before["black-box"]
    text = cards.readme(MNIST, card, after)
    assert "| white-box | A new one | Somebody | 88.01 | 10,000 | 2030-01-01 |" in text


@pytest.mark.parametrize(
    "script, challenge, flags",
    [
        ("adversarial_images.py", "mnist", ("--num_steps=2",)),
        pytest.param(
            "adversarial_images.py", "cifar10", ("--num_steps=2",), marks=pytest.mark.slow
        ),
        ("adversarial_images.py", "mnist", ("--attack=pgd_l2", "--epsilon=2")),
        ("training_curve.py", "mnist", ()),
        ("training_curve.py", "cifar10", ()),
        (
            "accuracy_against_epsilon.py",
            "mnist",
            ("--num_steps=2", "--epsilons=0.3,0.4", "--num_eval_examples=20"),
        ),
        pytest.param(
            "accuracy_against_epsilon.py",
            "cifar10",
            ("--attack=pgd_l2", "--num_steps=2", "--epsilons=40,300", "--num_eval_examples=20"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_figures(script, challenge, flags, tmp_path):
    run(
        ROOT / "paper" / script,
        challenge,
        f"--model_dir={MODELS[challenge]}",
        "--output=picture.png",
        *flags,
        cwd=tmp_path,
    )
    picture = plt.imread(tmp_path / "picture.png")
    assert picture.shape[0] > 200 and picture.shape[1] > 600 and picture.std() > 0.1


@pytest.fixture(params=[MNIST, CIFAR10], ids=["mnist", "cifar10"])
def challenge(request):
    return request.param


@pytest.fixture
def linear(challenge):
    """A linear model, and 20 images labelled as it sees them but for the last."""
    size = int(np.prod(challenge.image_shape))
    kernel = np.random.default_rng(0).normal(size=(size, 10)).astype(np.float32)
    images = challenge.load("sample").head(20).images
    x_nat = challenge.to_pixels(images).astype(np.float32)
    # Logits of about 1, so that a few levels matter.
    kernel /= np.linalg.norm(x_nat.reshape(20, -1), axis=1).mean()

    def logits(x):
        return tf.reshape(x, (-1, size)) @ kernel

    labels = np.argmax(logits(x_nat), axis=1)
    labels[-1] = (labels[-1] + 1) % 10
    return logits, images, x_nat, labels


def accuracies_of(linear, challenge, config, epsilons, *attack, **options):
    logits, images, _, labels = linear
    loaded = types.SimpleNamespace(logits=logits)
    split = types.SimpleNamespace(images=images, labels=labels)
    return accuracy_against_epsilon.accuracies(
        challenge, config, loaded, split, epsilons, *attack, **options
    )


def test_accuracy_against_epsilon_is_that_of_pgd_at_each(challenge, linear):
    logits, _, x_nat, labels = linear
    config = make_config(challenge, ("test", {"num_steps": 4, "random_seed": 5}))
    epsilons = np.array([0, 0.005, 0.01, 0.02, 0.1]) * challenge.bounds[1]
    found = accuracies_of(linear, challenge, config, epsilons, "pgd")
    stands = np.argmax(logits(x_nat), axis=1) == labels
    expected = [95.0]
    for epsilon in epsilons[1:]:
        pgd = PGD(
            logits,
            epsilon=epsilon,
            step_size=2.5 * epsilon / 4,
            num_steps=4,
            bounds=challenge.bounds,
        )
        stands &= np.argmax(logits(pgd.perturb(x_nat, labels, seed=5)), axis=1) == labels
        expected.append(100 * np.mean(stands))
    np.testing.assert_allclose(found, expected)
    assert len(set(expected)) > 2 and expected[-1] == 0  # or there is nothing to see


def test_accuracy_against_epsilon_is_that_of_the_boundary_attacks_distances(challenge, linear):
    config = make_config(challenge, ("test", {"eval_batch_size": 8}))
    epsilons = np.array([0, 1e-4, 100]) * challenge.bounds[1]
    found = accuracies_of(linear, challenge, config, epsilons, "boundary", num_steps=5)
    assert found == [95, 95, 0]


def python_of_the_readme():
    """The README's code, block by block."""
    parts = (ROOT / "README.md").read_text().split("```python\n")[1:]
    return [part.split("```")[0] for part in parts]


def test_python_of_the_readme_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    *_, attack, load = python_of_the_readme()
    names = {}
    exec(attack, names)
    assert names["x_adv"].shape == (50, 28, 28, 1)
    exec(load, names)
    expected = names["model"].logits(names["x_adv"])
    np.testing.assert_allclose(names["logits"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_of_ones_own_is_trained_and_evaluated_as_the_readme_says(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    x, y = examples(700, shape=(6, 5, 3))
    np.save("images.npy", x)
    np.save("labels.npy", y)
    network(shape=(6, 5, 3), activation="softmax").save("mine.keras")
    own, training, *_ = python_of_the_readme()
    assert len(own.splitlines()) <= 10 and len(training.splitlines()) <= 10
    names, accuracies = {}, []
    for block in (own, training, "print" + own.partition("print")[2]):
        exec(block, names)
        for line in capsys.readouterr().out.splitlines():
            found = re.match(r"robust accuracy ([\d.]+)% .*attacks: fast", line)
            accuracies += [float(found[1])] if found else []
    assert len(names["trainer"].history.history["val_robust_accuracy"]) == 20
    assert accuracies[0] < 40 < 50 < accuracies[1]


def test_figures_are_of_a_challenge(tmp_path):
    script = ROOT / "paper" / "training_curve.py"
    err = run(script, "--model_dir=adv_trained", cwd=tmp_path, code=1)
    assert "expected mnist or cifar10 as the first word, got '--model_dir=adv_trained'" in err
