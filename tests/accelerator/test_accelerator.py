"""Trainings of accelerator/ against those of train.py.

Tests that need JAX are skipped without it; JAX_PYTHON may name another Python that has it.
"""

import dataclasses
import functools
import gzip
import json

import numpy as np
import pytest
import tensorflow as tf

from accelerator import collect, export, initial, packed_images, programs
from accelerator.stream import Batches
from cifar10_challenge import model as cifar10_model
from cifar10_challenge.challenge import CIFAR10
from common import checkpoints
from common.config import make_config
from common.data import Split
from common.errors import InputError
from common.files import read_json, write_json
from common.training import batches, loop, progress, runs
from common.training.directory import check
from mnist_challenge.challenge import MNIST
from tests.accelerator import tiny
from tests.helpers import ROOT, digits, pictures, run

MNIST_RECIPE = {
    "scale": 1,
    "max_num_training_steps": 6,
    "training_batch_size": 5,
    "attack_schedule": [[0, 1, 0.2], [4, 2, 0.1]],
    "epsilon_warmup_steps": 3,
    "step_size_schedule": [[0, 0.001], [3, 0.002], [6, 0]],
    "step_size_interpolation": "linear",
    "average_decay": 0.9,
    "precision": "float32",
}
CIFAR10_RECIPE = {
    "width": "simple",
    "max_num_training_steps": 2,
    "training_batch_size": 4,
    "attack_schedule": [[0, 1, 8], [1, 2, 5]],
    # Only the first step updates the weights: at first such a deep network amplifies a rounded
    # sum, and from the second attack on any two implementations differ.
    "step_size_schedule": [[0, 0.01], [1, 0]],
    "step_size_interpolation": "linear",
    "batch_statistics": False,
    "average_decay": 0.9,
    "precision": "float32",
}
ONE_ATTACK = {**MNIST_RECIPE, "attack_schedule": None, "num_steps": 1, "step_size": 0.2}
RECIPES = {"mnist": MNIST_RECIPE, "cifar10": CIFAR10_RECIPE}
SEED = 7


def split(challenge, count):
    """Images of the shipped sample, as a training set."""
    pixels, labels = (digits if challenge is MNIST else pictures)(count)
    images = np.rint(pixels * (255 / challenge.bounds[1])).astype(np.uint8)
    return Split(images, labels, "sample", "here", False)


@pytest.fixture
def small(monkeypatch):
    """The challenges with 12 images to train on, and 8 to evaluate on in batches of 5."""
    sets = {
        name: {"train": split(challenge, 12), "test": split(challenge, 8)}
        for name, (challenge, *_) in export.CHALLENGES.items()
    }

    def write_data(name, directory, data_dir):
        (directory / name).mkdir(parents=True, exist_ok=True)
        for part, of_part in sets[name].items():
            packed_images.save(directory / name, part, of_part.images, of_part.labels, 1)
        return sets[name]["train"], sets[name]["test"]

    monkeypatch.setattr(export, "write_data", write_data)
    monkeypatch.setattr(export, "EVAL_BATCH_SIZE", 5)
    return sets


def exported(directory, challenge, recipe, rows=()):
    """Exports one job, and returns its job.json."""
    write_json(directory / "recipe.json", recipe)
    job = {"challenge": challenge, "recipe": "recipe.json", "random_seed": SEED}
    job |= {"rows": list(rows), "steps_per_call": 3}
    write_json(directory / "jobs.json", {"job": job})
    ((job, config),) = export.read_jobs(directory / "jobs.json", ["job"])
    data = export.write_data(challenge, directory / "data", None)
    export.export_job(job, config, data, directory / "jobs", {})
    return read_json(directory / "jobs" / "job" / "job.json")


def in_float64(challenge):
    """CIFAR-10 with its network in float64, which begins with the float32 network's weights."""

    def build(config, precision=None):
        width, decay, seed = config.width, config.weight_decay, config.random_seed
        model = cifar10_model.build_model(width, decay, seed, dtype="float64")
        model.set_weights(challenge.build_model(config).get_weights())
        return model

    return dataclasses.replace(
        challenge,
        build_model=build,
        fast_logits=lambda model, precision: functools.partial(model, training=False),
    )


