"""Shards of an evaluation, written and read."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from common import data
from common.attack import APGD, FAB, PGD, MultiTargeted, Square
from common.checkpoints import load_model
from common.errors import InputError
from common.evaluation import shards
from common.evaluation.evaluator import Evaluator
from common.evaluation.results import Trial
from common.evaluation.shards import Shard, Writer
from mnist_challenge.challenge import MNIST

# Three classes of 2x2 images, labelled as the model sees them but for two.
COUNT = 50
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3)).astype(np.float32)
IMAGES = RNG.integers(256, size=(COUNT, 2, 2, 1)).astype(np.uint8)
LABELS = np.argmax(IMAGES.reshape(-1, 4) @ KERNEL, axis=1)
LABELS[[5, 40]] = (LABELS[[5, 40]] + 1) % 3
SPLIT = data.Split(IMAGES, LABELS.astype(np.int32), "images", "here", is_sample=False)


def linear(x):
    return tf.reshape(x, (-1, 4)) @ KERNEL


STEP = PGD(linear, epsilon=0.1, step_size=0.1, num_steps=1)
EVALUATIONS = {
    "natural": ([], {}),
    "restarts": ([Trial(STEP, num_restarts=4)], {}),
    "attacks": (
        [Trial(STEP, 2, name="pgd"), Trial(APGD(linear, epsilon=0.1, num_steps=10), name="apgd")],
        {"spare_misclassified": True, "each_alone": True, "fixed_batches": True},
    ),
}


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("trials, options", EVALUATIONS.values(), ids=EVALUATIONS)
def test_shards_in_any_order_are_a_single_run(trials, options, count, tmp_path):
    evaluator = Evaluator(
        linear,
        trials,
        to_pixels=data.mnist_pixels,
        batch_size=7,
        seed=3,
        show_progress=False,
        **options,
    )
    check_shards(evaluator, SPLIT, count, tmp_path)


ATTACKS = {
    "pgd": lambda model, epsilon, **o: PGD(
        model, epsilon=epsilon, step_size=epsilon / 4, num_steps=5, **o
    ),
    "apgd": lambda model, **o: APGD(model, num_steps=10, **o),
    "targeted": lambda model, **o: APGD(model, num_steps=5, loss_func="targeted_dlr", **o),
    "fab": lambda model, **o: FAB(model, num_steps=5, **o),
    "square": lambda model, **o: Square(model, num_queries=40, **o),
    "multi": lambda model, epsilon, **o: MultiTargeted(
        model, epsilon=epsilon, step_size=epsilon / 2, num_steps=3, **o
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "challenge, name, epsilon",
    [(MNIST, "adv_trained", 0.35), (CIFAR10, "simple_adv_trained", 8.0)],
    ids=["mnist", "cifar10"],
)
def test_16_shards_of_the_networks_are_a_single_run(challenge, name, epsilon, precision, tmp_path):
    split = challenge.load("sample").head(40)
    model = load_model(challenge, name).logits
    options = {"epsilon": epsilon, "bounds": challenge.bounds, "precision": precision}
    trials = [Trial(make(model, **options), 2, name=kind) for kind, make in ATTACKS.items()]
    evaluator = Evaluator(
        model,
        trials,
        to_pixels=challenge.to_pixels,
        batch_size=16,
        spare_misclassified=True,
        fixed_batches=True,
        show_progress=False,
    )
    check_shards(evaluator, split, 16, tmp_path)


def check_shards(evaluator, split, count, directory):
    """Evaluates `count` shards, the last one first, which have to be a single run's result."""
    trials, num_examples = evaluator.trials, len(split.images)
    whole = evaluator.run(split.images, split.labels)
    if trials:
        assert 0 < np.count_nonzero(whole.adversarial_correct) < num_examples - 3
    for number in reversed(range(1, count + 1)):
        with Writer(directory, Shard(number, count), split, {"seed": 3}) as writer:
            assert not writer.is_finished
            part = writer.run(evaluator)
        assert len(part.x_adv) == writer.examples.stop - writer.examples.start
    found, seen = shards.read(directory, split, len(trials), {"seed": 3}).found, []
    joined = evaluator.join(found, seen.append)
    assert tuple(seen) == joined.trials
    for field in dataclasses.fields(whole):
        ours, theirs = getattr(joined, field.name), getattr(whole, field.name)
        if field.name == "trials":
            ours, theirs = ([dataclasses.replace(t, seconds=0) for t in x] for x in (ours, theirs))
            assert ours == theirs
        elif "seconds" not in field.name:
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
    assert joined.seconds == pytest.approx(sum(part.seconds for part in found))


