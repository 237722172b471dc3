import dataclasses
import itertools
import os
import signal
import tracemalloc
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from common import data
from common.attack import PGD
from common.errors import InputError
from common.evaluation import results
from common.evaluation import state as state_lib
from common.evaluation.evaluator import Evaluator
from common.evaluation.results import Trial, wilson_interval
from common.evaluation.state import Found, State

# Three classes of 2x2 images, labelled as the model sees them but for one. The start decides
# which of them two small steps break.
COUNT = 40
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3)).astype(np.float32)
IMAGES = RNG.integers(256, size=(COUNT, 2, 2, 1)).astype(np.uint8)
LABELS = np.argmax(IMAGES.reshape(-1, 4) @ KERNEL, axis=1)
LABELS[5] = (LABELS[5] + 1) % 3


def linear(x):
    return tf.reshape(x, (-1, 4)) @ KERNEL


def constant(x):
    return 0.0 * linear(x) + [1.0, 0.0, 0.0]


PGD_2 = PGD(linear, epsilon=0.2, step_size=0.05, num_steps=2)


def evaluate(
    model=linear,
    attack=PGD_2,
    images=IMAGES,
    labels=LABELS,
    batch_size=16,
    seed=0,
    state=None,
    **options,
):
    trial = Trial(attack, **options)
    return evaluate_trials([trial], model, images, labels, batch_size, seed=seed, state=state)


def evaluate_trials(
    trials,
    model=linear,
    images=IMAGES,
    labels=LABELS,
    batch_size=16,
    *,
    state=None,
    report=None,
    **options,
):
    evaluator = Evaluator(
        model,
        trials,
        to_pixels=data.mnist_pixels,
        batch_size=batch_size,
        show_progress=False,
        **options,
    )
    return evaluator.run(images, labels, state, report)


def correct_and_losses(x, y):
    """Accuracy and cross-entropy of each example, in NumPy."""
    logits = np.asarray(x, np.float64).reshape(-1, 4) @ KERNEL
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    return logits.argmax(axis=1) == y, losses


class NoAttack:
    """Returns the images, and keeps a list of what it was asked for."""

    def __init__(self):
        self.calls = []

    def perturb(self, x_nat, y, seed, index):
        self.calls.append(
            [(*pair, i) for pair, i in zip(seed.tolist(), index.tolist(), strict=True)]
        )
        return x_nat


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_image_counts_the_last_partial_batch_too(batch_size):
    images, labels = IMAGES[:7], LABELS[:7]
    result = evaluate(images=images, labels=labels, batch_size=batch_size)
    x_nat = data.mnist_pixels(images)
    x_adv = PGD_2.perturb(x_nat, labels).numpy()
    np.testing.assert_array_equal(result.x_adv, x_adv)
    for x, correct, losses in [
        (x_nat, result.natural_correct, result.natural_losses),
        (x_adv, result.adversarial_correct, result.adversarial_losses),
    ]:
        expected_correct, expected_losses = correct_and_losses(x, labels)
        np.testing.assert_array_equal(correct, expected_correct)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert not result.natural_correct[5]

    summary = result.summary()
    assert summary["num_examples"] == summary["num_attacks"] == 7
    assert summary["natural_accuracy"] == pytest.approx(100 * 6 / 7)
    assert summary["adversarial_accuracy"] == 100 * np.mean(result.adversarial_correct)
    assert summary["natural_loss"] == pytest.approx(np.mean(result.natural_losses))
    assert summary["adversarial_loss"] == pytest.approx(np.mean(result.adversarial_losses))


@pytest.mark.parametrize("batch_size", [1, 9, 40])
def test_the_worst_case_is_that_of_the_plain_procedure(batch_size):
    num_restarts, seed = 4, 3
    x_nat = data.mnist_pixels(IMAGES)
    # Attack everything every time, and only then look.
    x_adv = [PGD_2.perturb(x_nat, LABELS, seed=(seed, r)).numpy() for r in range(num_restarts)]
    correct, losses = map(
        np.array, zip(*(correct_and_losses(x, LABELS) for x in x_adv), strict=True)
    )
    robust = correct.all(axis=0)
    first_broken = (~correct).argmax(axis=0)
    chosen = np.where(robust, losses.argmax(axis=0), first_broken)
    assert robust.any() and (first_broken[~robust] > 0).any()  # or there is nothing to see
    assert (chosen[robust] > 0).any()

    result = evaluate(batch_size=batch_size, num_restarts=num_restarts, seed=seed)
    np.testing.assert_array_equal(result.adversarial_correct, robust)
    np.testing.assert_array_equal(result.x_adv, np.choose(chosen[:, None, None, None], x_adv))
    expected_losses = losses[chosen, np.arange(COUNT)]
    np.testing.assert_allclose(result.adversarial_losses, expected_losses, rtol=1e-5)
    assert result.num_attacks == np.where(robust, num_restarts, first_broken + 1).sum()