def trained(challenge_name, images, directory, monkeypatch, recipe=None):
    """The losses and the model of train.py's own loop; CIFAR-10's is in float64."""
    challenge, script, _ = export.CHALLENGES[challenge_name]
    if challenge is CIFAR10:
        challenge = in_float64(challenge)
    recipe = {
        **(recipe or RECIPES[challenge_name]),
        "random_seed": SEED,
        "model_dir": str(directory),
    }
    config = make_config(challenge, ("recipe", {**recipe, "num_validation_steps": 0}))
    losses, record = [], progress.Log.record

    def recorded(self, step, x_adv, xent, accuracy):
        losses.append(float(xent))
        record(self, step, x_adv, xent, accuracy)

    monkeypatch.setattr(progress.Log, "record", recorded)
    return losses, loop.train(config, challenge, images, **script.experiment(config))


@pytest.mark.slow
def test_a_program_takes_the_steps_of_the_training_loop(tmp_path, monkeypatch, small):
    """Without JAX: TensorFlow's own XLA runs the function that is exported."""
    recipe = {**ONE_ATTACK, "random_seed": SEED, "jit_compile": True}
    config = make_config(MNIST, ("recipe", recipe))
    experiment = export.CHALLENGES["mnist"][1].experiment(config)
    networks = loop.build_networks(config, MNIST)
    train = small["mnist"]["train"]
    function, specs = programs.training(config, MNIST, networks, experiment, 12, 4)
    assert [spec.shape for spec in specs][:3] == [(12, 28, 28, 1), (12,), (4, 5)]
    function = tf.function(function, jit_compile=True, autograph=False)
    stream, losses = Batches(12, 5, SEED), []
    for first, last in ((0, 4), (4, 6)):  # the second call takes two steps of the four
        xent, _ = function(
            tf.constant(train.images),
            tf.constant(train.labels),
            tf.constant(stream.of_steps(first, 4)),
            *map(tf.constant, (first, last - first, SEED)),
        )
        losses += xent[: last - first].numpy().tolist()
    expected, model = trained("mnist", train, tmp_path, monkeypatch, ONE_ATTACK)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for weight, own in zip(model.weights, networks[0].weights, strict=True):
        np.testing.assert_allclose(own, weight, atol=1e-5)


def test_the_runner_takes_the_batches_of_the_training_stream():
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    stream = batches.training_batches(
        images,
        np.arange(10),
        batch_size=4,
        seed=SEED,
        num_steps=9,
        to_pixels=lambda x: tf.cast(x, tf.float32),
    )
    own = Batches(10, 4, SEED)
    for step, (_, labels) in enumerate(stream):
        np.testing.assert_array_equal(own.indices(step), labels)
    np.testing.assert_array_equal(Batches(10, 4, SEED).indices(7), own.indices(7))


def test_a_program_is_stablehlo_alone_and_names_every_variable(tmp_path, small):
    job = exported(tmp_path, "mnist", ONE_ATTACK, ["paper_fgsm"])
    files = [name for _, name in job["phases"]] + list(job["evaluations"].values())
    assert len(set(files)) == 2
    for name in files:
        program = json.loads(gzip.decompress((tmp_path / "jobs" / name).read_bytes()))
        assert "mhlo.copy" not in program["module"] and "loc(" not in program["module"]
        assert "stablehlo.convolution" in program["module"]
        updated = {name for _, name in program["updates"]}
        # A training updates all its variables, an evaluation none.
        assert updated == (set(job["initial"]) if "train" in name else set())
        assert set(program["variables"]) <= set(job["initial"])
    # After another training the evaluation is the same program, which run.py compiles once.
    other = exported(tmp_path, "mnist", {**ONE_ATTACK, "epsilon": 0.25}, ["paper_fgsm"])
    assert other["evaluations"] == job["evaluations"] and other["phases"] != job["phases"]
    assert not list((tmp_path / "jobs").glob("**/*.part"))
    assert job["result"] == [
        f"result/{layer}"
        for layer in (
            "conv1/kernel",
            "conv1/bias",
            "conv2/kernel",
            "conv2/bias",
            "dense/kernel",
            "dense/bias",
            "logits/kernel",
            "logits/bias",
        )
    ]


def test_a_training_has_a_program_for_each_attack_of_its_schedule():
    phases = programs.phases(make_config(MNIST, ("recipe", MNIST_RECIPE)))
    parts = [(first, phase.num_steps, phase.step_size) for first, phase in phases]
    assert parts == [(0, 1, 0.2), (4, 2, 0.1)]
    assert all(phase.attack_schedule is None for _, phase in phases)
    natural = make_config(MNIST, ("recipe", {**MNIST_RECIPE, "adversary": "none"}))
    assert [first for first, _ in programs.phases(natural)] == [0]


