"""The shipped models' cards are true; export_model.py makes them."""

import json
import pathlib
import re
import shlex

import numpy as np
import pytest

from cifar10_challenge.challenge import CIFAR10
from common import cards, checkpoints, rounded_weights
from common.config import make_config, parsed, read_json
from common.evaluation import suites
from common.evaluation.presets import make_evaluator
from mnist_challenge.challenge import MNIST
from tests.helpers import error_line, run

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIPPED = [
    pytest.param(challenge, path.parent, id=f"{challenge.name}-{path.parent.name}")
    for challenge in (MNIST, CIFAR10)
    for path in sorted((challenge.directory / "models").glob("*/card.json"))
]


def card_of(directory):
    return json.loads((directory / "card.json").read_text())


@pytest.mark.parametrize("challenge, directory", SHIPPED)
def test_a_card_is_of_the_weights_beside_it(challenge, directory):
    card, loaded = card_of(directory), checkpoints.load_model(challenge, directory)
    assert card["weights_digest"] == loaded.digest() and card["name"] == directory.name
    sample = challenge.load("sample")
    assert card["sample"]["num_examples"] == len(sample.images) == 1000
    guesses = np.argmax(loaded.logits(challenge.to_pixels(sample.images)), axis=-1)
    # An image on the boundary may fall on either side on another processor.
    accuracy = 100 * np.mean(guesses == sample.labels)
    assert abs(accuracy - card["sample"]["natural_accuracy"]) <= 0.1 + 1e-9


@pytest.mark.parametrize("challenge, directory", SHIPPED)
def test_a_card_has_the_origin_of_every_number(challenge, directory):
    card = card_of(directory)
    boards = cards.find_boards(directory)
    assert (directory / "README.md").read_text() == cards.readme(challenge, card, boards)
    assert card["training"]["seconds"] > 0 and card["training"]["runs"][-1]["commit"]
    rows = [entry["row"] for entry in card["results"] if entry["source"] is None]
    assert rows == [*challenge.card_rows, *(row for row in rows if row in suites.ANY_MODEL)]
    for entry in card["results"]:
        assert entry["seconds"] > 0 and entry["commit"] and entry["hardware"]["processor"]
        assert entry["command"].startswith(f"{challenge.directory.name}/export_model.py ")
        if entry["row"] != "natural":
            expected = challenge.presets[entry["row"]]
            assert (
                entry["attack"].items()
                >= {
                    name: value for name, value in expected.items() if name in entry["attack"]
                }.items()
            )


@pytest.mark.parametrize(
    "challenge, row, model, source, expected",
    [
        (MNIST, "natural", "adv_trained", None, {"paper": 98.8, "leaderboard": 98.53}),
        (MNIST, "paper_pgd_40", "adv_trained", None, {"paper": 93.2}),
        (MNIST, "paper_pgd_100", "adv_trained", None, {"paper": 91.8, "leaderboard": 92.52}),
        (MNIST, "leaderboard_pgd_100_cw", "adv_trained", None, {"leaderboard": 93.04}),
        (MNIST, "paper_pgd_40", "adv_trained", "adv_trained_b", {"paper": 96.0}),
        (MNIST, "paper_pgd_40", "natural", None, {"paper": 0.0}),
        (MNIST, "leaderboard_pgd_100_cw", "natural", None, {}),
        (CIFAR10, "paper_pgd_20", "simple_adv_trained", None, {"paper": 43.7}),
        (MNIST, "natural", "of_nobody", None, {}),
        (MNIST, "paper_pgd_40", "adv_trained", "of_nobody", {}),
    ],
)
def test_published_numbers_are_those_of_the_same_training(challenge, row, model, source, expected):
    models = challenge.directory / "models"
    found = cards.published(challenge, row, models / model, source and models / source)
    assert found == expected


def test_another_spelling_of_a_setting_is_no_difference():
    card = cards.read(MNIST, "adv_trained")
    text = cards.readme(MNIST, card)
    schedule = read_json(MNIST.directory / "config.json")["step_size_schedule"]
    assert "random_start" not in text and "`step_size_schedule`" in text
    card["training"]["config"].update(random_start="yes", step_size_schedule=json.dumps(schedule))
    text = cards.readme(MNIST, card)
    assert "random_start" not in text and "`step_size_schedule`" not in text


