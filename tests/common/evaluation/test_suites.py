"""Several attacks in turn, as eval.py runs them: table, JSON, examples, breaks and wrong use."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import common.checkpoints
from cifar10_challenge.challenge import CIFAR10
from common import attack, config
from common.attack import FGSM, PGD, Square, make_attack
from common.checkpoints import load_model
from common.errors import InputError
from common.evaluation import suites
from common.evaluation.evaluator import Evaluator
from common.evaluation.pitfalls import check_model, check_result
from common.evaluation.presets import make_evaluator
from common.evaluation.report import table
from common.evaluation.results import Result, Trial, TrialResult
from common.scripts import attack_file
from common.scripts import evaluate as evaluate_lib
from common.scripts.flags import config_from_flags, define_flags
from mnist_challenge.challenge import MNIST
from tests.common.attack.attack_cases import labelled, linear_model
from tests.helpers import EMPTY_HOME, ROOT, end_of_sample, error_line, run, train

FEW_IMAGES = 32
FEW = (f"--num_eval_examples={FEW_IMAGES}", "--eval_batch_size=8")
PAPER = [name for name in MNIST.presets if name.startswith("paper_")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The directory of a small network, trained a little without an adversary."""
    directory = tmp_path_factory.mktemp("tiny") / "run"
    train(
        MNIST,
        directory,
        images=end_of_sample(MNIST),
        scale=1,
        adversary="none",
        max_num_training_steps=100,
        training_batch_size=50,
        step_size_schedule=[[0, 0.005]],
        num_output_steps=1000,
        num_validation_steps=0,
        num_checkpoint_steps=1000,
    )
    return directory


