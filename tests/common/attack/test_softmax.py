"""A keras.Model without the softmax at its end."""

import numpy as np
import pytest
import tensorflow as tf

from common.attack import softmax
from common.errors import InputError
from tests.common.keras_models import FORMS, examples, trained_network, with_softmax


@pytest.fixture(scope="module")
def trained():
    return trained_network()


@pytest.mark.parametrize("form", FORMS)
def test_a_softmax_is_stepped_over(trained, form):
    x, _ = examples()
    model = with_softmax(trained, form)
    before = model(x).numpy()
    logits = softmax.logits_of(model, x)
    np.testing.assert_allclose(logits(x, training=False), trained(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(model(x), before)  # the model itself keeps it
    assert softmax.logits_of(trained, x) is trained


def test_probabilities_of_another_kind_are_refused(trained):
    x, _ = examples()
    for model in (with_softmax(trained, "hidden"), lambda x: tf.nn.softmax(trained(x))):
        with pytest.raises(InputError, match="expected logits, or a softmax as the last layer"):
            softmax.logits_of(model, x)