@pytest.mark.parametrize("label, num_attacks", [(0, 3 * COUNT), (1, COUNT)])
def test_what_is_broken_is_not_attacked_again(label, num_attacks):
    result = evaluate(constant, NoAttack(), labels=np.full(COUNT, label), num_restarts=3)
    assert result.num_attacks == num_attacks
    assert result.summary()["adversarial_accuracy"] == (100 if label == 0 else 0)


def test_remaining_examples_fill_whole_batches():
    labels = np.tile([0, 1], 5)  # the even ones stand
    attack = NoAttack()
    ten = {"images": IMAGES[:10], "labels": labels}
    result = evaluate(constant, attack, **ten, batch_size=4, num_restarts=3, seed=7)
    calls = [[(restart, example) for _, restart, example in call] for call in attack.calls]
    assert calls == [  # (restart, example)
        [(0, 0), (0, 1), (0, 2), (0, 3)],
        [(0, 4), (0, 5), (0, 6), (0, 7)],
        [(0, 8), (0, 9), (1, 0), (1, 2)],
        [(1, 4), (1, 6), (1, 8), (2, 0)],
        [(2, 2), (2, 4), (2, 6), (2, 8)],
    ]
    assert {seed for call in attack.calls for seed, *_ in call} == {7}
    assert result.num_attacks == 20


def test_an_example_is_not_attacked_twice_in_a_batch():
    attack = NoAttack()
    evaluate(constant, attack, images=IMAGES[:3], labels=np.zeros(3, int), num_restarts=2)
    assert [[example for *_, example in call] for call in attack.calls] == [[0, 1, 2], [0, 1, 2]]


def test_a_misclassified_point_is_preferred_to_a_higher_loss():
    unsure, fooled = [0.01, 0, 0], [0, 0.01, -9]  # losses of about log 3 and log 2

    class Scripted:
        def perturb(self, x_nat, y, seed, index):
            return tf.constant([unsure, unsure, fooled][seed[0, 1]], tf.float32, (1, 1, 1, 3))

    evaluator = Evaluator(
        lambda x: tf.reshape(x, (-1, 3)),
        [Trial(Scripted(), num_restarts=3)],
        to_pixels=data.mnist_pixels,
        batch_size=1,
        show_progress=False,
    )
    result = evaluator.run(np.zeros((1, 1, 1, 3), np.uint8), np.array([0]))
    assert not result.adversarial_correct[0]
    np.testing.assert_allclose(result.x_adv[0, 0, 0], fooled)
    np.testing.assert_allclose(result.adversarial_losses, np.log(2), atol=0.01)


def test_more_restarts_never_raise_accuracy():
    standing = [evaluate(num_restarts=r, seed=3).adversarial_correct for r in range(1, 5)]
    for fewer, more in itertools.pairwise(standing):
        assert (more <= fewer).all()
    assert standing[-1].sum() < standing[0].sum()