KEY = {
    "model_digest": "a",
    "seed": 0,
    "data_sha256": "b",
    "num_examples": COUNT,
    "attack": {"name": "pgd", "num_steps": 1},
}
SUITE = {name: value for name, value in KEY.items() if name != "attack"} | {
    "attacks": [{"name": "pgd", "attack": KEY["attack"]}],
    "each_alone": False,
}
OTHERS = {
    "model": {**KEY, "model_digest": "c"},
    "source": {**KEY, "source_digest": "c"},
    "data": {**KEY, "data_sha256": "c"},
    "seed (0, not 1)": {**KEY, "seed": 1},
    "num examples (50, not 60)": {**KEY, "num_examples": 60},
    "num steps (1, not 2)": {**KEY, "attack": {"name": "pgd", "num_steps": 2}},
    "precision (float32, not bfloat16)": {
        **KEY,
        "attack": {**KEY["attack"], "precision": "bfloat16"},
    },
    "fixed batches (None, not True)": {**KEY, "fixed_batches": True},
    "each alone (None, not False), attacks (, not pgd)": SUITE,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A directory with both shards of an evaluation."""
    directory = tmp_path_factory.mktemp("shards")
    evaluator = Evaluator(
        linear, [], to_pixels=data.mnist_pixels, batch_size=7, show_progress=False
    )
    for number in (1, 2):
        with Writer(directory, Shard(number, 2), SPLIT, KEY) as writer:
            writer.run(evaluator)
    return directory


def test_the_shards_are_those_of_the_same_evaluation(both):
    assert len(shards.read(both, SPLIT, 0, KEY).found) == 2


@pytest.mark.parametrize("words, key", OTHERS.items(), ids=OTHERS)
def test_shards_of_another_evaluation_are_one_line(words, key, both):
    with pytest.raises(InputError) as caught:
        shards.read(both, SPLIT, 0, key)
    assert f"got {both / 'shard-1-of-2.npz'} with another {words}" in str(caught.value)
    writer = Writer(both, Shard(2, 2), SPLIT, key)
    with pytest.raises(InputError, match="^--shard=2/2: expected shards of one evaluation"):
        writer.__enter__()


def test_shards_of_another_division_are_one_line(both):
    writer = Writer(both, Shard(1, 3), SPLIT, KEY)
    with pytest.raises(InputError, match=r"another number of shards \(2, not 3\)$"):
        writer.__enter__()


@pytest.mark.parametrize(
    "key", [[], {}, {"shard": "0/1"}, {"shard": 3}, {"shard": "1/2", "attacks": [3]}]
)
def test_a_file_of_something_else_is_one_line(key, both, tmp_path):
    np.savez(tmp_path / "shard-1-of-2.npz", key=json.dumps(key))
    with pytest.raises(InputError, match="^--merge: expected a shard of an evaluation, got "):
        shards.read(tmp_path, SPLIT, 0, KEY)


@pytest.mark.parametrize("num_examples, count", [(10_000, 16), (7, 7), (50, 7), (3, 1)])
def test_shards_are_all_examples_once_in_nearly_equal_parts(num_examples, count):
    parts = [Shard(n, count).examples(num_examples) for n in range(1, count + 1)]
    together = np.concatenate([np.arange(num_examples)[part] for part in parts])
    np.testing.assert_array_equal(together, np.arange(num_examples))
    sizes = [part.stop - part.start for part in parts]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_the_third_of_sixteen_shards_has_its_examples_and_name():
    assert Shard.parse("3/16") == Shard(3, 16)
    assert Shard(3, 16).examples(10_000) == slice(1250, 1875)
    assert Shard(3, 16).name == "shard-03-of-16"