@pytest.fixture
def evaluate(tiny, tmp_path, monkeypatch, capsys):
    """Function from flags to what eval.py prints, run here in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", EMPTY_HOME)  # the sample
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    def evaluate(*arguments):
        flag_values = flags.FlagValues()
        define_flags(MNIST, flag_values)
        evaluate_lib.define_eval_flags(MNIST, flag_values)
        flag_values(["eval.py", f"--model_dir={tiny}", *arguments])
        settings = config_from_flags(MNIST, flag_values)
        capsys.readouterr()
        evaluate_lib.evaluate(MNIST, settings, flag_values)
        return capsys.readouterr()

    return evaluate


def timeless(path):
    """The JSON of an evaluation, without the time it took and the command that made it."""
    result = json.loads(path.read_text())
    for entry in (result, *result["attacks"]):
        del entry["seconds"]
    del result["command"]
    return result


def test_the_paper_suite_through_the_script(tiny, tmp_path):
    out = run(
        ROOT / "mnist_challenge" / "eval.py",
        "--suite=paper",
        f"--model_dir={tiny}",
        "--output_json=r.json",
        "--store_adv_path=worst.npy",
        *FEW,
        cwd=tmp_path,
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert [entry["name"] for entry in result["attacks"]] == PAPER
    for entry in result["attacks"]:
        preset = MNIST.presets[entry["name"]]
        assert {name: entry["attack"][name] for name in preset if name != "kappa"} == {
            name: value for name, value in preset.items() if name != "kappa"
        }
    # Each attack is given all that is classified correctly, as each row of the paper's table is an
    # accuracy of its own; the lines say what the JSON says.
    lines, table = out.splitlines(), out[out.index("\nattack ") :].splitlines()[1:]
    given = round(result["natural_accuracy"] * 32 / 100)
    worst = 100.0
    for entry, row in zip(result["attacks"], table[2 : 2 + len(result["attacks"])], strict=True):
        assert entry["num_given"] == given
        alone = 100 * (given - entry["num_broken"]) / 32
        assert entry["accuracy_alone"] == pytest.approx(alone)
        assert entry["accuracy"] <= min(alone, worst)
        worst = entry["accuracy"]
        steps = entry["attack"]["num_steps"]
        assert entry["num_gradients"] == entry["num_attacks"] * steps
        (line,) = [line for line in lines if line.startswith(f"{entry['name']}: ")]
        assert f"{entry['num_broken']} of {entry['num_given']} broken" in line
        cells = row.split()
        assert cells[:5] == [
            entry["name"],
            str(entry["num_given"]),
            str(entry["num_broken"]),
            f"{entry['accuracy']:.2f}%",
            f"{entry['accuracy_alone']:.2f}%",
        ]
        assert cells[-2] == f"{entry['num_gradients']:,}"
    assert result["adversarial_accuracy"] == result["attacks"][-1]["accuracy"]
    low, high = result["confidence_interval"]
    assert 0 <= low <= result["adversarial_accuracy"] <= high <= 100
    assert lines[-2].startswith(f"robust accuracy: {result['adversarial_accuracy']:.2f}%, 95%")
    assert "32 examples" in lines[-2]
    note = json.loads((tmp_path / "worst.npy.json").read_text())
    assert note["attacks"] == result["attacks"]
    assert {p.name for p in tmp_path.iterdir()} == {"r.json", "worst.npy", "worst.npy.json"}
    # The examples are those of the worst case, and obey the challenge's rules.
    scored = run(
        ROOT / "mnist_challenge" / "run_attack.py",
        "--store_adv_path=worst.npy",
        f"--model_dir={tiny}",
        *FEW,
        cwd=tmp_path,
    )
    assert f"Accuracy: {result['adversarial_accuracy']:.2f}%" in scored


def test_a_report_shows_the_numbers_of_the_json(evaluate, tmp_path):
    command = ("--attack=fgsm,pgd", "--num_steps=2", "--epsilon=0.05", "--step_size=0.03")
    out = evaluate(*command, "--report=r.html", "--output_json=r.json", *FEW).out
    assert "report written to r.html\n" in out
    found, page = json.loads((tmp_path / "r.json").read_text()), (tmp_path / "r.html").read_text()
    for accuracy in (found["natural_accuracy"], found["adversarial_accuracy"]):
        assert f"<b>{accuracy:.2f}<small>%" in page
    for entry in found["attacks"]:
        assert f"{entry['name']}: {entry['accuracy']:.2f}%, 95% interval" in page
    low, high = found["confidence_interval"]
    assert f"95% interval {low:.2f} to {high:.2f}" in page
    assert f"mean {found['adversarial_loss']:.4f}" in page
    assert f"<dd>{found['data']}</dd>".replace("'", "&#x27;") in page
    right, broken = (
        round((found["natural_accuracy"] - accuracy) * FEW_IMAGES / 100)
        for accuracy in (0, found["adversarial_accuracy"])
    )
    assert f"<b>{broken}</b><span>broken by the attacks</span><i>of {right} class" in page
    evaluate(*command[1:], "--report=one.html", *FEW)
    assert "num_steps 2" in (tmp_path / "one.html").read_text()


def test_an_interrupted_suite_resumes_to_the_same_result(evaluate, tmp_path, monkeypatch):
    command = ("--attack=fgsm,pgd", "--epsilon=0.04", "--num_restarts=3", "--num_steps=3", *FEW)
    command = (*command, "--store_adv_path=a.npy")
    evaluate(*command, "--output_json=whole.json")
    examples = np.load("a.npy")
    (tmp_path / "a.npy").unlink(), (tmp_path / "a.npy.json").unlink()

    perturb, calls = PGD.perturb, []

    def interrupted(self, x_nat, *arguments, **options):
        calls.append(self.num_steps)
        if calls.count(3) == 2:  # in the second attack's second batch
            signal.raise_signal(signal.SIGINT)
        return perturb(self, x_nat, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PGD, "perturb", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(*command, "--output_json=parts.json")
    (state,) = tmp_path.glob("evaluation-*.npz")
    assert {p.name for p in tmp_path.iterdir()} == {"whole.json", state.name}
    with np.load(state, allow_pickle=False) as file:
        assert file["trial"] == 1
    # Another evaluation leaves it alone.
    evaluate(*command, "--random_seed=1")
    assert state.exists()
    out = evaluate(*command, "--output_json=parts.json").out
    assert f"fgsm,pgd: resuming from {state.name}" in out and "\nfgsm: " in out
    assert timeless(tmp_path / "parts.json") == timeless(tmp_path / "whole.json")
    np.testing.assert_array_equal(np.load("a.npy"), examples)
    assert not state.exists()
    # An attack without remaining examples would prove nothing.
    assert timeless(tmp_path / "whole.json")["attacks"][1]["num_given"] > 4


def test_one_attack_resumes_too(evaluate, tmp_path, monkeypatch):
    command = ("--attack=pgd", "--num_steps=3", "--epsilon=0.1", *FEW)
    whole = evaluate(*command).out
    perturb, calls = PGD.perturb, []

    def interrupted(self, x_nat, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return perturb(self, x_nat, *arguments, **options)

    (tmp_path / "states").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(PGD, "perturb", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(*command, "--state_dir=states")
    assert [p.name for p in tmp_path.iterdir()] == ["states"]
    out = evaluate(*command, "--state_dir=states").out
    assert (
        out.replace(next(x for x in out.splitlines() if "resuming from" in x) + "\n", "") == whole
    )
    assert list((tmp_path / "states").iterdir()) == []


def test_each_alone_gives_both_columns_and_the_same_worst_case(evaluate, tmp_path):
    command = ("--attack=fgsm, pgd", "--epsilon=0.1", "--num_steps=3", *FEW)
    evaluate(*command, "--output_json=a.json", "--store_adv_path=a.npy")
    evaluate(*command, "--output_json=b.json", "--store_adv_path=b.npy", "--each_alone")
    cumulative, alone = (json.loads((tmp_path / f"{x}.json").read_text()) for x in "ab")
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))
    for name in ("natural_accuracy", "adversarial_accuracy", "adversarial_loss"):
        assert cumulative[name] == alone[name]
    for ours, theirs in zip(cumulative["attacks"], alone["attacks"], strict=True):
        assert ours["accuracy"] == theirs["accuracy"]
    assert cumulative["attacks"][1]["accuracy_alone"] is None
    first, second = alone["attacks"]
    assert first["num_given"] == second["num_given"]
    for entry in (first, second):
        left = entry["num_given"] - entry["num_broken"]
        assert entry["accuracy_alone"] == pytest.approx(100 * left / 32)


def test_the_result_does_not_depend_on_the_batch_size(evaluate, tmp_path):
    command = ("--attack=fgsm,pgd", "--epsilon=0.1", "--num_steps=2", "--num_eval_examples=30")
    for size in (7, 30):
        evaluate(*command, f"--eval_batch_size={size}", f"--output_json={size}.json")
    counts = [
        [(entry["num_given"], entry["num_broken"]) for entry in timeless(path)["attacks"]]
        for path in (tmp_path / "7.json", tmp_path / "30.json")
    ]
    assert counts[0] == counts[1]


def test_the_standard_suite_is_that_of_the_attacks(evaluate, tmp_path, monkeypatch):
    def standard_suite(model, *, epsilon, bounds, norm, jit_compile, precision, num_classes):
        assert num_classes == 10
        assert (epsilon, bounds, norm) == (0.1, (0.0, 1.0), "linf")
        assert (jit_compile, precision) == (False, "bfloat16")
        pgd = PGD(model, epsilon=epsilon, step_size=0.05, num_steps=2, bounds=bounds)
        return [("one", FGSM(model, epsilon=epsilon, bounds=bounds)), ("two", pgd)]

    monkeypatch.setattr(attack, "standard_suite", standard_suite, raising=False)
    flags = ("--epsilon=0.1", "--jit_compile=no", "--precision=bfloat16", "--output_json=r.json")
    evaluate("--suite=standard", *flags, *FEW)
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["suite"] == "standard"
    assert [entry["name"] for entry in result["attacks"]] == ["one", "two"]


@pytest.fixture
def short(monkeypatch):
    """Makes the attacks of the suites short; shares and restarts stay."""

    def shortened(stage):
        few = {"num_steps": 4, "num_targets": 2, "num_queries": 20}
        settings = {name: few.get(name, value) for name, value in stage.settings.items()}
        if stage.attack is Square:
            settings["num_queries"] = 20
        elif stage.attack is not suites.odi_pgd:
            settings["num_steps"] = 4
        return dataclasses.replace(
            stage, settings=settings, num_restarts=min(stage.num_restarts, 2)
        )

    stages = {name: tuple(map(shortened, suite)) for name, suite in suites.STAGES.items()}
    monkeypatch.setattr(suites, "STAGES", stages)
    return stages


def test_the_fast_suite_reports_the_examples_that_it_left_alone(
    evaluate, tmp_path, monkeypatch, short
):
    short = {"fast": (short["fast"][0], short["fast"][-1])}  # each takes a second to compile
    monkeypatch.setattr(suites, "STAGES", short)
    command = ("--suite=fast", "--epsilon=0.01", *FEW)
    out = evaluate(*command, "--output_json=whole.json").out
    result = timeless(tmp_path / "whole.json")
    assert [entry["name"] for entry in result["attacks"]] == [stage.name for stage in short["fast"]]
    for entry, stage in zip(result["attacks"], short["fast"], strict=True):
        standing = entry["num_given"] + entry["num_left_alone"]
        assert entry["num_given"] == int(np.ceil(stage.share * standing)) > 0
        assert entry["attack"].get("share", 1.0) == stage.share
        (line,) = [line for line in out.splitlines() if line.startswith(f"{entry['name']}: ")]
        assert (f"{entry['num_left_alone']} left alone" in line) == (stage.share < 1)
    most = max(entry["num_left_alone"] for entry in result["attacks"])
    assert result["num_left_alone"] == most > 10
    lines = out.splitlines()
    assert f"32 examples; the last attacks skipped up to {most} images that were far" in lines[-1]
    head, *rows = out[out.index("\nattack ") :].splitlines()[1 : 3 + len(short["fast"])]
    assert head.split()[1:3] == ["left", "alone"]
    assert [row.split()[1] for row in rows[1:]] == [
        str(entry["num_left_alone"]) for entry in result["attacks"]
    ]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("suite", ["fast", "strong"])
def test_a_suite_takes_any_number_of_classes_in_either_norm(suite, classes, norm):
    options = {"epsilon": 0.5, "bounds": (0.0, 1.0), "norm": norm, "precision": "float32"}
    kernel = np.random.default_rng(0).normal(size=(9, classes)).astype(np.float32)
    trials = suites.trials_of(
        suite, lambda x: tf.reshape(x, (-1, 9)) @ kernel, num_classes=classes, **options
    )
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names) and names[0] == "apgd_xent" and "square" in names
    assert {trial.attack.norm for trial in trials} == {norm}
    losses = {getattr(trial.attack, "loss_func", None) for trial in trials}
    assert ("targeted_dlr" in losses) == (classes > 3) and ("dlr" in losses) == (classes == 3)
    assert (suite == "fast") == (min(trial.share for trial in trials) < 1)


def test_the_strong_suite_holds_what_the_standard_one_does():
    options = {"epsilon": 0.3, "bounds": (0.0, 1.0)}
    standard, strong = (
        {trial.name: trial.settings() for trial in suites.trials_of(name, abs, **options)}
        for name in ("standard", "strong")
    )
    more = {"num_restarts", "num_queries"}  # the first restart, and the first queries, are the same
    for name, settings in standard.items():
        differing = {key for key in settings if settings[key] != strong[name][key]}
        assert differing <= more, name
        assert all(strong[name][key] > settings[key] for key in differing)
    assert set(strong) > set(standard)


@pytest.mark.slow
def test_the_fast_suite_does_not_change_with_the_scale_of_the_logits(short):
    _, _, model = linear_model()
    x_nat, y = labelled(model, 20)

    def withstood(scale):
        def logits(x):
            return scale * model(x)

        options = {"epsilon": 0.012, "bounds": (0.0, 1.0), "precision": "float32"}
        evaluator = Evaluator(
            logits,
            suites.trials_of("fast", logits, num_classes=5, **options),
            to_pixels=tf.constant,
            batch_size=20,
            show_progress=False,
        )
        return evaluator.run(x_nat, y).withstood

    expected = withstood(1.0)
    assert 0 < (~expected.all(axis=0)).sum() < 20
    for scale in (2.0**-40, 2.0**40):  # exact in float32
        np.testing.assert_array_equal(withstood(scale), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "challenge, name, result",
    [(MNIST, "adv_trained", "mnist"), (CIFAR10, "simple_adv_trained", "cifar_simple")],
)
def test_the_fast_suite_breaks_nearly_all_that_the_standard_one_does(
    challenge, name, result, tfds_dir
):
    """The standard suite's verdicts are those that benchmarks/autoattack.py has written."""
    path = ROOT / "benchmarks" / "results" / f"autoattack_{result}.json"
    standard = json.loads(path.read_text())["worst_case"]["withstood"]["ours"]
    few = challenge.load("test", data_dir=tfds_dir).head(100)
    loaded, settings = load_model(challenge, name), config.make_config(challenge)
    trials = suites.suite_trials("fast", loaded.logits, settings, challenge)
    evaluator = make_evaluator(challenge, settings, trials, loaded, spare_misclassified=True)
    found = evaluator.run(few.images, few.labels)
    assert found.num_left_alone > 25
    broken = np.array(list(standard[:100])) == "0"
    assert np.count_nonzero(found.adversarial_correct & broken) <= 1
    assert broken.sum() > 5