def test_functions_have_the_same_names_in_every_export():
    text = "module @a_inference_run_3008__.44 {\n call @while_cond_2680_const_0__.12(%arg0)"
    assert programs.plain(text) == "module @a_inference_run.44 {\n call @while_cond_const.12(%arg0)"
    assert programs.plain("call @main_2(%arg0)") == "call @main_2(%arg0)"


def test_what_jax_refuses_is_replaced():
    text = '#loc = loc(unknown)\n%1 = mhlo.copy %0 : tensor<2x3xf32> loc("a(b)"("x":1:2))\n'
    expected = "%1 = stablehlo.reshape %0 : (tensor<2x3xf32>) -> tensor<2x3xf32>\n"
    assert programs.plain(text) == expected


def test_initial_kernels_are_drawn_again_from_their_seeds(tmp_path):
    config = make_config(CIFAR10, ("size", {"width": "simple", "random_seed": SEED}))
    variables = programs.variables_of(CIFAR10.build_model(config))
    values = {name: variable.numpy() for name, variable in variables.items()}
    described = initial.describe(values, SEED, tmp_path)
    assert [name for name, entry in described.items() if "kept" in entry] == [
        "result/logits/kernel"  # uniform
    ]
    drawn = initial.initial_values(described, tmp_path)
    assert list(drawn) == list(values)
    for name, value in values.items():
        assert drawn[name].dtype == value.dtype
        np.testing.assert_allclose(drawn[name], value, atol=1e-6)
    # Another seed's kernels differ, and are stored.
    others = initial.describe(values, SEED + 1, tmp_path)
    assert sum("normal" in entry for entry in others.values()) == 0
    np.testing.assert_array_equal(
        initial.initial_values(others, tmp_path)["result/stem/kernel"], values["result/stem/kernel"]
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_packed_images_come_back_and_a_missing_part_is_said(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, channels)).astype(np.uint8)
    packed_images.save(tmp_path, "train", images, np.arange(7), 2)
    back, labels = packed_images.load(tmp_path, "train")
    np.testing.assert_array_equal(back, images)
    np.testing.assert_array_equal(labels, np.arange(7))
    (tmp_path / "train-1-of-2.npz").unlink()
    with pytest.raises(InputError, match="train-1-of-N.npz to .* got train-2-of-2.npz"):
        packed_images.load(tmp_path, "train")


def test_every_job_has_a_recipe_that_its_challenge_takes():
    path = ROOT / "accelerator" / "jobs.json"
    names = list(read_json(path))
    assert [job["name"] for job, _ in export.read_jobs(path, names)] == names


@pytest.mark.parametrize(
    "change, message",
    [
        ({"challenge": "svhn"}, "expected one of mnist, cifar10 as j.challenge, got 'svhn'"),
        ({"recipe": "other.json"}, "cannot read .*other.json: No such file"),
        ({"random_seed": -1}, r"of 0 or more and below 2\*\*31 as j.random_seed, got -1"),
        ({"random_seed": 2**31}, r"of 0 or more and below 2\*\*31 as j.random_seed, got 2147"),
        ({"steps_per_call": 0}, r"of 1 or more and below 2\*\*31 as j.steps_per_call, got 0"),
        ({"rows": ["paper_pgd_100x20"]}, "expected some of .* as j.rows, got paper_pgd_100x20"),
        ({"round_to_bfloat": True}, "expected some of challenge, .* as j, got round_to_bfloat"),
        (None, "expected an object as j, got none"),
    ],
)
def test_a_job_that_cannot_be_exported_is_said_before_any_is(tmp_path, change, message):
    good = {"challenge": "mnist", "recipe": "r.json", "random_seed": 1, "rows": ["paper_fgsm"]}
    good["steps_per_call"] = 3
    write_json(tmp_path / "r.json", MNIST_RECIPE)
    write_json(
        tmp_path / "jobs.json", {"j": change and {**good, **change}, "ok": good, "../j": good}
    )
    assert len(export.read_jobs(tmp_path / "jobs.json", ["ok"])) == 1
    with pytest.raises(InputError, match=message):
        export.read_jobs(tmp_path / "jobs.json", ["ok", "j"])
    with pytest.raises(InputError, match="expected a name of letters, digits and .* got '../j'"):
        export.read_jobs(tmp_path / "jobs.json", ["../j"])


