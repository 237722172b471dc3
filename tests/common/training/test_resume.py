"""Trainings on real images: stopped and resumed, and refused if they do not match."""

import concurrent.futures
import json

import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from common.attack import precision as precision_lib
from common.checkpoints import load_model
from common.config import make_config
from common.errors import InputError
from common.evaluation import suites
from common.evaluation.presets import make_evaluator
from common.training import directory, runs, steps
from mnist_challenge.challenge import MNIST
from tests.helpers import TINY_CIFAR10, checkpoint_arrays, train


@pytest.mark.parametrize(
    ("challenge", "settings"),
    [
        (MNIST, {"scale": 1}),
        (MNIST, {"scale": 1, "average_decay": 0.9}),
        # By default in test_model_b.py, with dropout.
        pytest.param(MNIST, {"scale": 1, "precision": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param(
            CIFAR10, {**TINY_CIFAR10, "precision": "mixed_bfloat16"}, marks=pytest.mark.slow
        ),
    ],
    ids=["mnist", "mnist averaged", "mnist bfloat16", "cifar10 bfloat16"],
)
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(challenge, settings, tmp_path, capsys):
    train(challenge, tmp_path / "whole", **settings)
    train(challenge, tmp_path / "parts", **settings, max_num_training_steps=3)
    train(challenge, tmp_path / "parts", **settings)
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    whole, parts = (checkpoint_arrays(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert sum("optimizer" in name for name in whole) > 8
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)


def test_what_a_training_leaves_behind(tmp_path, capsys):
    model = train(MNIST, tmp_path, watched=True, scale=1)
    printed = capsys.readouterr().out
    assert printed.count("training nat accuracy") == printed.count("training adv accuracy") == 3
    assert 0 < printed.find("exporting the SavedModel") < printed.find("trained 6 steps")
    # Three checkpoints are kept, the last one after the last step.
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*.index")) == [
        "checkpoint-2.index",
        "checkpoint-4.index",
        "checkpoint-6.index",
    ]
    assert json.loads((tmp_path / "config.json").read_text())["scale"] == 1
    versions = json.loads((tmp_path / "runs.json").read_text())[0]["versions"]
    assert versions["tensorflow"] == tf.__version__
    x = np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    for path in (tmp_path, tmp_path / "saved_model"):
        loaded = load_model(MNIST, path)
        np.testing.assert_allclose(loaded.logits(tf.constant(x)), model(x), atol=1e-5)
    assert load_model(MNIST, tmp_path).step == 6
    told = []
    for file in tmp_path.glob("events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            told += [(event.step, value.tag) for value in event.summary.value]
    assert len(told) == len(set(told))
    assert {tag for _, tag in told} == {
        "accuracy_nat",
        "accuracy_adv",
        "xent_adv",
        "learning_rate",
        "examples_per_second",
        "accuracy_nat_validation",
        "accuracy_adv_validation",
        "images_adv_train",
    }


def test_other_settings_in_the_same_directory_are_refused(tmp_path):
    train(MNIST, tmp_path, scale=1, max_num_training_steps=1)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(InputError, match=r"epsilon \(0.3 there, 0.2 now\).*another directory"):
        train(MNIST, tmp_path, scale=1, epsilon=0.2)
    assert (tmp_path / "config.json").read_text() == before


def test_another_spelling_of_a_setting_does_not_keep_a_training_from_resuming(tmp_path):
    settings = {"scale": 1, "jit_compile": False, "max_num_training_steps": 1}
    train(MNIST, tmp_path, **settings)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    assert old["jit_compile"] is False
    old |= {"jit_compile": "no", "random_start": "yes", "epsilon": "76.5/255"}
    old["step_size_schedule"] = json.dumps(old["step_size_schedule"])
    path.write_text(json.dumps(old))
    train(MNIST, tmp_path, **{**settings, "max_num_training_steps": 2})
    path.write_text(json.dumps({**old, "jit_compile": "yes"}))
    with pytest.raises(InputError, match=r'jit_compile \("yes" there, false now\)'):
        train(MNIST, tmp_path, **settings)


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="holds other files"):
        train(MNIST, tmp_path, scale=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_loss_falls(tmp_path):
    x = MNIST.load("sample")
    model = train(
        MNIST,
        tmp_path,
        scale=2,
        max_num_training_steps=120,
        training_batch_size=20,
        epsilon=0.1,
        step_size=0.05,
        step_size_schedule=[[0, 2e-3]],
    )
    pixels = MNIST.to_pixels(x.images[:50])
    accuracy = np.mean(np.argmax(model(pixels), axis=1) == x.labels[:50])
    assert accuracy > 0.8


def test_a_training_that_ended_before_its_first_checkpoint_does_not_block(tmp_path):
    with pytest.raises(InputError, match="batch size from 1 to 50"):
        train(MNIST, tmp_path / "new", scale=1, training_batch_size=51)
    assert not (tmp_path / "new" / "config.json").exists()
    (tmp_path / "new" / "eval").mkdir(parents=True, exist_ok=True)  # of eval.py --watch
    train(MNIST, tmp_path / "new", scale=1, max_num_training_steps=1)


def test_a_training_of_damaged_checkpoints_alone_is_refused_and_kept(tmp_path):
    train(MNIST, tmp_path, scale=1, max_num_training_steps=1)
    for step in (0, 1):
        data_file = tmp_path / f"checkpoint-{step}.data-00000-of-00001"
        data_file.write_bytes(data_file.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load the checkpoint in .*damaged"):
        train(MNIST, tmp_path, scale=1)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(InputError, match="cannot load the checkpoint in .*damaged"):
        train(MNIST, tmp_path, scale=1)
    assert (tmp_path / "checkpoint-1.index").exists()


def test_a_loss_that_is_not_a_number_ends_the_training(tmp_path):
    with pytest.raises(InputError, match="the loss became (nan|inf).*smaller rates"):
        train(MNIST, tmp_path, scale=1, step_size_schedule=[[0, 1e30]])


def test_saved_config_reproduces_the_run(tmp_path):
    train(MNIST, tmp_path / "run", scale=1, max_num_training_steps=1)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model_dir"] == "." and saved["scale"] == 1
    starts = json.loads((tmp_path / "run" / "runs.json").read_text())
    train(MNIST, tmp_path / "run", scale=1, max_num_training_steps=1)
    assert len(json.loads((tmp_path / "run" / "runs.json").read_text())) == len(starts) + 1


def test_averaged_weights_are_evaluated_and_exported(tmp_path, monkeypatch):
    seen, make_update = [], steps.make_update

    def recorded(config, model, *args):
        update = make_update(config, model, *args)

        def step(x_nat, x_adv, y):
            result = update(x_nat, x_adv, y)
            seen.append(model.get_weights())
            return result

        return step

    first = MNIST.build_model(make_config(MNIST, ("test", {"scale": 1}))).get_weights()
    monkeypatch.setattr(steps, "make_update", recorded)
    model = train(MNIST, tmp_path, scale=1, average_decay=0.3)
    expected = first
    for t, weights in enumerate(seen, start=1):
        d = min(0.3, (1 + t) / (10 + t))
        expected = [
            d * mean + (1 - d) * weight for mean, weight in zip(expected, weights, strict=True)
        ]
    assert len(seen) == 6
    for mean, weight in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(mean, weight, atol=1e-6)
    digest = load_model(MNIST, tmp_path / "saved_model").digest()
    assert load_model(MNIST, tmp_path).digest() == digest


@pytest.mark.slow
def test_training_in_mixed_precision_gives_a_float32_network_with_its_weights(
    tmp_path, monkeypatch
):
    trained = []
    make_update = steps.make_update

    def recorded(config, model, *others):
        trained.append(model)
        return make_update(config, model, *others)

    monkeypatch.setattr(steps, "make_update", recorded)
    settings = {**TINY_CIFAR10, "precision": "bfloat16", "max_num_training_steps": 2}
    model = train(CIFAR10, tmp_path, **settings)
    assert trained[0].get_layer("unit1_0_conv1").compute_dtype == "bfloat16"
    before = CIFAR10.build_model(make_config(CIFAR10, ("test", settings))).get_weights()
    for weight, its, start in zip(model.weights, trained[0].weights, before, strict=True):
        np.testing.assert_array_equal(weight, its)
        assert np.any(its != start), weight.path
    assert all(
        layer.compute_dtype == "float32" for layer in load_model(CIFAR10, tmp_path).model.layers
    )
    digest = load_model(CIFAR10, tmp_path / "saved_model").digest()
    assert load_model(CIFAR10, tmp_path).digest() == digest


@pytest.mark.parametrize(("unit", "precision"), [(None, "float32"), ("AMX-BF16", "bfloat16")])
def test_auto_is_recorded_as_what_it_became(unit, precision, tmp_path, capsys, monkeypatch):
    def recorded():
        return json.loads((tmp_path / "config.json").read_text())["precision"]

    settings = {"scale": 1, "precision": "auto"}
    monkeypatch.setattr(precision_lib, "bfloat16_unit", lambda: unit)
    train(MNIST, tmp_path, **settings, max_num_training_steps=2)
    assert recorded() == precision
    # The training keeps it, on any machine.
    other = None if unit else "AMX-BF16"
    monkeypatch.setattr(precision_lib, "bfloat16_unit", lambda: other)
    change_of_processor(tmp_path)
    capsys.readouterr()
    train(MNIST, tmp_path, **settings, max_num_training_steps=4)
    assert recorded() == precision
    printed = capsys.readouterr().out
    assert "note: the run before had other hardware, {'processor': 'another'" in printed
    assert ("in bfloat16, which this machine has no known unit for" in printed) == bool(unit)
    # A different precision is another training.
    chosen = "float32" if unit else "mixed_bfloat16"
    with pytest.raises(InputError, match=f'precision \\("{precision}" there, '):
        train(MNIST, tmp_path, scale=1, precision=chosen)


def change_of_processor(directory):
    """Lets a training's last run look like another machine's."""
    path = directory / "runs.json"
    entries = json.loads(path.read_text())
    entries[-1]["hardware"]["processor"] = "another"
    path.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("challenge", "old", "now"),
    [
        (MNIST, None, "float32"),  # the only one there was
        (CIFAR10, "mixed_bfloat16", "bfloat16"),
    ],
    ids=["MNIST", "CIFAR-10"],
)
def test_an_earlier_training_keeps_its_arithmetic(challenge, old, now, tmp_path):
    size = {"scale": 1} if challenge is MNIST else {"width": "simple"}
    config = make_config(challenge, ("test", {**size, "model_dir": str(tmp_path)}))
    settings = json.loads(config.to_json())
    del settings["precision"], settings["natural_share"]
    (tmp_path / "config.json").write_text(
        json.dumps({**settings, **({"precision": old} if old else {})})
    )
    for name in ("checkpoint-1.index", "checkpoint-1.data-00000-of-00001"):
        (tmp_path / name).touch()
    config = directory.with_precision(config, challenge)
    assert config.precision == now
    directory.check(tmp_path, config, challenge)


def test_runs_add_up(tmp_path, capsys):
    train(MNIST, tmp_path, scale=1, max_num_training_steps=4)
    train(MNIST, tmp_path, scale=1)
    first, second = json.loads((tmp_path / "runs.json").read_text())
    assert [first["first_step"], first["last_step"]] == [0, 4]
    assert [second["first_step"], second["last_step"]] == [4, 6]
    assert first["seconds"] > 0 and second["seconds"] > 0
    assert first["hardware"]["processor"] and "commit" in first
    # An earlier version recorded less of the same machine.
    entries = json.loads((tmp_path / "runs.json").read_text())
    del entries[-1]["hardware"]["bfloat16"]
    (tmp_path / "runs.json").write_text(json.dumps(entries))
    capsys.readouterr()
    assert runs.Runs(tmp_path, 6, "none").seconds() >= first["seconds"] + second["seconds"]
    assert "other hardware" not in capsys.readouterr().out


def test_validation_is_what_an_evaluation_of_the_checkpoint_gives(tmp_path, capsys):
    train(MNIST, tmp_path, watched=True, scale=1, max_num_training_steps=4)
    train(MNIST, tmp_path, watched=True, scale=1)
    at_3, at_6 = json.loads((tmp_path / "validation.json").read_text())
    assert (at_3["step"], at_6["step"]) == (3, 6) and 0 < at_3["seconds"] < at_6["seconds"]
    loaded = load_model(MNIST, tmp_path)
    config = make_config(MNIST, ("test", MNIST.presets["paper_pgd_40"]))
    sample = MNIST.load("sample").head(50)
    trial = suites.preset_trial("paper_pgd_40", loaded.logits, config, MNIST)
    evaluator = make_evaluator(MNIST, config, [trial], loaded)
    summary = evaluator.run(sample.images, sample.labels).summary()
    for name in ("natural_accuracy", "adversarial_accuracy"):
        assert at_6[name] == summary[name]
    assert f"natural {at_6['natural_accuracy']:.2f}%, paper_pgd_40" in capsys.readouterr().out


def test_validation_beyond_the_checkpoint_that_a_training_resumes_from_is_replaced(tmp_path):
    train(MNIST, tmp_path, watched=True, scale=1, max_num_training_steps=4)
    (entry,) = json.loads((tmp_path / "validation.json").read_text())
    lost = [entry, {**entry, "step": 6, "natural_accuracy": -1}, {**entry, "step": 9}]
    (tmp_path / "validation.json").write_text(json.dumps(lost))
    train(MNIST, tmp_path, watched=True, scale=1)
    entries = json.loads((tmp_path / "validation.json").read_text())
    assert [entry["step"] for entry in entries] == [3, 6] and entries[1]["natural_accuracy"] >= 0


def test_natural_training_names_its_numbers_so(tmp_path, capsys):
    train(MNIST, tmp_path, scale=1, max_num_training_steps=1, adversary="none")
    printed = capsys.readouterr().out
    assert "training nat loss" in printed and "adv" not in printed


def test_a_training_and_its_validation_run_outside_the_main_thread(tmp_path):
    """Python handles signals in the main thread alone: https://github.com/ludwig-ai/ludwig/issues/286
    and https://github.com/apache/superset/issues/10677."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        settings = {"scale": 1, "max_num_training_steps": 1, "num_validation_steps": 1}
        pool.submit(train, MNIST, tmp_path, watched=True, **settings).result()
    assert load_model(MNIST, tmp_path).step == 1
