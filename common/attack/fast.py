"""The fastest form of a model for attacks, and the choice of XLA instead."""

import dataclasses
import math
from collections.abc import Callable

import keras
import tensorflow as tf

from common.errors import InputError


@dataclasses.dataclass(frozen=True)
class FastModel:
    """A model, and the same function in a form that attacks run faster on a CPU.

    Attributes:
        model: callable from float32 images to float32 logits.
        prepare: function from "float32" or "bfloat16" to such a callable, which agrees with `model`
            up to the rounding of that arithmetic, as do the gradients for the images. An attack
            calls it once before a loop, so that it prepares the weights only once.
        bounds: (lowest, highest) pixel value of the images for which the two agree; attacks on
            wider ranges run `model`.
        network: a Sequential or functional keras.Model of the same function, for bfloat16 without
            `prepare`: with XLA, and on wider ranges. If it is None, `model` runs then.
    """

    model: Callable
    prepare: Callable
    bounds: tuple = (-math.inf, math.inf)
    network: keras.Model | None = None

    def __call__(self, x):
        """The model's logits."""
        return self.model(x)


def compiles_with_xla(jit_compile):
    """Whether to compile with XLA: True, False, or "auto", which does so on a GPU or TPU.

    On a CPU TensorFlow's own convolutions are about four times as fast as XLA's.

    Raises:
        InputError: it is something else.
    """
    if isinstance(jit_compile, bool):
        return jit_compile
    if jit_compile != "auto":
        raise InputError(f"jit_compile: expected True, False or 'auto', got {jit_compile!r}")
    return any(tf.config.list_physical_devices(kind) for kind in ("GPU", "TPU"))


def fused(function):
    """Compiles a function of tensors to one kernel that its callers' graphs contain.

    It is for elementwise arithmetic and pooling, which TensorFlow otherwise runs op by op. Keep
    convolutions and matrix products outside: on a CPU TensorFlow's are four times as fast as XLA's.
    """
    return tf.function(function, jit_compile=True, autograph=False)