def test_what_comes_back_is_a_training_directory_that_can_be_evaluated_and_resumed(tmp_path):
    settings = {**MNIST_RECIPE, "random_seed": SEED, "model_dir": str(tmp_path / "unused")}
    config = make_config(MNIST, ("job", settings))
    result, trained_model = loop.build_networks(config, MNIST)
    optimizer = export.CHALLENGES["mnist"][1].experiment(config)["optimizer"]
    optimizer.build(trained_model.trainable_variables)
    for number, weight in enumerate((*result.weights, *trained_model.weights)):
        weight.assign(np.full(weight.shape, number + 1.0))
    variables = programs.variables_of(result, trained_model, optimizer)
    job, path = tiny.write(tmp_path, config=dataclasses.asdict(config))
    job_dir, digest = path.parent, job["digest"]
    run = {"command": "run.py", "hardware": {}, "versions": {"jax": "0"}, "seconds": 1.0}
    runs_of_job = [{**run, "first_step": 0, "last_step": 6}]
    record = {"job": "tiny", "job_digest": digest, "steps": 6, "runs": runs_of_job}
    record |= {"losses": [], "evaluations": {}}
    write_json(tmp_path / "record.json", record)
    own = {"step": 6, "seconds": 1.0, "job_digest": digest}
    weights = {f"{i:04d}": np.asarray(w) for i, w in enumerate(result.weights)}
    np.savez(tmp_path / "weights.npz", **weights, **own)
    state = {name: np.asarray(variable) for name, variable in variables.items()}
    np.savez(tmp_path / "state.npz", **state, **own)

    assert collect.collect(job_dir, tmp_path, tmp_path / "new") == 6
    assert collect.collect(job_dir, tmp_path, tmp_path / "whole", tmp_path) == 6
    for name in ("new", "whole"):
        loaded = checkpoints.load_model(MNIST, tmp_path / name)
        assert loaded.step == 6
        for weight, expected in zip(loaded.weights, result.weights, strict=True):
            np.testing.assert_array_equal(weight, expected)
        (entry,) = runs.read(tmp_path / name)
        assert entry["versions"] == {"tensorflow": "2", "jax": "0"} and entry["commit"] is None
        # Only the same settings resume it.
        check(tmp_path / name, dataclasses.replace(config, model_dir="."), MNIST)
        with pytest.raises(InputError, match="other training_batch_size"):
            check(tmp_path / name, dataclasses.replace(config, training_batch_size=3), MNIST)
    again = loop.build_networks(config, MNIST)
    optimizer = export.CHALLENGES["mnist"][1].experiment(config)["optimizer"]
    optimizer.build(again[1].trainable_variables)
    restored = checkpoints.TrainingRun(tmp_path / "whole", again[0], optimizer, again[1])
    assert restored.restore() == 6
    np.testing.assert_array_equal(again[1].weights[0], trained_model.weights[0])
    with pytest.raises(InputError, match="--model_dir: expected a new directory"):
        collect.collect(job_dir, tmp_path, tmp_path / "new")
    write_json(tmp_path / "record.json", {**record, "job_digest": "e"})
    with pytest.raises(InputError, match="--run_dir: expected a run of the job"):
        collect.collect(job_dir, tmp_path, tmp_path / "newer")
    write_json(tmp_path / "record.json", record)
    np.savez(tmp_path / "weights.npz", **{**weights, "0001": weights["0001"][1:]}, **own)
    with pytest.raises(InputError, match=r"expected 0001 of shape \(2,\) in .*, got \(1,\)$"):
        collect.collect(job_dir, tmp_path, tmp_path / "newer")
    write_json(
        tmp_path / "record.json",
        {**record, "job_digest": tiny.write(tmp_path, challenge="svhn")[0]["digest"]},
    )
    with pytest.raises(InputError, match="--job_dir: expected a challenge of mnist, cifar10, got"):
        collect.collect(job_dir, tmp_path, tmp_path / "newer")
    assert not (tmp_path / "newer").exists()


def test_files_of_images_with_other_names_or_shapes_are_refused(tmp_path):
    packed_images.save(tmp_path, "train", np.zeros((8, 5, 4, 3), np.uint8), np.arange(8), 2)
    other = tmp_path / "train-x-of-y.npz"
    other.write_bytes(b"")
    with pytest.raises(InputError, match="--data_dir: expected all files .*train-x-of-y.npz$"):
        packed_images.load(tmp_path, "train")
    other.unlink()
    planes = packed_images.pack(np.zeros((4, 5, 5, 3), np.uint8))
    np.savez(tmp_path / "train-2-of-2.npz", planes=planes, labels=np.zeros(4, np.uint8))
    with pytest.raises(InputError, match="cannot read train-2-of-2.npz: expected images of the"):
        packed_images.load(tmp_path, "train")