def test_warnings_are_on_stderr_and_in_the_json(evaluate, tmp_path, monkeypatch):
    load = common.checkpoints.load_model

    def load_probabilities(*arguments):
        loaded = load(*arguments)
        return dataclasses.replace(loaded, logits=lambda x: tf.nn.softmax(loaded.logits(x)))

    monkeypatch.setattr(common.checkpoints, "load_model", load_probabilities)
    err = evaluate("--attack=fgsm,pgd", "--num_steps=2", "--output_json=r.json", *FEW).err
    (line,) = [line for line in err.splitlines() if line.startswith("warning: softmax outputs")]
    assert (
        line.removeprefix("warning: ") in json.loads((tmp_path / "r.json").read_text())["warnings"]
    )


def with_logits(change, monkeypatch):
    """Has every model that is loaded pass its logits through `change`."""
    load = common.checkpoints.load_model

    def load_model(*arguments):
        loaded = load(*arguments)
        return dataclasses.replace(loaded, logits=lambda x: change(loaded.logits(x)))

    monkeypatch.setattr(common.checkpoints, "load_model", load_model)


def score(tiny):
    settings = {"model_dir": str(tiny), "num_eval_examples": FEW_IMAGES, "eval_batch_size": 8}
    return attack_file.score(MNIST, config.make_config(MNIST, ("", settings)), "a.npy")