def test_the_seed_decides_the_result():
    first, again, other = (evaluate(seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.x_adv, again.x_adv)
    assert (first.x_adv != other.x_adv).any()


def test_eight_bits_gives_256_levels_within_the_ball():
    result = evaluate(eight_bits=True)
    levels = result.x_adv * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert np.abs(np.rint(levels) - IMAGES).max() <= 51  # 0.2 * 255
    correct, _ = correct_and_losses(result.x_adv, LABELS)
    np.testing.assert_array_equal(result.adversarial_correct, correct)


# Several attacks.

STEP = PGD(linear, epsilon=0.2, step_size=0.05, num_steps=1)
CW = PGD(linear, epsilon=0.2, step_size=0.05, num_steps=3, loss_func="cw", random_start=False)
THREE = [
    Trial(STEP, num_restarts=2, name="step"),
    Trial(CW, name="cw"),
    Trial(PGD_2, num_restarts=3, name="pgd"),
]


def plain_worst_case(seed):
    """(attack, restart, what it found) for each; every attack and restart on every example."""
    x_nat = data.mnist_pixels(IMAGES)
    return [
        (number, restart, trial.attack.perturb(x_nat, LABELS, seed=(seed, restart)).numpy())
        for number, trial in enumerate(THREE)
        for restart in range(trial.num_restarts)
    ]


@pytest.mark.parametrize("each_alone", [False, True])
@pytest.mark.parametrize("batch_size", [7, 40])
def test_the_worst_case_over_attacks_is_that_of_the_plain_procedure(batch_size, each_alone):
    seed = 3
    found = plain_worst_case(seed)
    correct, losses = map(
        np.array, zip(*(correct_and_losses(x_adv, LABELS) for *_, x_adv in found), strict=True)
    )
    natural, natural_losses = correct_and_losses(data.mnist_pixels(IMAGES), LABELS)
    robust = natural & correct.all(axis=0)
    chosen = np.where(robust, losses.argmax(axis=0), (~correct).argmax(axis=0))
    x_adv = np.choose(chosen[:, None, None, None], [x_adv for *_, x_adv in found])
    x_adv[~natural] = data.mnist_pixels(IMAGES)[~natural]
    expected_losses = np.where(natural, losses[chosen, np.arange(COUNT)], natural_losses)

    result = evaluate_trials(
        THREE, batch_size=batch_size, seed=seed, spare_misclassified=True, each_alone=each_alone
    )
    np.testing.assert_array_equal(result.adversarial_correct, robust)
    np.testing.assert_array_equal(result.x_adv, x_adv)
    np.testing.assert_allclose(result.adversarial_losses, expected_losses, rtol=1e-5)

    before = natural
    for number, trial in enumerate(result.trials):
        runs = np.array([correct[i] for i, run in enumerate(found) if run[0] == number])
        given = natural if each_alone else before
        tries = np.where(runs.all(axis=0), len(runs), (~runs).argmax(axis=0) + 1)
        alone = None
        if each_alone or number == 0:
            alone = 100 * np.mean(natural & runs.all(axis=0))
        after = before & runs.all(axis=0)
        assert timeless(trial) == results.TrialResult(
            name=THREE[number].name,
            num_given=given.sum(),
            num_broken=(given & ~runs.all(axis=0)).sum(),
            accuracy=100 * np.mean(after),
            accuracy_alone=alone,
            num_attacks=tries[given].sum(),
            num_gradients=tries[given].sum() * THREE[number].attack.num_steps,
            num_queries=0,
            seconds=0,
        )
        assert trial.seconds > 0
        assert after.sum() < before.sum()  # or there is nothing to see
        before = after
    assert robust.any() and result.num_attacks == sum(t.num_attacks for t in result.trials)
    assert result.summary()["adversarial_accuracy"] == result.trials[-1].accuracy


def test_an_attack_is_not_given_what_an_earlier_one_broke():
    labels = np.tile([0, 1], 5)  # the model is right about the even ones

    class FoolsOnTheFirstHalf(NoAttack):
        """Blackens the images that it attacks."""

        def perturb(self, x_nat, y, seed, index):
            x = super().perturb(x_nat, y, seed, index)
            return tf.where((index < 5)[:, None, None, None], tf.zeros_like(x), x)

    def model(x):
        is_black = tf.reduce_all(x == 0, axis=(1, 2, 3))
        return tf.where(is_black[:, None], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])

    images = np.full((10, 2, 2, 1), 255, np.uint8)

    def calls(**options):
        attacks = FoolsOnTheFirstHalf(), NoAttack()
        trials = [Trial(attack, num_restarts=2) for attack in attacks]
        result = evaluate_trials(trials, model, images, labels, batch_size=4, **options)
        calls = [[(r, i) for call in a.calls for _, r, i in call] for a in attacks]
        return calls, result

    (first, second), result = calls(spare_misclassified=True)
    assert first == [(0, 0), (0, 2), (0, 4), (0, 6), (0, 8), (1, 6), (1, 8)]
    assert second == [(0, 6), (0, 8), (1, 6), (1, 8)]
    np.testing.assert_array_equal(np.flatnonzero(result.adversarial_correct), [6, 8])

    (first, second), result = calls(spare_misclassified=True, each_alone=True)
    assert len(first) == 7 and len(second) == 10
    np.testing.assert_array_equal(np.flatnonzero(result.adversarial_correct), [6, 8])
    assert [trial.accuracy_alone for trial in result.trials] == [20, 50]
    assert (result.x_adv[:5:2] == 0).all()  # of the attack that broke them

    # Without it misclassified images are attacked too, as in the original code.
    (first, second), result = calls()
    assert {i for _, i in first} == set(range(10)) and {i for _, i in second} == {6, 8}


