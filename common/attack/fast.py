"""The form of a model that attacks run fastest, and when XLA compiles instead."""

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
            to the rounding of that arithmetic, gradients for the images included. An attack calls
            it once before a loop, so that what depends on the weights alone is computed once.
        bounds: (lowest, highest) pixel value of the images for which the two agree; attacks on
            wider ranges run `model`.
        network: keras.Model that computes the same, Sequential or functional, for bfloat16 where
            `prepare` is not run: with XLA, and on wider ranges. Without it `model` runs there.
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

    For elementwise arithmetic and pooling, which TensorFlow otherwise runs op by op. Convolutions
    and matrix products belong outside: on a CPU TensorFlow's own are four times as fast as XLA's.
    """
    return tf.function(function, jit_compile=True, autograph=False)