def test_classes_that_are_ruled_out_count_the_same_in_every_script(
    tiny, evaluate, tmp_path, monkeypatch
):
    """https://github.com/awslabs/Renate/issues/364."""
    command = ("--num_steps=2", "--output_json=r.json", "--store_adv_path=a.npy", *FEW)
    evaluate(*command)
    plain, predictions = json.loads((tmp_path / "r.json").read_text()), score(tiny).predictions
    assert 0 < plain["adversarial_accuracy"] < plain["natural_accuracy"]

    def leave_three(z):
        return tf.where(z < tf.math.top_k(z, 3).values[:, 2:], -np.inf, z)

    with_logits(leave_three, monkeypatch)
    np.testing.assert_array_equal(score(tiny).predictions, predictions)
    assert score(tiny).accuracy == pytest.approx(plain["adversarial_accuracy"])
    evaluate(*command)
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["natural_accuracy"] == plain["natural_accuracy"]
    assert score(tiny).accuracy == pytest.approx(result["adversarial_accuracy"])
    # What gives no number gives no prediction, in run_attack.py too.
    with_logits(lambda z: tf.where(tf.range(10) == 9, np.nan, z), monkeypatch)
    assert score(tiny).accuracy == 0


def test_undefined_gradients_are_warned_of(tiny, evaluate, tmp_path, monkeypatch, capsys):
    """https://github.com/Trusted-AI/adversarial-robustness-toolbox/issues/824."""

    @tf.custom_gradient
    def undefined(z):
        return tf.identity(z), lambda dz: dz * np.nan

    with_logits(undefined, monkeypatch)
    line = "warning: undefined gradients: {}: at 32 of 32 attacked images a gradient was not a"
    command = ("--num_steps=2", "--step_size=0.2", "--output_json=r.json", *FEW)
    err = evaluate("--attack=pgd", *command).err
    assert [line.format("pgd") in warning for warning in err.splitlines()].count(True) == 1
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["num_undefined"] == 32

    err = evaluate("--attack=fgsm,pgd", *command).err
    result = json.loads((tmp_path / "r.json").read_text())
    warnings = [text for text in result["warnings"] if text.startswith("undefined gradients")]
    for warning, found in zip(warnings, result["attacks"], strict=True):
        given = found["num_given"]
        assert f"{found['name']}: at {given} of {given} attacked images" in warning
        assert f"warning: {warning}" in err.splitlines()
        assert found["num_undefined"] == given > 0

    flag_values = flags.FlagValues()
    define_flags(MNIST, flag_values)
    attack_file.define_attack_file_flags(MNIST, flag_values)
    flag_values(["x", f"--model_dir={tiny}", "--num_steps=1", "--store_adv_path=a.npy", *FEW])
    attack_file.pgd_attack(MNIST, config_from_flags(MNIST, flag_values), flag_values)
    assert line.format("pgd") in capsys.readouterr().err
    assert json.loads((tmp_path / "a.npy.json").read_text())["num_undefined"] == 32