class TowardsTheBoundary(NoAttack):
    """Moves a share of the way to an image of another predicted class."""

    name, norm, epsilon, bounds = "towards", "linf", 1.0, (0.0, 1.0)

    def __init__(self, share, after=None):
        super().__init__()
        self.share, self.after = share, after

    def perturb(self, x_nat, y, seed, index):
        if self.after is not None and len(self.calls) == self.after:
            signal.raise_signal(signal.SIGINT)
        x = super().perturb(x_nat, y, seed, index)
        return x * (1 - self.share)


# Images of one grey level: their margin is the level, less 0.1, and the scale of the logits tells
# nothing.
LEVELS = np.random.default_rng(1).permutation(np.arange(60, 100)).astype(np.uint8)
GREY = np.tile(LEVELS[:, None, None, None], (1, 2, 2, 1))


def darkness(scale):
    def logits(x):
        level = tf.reduce_mean(x, axis=(1, 2, 3))
        return scale * tf.stack([level - 0.1, tf.zeros_like(level)], axis=1)

    return logits


def evaluate_shares(scale=1.0, second=None, state=None, batch_size=16):
    second = TowardsTheBoundary(0.75) if second is None else second
    trials = [
        Trial(TowardsTheBoundary(0.1), name="first"),
        Trial(second, num_restarts=2, name="second", share=0.3),
        Trial(TowardsTheBoundary(0.7), name="third", share=0.25),
    ]
    labels = np.zeros(len(GREY), int)
    options = {"spare_misclassified": True, "batch_size": batch_size, "state": state}
    return evaluate_trials(trials, darkness(scale), GREY, labels, **options)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_share_is_the_closest_of_the_remaining_examples_at_any_scale_of_the_logits(scale):
    result = evaluate_shares(scale)
    closest = np.argsort(LEVELS)[:12]  # 0.3 of 40
    assert set(np.flatnonzero(~result.withstood[1])) == set(closest)  # 99 / 4 / 255 < 0.1
    first, second, third = result.trials
    assert (first.num_given, first.num_broken, first.num_left_alone) == (40, 0, 0)
    assert (second.num_given, second.num_broken, second.num_left_alone) == (12, 12, 28)
    # A quarter of the 28 that stand, and no example that is broken.
    assert (third.num_given, third.num_left_alone) == (7, 21)
    rest = np.argsort(LEVELS)[12:19]
    assert set(np.flatnonzero(~result.withstood[2])) == {i for i in rest if LEVELS[i] * 0.3 < 25.5}
    assert result.num_left_alone == 28
    assert second.num_attacks == 12 and result.trials[-1].accuracy == third.accuracy
    assert third.accuracy == 100 * np.mean(result.adversarial_correct)


@pytest.mark.parametrize("batch_size", [5, 16])
def test_a_share_is_the_same_after_an_interruption_within_it(batch_size, tmp_path):
    whole = evaluate_shares(second=TowardsTheBoundary(0.6), batch_size=batch_size)
    state = State(tmp_path / "state.npz", {"seed": 0})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            second = TowardsTheBoundary(0.6, after=0)
            evaluate_shares(second=second, state=state, batch_size=batch_size)
        with np.load(state.path, allow_pickle=False) as file:
            assert file["trial"] == 1 and file["given"][1].sum() == 12
    result = evaluate_shares(second=TowardsTheBoundary(0.6), state=state, batch_size=batch_size)
    same(result, whole)
    assert 0 < whole.trials[1].num_broken < 12 == whole.trials[1].num_given


