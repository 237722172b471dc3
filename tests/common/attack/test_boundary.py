import numpy as np
import pytest
import tensorflow as tf

from common.attack import Boundary
from common.attack.ball import length
from common.attack.boundary import TILES, _adapted
from common.errors import InputError
from tests.common.attack.attack_cases import labelled, linear_model


def test_the_walk_comes_closer_and_not_beyond_the_nearest_hyperplane():
    weights, _, model = linear_model()
    x, _ = labelled(model)
    x_nat = 0.2 + 0.6 * x  # the pixel range is far
    logits = model(x_nat).numpy()
    y = np.argmax(logits, axis=1)
    gaps = logits[np.arange(len(y)), y][:, None] - logits
    norms = np.linalg.norm(weights[y][:, None] - weights, axis=2)
    nearest = np.min(
        gaps / np.where(norms > 0, norms, np.nan), axis=1, initial=np.inf, where=norms > 0
    )

    options = {"epsilon": 1.5, "jit_compile": False}
    _, early = Boundary(model, num_steps=10, **options).closest(x_nat, y, seed=2)
    attack = Boundary(model, num_steps=100, **options)
    found, distance = (tensor.numpy() for tensor in attack.closest(x_nat, y, seed=2))
    np.testing.assert_allclose(distance, length(found - x_nat, "l2"), rtol=1e-6)
    assert (np.argmax(model(found), axis=1) != y).all()
    assert (distance >= nearest * (1 - 1e-4)).all()
    assert np.median(distance / early) < 0.9

    x_adv = attack.perturb(x_nat, y, seed=2)
    is_within = distance <= 1.5
    assert 0 < is_within.sum() < len(y)
    # It stops as soon as a point is within epsilon.
    assert (length(x_adv - x_nat, "l2").numpy() <= 1.5).all()
    assert (np.argmax(model(x_adv), axis=1) != y)[is_within].all()
    np.testing.assert_array_equal(x_adv.numpy()[~is_within], x_nat[~is_within])


def test_coarse_noise_finds_a_class_that_fine_noise_does_not():
    def bright(x):  # the mean of fine noise is never above 0.56
        score = 50.0 * (tf.reduce_mean(x, axis=(1, 2, 3)) - 0.56)
        return tf.stack([-score, score], axis=1)

    attack = Boundary(bright, epsilon=100.0, num_steps=10, jit_compile=False)
    x_nat = np.stack([np.full((28, 28, 1), value, np.float32) for value in (1.0, 0.1, 0.2)])
    x, distance = attack.closest(x_nat, [1, 0, 0])
    np.testing.assert_array_equal(np.argmax(bright(x), axis=1), [0, 1, 1])
    assert np.isfinite(distance).all()
    # What is misclassified has no way to go.
    x, distance = attack.closest(x_nat[1:], [1, 1])
    np.testing.assert_array_equal(distance, [0, 0])
    np.testing.assert_array_equal(x, x_nat[1:])


def test_an_images_walk_does_not_depend_on_its_batch():
    _, _, model = linear_model()
    x_nat, y = labelled(model)
    attack = Boundary(model, epsilon=0.5, num_steps=30, jit_compile=False)
    whole = attack.perturb(x_nat, y, seed=3)
    some = attack.perturb(x_nat[4:9], y[4:9], seed=3, index=np.arange(4, 9))
    np.testing.assert_allclose(some, whole[4:9], atol=1e-5)
    assert 0 < np.sum(np.any(whole != x_nat, axis=(1, 2, 3))) < len(y)


def test_the_steps_adapt_to_the_share_that_succeeds():
    step, outcomes = tf.constant([0.1, 0.1]), np.random.default_rng(0).uniform(size=(4000, 2))
    for outcome in outcomes:
        step = _adapted(step, tf.constant(outcome < (0.25, 0.2)), 0.25, 0.1)
    step = step.numpy()
    assert 0.001 < step[0] < 1 and step[1] < 2e-7


def test_it_leaves_an_example_once_it_is_within_epsilon():
    _, _, model = linear_model()
    x_nat, y = labelled(model)
    attack = Boundary(model, epsilon=100.0, num_steps=200, jit_compile=False)
    assert (np.argmax(model(attack.perturb(x_nat, y)), axis=1) != y).any()
    np.testing.assert_array_equal(attack.passes(len(y)), [0, len(y) * len(TILES)])


def test_a_network_that_has_no_way_out_gets_no_empty_batch():

    def always_first(x):
        tf.debugging.assert_positive(tf.shape(x)[0])
        return tf.one_hot(tf.zeros(tf.shape(x)[0], tf.int32), 2)

    attack = Boundary(always_first, epsilon=100.0, num_steps=10, jit_compile=False)
    x_nat = np.full((2, 6, 6, 2), 0.5, np.float32)
    x, distance = attack.closest(x_nat, [0, 0])
    np.testing.assert_array_equal(distance, [np.inf, np.inf])
    np.testing.assert_array_equal(x, x_nat)


def test_it_comes_closer_than_foolboxs_with_as_many_steps():
    foolbox = pytest.importorskip("foolbox")
    _, _, model = linear_model()
    x, y = labelled(model)
    x_nat = tf.constant(0.2 + 0.6 * x)
    y = np.argmax(model(x_nat), axis=1)  # int64, which Foolbox wants
    _, distance = Boundary(model, epsilon=0.0, num_steps=200, jit_compile=False).closest(x_nat, y)
    tf.random.set_seed(0)
    start, _ = Boundary(model, epsilon=0.0, num_steps=1, jit_compile=False).closest(x_nat, y)
    theirs = foolbox.attacks.BoundaryAttack(steps=200).run(
        foolbox.TensorFlowModel(model, bounds=(0.0, 1.0)),
        x_nat,
        foolbox.criteria.Misclassification(tf.constant(y)),
        starting_points=start,
    )
    assert np.mean(distance <= length(theirs - x_nat, "l2")) > 0.9


def test_another_norm_is_refused():
    with pytest.raises(InputError, match="norm: expected l2, .* got 'linf'"):
        Boundary(lambda x: x, epsilon=1.0, norm="linf")
