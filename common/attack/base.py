"""What all attacks share: their interface, how they are compiled, and how examples leave."""

import functools

import keras
import numpy as np
import tensorflow as tf

from common.attack.ball import NORMS, check_radius, select, uniform_start
from common.attack.fast import FastModel, compiles_with_xla
from common.attack.gradient import as_logits
from common.attack.inputs import as_raised, pixel_range, to_images, to_index, to_labels, to_seed
from common.attack.losses import is_misclassified
from common.attack.sizes import Sizes
from common.errors import InputError

SIZES = 8  # batches of that many sizes are compiled where a batch shrinks


class Attack:
    """An attack that is bound to a model, a ball and its hyperparameters.

    Subclasses either replace `_perturb`, or give `_stages`: functions that `perturb` runs one
    after another on the examples that still stand.

    Args:
        model: callable from float32 images to logits (batch, classes) of any floating dtype, in
            which minus infinity rules a class out: a keras.Model, a `FastModel`, such as the
            `logits` of a model loaded by `common.checkpoints`, or any function, such as
            `lambda x: layer(x)["logits"]` around a keras TFSMLayer.
        epsilon: radius of the ball, in the units of `bounds`.
        bounds: (lowest, highest) pixel value.
        norm: of the ball, "linf" or "l2".
        jit_compile: "yes", "no" or "auto": whether XLA compiles the attack, see
            `compiles_with_xla`.

    Attributes:
        name: as in `make_attack`.
        epsilon, bounds, norm: as given.
        random_start: whether the result depends on the seed, so that a restart may find more.
        depends_on_batch: whether an example's result depends on the others of its batch.
        num_gradients: gradients that one call takes of an example, at most; see `passes`.
        num_queries: forward passes beside those and that of the image itself, at most.

    Raises:
        InputError: a number is out of range; the message says what was expected and what came.
    """

    name = "attack"
    random_start = False
    depends_on_batch = False
    num_gradients = 0
    num_queries = 0
    _runs_in_graphs = False  # within a tf.function

    def __init__(
        self, model, *, epsilon, bounds=(0.0, 1.0), norm="linf", jit_compile="auto", step_size=0.0
    ):
        if norm not in NORMS:
            raise InputError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
        check_radius(epsilon, step_size, bounds, norm)
        self.epsilon = float(epsilon)
        self.bounds = pixel_range(bounds)
        self.norm = norm
        self._model = model
        self._uses_xla = compiles_with_xla(jit_compile)
        self._is_fast = (
            isinstance(model, FastModel)
            and not self._uses_xla
            and model.bounds[0] <= self.bounds[0] <= self.bounds[1] <= model.bounds[1]
        )
        self._sizes = Sizes(SIZES)
        self._num_classes = None  # until the model has been seen
        self._passes = None
        self._undefined = ()

    def perturb(self, x_nat, y, seed=0, index=None):
        """Adversarial examples for `x_nat`.

        Args:
            x_nat: images (batch, height, width, channels), pixels in `bounds`; NumPy, tf or lists,
                any real dtype (integers are converted first, so that nothing wraps round).
            y: labels: classes (batch,) or (batch, 1), of any integer dtype or whole numbers in a
                floating one; or one-hot (batch, classes).
            seed: int; a pair of ints, the second the number of a restart, where an int is 0; or
                int (batch, 2), a pair for each example; within int32.
            index: int (batch,), the number of each example in its data set, which together with
                `seed` decides its random numbers; by default 0, 1, 2, ...; within int32.

        Returns:
            float32 tensor, the shape of `x_nat`, finite, in the ball and within `bounds`, which
            `x_nat` is clipped to first, as rounding may have led it out.

        Raises:
            InputError: images are outside `bounds` by more than that, or not finite; labels are not
                classes of the model, one for each image; seed or index is not as above; the model
                does not return logits, or has no gradient that the attack could follow. In a
                tf.function values raise tf.errors.InvalidArgumentError instead, as it runs.
        """
        return self._perturb(*self._inputs(x_nat, y, seed, index))

    @property
    def num_undefined(self):
        """At how many images of the last call a gradient was not a number, at some step.

        Such a gradient is no step, so that the attack did not try all it could. Calls within a
        tf.function do not count.
        """
        return int(np.count_nonzero(self._undefined))

    def passes(self, num_examples):
        """What the last call of `perturb` took: fewer where examples left once they were broken.

        Args:
            num_examples: of that call.

        Returns:
            int64 (2,): gradients of one example each, and forward passes beside those and those of
            the images themselves.
        """
        if self._passes is None:
            return num_examples * np.array([self.num_gradients, self.num_queries])
        return self._passes

    def settings(self):
        """The hyperparameters as a dict, for the files that record what was run."""
        return {"name": self.name, "norm": self.norm, "epsilon": self.epsilon}

    def _inputs(self, x_nat, y, seed, index):
        """The arguments of `perturb` as tensors; seeds are one pair, or a pair for each."""
        if not (tf.executing_eagerly() or self._runs_in_graphs):
            raise InputError(f"{self.name}: expected a call outside of tf.function, got one within")
        x_nat = to_images(x_nat, self.bounds)
        count = tf.shape(x_nat)[0] if x_nat.shape[0] is None else x_nat.shape[0]
        seed, index = to_seed(seed, count), to_index(index, count)
        if self._num_classes is None and x_nat.shape[0] != 0:
            to_labels(y, count)  # for what is wrong with any model
            with as_raised():
                self._find_classes(x_nat, seed, index)
        y = to_labels(y, count, self._num_classes)
        return x_nat, tf.convert_to_tensor(y), seed, index

    def _find_classes(self, x_nat, seed, index):
        """Finds out how many classes the model has, for such a batch as it is to be run on."""
        self._clean_logits.get_concrete_function(self._spec(x_nat))
        if self._num_classes is None:  # its shape does not tell
            self._num_classes = int(self._logits_of(x_nat).shape[-1])

    def _spec(self, tensor):
        """What a compiled function is to expect in place of a batch, as `_padded` leaves it."""
        count = tensor.shape[0]
        size = None if count is None else len(self._padded(np.arange(count)))
        return tf.TensorSpec((size, *tensor.shape[1:]), tensor.dtype)

    def _raw_model(self):
        """The model in inference mode, in the form that the attack runs."""
        if isinstance(self._model, keras.layers.Layer):  # plain functions have no such argument
            return functools.partial(self._model, training=False)
        return self._model.prepare() if self._is_fast else self._model

    def _prepare(self):
        """`_raw_model` as a function to float32 logits; once for each loop."""
        model = self._raw_model()

        def logits(x):
            z = as_logits(model(x), x)
            if self._num_classes is None:
                self._num_classes = z.shape[1]
            return z

        return logits

    @property
    def _needs_batch_size(self):
        """The halves of a batch, and XLA, need its size."""
        return self._is_fast or self._uses_xla

    def _compiled(self, function, has_random_numbers=False):
        """`function` as a tf.function; random numbers keep it from XLA, which draws others."""
        if has_random_numbers:
            return tf.function(function, autograph=False, reduce_retracing=True)
        options = {"jit_compile": True} if self._uses_xla else {}
        # AutoGraph would find nothing to convert, in twice the time.
        return tf.function(
            function, autograph=False, reduce_retracing=not self._needs_batch_size, **options
        )

    def _iterate(self, step, state, first, last, is_done=None, passes=(0, 0)):
        """`state` after state <- step(i, state) for i from `first` to below `last`.

        To be called within a tf.function.

        Args:
            step: function of an int tensor and a state to a state; examples do not meet in it.
            state: dict of tensors (batch, ...).
            first, last: ints or int tensors.
            is_done: the name of a bool entry of `state`: once all are True it ends.
            passes: how many gradients and further forward passes a step takes of an example.
        """
        # Two halves of the batch side by side keep the cores busy: while one waits for memory
        # or for an op of a single thread, the other one computes.
        count = next(iter(state.values())).shape[0] or 0  # None where it is not known
        sizes = [count // 2, count - count // 2] if self._is_fast and count > 1 else 1
        names = list(state)
        halves = zip(*(tf.split(state[name], sizes) for name in names))
        halves = [dict(zip(names, half)) for half in halves]

        def goes_on(i, *halves):
            if is_done is None:
                return i < last
            return (i < last) & ~tf.reduce_all([tf.reduce_all(half[is_done]) for half in halves])

        def body(i, *halves):
            return (i + 1, *(step(i, half) for half in halves))

        i, *halves = tf.while_loop(goes_on, body, (tf.convert_to_tensor(first), *halves))
        state = {name: tf.concat([half[name] for half in halves], axis=0) for name in names}
        if "passes" in state:
            state["passes"] += tf.cast(i - first, tf.int64) * tf.constant(passes, tf.int64)
        return state

    def _stages(self, num_classes):
        """Yields functions from state to state, which `_perturb` runs in turn."""
        raise NotImplementedError

    def _start_of(self, state, stream, radius):
        """A random point within `radius`, or the image where the attack has no random start."""
        x_nat, seed, index = state["x_nat"], state["seed"], state["index"]
        if not self.random_start:
            return x_nat
        return uniform_start(x_nat, radius, self.bounds, seed, index, self.norm, stream)

    def _begin(self, state, logits):
        """Adds what the stages need to a state of `_perturb`."""
        return state

    @functools.cached_property
    def _clean_logits(self):
        def clean_logits(x_nat):
            logits = self._prepare()
            sizes = [x_nat.shape[0] // 2, -1] if self._is_fast and x_nat.shape[0] > 1 else 1
            return tf.concat([logits(part) for part in tf.split(x_nat, sizes)], axis=0)

        return self._compiled(clean_logits)

    def _logits_of(self, x):
        """The logits of images, in a batch of a size that is compiled for."""
        rows = self._padded(np.arange(len(x)))
        return self._clean_logits(x if len(rows) == len(x) else tf.gather(x, rows))[: len(x)]

    def _perturb(self, x_nat, y, seed, index, **others):
        """Runs the stages; an example leaves once it is broken.

        The state is a dict of tensors (batch, ...): x_nat, y, seed, index; x_adv, what comes back;
        broken, bool; passes, int64 (batch, 2), see there; undefined, bool, see `num_undefined`; and
        `others`. An image that is misclassified as it is comes back as it is.
        """
        count = int(tf.shape(x_nat)[0])
        self._passes, self._undefined = np.zeros(2, np.int64), np.zeros(count, bool)
        if not count:
            return x_nat
        seed = tf.broadcast_to(seed, (count, 2))
        state = {"x_nat": x_nat, "y": y, "seed": seed, "index": index, "x_adv": x_nat}
        state["passes"] = tf.zeros((count, 2), tf.int64)
        state["undefined"] = tf.zeros((count,), tf.bool)
        state = _take({**state, **others}, self._padded(np.arange(count)))
        logits = self._clean_logits(state["x_nat"])
        state["broken"] = is_misclassified(logits, state["y"])
        state = self._begin(state, logits)

        x_adv, passes = np.empty(x_nat.shape, np.float32), np.zeros((count, 2), np.int64)
        numbers = np.arange(count)  # of the examples that are the state's first rows

        def write():
            x_adv[numbers] = state["x_adv"][: len(numbers)]
            passes[numbers] = state["passes"][: len(numbers)]
            self._undefined[numbers] = state["undefined"][: len(numbers)]

        for stage in self._stages(logits.shape[-1]):
            standing = np.flatnonzero(~state["broken"].numpy()[: len(numbers)])
            rows = self._padded(standing)
            if len(rows) < len(state["y"]):
                write()
                if not len(standing):
                    break
                numbers, state = numbers[standing], _take(state, rows)
            state = stage(state)
        write()
        self._passes = passes.sum(axis=0)
        return tf.constant(x_adv)

    def _padded(self, rows):
        """`rows`, the first repeated where a batch of that size would be compiled anew."""
        return self._sizes.rows(rows) if self._needs_batch_size else rows


def _take(state, rows):
    return {name: tf.gather(values, rows) for name, values in state.items()}


def where(condition, state, **values):
    """`state` with `values` where `condition`: one bool, or one for each example."""
    changed = {name: select(condition, value, state[name]) for name, value in values.items()}
    return {**state, **changed}