def test_published_numbers_are_shown_beside_those_of_the_test_set(evaluate, data_dir):
    command = ("--model_dir=adv_trained", "--num_eval_examples=4")
    lines = evaluate(*command, f"--data_dir={data_dir}").out.splitlines()
    number, _, published = lines[-4].removeprefix("natural: ").partition("% ")
    assert float(number) > 80 and published == "(paper 98.8, leaderboard 98.53)"
    number, _, published = lines[-3].removeprefix("adversarial: ").partition("% ")
    assert float(number) > 60 and published == "(paper 93.2)"

    several = "--attack=fgsm,pgd,apgd_dlr"
    lines = evaluate(*command, several, f"--data_dir={data_dir}").out.splitlines()
    head, natural, fgsm, pgd, apgd = (line.split() for line in lines[-7:-2])
    assert head[3:7] == ["accuracy", "alone", "paper", "leaderboard"]
    assert natural[0] == "none" and natural[2:] == ["98.8%", "98.53%"]
    assert fgsm[5:7] == ["95.6%", "96.36%"] and pgd[0] == "pgd" and pgd[4] == "93.2%"
    assert apgd[0] == "apgd_dlr" and len(apgd) == 7  # no published number
    assert lines[-2].endswith("; alone, paper, leaderboard: this attack only")
    assert "paper" not in evaluate(*command, "--attack=fgsm,pgd").out  # the sample


