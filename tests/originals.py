"""The originals' networks in TensorFlow 1's graphs, and their files."""

import dataclasses

import numpy as np
import tensorflow as tf

from tests.helpers import sum_xent

tf1 = tf.compat.v1

# The weights of the published MNIST networks.
MNIST_SHAPES = {
    "Variable": (5, 5, 1, 32),
    "Variable_1": (32,),
    "Variable_2": (5, 5, 32, 64),
    "Variable_3": (64,),
    "Variable_4": (3136, 1024),
    "Variable_5": (1024,),
    "Variable_6": (1024, 10),
    "Variable_7": (10,),
}
# The config.json that the original copies beside its checkpoints, in its own words.
MNIST_CONFIG = {
    "_comment": "===== MODEL CONFIGURATION =====",
    "model_dir": "models/adv_trained",
    "tf_random_seed": 4557077,
    "optimizer": "adam",
    "step_size": 1e-4,
    "epsilon": 0.3,
    "k": 40,
    "a": 0.01,
    "random_start": True,
    "loss_func": "xent",
    "store_adv_path": "attack.npy",
}


@dataclasses.dataclass
class Original:
    """An original network in the current graph.

    Logits and gradient are in inference mode and in float64, where rounding flips no ReLU.
    """

    x: tf.Tensor
    y: tf.Tensor
    logits: tf.Tensor
    train_step: tf.Operation

    def __post_init__(self):
        (self.gradient,) = tf.gradients(sum_xent(self.logits, self.y), self.x)


def mnist_logits(x, variables):
    """The original's graph, in its order of operations: bias, ReLU, then pooling."""
    kernel1, bias1, kernel2, bias2, kernel3, bias3, kernel4, bias4 = variables

    def conv_relu_pool(x, kernel, bias):
        x = tf.nn.relu(tf.nn.conv2d(x, kernel, strides=1, padding="SAME") + bias)
        return tf.nn.max_pool2d(x, ksize=2, strides=2, padding="SAME")

    x = tf.reshape(x, [-1, 28, 28, 1])
    x = conv_relu_pool(conv_relu_pool(x, kernel1, bias1), kernel2, bias2)
    x = tf.reshape(x, [-1, kernel3.shape[0]])
    return tf.matmul(tf.nn.relu(tf.matmul(x, kernel3) + bias3), kernel4) + bias4


def mnist_variables(weights):
    """TensorFlow 1 variables that start at `weights`, named as in the published checkpoints."""
    variables = [tf1.Variable(weight) for weight in weights]
    names = ["Variable", *(f"Variable_{i}" for i in range(1, 8))]
    assert [variable.op.name for variable in variables] == names
    return variables


def mnist_shapes(scale):
    """The same of another capacity; taps, pixel channels and classes do not grow with it."""
    return {
        name: tuple(n if n in (1, 5, 10) else n * scale // 16 for n in shape)
        for name, shape in MNIST_SHAPES.items()
    }


def original_mnist(scale):
    """The original's graph, Adam included, with random variables."""
    x, y = tf1.placeholder(tf.float64, (None, 28, 28, 1)), tf1.placeholder(tf.int32, (None,))
    random = np.random.default_rng(1)
    weights = [random.normal(0.02, 0.1, s).astype("f4") for s in mnist_shapes(scale).values()]
    variables = mnist_variables(weights)
    loss = sum_xent(mnist_logits(tf.cast(x, tf.float32), variables), y)
    step = tf1.train.AdamOptimizer(1e-4).minimize(loss, tf1.train.get_or_create_global_step())
    exact = [tf.cast(variable, tf.float64) for variable in variables]
    return Original(x, y, mnist_logits(x, exact), step)


def cifar10_logits(x, weights, training):
    """The original's graph from raw ops; returns logits and the averages after this pass."""
    averages = {}

    def conv(x, name, stride=1):
        return tf.nn.conv2d(x, weights[f"{name}/kernel"], strides=stride, padding="SAME")

    def norm_and_leaky_relu(x, name):
        gamma, beta, mean, variance = (
            weights[f"{name}/{part}"]
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        if training:
            old = mean, variance
            mean, variance = tf.nn.moments(x, [0, 1, 2])
            averages[f"{name}/moving_mean"] = 0.9 * old[0] + 0.1 * mean
            averages[f"{name}/moving_variance"] = 0.9 * old[1] + 0.1 * variance
        x = tf.nn.batch_normalization(x, mean, variance, beta, gamma, 0.001)
        return tf.where(x < 0, 0.1 * x, x)

    mean, variance = tf.nn.moments(x, [1, 2, 3], keepdims=True)
    x = (x - mean) / tf.maximum(tf.sqrt(variance), 1 / 3072**0.5)
    x = conv(x, "stem")
    for group, stride in ((1, 1), (2, 2), (3, 2)):
        for unit in range(5):
            name = f"unit{group}_{unit}"
            shortcut = x
            x = norm_and_leaky_relu(x, f"{name}_pre_norm")
            if name == "unit1_0":
                shortcut = x
            x = conv(x, f"{name}_conv1", stride if unit == 0 else 1)
            x = conv(norm_and_leaky_relu(x, f"{name}_mid_norm"), f"{name}_conv2")
            if unit == 0:
                shortcut = tf.nn.avg_pool2d(shortcut, stride, stride, "VALID")
                half = (x.shape[-1] - shortcut.shape[-1]) // 2
                shortcut = tf.pad(shortcut, [[0, 0], [0, 0], [0, 0], [half, half]])
            x = x + shortcut
    x = tf.reduce_mean(norm_and_leaky_relu(x, "last_norm"), [1, 2])
    return tf.matmul(x, weights["logits/kernel"]) + weights["logits/bias"], averages
