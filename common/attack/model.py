"""What is attacked, and how it is compiled."""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from common.errors import InputError


@dataclasses.dataclass(frozen=True)
class FastModel:
    """A model, and the same function in a form that attacks run faster on a CPU.

    Attributes:
        model: callable from float32 images to float32 logits.
        prepare: function without arguments to such a callable, which agrees with `model` to
            float32 rounding, gradients for the images included. An attack calls it once before
            a loop, so that what depends on the weights alone is computed once.
        bounds: (lowest, highest) pixel value of the images for which it agrees; attacks on wider
            ranges run `model`.
    """

    model: Callable
    prepare: Callable
    bounds: tuple = (-math.inf, math.inf)

    def __call__(self, x):
        """The model's logits."""
        return self.model(x)


def compiles_with_xla(jit_compile):
    """Whether to compile with XLA: "yes", "no", or "auto", which does so on a GPU or TPU.

    On a CPU TensorFlow's own convolutions are about four times as fast as XLA's.

    Raises:
        InputError: it is another word.
    """
    if jit_compile not in ("auto", "yes", "no"):
        raise InputError(f"jit_compile: expected auto, yes or no, got {jit_compile!r}")
    if jit_compile == "auto":
        return any(tf.config.list_physical_devices(kind) for kind in ("GPU", "TPU"))
    return jit_compile == "yes"


def value_and_gradient(loss, logits, x):
    """One pass: the model's logits, the loss of each example and its gradient for the images.

    Args:
        loss: function from logits (batch, classes) to float32 (batch,).
        logits: callable from float32 images to float32 logits.
        x: float32 images (batch, height, width, channels).

    Returns:
        float32 logits (batch, classes), losses (batch,), gradient of the shape of `x`.

    Raises:
        ValueError: the logits do not depend on the images.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        z = logits(x)
        losses = loss(z)
        total = tf.reduce_sum(losses)
    gradient = tape.gradient(total, x)
    if gradient is None:
        raise ValueError("model: expected logits with a gradient for the images, got none")
    return z, losses, tf.ensure_shape(gradient, x.shape)