def test_the_first_attack_may_take_a_share_by_the_natural_margin(tmp_path):
    trials = [Trial(TowardsTheBoundary(0.6), name=name, share=0.25) for name in ("one", "two")]
    labels = np.zeros(len(GREY), int)
    labels[LEVELS > 97] = 1  # two that are misclassified
    options = {"spare_misclassified": True, "state": State(tmp_path / "state.npz", {})}
    result = evaluate_trials(trials, darkness(1.0), GREY, labels, **options)
    order = np.argsort(LEVELS)
    # A quarter of 38; then of the 34 that stand the six of them and three more.
    given, left, wrong = order[:13], order[13:38], order[38:]
    broken = order[LEVELS[order] * 0.4 < 25.5]
    assert [done.num_given for done in result.trials] == [10, 9] and len(broken) == 4
    assert result.num_left_alone == 28 and result.trials[0].accuracy_alone is None
    assert set(np.flatnonzero(~result.adversarial_correct)) == {*broken, *wrong}
    assert result.trials[-1].accuracy == result.summary()["adversarial_accuracy"] == 85
    # Examples that no attack was given are unchanged.
    for rows in (left, wrong):
        np.testing.assert_array_equal(result.x_adv[rows], data.mnist_pixels(GREY[rows]))
        np.testing.assert_array_equal(result.adversarial_losses[rows], result.natural_losses[rows])
    assert np.all(result.x_adv[given] < data.mnist_pixels(GREY[given]))


def test_without_an_attack_the_images_are_what_counts():
    result = evaluate_trials([])
    correct, losses = correct_and_losses(data.mnist_pixels(IMAGES), LABELS)
    np.testing.assert_array_equal(result.adversarial_correct, correct)
    np.testing.assert_allclose(result.adversarial_losses, losses, rtol=1e-5)
    np.testing.assert_array_equal(result.x_adv, data.mnist_pixels(IMAGES))


def test_a_share_is_refused_if_every_example_is_to_be_attacked():
    trials = [Trial(NoAttack(), name="late", share=0.5)]
    for option, words in (
        ({"each_alone": True}, "--each_alone"),
        ({}, "spare_misclassified=False"),
    ):
        with pytest.raises(InputError, match=f"^{words}: expected attacks that are given every"):
            Evaluator(darkness(1.0), trials, to_pixels=None, batch_size=1, **option)
    for share in (0.0, 1.1, "half"):
        with pytest.raises(InputError, match="share: expected"):
            Trial(NoAttack(), share=share)


def test_each_attack_is_reported_when_it_is_done():
    seen = []
    result = evaluate_trials(THREE, report=seen.append)
    assert tuple(seen) == result.trials and [trial.name for trial in seen] == ["step", "cw", "pgd"]


@pytest.mark.parametrize(
    ("num_correct", "num_examples", "expected"),
    [  # Wilson's formula, with z = 1.959964, worked out apart
        (0, 10, (0, 27.753)),
        (10, 10, (72.247, 100)),
        (50, 100, (40.383, 59.617)),
        (880, 1000, (85.839, 89.870)),
    ],
)
def test_wilson_interval_on_known_counts(num_correct, num_examples, expected):
    np.testing.assert_allclose(wilson_interval(num_correct, num_examples), expected, atol=2e-3)


# Resuming after an interruption.


class Interrupted(PGD):
    """PGD that is sent the signal of Ctrl-C while it is in its `after`-th batch."""

    after = None

    def perturb(self, *arguments, **options):
        self.after -= 1
        if self.after == 0:
            signal.raise_signal(signal.SIGINT)
        return super().perturb(*arguments, **options)


def same(result, other):
    for field in dataclasses.fields(result):
        ours, theirs = getattr(result, field.name), getattr(other, field.name)
        if field.name == "trials":
            assert [timeless(trial) for trial in ours] == [timeless(trial) for trial in theirs]
        elif field.name not in ("seconds", "cpu_seconds"):
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)