@pytest.mark.slow
@pytest.mark.parametrize("challenge, directory", SHIPPED)
def test_strong_pgd_on_the_whole_test_set_gives_the_cards_number(challenge, directory, data_dir):
    row = challenge.validation_preset
    entry = cards.find(card_of(directory), row)
    layers = (("row", challenge.presets[row]), ("seed", {"random_seed": entry["seed"]}))
    config = make_config(challenge, *layers)
    loaded = checkpoints.load_model(challenge, directory)
    test = challenge.load("test", data_dir=data_dir).head(entry["num_examples"])
    trial = suites.preset_trial(row, loaded.logits, config, challenge)
    evaluator = make_evaluator(challenge, config, [trial], loaded)
    summary = evaluator.run(test.images, test.labels).summary()
    assert abs(summary["adversarial_accuracy"] - entry["accuracy"]) <= 0.1


@pytest.fixture(scope="module")
def training(data_dir, tmp_path_factory):
    """A network trained a little."""
    directory = tmp_path_factory.mktemp("training") / "run"
    run(
        ROOT / "mnist_challenge" / "train.py",
        f"--model_dir={directory}",
        "--scale=1",
        "--adversary=none",
        "--step_size_schedule=[[0,0.003]]",
        "--max_num_training_steps=40",
        "--precision=float32",
        cwd=directory.parent,
        data_dir=data_dir,
    )
    return directory


def export(training, output, data_dir, *flags, **kwargs):
    if output is not None:
        flags = (f"--output_dir={output}", *flags)
    return run(
        ROOT / "mnist_challenge" / "export_model.py",
        f"--model_dir={training}",
        *flags,
        cwd=training.parent,
        data_dir=data_dir,
        **kwargs,
    )


def test_export_model_makes_a_model_with_its_card(training, data_dir, tmp_path):
    output = tmp_path / "mine"
    few = "--num_eval_examples=200"
    out = export(training, output, data_dir, few, "--rows=paper_fgsm,natural")
    card = card_of(output)
    assert [entry["row"] for entry in card["results"]] == ["natural", "paper_fgsm"]
    assert card["parameters"] == 13514 and card["training"]["steps"] == 40
    assert card["training"]["config"]["adversary"] == "none"
    assert 0.1 < card["training"]["runs"][-1]["peak_memory_gib"] < 20
    loaded = checkpoints.load_model(MNIST, output)
    test = MNIST.load("test", data_dir=data_dir).head(200)
    guesses = np.argmax(loaded.logits(MNIST.to_pixels(test.images)), axis=-1)
    natural, fgsm = card["results"]
    assert natural["accuracy"] == pytest.approx(100 * np.mean(guesses == test.labels))
    assert f"none: natural images: {natural['accuracy']:.2f}%" in out
    assert fgsm["accuracy"] < natural["accuracy"] and natural["num_examples"] == 200
    readme = (output / "README.md").read_text()
    assert f"| FGSM | itself | {fgsm['accuracy']:.2f} | 0.6 |" in readme
    assert re.search(r"\d minutes on .*, peak memory \d\.\d GiB; seed ", readme)
    assert (
        'in: `scale` 1 (16), `adversary` "none" ("pgd"), `max_num_training_steps` 40 '
        "(100000), `step_size_schedule` [[0, 0.003]] ([[0, 0.0001]]).\n"
    ) in readme

    # A second call adds what is missing, and evaluates nothing twice.
    rows = ("--rows=natural,paper_fgsm", f"--sources={output}", "--transfer_rows=paper_fgsm")
    out = export(training, output, data_dir, few, *rows)
    assert "natural images:" not in out and out.count("FGSM") == 1
    *own, transfer = card_of(output)["results"]
    assert own == card["results"]
    # As a transfer from itself, its own examples break as many.
    assert transfer["source"] == "mine" and transfer["accuracy"] == fgsm["accuracy"]