def test_damaged_images_and_initial_values_are_refused(tmp_path):
    images = np.zeros((7, 5, 4, 3), np.uint8)
    packed_images.save(tmp_path, "train", images, np.arange(7), 1)
    path = tmp_path / "train-1-of-1.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="--data_dir: cannot read train-1-of-1.npz"):
        packed_images.load(tmp_path, "train")
    np.savez(path, planes=np.zeros((7, 5), np.uint8), labels=np.zeros(7, np.uint8))
    with pytest.raises(InputError, match="--data_dir: cannot read train-1-of-1.npz"):
        packed_images.load(tmp_path, "train")
    for described in ({"a": {"kept": "0" * 64}}, {"a": {"like": "b"}}, {"a": {"value": 1}}):
        (tmp_path / "initial.npz").write_bytes(b"PK")
        with pytest.raises(InputError, match="cannot read .*initial.npz"):
            initial.initial_values(described, tmp_path)
        np.savez(tmp_path / "initial.npz")
        with pytest.raises(InputError, match="cannot read .*initial.npz"):
            initial.initial_values(described, tmp_path)


# The largest deviations of losses (of the first call, and of later ones), and of weights and batch
# norm's averages as a share of their move. In CIFAR-10's deep network rounding decides on which
# side of a leaky ReLU's kink an activation lies: from a training in float64 run.py's weights have
# deviated by 0.002 and train.py's by 0.011, the averages, which see the second attack, by 0.015 and
# 0.073. A second attack of one step instead of two deviates by 0.16, its loss by 0.004.
DEVIATIONS = {"mnist": (1e-5, 1e-5, 1e-3, 1e-3), "cifar10": (1e-5, 2e-3, 0.02, 0.1)}


@tiny.needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("challenge", list(RECIPES))
def test_with_jax_a_training_has_the_losses_and_weights_of_train(
    tmp_path, monkeypatch, small, challenge
):
    row = "paper_fgsm"
    job = exported(tmp_path, challenge, RECIPES[challenge], [row])
    if challenge == "mnist":  # the end of --seconds stops it; the same command resumes
        assert "resumes" in tiny.run(tmp_path, "job", "--seconds=0")
        assert "resuming at step 3 of 6" in tiny.run(tmp_path, "job")
    else:
        tiny.run(tmp_path, "job")
    run_dir = tmp_path / "runs" / "job"
    record = read_json(run_dir / "record.json")
    total = RECIPES[challenge]["max_num_training_steps"]
    assert record["steps"] == total

    train = small[challenge]["train"]
    losses, model = trained(challenge, train, tmp_path / "own", monkeypatch)
    config = make_config(export.CHALLENGES[challenge][0], ("job", job["config"]))
    starts = export.CHALLENGES[challenge][0].build_model(config).get_weights()
    of_first, of_later, of_weights, of_averages = DEVIATIONS[challenge]
    first = 0
    for last, xent, _ in record["losses"]:
        rounding = of_later if first else of_first
        np.testing.assert_allclose(xent, np.mean(losses[first:last]), rtol=rounding)
        first = last

    words = [f"--job_dir={tmp_path / 'jobs' / 'job'}", f"--run_dir={run_dir}"]
    script = ROOT / "accelerator" / "collect.py"
    run(script, *words, f"--model_dir={tmp_path / 'new'}", cwd=tmp_path)
    run(
        script,
        *words,
        f"--state_dir={run_dir}",
        f"--model_dir={tmp_path / 'whole'}",
        cwd=tmp_path,
    )
    for name in ("new", "whole"):
        loaded = checkpoints.load_model(export.CHALLENGES[challenge][0], tmp_path / name)
        assert loaded.step == total
        for variable, own, start in zip(model.weights, loaded.weights, starts, strict=True):
            weight = np.asarray(variable)
            moved = np.abs(weight - start).max()
            share = of_averages if "moving" in variable.path else of_weights
            assert np.abs(np.asarray(own) - weight).max() <= share * moved, variable.path
        entries = runs.read(tmp_path / name)
        assert [entry["last_step"] for entry in entries][-1] == total
        assert {"tensorflow", "jax"} <= set(entries[0]["versions"])
    # The program counts the same as TensorFlow.
    test = small[challenge]["test"]
    x = export.CHALLENGES[challenge][0].to_pixels(test.images)
    correct = np.argmax(model(x), axis=1) == test.labels
    assert record["evaluations"][row]["natural_accuracy"] == 100 * correct.mean()
    assert record["evaluations"][row]["num_examples"] == 8
    assert job["result"][0].startswith("result/")