def test_a_suite_takes_a_network_in_half_precision(evaluate, tmp_path, monkeypatch):
    """https://github.com/fra31/auto-attack/issues/51."""
    command = ("--attack=fgsm,pgd", "--loss_func=cw", "--num_steps=2", "--output_json=r.json")
    command = (*command, "--epsilon=0.1", *FEW)
    evaluate(*command)
    expected = json.loads((tmp_path / "r.json").read_text())
    with_logits(lambda z: tf.cast(z, tf.float16), monkeypatch)
    evaluate(*command)
    result = json.loads((tmp_path / "r.json").read_text())
    assert abs(result["adversarial_accuracy"] - expected["adversarial_accuracy"]) < 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("--suite=best",),
            "--suite: expected one of paper, leaderboard, standard, fast, strong, got 'best'",
        ),
        (("--suite=paper", "--attack=pgd"), "--attack: expected none beside --suite"),
        (("--suite=paper", "--preset=paper_fgsm"), "--preset: expected none beside --suite"),
        (("--suite=paper", "--num_steps=3"), "--num_steps: expected none, as --suite=paper has"),
        (("--suite=standard", "--kappa=3"), "--kappa: expected none, as --suite=standard has"),
        (("--attack=pgd,best",), "--attack: expected .*'best'"),
        (("--attack=pgd,",), "--attack: expected .*''"),
        (("--attack=square", "--num_steps=3"), "--num_steps: expected none, as --attack=square"),
        (("--attack=fgsm,square", "--norandom_start"), "--random_start: expected none"),
        (("--attack=fgsm", "--num_restarts=3"), "--num_restarts: expected 1, as --attack=fgsm"),
        (("--attack=square", "--preset=paper_fgsm"), "--preset: expected none, as --attack=square"),
        (("--attack=pgd", "--epsilon=2"), "epsilon: expected 0 to 1 "),
        (("--attack=pgd,pgd_l2", "--epsilon=0.5"), "--attack: expected attacks of one norm"),
        (("--suite=paper", "--norm=l2", "--epsilon=2"), "--norm: expected none, as --suite=paper"),
        (("--suite=standard", "--norm=l2"), "--epsilon: expected a radius in L2"),
        (("--attack=pgd_l2",), "--epsilon: expected a radius in L2"),
        (
            ("--preset=paper_pgd_40", "--norm=l2", "--epsilon=2"),
            "--preset: expected none in L2",
        ),
        (("--suite=standard", "--epsilon=2"), "epsilon: expected 0 to 1 "),
        (
            ("--attack=pgd,pgd_l2", "--norm=linf"),
            "--norm: expected l2, which pgd_l2 is made for, got linf",
        ),
        (
            ("--attack=boundary", "--norm=linf", "--epsilon=2"),
            "--norm: expected l2, which boundary is made for",
        ),
        (
            ("--suite=standard", "--norm=l2", "--epsilon=2", "--round_to_8_bits"),
            "--round_to_8_bits: expected an attack in L-infinity, got apgd_xent in L2",
        ),
        (("--each_alone",), "--each_alone: expected several attacks"),
        (("--suite=fast", "--each_alone"), "--each_alone: expected attacks that are given every"),
        (
            ("--suite=fast", "--shard=1/2"),
            "--shard: .*, got apgd_targeted, which takes the closest",
        ),
        (
            ("--suite=strong", "--num_restarts=3"),
            "--num_restarts: expected none, as --suite=strong",
        ),
        (("--suite=paper", "--watch"), "--watch: expected one attack"),
        (("--watch", "--report=x"), "--report: expected none beside --watch"),
        (("--report=no/r.html",), "--report: cannot write no/r.html"),
        (("--shard=1/2", "--report=r.html"), "--report: expected none beside --shard"),
        (("--watch", "--state_dir=x"), "--state_dir: expected none beside --watch"),
        (("--watch", "--source=natural"), "--source: expected none beside --watch"),
        (("--source=no",), "--source: expected a training directory"),
        (("--suite=paper", "--output_json=no/r.json"), "--output_json: cannot write no/r.json"),
        (("--suite=paper", "--store_adv_path=no/a"), "--store_adv_path: cannot write no/a"),
        (("--suite=paper", "--state_dir=no"), "--state_dir: cannot write no/evaluation"),
    ],
)
def test_wrong_use_leaves_nothing(settings, message, evaluate, tmp_path):
    with pytest.raises(InputError, match=message):
        evaluate(*settings)
    assert list(tmp_path.iterdir()) == []


def test_the_natural_network_falls_to_zero_under_the_standard_suite(evaluate, tmp_path):
    command = ("--model_dir=natural", "--suite=standard", "--num_eval_examples=100")
    out = evaluate(*command, "--output_json=r.json").out
    assert "robust accuracy: 0.00%" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["natural_accuracy"] > 95 and result["adversarial_accuracy"] == 0
    assert [attack["name"] for attack in result["attacks"]][0] == "apgd_xent"


