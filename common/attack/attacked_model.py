"""The model of an attack: float32 logits, compiled, in batches of few sizes."""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

from common.attack.fast import FastModel, compiles_with_xla
from common.attack.gradient import (
    as_logits,
    dtypes_of,
    keras_model_of,
    with_scaled_gradient,
)
from common.attack.precision import Precision, check_precision, in_bfloat16, precision_of
from common.attack.sizes import Sizes


class AttackedModel:
    """The model of an attack; it compiles the functions and loops that call it.

    Args:
        model: see `Attack`.
        bounds: (lowest, highest) pixel value, two floats.
        jit_compile: see `compiles_with_xla`.
        precision: see `precision_of`.
        batch_statistics: see `PGD`.
        num_parts: see `Sizes`.

    Attributes:
        precision: a `Precision`, or None before `decide_precision`.
        num_classes: int, or None until a batch has been seen if the model does not tell.
        uses_xla: whether XLA compiles the attack.
    """

    def __init__(
        self,
        model,
        bounds,
        jit_compile,
        precision="auto",
        batch_statistics=False,
        num_parts=None,
    ):
        check_precision(precision)
        model = keras_model_of(model)
        self.num_classes = _num_classes_of(model)
        self.precision = None
        self._asked, self._bounds = precision, bounds
        self.uses_xla = compiles_with_xla(jit_compile)
        self._model = model
        self._batch_statistics = batch_statistics
        self._is_fast = (
            isinstance(model, FastModel)
            and not (self.uses_xla or batch_statistics)
            and model.bounds[0] <= bounds[0] <= bounds[1] <= model.bounds[1]
        )
        # The halves of a batch, and XLA, need its size.
        self._needs_batch_size = self._is_fast or self.uses_xla
        self._sizes = Sizes(num_parts)
        shape = getattr(model, "input_shape", None) if isinstance(model, keras.Model) else None
        is_known = isinstance(shape, tuple) and None not in shape[1:] and len(shape) == 4
        self.decide_precision(shape[1:] if is_known else None)

    def decide_precision(self, image_shape=None):
        """Decides the arithmetic of gradients and queries, if it can be decided.

        Args:
            image_shape: see `precision_of`.
        """
        if self.precision is not None:
            return
        model = self._model
        if self._batch_statistics:
            self.precision = Precision("float32", "in training mode a model has its own arithmetic")
        elif isinstance(model, FastModel) and not self._is_fast and model.network is None:
            self.precision = Precision("float32", "the model's fast form does not run here")
        else:
            self.precision = precision_of(self._asked, model, image_shape, self._bounds)
            if isinstance(model, FastModel) and not self._is_fast and not self.is_exact:
                logits = in_bfloat16(model.network)
                self.precision = dataclasses.replace(self.precision, logits=logits)

    def fix_batch_size(self, count):
        """Pads every batch to `count` images from now on; see `Attack.fix_batch_size`."""
        self._sizes.fixed = count

    @property
    def verdict_dtype(self):
        """See `Attack.verdict_dtype`."""
        if isinstance(self._model, FastModel):
            return "float32"
        if not isinstance(self._model, keras.layers.Layer):
            return "the function's own"
        own = sorted(dtypes_of(self._model) - {"float32"})
        return f"{' and '.join(own)}, the model's own" if own else "float32"

    @property
    def is_exact(self):
        """Whether gradients and queries are computed in float32, as verdicts are."""
        return self.precision.name == "float32"

    def prepare(self, exact=False):
        """The model as a function from images to float32 logits; called once for each loop.

        Args:
            exact: False for gradients and queries, in the attack's `precision`; True for verdicts,
                as the model is, in float32.
        """
        model = self._as_run("float32" if exact else self.precision.name)
        # Batch statistics mix the examples, which then cannot be scaled one by one.
        if not self._batch_statistics:
            model = with_scaled_gradient(model, self._model)

        def logits(x):
            z = as_logits(model(x), x)
            if self.num_classes is None:
                self.num_classes = z.shape[1]
            return z

        return logits

    def prepare_both(self):
        """`prepare()` and `prepare(exact=True)`, which are one function in float32."""
        logits = self.prepare()
        return logits, logits if self.is_exact else self.prepare(exact=True)

    def logits(self, x):
        """The exact logits of images, in a batch of one of the compiled sizes."""
        rows = self.padded(np.arange(len(x)))
        return self.logits_of_padded(x if len(rows) == len(x) else tf.gather(x, rows))[: len(x)]

    @functools.cached_property
    def logits_of_padded(self):
        """A tf.function from images, in a batch that `padded` has padded, to exact logits."""

        def logits_of_padded(x):
            logits = self.prepare(exact=True)
            return tf.concat([logits(part) for part in self._halves(x)], axis=0)

        return self.compile(logits_of_padded)

    def compile(self, function, uses_xla=True, any_size=False):
        """`function` as a tf.function.

        Without AutoGraph, which attacks do not need and which doubles the time of tracing. A model
        may need it, see `_as_run`.

        Args:
            function: a function of tensors, or of named tuples of tensors.
            uses_xla: False for a function that draws random numbers, as XLA's are different.
            any_size: whether it is always compiled for batches of unknown size.
        """
        return tf.function(
            function,
            autograph=False,
            reduce_retracing=any_size or not self._needs_batch_size,
            **({"jit_compile": True} if uses_xla and self.uses_xla else {}),
        )

    def compile_stage(self, function, any_size=False, **options):
        """`compile`, for a function of a state, tensors (batch, ...), and of further tensors.

        It is traced at once for batches of any size, unless it is compiled for few sizes; otherwise
        it would be traced again as the batch shrinks.
        """
        compiled = self.compile(function, any_size=any_size, **options)
        is_traced = self._needs_batch_size and not any_size

        def call(state, *args, **kwargs):
            nonlocal is_traced
            if not is_traced:
                specs = tf.nest.map_structure(
                    lambda tensor: tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype), state
                )
                compiled.get_concrete_function(specs, *args, **kwargs)
                is_traced = True
            return compiled(state, *args, **kwargs)

        return call

    def iterate(self, step, state, first, last, passes=None, ends_early=False):
        """`state` after state <- step(i, state) for i from `first` to below `last`.

        It is called within a tf.function.

        Args:
            step: function of an int tensor and a state to a state; examples are independent in it.
            state: named tuple of tensors (batch, ...).
            first, last: ints or int tensors.
            passes: numbers of gradients and of further forward passes of a step, which are added to
                `state.passes`; None for a state that does not count them.
            ends_early: whether the loop ends once all of `state.broken` are True; a broken example
                has no further passes.
        """
        halves = zip(*map(self._halves, tf.nest.flatten(state)), strict=True)
        halves = [tf.nest.pack_sequence_as(state, half) for half in halves]

        def continues(i, *halves):
            if not ends_early:
                return i < last
            return (i < last) & ~tf.reduce_all([tf.reduce_all(half.broken) for half in halves])

        def body(i, *halves):
            return (i + 1, *map(counted, halves, map(functools.partial(step, i), halves)))

        def counted(half, new):
            if not ends_early:
                return new
            taken = tf.cast(~half.broken, tf.int64)[:, None] * tf.constant(passes, tf.int64)
            return new._replace(passes=new.passes + taken)

        i, *halves = tf.while_loop(continues, body, (tf.convert_to_tensor(first), *halves))
        state = tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *halves)
        if passes is not None and not ends_early:
            taken = tf.cast(i - first, tf.int64) * tf.constant(passes, tf.int64)
            state = state._replace(passes=state.passes + taken)
        return state

    def padded(self, rows):
        """`rows`, padded by the first one if a batch of that size would be compiled anew."""
        # Batch statistics are of all images of a batch, and copies would change them.
        pads = (self._needs_batch_size or self._sizes.fixed) and not self._batch_statistics
        return self._sizes.rows(rows) if pads else rows

    def spec(self, tensor):
        """The TensorSpec of a batch once it is padded."""
        count = tensor.shape[0]
        size = None if count is None else len(self.padded(np.arange(count)))
        return tf.TensorSpec((size, *tensor.shape[1:]), tensor.dtype)

    def _as_run(self, precision):
        """The model in inference mode, or with batch statistics, in the fastest form."""
        if self._is_fast:
            return self._model.prepare(precision)
        if precision == "bfloat16":
            return self.precision.logits
        is_layer = isinstance(self._model, keras.layers.Layer)
        options = {"training": self._batch_statistics} if is_layer or self._batch_statistics else {}

        def call(x):
            return self._model(x, **options)

        # A function may have Python control flow over tensors; Keras does not allow it in layers.
        return call if is_layer else tf.autograph.to_graph(call)

    def _halves(self, tensor):
        """A tensor (batch, ...) as a list of its halves for a `FastModel`, else of itself.

        Two halves of the batch in parallel keep the cores busy: while one waits for memory or for
        an op of a single thread, the other one computes.
        """
        count = tensor.shape[0] or 0  # None if it is not known
        return tf.split(
            tensor, [count // 2, count - count // 2] if self._is_fast and count > 1 else 1
        )


def _num_classes_of(model):
    """The number of logits of a keras.Model that tells it, or None."""
    network = model.network if isinstance(model, FastModel) else model
    shape = getattr(network, "output_shape", None) if isinstance(network, keras.Model) else None
    is_known = isinstance(shape, tuple) and len(shape) == 2 and isinstance(shape[1], int)
    return shape[1] if is_known and shape[1] > 1 else None


def compiled(method=None, **options):
    """Decorates a method of an attack, which becomes a tf.function of each attack.

    Args:
        method: method whose `self._model` is an `AttackedModel`.
        **options: see `AttackedModel.compile`.
    """
    if method is None:
        return functools.partial(compiled, **options)

    def compiled_method(attack):
        return attack._model.compile(method.__get__(attack), **options)

    return functools.cached_property(compiled_method)


def stage(method=None, **options):
    """Decorates a stage of an attack, as `compiled` does; see `AttackedModel.compile_stage`."""
    if method is None:
        return functools.partial(stage, **options)
    return functools.cached_property(
        lambda attack: attack._model.compile_stage(method.__get__(attack), **options)
    )


# For methods that draw random numbers.
_DRAWS = {"uses_xla": False, "any_size": True}
drawing, drawing_stage = compiled(**_DRAWS), stage(**_DRAWS)
