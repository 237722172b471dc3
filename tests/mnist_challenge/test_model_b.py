import numpy as np
import pytest
import tensorflow as tf

from common import checkpoints
from common.attack import PGD
from common.checkpoints import fast_model, load_model
from mnist_challenge import model_b
from mnist_challenge.challenge import MNIST
from tests.helpers import checkpoint_arrays, digits, input_gradient, train


def plain_logits(x, weights):
    """Tramèr's model B in inference mode, from raw ops."""
    for (kernel, bias), stride, padding in zip(
        zip(weights[:6:2], weights[1:6:2], strict=True),
        (2, 2, 1),
        ("SAME", "VALID", "VALID"),
        strict=True,
    ):
        x = tf.nn.relu(tf.nn.conv2d(x, kernel, stride, padding) + bias)
    return tf.matmul(tf.reshape(x, (-1, 128)), weights[6]) + weights[7]


@pytest.mark.parametrize("form", ["keras", "fast"])
def test_logits_and_gradients_are_the_plain_networks(form):
    x, y = digits(5)
    model = model_b.build_model(seed=1, dtype="float64")
    assert model.count_params() == 710218
    weights = [
        weight + np.random.default_rng(0).normal(0, 0.05, weight.shape)
        for weight in model.get_weights()
    ]
    model.set_weights(weights)
    logits = model_b.fast_logits(model) if form == "fast" else model
    x = tf.constant(x, tf.float64)
    np.testing.assert_allclose(logits(x), plain_logits(x, weights), atol=1e-12)
    expected = input_gradient(lambda x: plain_logits(x, weights), x, y).numpy()
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(input_gradient(logits, x, y), expected, atol=1e-12)


def test_dropout_acts_only_in_training():
    x, _ = digits(5)
    model = model_b.build_model(seed=1)
    np.testing.assert_array_equal(model(x), model(x, training=False))
    assert np.abs(model(x, training=True) - model(x)).max() > 1e-3
    shares = [layer.rate for layer in model.layers if layer.name.startswith("dropout")]
    assert shares == [0.2, 0.5]


def test_in_bfloat16_its_gradient_is_that_of_float32_to_rounding():
    x, y = digits(8)
    fast = fast_model(model_b.build_model(seed=1), MNIST)
    exact, rounded = (
        input_gradient(fast.prepare(precision), tf.constant(x), y).numpy()
        for precision in ("float32", "bfloat16")
    )
    cosine = np.sum(exact * rounded) / np.linalg.norm(exact) / np.linalg.norm(rounded)
    assert 0.98 < cosine < 0.999999
    attack = PGD(fast, epsilon=0.3, step_size=0.1, num_steps=3, precision="bfloat16")
    assert np.abs(attack.perturb(x, y) - x).max() == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [pytest.param({}, marks=pytest.mark.slow), {"precision": "bfloat16"}],
    ids=["float32", "bfloat16"],
)
def test_a_resumed_training_draws_the_same_dropout(settings, tmp_path):
    settings = {"precision": "float32", **settings, "network": "b", "adversary": "none"}
    train(MNIST, tmp_path / "whole", **settings)
    train(MNIST, tmp_path / "parts", **settings, max_num_training_steps=3)
    train(MNIST, tmp_path / "parts", **settings)
    whole, parts = (checkpoint_arrays(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and sum(name.startswith("seeds/") for name in whole) == 2
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)

    loaded = [
        load_model(MNIST, path) for path in (tmp_path / "whole", tmp_path / "whole/saved_model")
    ]
    assert {model.model.name for model in loaded} == {model_b.NAME}
    assert loaded[0].digest() == loaded[1].digest()
    assert checkpoints.restore_training(MNIST, tmp_path / "whole")[1] == 6


def test_the_shapes_of_its_weights_distinguish_it_from_the_papers_networks():
    shapes = [tuple(weight.shape) for weight in model_b.build_model().weights]
    assert MNIST.size_of(shapes) == {"network": "b"}
    assert MNIST.size_of(shapes[:-1]) is None
    assert MNIST.paper({"adversary": "none", "network": "b"}) == {}
    small = MNIST.paper({"adversary": "pgd", "network": "paper", "scale": 4})
    assert small["paper_pgd_40", None] == 87.7