def test_a_network_rounded_to_bfloat16_is_shipped_and_evaluated_as_such(
    training, data_dir, tmp_path
):
    output = tmp_path / "mine"
    few = ("--num_eval_examples=100", "--rows=natural", "--round_to_bfloat16")
    out = export(training, output, data_dir, *few)
    assert "rounded weights, card.json and README.md in" in out
    names = {path.name for path in output.iterdir()}
    assert names == {"weights-1-of-1.npz", "card.json", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]  # nothing is left over

    loaded, card = checkpoints.load_model(MNIST, output), card_of(output)
    original = checkpoints.load_model(MNIST, training)
    assert card["weights_digest"] == loaded.digest() != original.digest()
    rounded = rounded_weights.rounded(original.model.get_weights())
    for weight, expected in zip(loaded.weights, rounded, strict=True):
        np.testing.assert_array_equal(weight, expected)
    test = MNIST.load("test", data_dir=data_dir).head(100)
    guesses = np.argmax(loaded.logits(MNIST.to_pixels(test.images)), axis=-1)
    assert card["results"][0]["accuracy"] == pytest.approx(100 * np.mean(guesses == test.labels))

    # The README's lines make a SavedModel of it.
    (code,) = re.findall(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)
    assert '"mine"), "saved_model")' in code
    names = f'"{output}"), "{tmp_path / "saved"}")'
    exec(code.replace('"mine"), "saved_model")', names), {})
    assert checkpoints.load_model(MNIST, tmp_path / "saved").digest() == loaded.digest()

    # It does not replace another network, and gets rows like a SavedModel.
    assert "got another model" in export(training, output, data_dir, *few[:2], code=1)
    export(output, None, data_dir, "--num_eval_examples=100", "--rows=paper_fgsm")
    assert [entry["row"] for entry in card_of(output)["results"]] == ["natural", "paper_fgsm"]
    err = export(output, None, data_dir, *few, code=1)
    assert "--round_to_bfloat16: expected an --output_dir" in error_line(err)


def test_export_model_adds_rows_to_a_card_without_the_training(training, data_dir, tmp_path):
    output = tmp_path / "mine"
    export(training, output, data_dir, "--num_eval_examples=200", "--rows=natural,paper_fgsm")
    natural, fgsm = card_of(output)["results"]
    (output / "rows").mkdir()
    (output / "rows" / "interrupted.npz").touch()  # of a row that is still to be finished

    # Of the three only CW lacks a row of as many images.
    few = "--num_eval_examples=100"
    out = export(output, None, data_dir, few, "--rows=natural,paper_fgsm,paper_cw")
    assert out.count("%") == out.count("CW") == 1
    *before, cw = card_of(output)["results"]
    assert before == [natural, fgsm] and cw["num_examples"] == 100
    assert cw["attack"]["loss_func"] == "cw" and cw["accuracy"] < natural["accuracy"]
    assert (
        f"| CW, 40 steps of 0.01 | itself | {cw['accuracy']:.2f} |"
        in (output / "README.md").read_text()
    )
    assert [path.name for path in (output / "rows").iterdir()] == ["interrupted.npz"]

    (output / "rows" / "interrupted.npz").unlink()
    export(output, None, data_dir, "--num_eval_examples=200", "--rows=paper_cw")
    assert card_of(output)["results"][2]["num_examples"] == 200
    assert not (output / "rows").exists() and not (training / "rows").exists()

    # A suite is a row too, in the worst case over its attacks.
    export(output, None, data_dir, "--num_eval_examples=100", "--rows=fast")
    fast = card_of(output)["results"][-1]
    assert fast["row"] == "fast" and fast["attack"] is None and fast["accuracy"] <= cw["accuracy"]
    assert [named["name"] for named in fast["attacks"]] == [stage.name for stage in suites.FAST]
    assert "| fast suite | itself |" in (output / "README.md").read_text()

    card = card_of(output)
    (output / "card.json").write_text(json.dumps({**card, "weights_digest": "0" * 64}))
    err = export(output, None, data_dir, "--rows=natural", code=1)
    assert "--model_dir: expected the model of" in error_line(err)
    assert card_of(output)["results"] == card["results"]


def test_a_damaged_card_is_reported_and_renamed(training, data_dir, tmp_path):
    output, few = tmp_path / "mine", ("--num_eval_examples=50", "--rows=natural")
    export(training, output, data_dir, *few)
    card, path = card_of(output), output / "card.json"
    damaged = path.read_bytes()[:-100]
    path.write_bytes(damaged)
    err = export(output, None, data_dir, *few, code=1)
    assert error_line(err).startswith(f"error: {path} is not JSON: ")
    assert path.read_bytes() == damaged
    out = export(training, output, data_dir, *few)
    (line,) = [line for line in out.splitlines() if line.startswith("note: ")]
    assert line.endswith("it is kept as card.json.damaged, and its rows are evaluated anew")
    assert (output / "card.json.damaged").read_bytes() == damaged
    (entry,) = card_of(output)["results"]
    assert entry["accuracy"] == card["results"][0]["accuracy"]