def test_examples_made_on_another_model_transfer_less(tiny, evaluate, tmp_path):
    command = ("--attack=pgd,fgsm", "--num_steps=5", "--each_alone", "--output_json=r.json", *FEW)
    evaluate(*command)
    own = json.loads((tmp_path / "r.json").read_text())
    assert "source" not in own
    out = evaluate(*command, "--source=adv_trained").out
    assert "attacked in its place: " in out and "models/adv_trained" in out
    transferred = json.loads((tmp_path / "r.json").read_text())
    assert transferred["model"] == own["model"]
    assert transferred["source"] == "mnist_challenge/models/adv_trained"
    assert transferred["source_digest"] != transferred["model_digest"] == own["model_digest"]
    # The accuracy of this model on the other's examples is counted.
    source = load_model(MNIST, "adv_trained").logits
    few = MNIST.load("sample").head(FEW_IMAGES)
    x_nat, settings = MNIST.to_pixels(few.images), config.make_config(MNIST, ("", {"num_steps": 5}))
    x = make_attack("pgd", source, settings, MNIST.bounds).perturb(
        x_nat, few.labels, seed=(settings.random_seed, 0)
    )
    model = load_model(MNIST, tiny).logits
    stands = np.argmax(model(x), axis=1) == few.labels
    stands &= np.argmax(model(tf.constant(x_nat)), axis=1) == few.labels
    assert transferred["attacks"][0]["accuracy"] == 100 * np.mean(stands)
    assert transferred["adversarial_accuracy"] > own["adversarial_accuracy"]


def test_an_attack_file_of_another_model_says_so(tiny, evaluate, capsys):
    evaluate("--num_steps=2", "--source=adv_trained", "--store_adv_path=a.npy", *FEW)
    for name, is_noted in ((tiny, True), ("adv_trained", False)):
        settings = config.make_config(
            MNIST, ("", {"model_dir": str(name), "num_eval_examples": FEW_IMAGES})
        )
        attack_file.score(MNIST, settings, "a.npy")
        out = capsys.readouterr().out
        assert ("made on another model, mnist_challenge/models/adv_trained" in out) == is_noted


@pytest.mark.parametrize("flag", ["--attack=pgd_l2", "--norm=l2"])
def test_an_l2_ball_may_be_wider_than_the_pixel_range(flag, evaluate, tmp_path):
    evaluate(flag, "--epsilon=2", "--num_steps=1", "--output_json=r.json", *FEW)
    attack = json.loads((tmp_path / "r.json").read_text())["attack"]
    assert (attack["norm"], attack["epsilon"]) == ("l2", 2.0)


def test_the_norm_is_that_of_every_attack(evaluate, tmp_path):
    command = ("--norm=l2", "--epsilon=1.5", "--output_json=r.json", "--num_eval_examples=4")
    names = "pgd,fgsm,multi_targeted,apgd_dlr,fab_targeted,pgd_l2"
    evaluate(f"--attack={names}", "--num_steps=2", "--num_restarts=2", *command)
    attacks = json.loads((tmp_path / "r.json").read_text())["attacks"]
    assert [(attack["name"], attack["attack"]["num_restarts"]) for attack in attacks] == [
        *(("pgd", 2), ("fgsm", 1), ("multi_targeted", 2), ("apgd_dlr", 2), ("fab_targeted", 2)),
        ("pgd_l2", 2),
    ]
    assert {(a["attack"]["norm"], a["attack"]["epsilon"]) for a in attacks} == {("l2", 1.5)}


def test_an_attack_file_may_be_of_an_l2_ball(tiny, evaluate, tmp_path, capsys):
    flag_values = flags.FlagValues()
    define_flags(MNIST, flag_values)
    attack_file.define_attack_file_flags(MNIST, flag_values)
    size = ("--epsilon=1.5", "--step_size=0.5", "--num_steps=4", "--norandom_start")
    flag_values(["x", f"--model_dir={tiny}", "--norm=l2", "--store_adv_path=a.npy", *size, *FEW])
    attack_file.pgd_attack(MNIST, config_from_flags(MNIST, flag_values), flag_values)
    out = capsys.readouterr().out
    assert "note: these are within an L2 ball, but run_attack.py asks for an L-infinity ball" in out
    images = MNIST.to_pixels(MNIST.load("sample").head(FEW_IMAGES).images)
    moved = np.load("a.npy").reshape(FEW_IMAGES, -1) - images.reshape(FEW_IMAGES, -1)
    assert 1.0 < np.linalg.norm(moved, axis=1).max() <= 1.5 * (1 + 1e-5)