def timeless(trial):
    return dataclasses.replace(trial, seconds=0)


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_an_evaluation_stopped_again_and_again_has_the_same_result(batch_size, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    options = {"batch_size": batch_size, "num_restarts": 4, "seed": 3}
    whole = evaluate(**options)
    attack = Interrupted(linear, epsilon=0.2, step_size=0.05, num_steps=2)
    state = State(tmp_path / "state.npz", {"seed": 3})
    stops = 0
    while True:
        attack.after = 3
        try:
            result = evaluate(attack=attack, state=state, **options)
            break
        except KeyboardInterrupt:
            stops += 1
            assert (tmp_path / "state.npz").exists()
    assert stops >= whole.num_attacks // batch_size // 3 > 0
    same(result, whole)
    assert 0 < whole.adversarial_correct.sum() < COUNT
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("each_alone", [False, True])
def test_an_evaluation_stopped_in_the_second_attack_has_the_same_result(each_alone, tmp_path):
    options = {"batch_size": 7, "seed": 3, "spare_misclassified": True, "each_alone": each_alone}
    whole = evaluate_trials(THREE, **options)
    attack = Interrupted(
        linear, epsilon=0.2, step_size=0.05, num_steps=3, loss_func="cw", random_start=False
    )
    trials = [THREE[0], Trial(attack, name="cw"), THREE[2]]
    state, seen = State(tmp_path / "state.npz", {"seed": 3}), []
    attack.after = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate_trials(trials, state=state, report=seen.append, **options)
    assert [trial.name for trial in seen] == ["step"]
    with np.load(state.path, allow_pickle=False) as file:
        assert file["trial"] == 1 and file["num_attacks"].tolist()[1:] == [14, 0]
    attack.after = 10**6
    seen.clear()
    result = evaluate_trials(trials, state=state, report=seen.append, **options)
    assert [timeless(t) for t in seen] == [timeless(t) for t in whole.trials]
    same(result, whole)


def test_an_interrupted_evaluation_of_natural_images_resumes_too(tmp_path):
    seen = []

    def to_pixels(images):
        seen.append(len(images))
        if len(seen) == 2:
            signal.raise_signal(signal.SIGTERM)
        return data.mnist_pixels(images)

    state = State(tmp_path / "state.npz", {})
    evaluator = Evaluator(linear, [], to_pixels=to_pixels, batch_size=16, show_progress=False)
    with pytest.raises(KeyboardInterrupt):
        evaluator.run(IMAGES, LABELS, state)
    assert seen == [16, 16]
    result = evaluator.run(IMAGES, LABELS, state)
    assert seen == [16, 16, 8]
    np.testing.assert_array_equal(result.natural_correct, evaluate().natural_correct)
    assert result.num_attacks == 0


def test_the_state_is_written_as_time_passes(tmp_path, monkeypatch):
    class Killed:
        def perturb(self, x_nat, y, seed, index):
            raise SystemError

    for seconds, written in ((60, False), (0, True)):
        monkeypatch.setattr(state_lib, "SAVE_SECONDS", seconds)
        with pytest.raises(SystemError):
            evaluate(attack=Killed(), state=State(tmp_path / "state.npz", {}))
        assert (tmp_path / "state.npz").exists() is written
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        assert file["num_natural"] == COUNT and file["num_attacks"].tolist() == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_a_state_is_not_mixed_up_with_anothers(tmp_path, monkeypatch):
    monkeypatch.setattr(state_lib, "SAVE_SECONDS", 0)
    path = tmp_path / "state.npz"
    evaluate(state=State(path, {"seed": 1, "model": "a"}))
    before = path.read_bytes()
    evaluate(state=State(path, {"model": "a", "seed": 1}))
    with pytest.raises(
        InputError, match=r"cannot resume from .*state\.npz: it is of another model"
    ):
        evaluate(state=State(path, {"seed": 2, "model": "a"}))
    with pytest.raises(InputError, match=r"expected natural_correct of bool \(7,\)"):
        evaluate(images=IMAGES[:7], labels=LABELS[:7], state=State(path, {"seed": 1, "model": "a"}))
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04", "pickle", "cut"])
def test_a_damaged_state_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.setattr(state_lib, "SAVE_SECONDS", 0)
    path = tmp_path / "state.npz"
    if content == "pickle":
        np.savez(path, key=np.array([{}], object))
    elif content == "cut":
        evaluate(state=State(path, {}))
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot resume from .*state\.npz"):
        evaluate(state=State(path, {}))


def kept(path, **changes):
    """A finished evaluation's state file, in which arrays are others."""
    state = State(path, {"seed": 0})
    evaluate(state=state)
    state.keep_last()
    if changes:
        with np.load(path) as file:
            arrays = {**file, **changes}
        np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "x" * 100_000},
        {"key": np.array([1.0])},
        {"key": None},
        {"turn": None},
        {"turn": -1},
        {"trial": 7},
        {"num_natural": COUNT + 1},
        {"seconds": np.nan},
        {"num_attacks": np.array([-1])},
        {"trial_seconds": np.array([-1.0])},
        {"x_adv": np.zeros((COUNT, 2, 2, 1))},
        {"x_adv": np.array([{}], object)},
        {"turn": np.zeros((), "i4,O")},
    ],
    ids=str,
)
def test_a_state_with_other_arrays_is_refused(changes, tmp_path):
    content = kept(tmp_path / "state.npz", **changes)
    with pytest.raises(InputError, match=r"cannot resume from .*state\.npz: ") as error:
        evaluate(state=State(tmp_path / "state.npz", {"seed": 0}))
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 500
    assert (tmp_path / "state.npz").read_bytes() == content


