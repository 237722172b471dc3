import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context  # TensorFlow shows its optimised graphs here only

import cifar10_challenge.model
from benchmarks import plain
from cifar10_challenge.challenge import CIFAR10
from cifar10_challenge.layers import BatchNorm
from cifar10_challenge.model import build_model
from cifar10_challenge.winograd import WinogradConv
from common.attack import PGD
from common.checkpoints import fast_model
from tests.helpers import input_gradient, normed_network, pictures


def compiled(model, precision="float32"):
    """The fast logits of a keras.Model as one graph, as attacks use them."""
    prepare = fast_model(model, CIFAR10).prepare
    return tf.function(lambda x: prepare(precision)(x), autograph=False)


# The wide network has Winograd's convolutions.
@pytest.mark.parametrize(
    "width, count", [("simple", 4), pytest.param("wide", 1, marks=pytest.mark.slow)]
)
def test_exact_arithmetic_gives_the_plain_networks_gradients(width, count, two_units):
    x, y = pictures(count)
    x[-1] += 0.5
    model = normed_network(width, dtype="float64")
    x = tf.constant(x, tf.float64)
    logits = model(x, training=False).numpy()
    np.testing.assert_allclose(compiled(model)(x), logits, atol=1e-10 * np.abs(logits).max())
    expected = input_gradient(lambda x: model(x, training=False), x, y).numpy()
    actual = input_gradient(compiled(model), x, y)
    np.testing.assert_allclose(actual, expected, atol=1e-10 * np.abs(expected).max())


# Two units in each group cover every kind of unit; the other units repeat the second. Networks of
# width 2 and more have Winograd's convolutions.
@pytest.mark.parametrize(
    "width, count, num_units",
    [
        ("simple", 8, 5),
        (2, 2, 2),
        pytest.param(4, 2, 2, marks=pytest.mark.slow),
        pytest.param("wide", 1, 2, marks=pytest.mark.slow),
        pytest.param("wide", 2, 5, marks=pytest.mark.slow),
    ],
)
def test_float32_gives_the_logits_to_rounding(width, count, num_units, monkeypatch):
    monkeypatch.setattr(cifar10_challenge.model, "UNITS_PER_GROUP", num_units)
    x, _ = pictures(count)
    model = normed_network(width)
    expected = plain.cifar10_model(width, model.get_weights())(x, training=False).numpy()
    actual = compiled(model)(tf.constant(x))
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_ops_after_a_convolution_are_fused_with_it():
    function = compiled(normed_network("simple"))
    context.enable_run_metadata()
    try:
        function(tf.constant(pictures(2)[0]))
        optimised = [
            g.post_optimization_graph for g in context.export_run_metadata().function_graphs
        ]
    finally:
        context.disable_run_metadata()
    nodes = [node for graph in optimised for node in graph.node]
    nodes += [node for graph in optimised for f in graph.library.function for node in f.node_def]
    joined = [b" ".join(node.attr["fused_ops"].list.s) for node in nodes if "Conv2D" in node.op]
    if b"BiasAdd LeakyRelu" not in joined:
        pytest.skip("TensorFlow runs without oneDNN here")
    # The normalisations and first convolutions of 15 units, and the last normalisation.
    assert joined.count(b"BiasAdd LeakyRelu") == 31
    # The other convolutions; in two units the shortcut is a convolution as well, to which
    # TensorFlow may join the addition instead.
    assert joined.count(b"BiasAdd Add") >= 13


def test_in_mixed_precision_it_computes_in_bfloat16_to_its_rounding(two_units):
    x, y = pictures(8)
    weights = normed_network("simple").get_weights()
    exact, model = (build_model("simple", precision=p) for p in (None, "mixed_bfloat16"))
    exact.set_weights(weights)
    model.set_weights(weights)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    logits = exact(x, training=False).numpy()
    gradient = input_gradient(lambda x: exact(x, training=False), tf.constant(x), y).numpy()
    for mixed in (lambda x: model(x, training=False), compiled(exact, "bfloat16")):
        actual = mixed(tf.constant(x)).numpy()
        assert actual.dtype == np.float32
        error = np.abs(actual - logits).max() / np.abs(logits).max()
        assert 1e-5 < error < 0.03  # bfloat16 has 8 bits
        actual = input_gradient(mixed, tf.constant(x), y).numpy()
        cosine = np.sum(actual * gradient) / np.linalg.norm(actual) / np.linalg.norm(gradient)
        assert cosine > 0.98


@pytest.mark.parametrize("count", [1, 5])
def test_pgd_finds_what_the_plain_loop_finds(count, two_units):
    x, y = pictures(count)
    model = normed_network("simple")
    settings = {"epsilon": 8.0, "step_size": 2.0, "num_steps": 2, "bounds": (0.0, 255.0)}
    expected = plain.pgd(plain.cifar10_model("simple", model.get_weights()), **settings)(x, y)
    actual = PGD(fast_model(model, CIFAR10), random_start=False, **settings).perturb(x, y)
    assert np.abs(actual - x).max() == 4.0
    # Where a leaky ReLU or a gradient is all but zero, rounding decides its side.
    assert np.mean(np.abs(actual - expected) > 1e-3) < 0.02


def test_the_attack_follows_averages_that_change(two_units):
    x, y = pictures(2)
    model = normed_network("simple")
    attack = PGD(fast_model(model, CIFAR10), epsilon=8, step_size=2, num_steps=1, bounds=(0, 255))
    before = attack.perturb(x, y).numpy()
    for weight in model.non_trainable_weights:
        weight.assign(weight + 0.5)
    assert np.mean(attack.perturb(x, y).numpy() != before) > 0.1


def test_a_constant_image_has_a_finite_gradient(two_units):
    model = normed_network("simple")
    x = tf.fill((1, 32, 32, 3), 7.0)
    assert np.isfinite(input_gradient(compiled(model), x, [1])).all()


def test_winograds_convolution_is_the_direct_one():
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(3, 12, 8, 160)), random.normal(size=(3, 3, 160, 130))
    shift = random.normal(size=130)
    exact = tf.nn.conv2d(x, kernel, 1, "SAME").numpy()
    actual = WinogradConv(tf.constant(kernel))(tf.constant(x), tf.add, tf.constant(shift))
    np.testing.assert_allclose(actual, exact + shift, atol=1e-11)

    x, kernel = tf.constant(x, tf.float32), tf.constant(kernel, tf.float32)
    direct = tf.nn.conv2d(x, kernel, 1, "SAME")
    ours = WinogradConv(kernel)(x, tf.identity)
    rounding, our_rounding = (np.sqrt(np.mean((y - exact) ** 2)) for y in (direct, ours))
    assert our_rounding < 10 * rounding and our_rounding < 1e-5 * exact.std()


def test_batch_norm_is_kerass_in_training_and_inference():
    random = np.random.default_rng(0)
    x, weight = random.normal(1, 2, (3, 4, 5, 6)).astype("f4"), random.normal(size=(3, 4, 5, 6))
    ours = BatchNorm(momentum=0.9, epsilon=1e-3)
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.gamma.assign(np.linspace(-1, 1, 6))
    for training in (True, True, False):
        results = []
        for layer in (ours, theirs):
            pixels = tf.constant(x)
            with tf.GradientTape() as tape:
                tape.watch(pixels)
                y = layer(pixels, training=training)
                loss = tf.reduce_sum(y * weight)
            results.append([y, *tape.gradient(loss, [pixels, layer.gamma, layer.beta])])
            results[-1] += [layer.moving_mean, layer.moving_variance]
        for actual, expected in zip(*results, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