def test_the_standard_suite_may_be_in_l2(evaluate, tmp_path):
    command = ("--suite=standard", "--epsilon=2.5", "--output_json=r.json")
    evaluate("--norm=l2", *command, "--store_adv_path=a.npy", *FEW)
    result = json.loads((tmp_path / "r.json").read_text())
    assert {attack["attack"]["norm"] for attack in result["attacks"]} == {"l2"}
    images = MNIST.to_pixels(MNIST.load("sample").head(FEW_IMAGES).images)
    moved = np.load(tmp_path / "a.npy").reshape(FEW_IMAGES, -1) - images.reshape(FEW_IMAGES, -1)
    assert result["adversarial_accuracy"] < result["natural_accuracy"]
    assert np.abs(moved).max() > 0.3
    assert 0 < np.linalg.norm(moved, axis=1).max() <= 2.5 * (1 + 1e-5)


def test_steps_that_do_not_lead_to_the_balls_edge_are_warned_of(evaluate, tmp_path):
    expected = "warning: short steps: pgd: 2 steps of 0.01 do not lead from an image to the edge"
    for names in ("pgd", "pgd,fgsm"):
        command = (f"--attack={names}", "--output_json=r.json", *FEW)
        assert expected in evaluate(*command, "--num_steps=2").err
        warnings = json.loads((tmp_path / "r.json").read_text()).get("warnings")
        assert "short steps" not in evaluate(*command, "--num_steps=2", "--step_size=0.15").err
    assert any(warning.startswith("short steps: pgd: 2 steps of 0.01") for warning in warnings)


def test_an_unknown_suite_is_one_line_and_exit_code_1(tmp_path):
    err = run(ROOT / "mnist_challenge" / "eval.py", "--suite=best", cwd=tmp_path, code=1)
    assert error_line(err).endswith(
        "expected one of paper, leaderboard, standard, fast, strong, got 'best'"
    )


def test_the_table_is_aligned_and_by_hand():
    trials = [
        Trial(PGD(abs, epsilon=0.3, step_size=0.01, num_steps=40), num_restarts=2, name="pgd"),
        Trial(FGSM(abs, epsilon=0.3), name="a_longer_name"),
    ]
    natural = np.arange(10) < 9
    result = Result(
        natural,
        np.arange(10) < 7,
        np.zeros(10, np.float32),
        np.zeros(10, np.float32),
        np.zeros((10, 1, 1, 1), np.float32),
        np.ones((2, 10), bool),
        (
            TrialResult("pgd", 9, 1, 80.0, 80.0, 1700, 68_000, 0, 61.26),
            TrialResult("a_longer_name", 8, 1, 70.0, None, 8, 8, 0, 0.5),
        ),
        61.76,
    )
    head, none, pgd, fgsm, _, last = table(trials, result).splitlines()
    assert none.split() == ["none", "90.00%"]
    assert pgd.split() == ["pgd", "9", "1", "80.00%", "80.00%", "61.3", "68,000", "0"]
    assert fgsm.split() == ["a_longer_name", "8", "1", "70.00%", "0.5", "8", "0"]
    assert len(head) == len(pgd) == len(fgsm)
    column = head.index("accuracy") + len("accuracy")
    assert {row[:column][-7:] for row in (none, pgd, fgsm)} == {" 90.00%", " 80.00%", " 70.00%"}
    # 7 of 10: (0.7 + z^2/20 +- z sqrt(0.021 + z^2/400)) / (1 + z^2/10)
    assert last == (
        "robust accuracy: 70.00%, 95% confidence interval 39.68% to 89.22%, 10 examples"
    )


def test_quantised_inputs_are_flagged_and_broken_by_square():
    kernel = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32)

    def quantised(x):
        return tf.reshape(tf.round(2.0 * x), (-1, 784)) @ kernel

    sample = MNIST.load("sample").head(20)
    x_nat = MNIST.to_pixels(sample.images)
    labels = np.argmax(quantised(x_nat), axis=1)
    settings = {"epsilon": 0.2, "bounds": (0.0, 1.0)}
    trials = [
        Trial(
            PGD(
                suites.with_gradient(quantised),
                num_steps=20,
                step_size=0.02,
                random_start=False,
                **settings,
            )
        ),
        Trial(Square(quantised, num_queries=300, **settings), name="square"),
    ]
    evaluator = Evaluator(
        quantised,
        trials,
        to_pixels=MNIST.to_pixels,
        batch_size=20,
        spare_misclassified=True,
        show_progress=False,
    )
    result = evaluator.run(sample.images, labels)
    assert [trial.accuracy for trial in result.trials] == [100.0, 0.0]
    (before,) = check_model(quantised, x_nat, labels, batch_size=20, **settings)
    (after,) = check_result(result, trials)
    assert before.startswith("zero gradients: the cross-entropy has none at 20 of 20 images")
    assert after.startswith("black box stronger: square, which sees no gradient, broke 20 of 20")
