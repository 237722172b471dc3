import numpy as np
import pytest
import tensorflow as tf

from common import data
from common.attack import PGD
from common.evaluation import Evaluator

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


def evaluate(model=linear, attack=PGD_2, images=IMAGES, labels=LABELS, batch_size=16, **options):
    evaluator = Evaluator(
        model,
        attack,
        to_pixels=data.mnist_pixels,
        batch_size=batch_size,
        show_progress=False,
        **options,
    )
    return evaluator.run(images, labels)


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
        self.calls.append([(*pair, i) for pair, i in zip(seed.tolist(), index.tolist())])
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
    correct, losses = map(np.array, zip(*(correct_and_losses(x, LABELS) for x in x_adv)))
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


def test_those_still_standing_fill_whole_batches():
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


def test_a_fooled_model_counts_more_than_a_high_loss():
    unsure, fooled = [0.01, 0, 0], [0, 0.01, -9]  # losses of about log 3 and log 2

    class Scripted:
        def perturb(self, x_nat, y, seed, index):
            return tf.constant([unsure, unsure, fooled][seed[0, 1]], tf.float32, (1, 1, 1, 3))

    evaluator = Evaluator(
        lambda x: tf.reshape(x, (-1, 3)),
        Scripted(),
        to_pixels=data.mnist_pixels,
        batch_size=1,
        num_restarts=3,
        show_progress=False,
    )
    result = evaluator.run(np.zeros((1, 1, 1, 3), np.uint8), np.array([0]))
    assert not result.adversarial_correct[0]
    np.testing.assert_allclose(result.x_adv[0, 0, 0], fooled)
    np.testing.assert_allclose(result.adversarial_losses, np.log(2), atol=0.01)


def test_more_restarts_never_raise_accuracy():
    standing = [evaluate(num_restarts=r, seed=3).adversarial_correct for r in range(1, 5)]
    for fewer, more in zip(standing, standing[1:]):
        assert (more <= fewer).all()
    assert standing[-1].sum() < standing[0].sum()


def test_the_seed_decides():
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