def test_a_state_that_claims_a_huge_array_fills_no_memory(tmp_path):
    """Its header says 2 TB, and what is packed are zeros without end."""
    path = tmp_path / "state.npz"
    kept(path)
    with np.load(path) as file:
        names = list(file)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            with file.open(f"{name}.npy", "w") as member:
                header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 38,)}
                np.lib.format.write_array_header_1_0(member, header)
                member.write(bytes(10_000_000))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"cannot resume from .*state\.npz: "):
        State(path, {"seed": 0}).read(Found.nothing(IMAGES, 1))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_state_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    content = kept(path)
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"cannot resume from .*state\.npz: "):
            State(path, {"seed": 0}).read(Found.nothing(IMAGES, 1))


def test_a_state_with_a_flipped_byte_is_refused_or_the_same(tmp_path):
    path, rng = tmp_path / "state.npz", np.random.default_rng(0)
    content, whole = kept(path), Found.nothing(IMAGES, 1)
    State(path, {"seed": 0}).read(whole)
    num_refused = 0
    for at in rng.choice(len(content), 1000, replace=False):
        changed = bytearray(content)
        changed[at] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        found = Found.nothing(IMAGES, 1)
        before = dataclasses.replace(found)
        try:
            State(path, {"seed": 0}).read(found)
            np.testing.assert_equal(vars(found), vars(whole))
        except InputError:
            num_refused += 1
            np.testing.assert_equal(vars(found), vars(before))
    assert num_refused > 300


def test_a_state_that_is_a_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot resume from .*: \[Errno 21\] Is a directory"):
        evaluate(state=State(tmp_path, {}))


def test_a_full_disk_leaves_the_earlier_state(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    content = kept(path)
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")

    def full_disk(handle, mode):
        os.close(handle)
        return open("/dev/full", mode)

    monkeypatch.setattr(state_lib, "SAVE_SECONDS", 0)
    with monkeypatch.context() as patch, pytest.raises(InputError) as error:
        patch.setattr(os, "fdopen", full_disk)
        evaluate(state=State(tmp_path / "other.npz", {}))
    assert str(error.value) == f"cannot write {tmp_path / 'other.npz'}: No space left on device"
    state = State(path, {"seed": 0})
    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left"):
        patch.setattr(os, "fdopen", full_disk)
        state.keep(Found.nothing(IMAGES, 1), at_once=True)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]
    state.keep_last()  # there is room again
    assert path.read_bytes() != content


def test_a_finished_evaluation_is_read_from_its_state_without_an_attack(tmp_path):
    kept(tmp_path / "state.npz")

    class Never:
        def perturb(self, x_nat, y, seed, index):
            pytest.fail("attacks")

    def to_pixels(images):
        pytest.fail("classifies")

    evaluator = Evaluator(
        linear, [Trial(Never())], to_pixels=to_pixels, batch_size=16, show_progress=False
    )
    result = evaluator.run(IMAGES, LABELS, State(tmp_path / "state.npz", {"seed": 0}))
    same(result, evaluate())


def test_float32_is_not_tf32_in_an_evaluation_and_the_setting_is_restored():
    """On a GPU TensorFlow rounds the factors of float32 products to TF32, unless it is told not."""
    seen = []

    def model(x):
        seen.append(tf.config.experimental.tensor_float_32_execution_enabled())
        return linear(x)

    for before in (True, False):
        tf.config.experimental.enable_tensor_float_32_execution(before)
        try:
            attack = PGD(model, epsilon=0.2, step_size=0.05, num_steps=1)
            seen.clear()  # what tracing the attack alone sees is the user's setting
            evaluate(model, attack)
            after = tf.config.experimental.tensor_float_32_execution_enabled()
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(True)
        assert seen and not any(seen)
        assert after == before
