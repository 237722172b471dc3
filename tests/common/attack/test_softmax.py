"""A keras.Model without the softmax at its end."""

import numpy as np
import pytest
import tensorflow as tf

from common.attack import softmax
from common.attack.precision import in_bfloat16
from common.errors import InputError
from tests.common.keras_models import FORMS, examples, network, trained_network, with_softmax


@pytest.fixture(scope="module")
def trained():
    return trained_network()


@pytest.mark.parametrize("form", FORMS)
def test_a_softmax_is_bypassed(trained, form):
    x, _ = examples()
    model = with_softmax(trained, form)
    before = model(x).numpy()
    logits = softmax.logits_of(model, x)
    np.testing.assert_allclose(logits(x, training=False), trained(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(model(x), before)  # the model itself keeps it
    assert softmax.logits_of(trained, x) is trained


@pytest.mark.parametrize("form", [form for form in FORMS if form != "subclassed"])
def test_without_its_softmax_a_model_computes_in_bfloat16(trained, form):
    x, _ = examples()
    model = with_softmax(trained, form)
    logits = softmax.logits_of(model, x)
    found, expected = in_bfloat16(logits)(x), in_bfloat16(trained)(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not np.array_equal(found, trained(x))
    np.testing.assert_allclose(np.sum(model(x), axis=1), 1, atol=1e-6)  # it keeps its softmax


def test_a_softmax_of_tensorflow_is_one():
    x, _ = examples()
    inner, softmaxed = (network(activation=activation) for activation in (None, tf.nn.softmax))
    logits = softmax.logits_of(softmaxed, x)
    np.testing.assert_allclose(logits(x, training=False), inner(x), rtol=1e-5, atol=1e-6)
    relu = network(activation="relu")
    assert softmax.logits_of(relu, x) is relu


def test_probabilities_of_another_kind_are_refused(trained):
    x, _ = examples()
    for model in (with_softmax(trained, "hidden"), lambda x: tf.nn.softmax(trained(x))):
        with pytest.raises(InputError, match="expected logits, or a softmax as the last layer"):
            softmax.logits_of(model, x)


@pytest.mark.parametrize("form", ["activation", "layer"])
def test_threads_that_overlap_give_the_softmax_back(trained, form):
    x, _ = examples()
    model = with_softmax(trained, form)
    before = model(x).numpy()
    last = softmax.last_operation(model)
    first, second = softmax.without_softmax(last), softmax.without_softmax(last)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    np.testing.assert_allclose(model(x), trained(x), rtol=1e-5, atol=1e-6)  # of the second
    second.__exit__(None, None, None)
    np.testing.assert_array_equal(model(x), before)