def test_export_model_refuses(training, data_dir, tmp_path):
    def refused(reason, *flags, model_dir=training, output=tmp_path / "out"):
        err = export(model_dir, output, data_dir, *flags, code=1)
        assert reason in error_line(err) and not (tmp_path / "out").exists()

    shipped = MNIST.directory / "models" / "adv_trained"
    before = (shipped / "card.json").read_bytes()
    refused("--rows: expected some of natural, paper_fgsm,", "--rows=paper_pgd_39")
    refused("got another model in", output=shipped)
    refused("expected a training directory with runs.json", model_dir=shipped)
    refused("--output_dir: expected the directory to write the model to, got none", output=None)
    refused(
        "--sources: expected models with a card.json of export_model.py", f"--sources={training}"
    )
    assert (shipped / "card.json").read_bytes() == before


@pytest.mark.parametrize("challenge", [MNIST, CIFAR10], ids=lambda challenge: challenge.name)
def test_the_shipped_robust_network_is_the_fast_recipes(challenge):
    path = challenge.directory / "config_cpu.json"
    recipe = json.loads(make_config(challenge, (path, read_json(path))).to_json())
    trained = cards.read(challenge, challenge.shipped)["training"]
    others = {"model_dir", "data_dir", "precision"}  # the machine decides the last of them
    # Settings from after the training are not in its config.
    settings = parsed(challenge, trained["config"])
    for name in trained["config"].keys() - others:
        assert json.loads(json.dumps(settings[name])) == recipe[name], name
    assert trained["steps"] == recipe["max_num_training_steps"]
    assert recipe["adversary"] == "pgd" and recipe["random_start"]
    for _, num_steps, step_size in recipe["attack_schedule"]:
        assert num_steps * step_size >= recipe["epsilon"]  # it reaches the ball's surface


def test_the_fgsm_trained_network_is_the_fast_recipes_but_for_what_the_recipe_says():
    path = MNIST.directory / "config_cpu.json"
    command = next(
        line
        for line in (MNIST.directory / "RECIPE.md").read_text().splitlines()
        if "--adversary=fgsm" in line
    )
    values = dict(word[2:].split("=", 1) for word in shlex.split(command) if word.startswith("--"))
    del values["config"], values["model_dir"]
    given = {
        name: json.loads(text) if name != "adversary" else text for name, text in values.items()
    }
    recipe = make_config(MNIST, (path, read_json(path)), ("command line", given))
    recipe = json.loads(recipe.to_json())
    trained = cards.read(MNIST, "fgsm_trained")["training"]["config"]
    for name in trained.keys() - {"model_dir", "data_dir"}:
        assert trained[name] == recipe[name], name
    assert recipe["average_decay"] == 0  # which the training did not know yet


def test_a_card_says_whether_a_gradient_may_be_hidden():
    def lines(suite, by_square, num_examples=1000, has_accuracies=True):
        attacks = [{"accuracy": suite + by_square}, {"accuracy": suite}]
        attacks = attacks if has_accuracies else [{}, {}]
        of_suite = {"row": "standard", "accuracy": suite, "attack": None, "attacks": attacks}
        attack = {"loss_func": "xent", "num_steps": 40, "step_size": 0.01, "random_start": True}
        pgd = {"row": "paper_pgd_40", "accuracy": 90.0, "attack": attack}
        results = [{**pgd, "num_examples": 1000}, {**of_suite, "num_examples": num_examples}]
        return cards.hidden_gradients({"results": [{**one, "source": None} for one in results]})

    (line, _) = lines(89.0, 0.5)
    assert line == (
        "The standard suite's accuracy is 1.00 points below that of PGD, 40 steps of 0.01. Its "
        "last attack, Square, which sees no gradient, breaks 0.50% that its other attacks left. "
        "**No sign of a hidden gradient** (this project's limits: 3 points and 2%)."
    )
    assert "is 1.00 points above that of PGD" in lines(91.0, 0.5)[0]
    for suite, by_square in ((86.0, 0.0), (88.0, 2.5)):
        assert "**This network may hide its gradient**" in lines(suite, by_square)[0]
    assert lines(89.0, 0.5, num_examples=100) == []  # of other images
    assert lines(89.0, 0.5, has_accuracies=False) == []  # of an earlier version
