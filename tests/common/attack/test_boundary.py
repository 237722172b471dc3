import sys

import numpy as np
import pytest
import tensorflow as tf

from common.attack import Boundary
from common.attack.ball import length
from common.errors import InputError
from tests.common.attack.attack_cases import labelled, linear_model


def test_the_walk_comes_closer_and_not_beyond_the_nearest_hyperplane():
    pytest.importorskip("foolbox")
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
    np.testing.assert_array_equal(x_adv.numpy()[is_within], found[is_within])
    np.testing.assert_array_equal(x_adv.numpy()[~is_within], x_nat[~is_within])


def test_starts_are_noise_or_another_image_or_none():
    pytest.importorskip("foolbox")

    def bright(x):  # noise is never class 1
        score = 50.0 * (tf.reduce_mean(x, axis=(1, 2, 3)) - 0.9)
        return tf.stack([-score, score], axis=1)

    attack = Boundary(bright, epsilon=100.0, num_steps=10, jit_compile=False)
    x_nat = np.stack([np.full((6, 6, 2), value, np.float32) for value in (1.0, 0.1, 0.2)])
    x, distance = attack.closest(x_nat, [1, 0, 0])
    np.testing.assert_array_equal(np.argmax(bright(x), axis=1), [0, 1, 1])
    assert np.isfinite(distance).all()
    # Without an image of class 1 there is no way out of class 0; what is wrong has none to go.
    x, distance = attack.closest(x_nat[1:], [0, 1])
    np.testing.assert_array_equal(distance, [np.inf, 0])
    np.testing.assert_array_equal(x, x_nat[1:])


def test_a_network_that_has_no_way_out_gets_no_empty_batch():
    pytest.importorskip("foolbox")

    def always_first(x):
        tf.debugging.assert_positive(tf.shape(x)[0])
        return tf.one_hot(tf.zeros(tf.shape(x)[0], tf.int32), 2)

    attack = Boundary(always_first, epsilon=100.0, num_steps=10, jit_compile=False)
    x_nat = np.full((2, 6, 6, 2), 0.5, np.float32)
    x, distance = attack.closest(x_nat, [0, 0])
    np.testing.assert_array_equal(distance, [np.inf, np.inf])
    np.testing.assert_array_equal(x, x_nat)


def test_what_it_needs_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(InputError, match=r"expected Foolbox .* pip install -e '.\[boundary\]'"):
        Boundary(lambda x: x, epsilon=1.0)
    with pytest.raises(InputError, match="norm: expected l2, .* got 'linf'"):
        Boundary(lambda x: x, epsilon=1.0, norm="linf")
