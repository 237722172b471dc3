"""The interface of all attacks."""

import numpy as np
import tensorflow as tf

from common.attack.attacked_model import AttackedModel
from common.attack.ball import NORMS, check_radius
from common.attack.inputs import as_raised, pixel_range, to_images, to_index, to_labels, to_seed
from common.errors import InputError


class Attack:
    """An attack that is bound to a model, a ball and its hyperparameters.

    Subclasses implement `perturb`; subclasses of `StagedAttack` implement its stages. AutoGraph
    converts only the model, if it is not a Keras layer, so that `if` and `for` over tensors work in
    any function.

    Args:
        model: callable from float32 images to logits (batch, classes) of any floating dtype, in
            which minus infinity rules a class out: a keras.Model, a `FastModel`, such as the
            `logits` of a model loaded by `common.checkpoints`, or any function, such as
            `lambda x: layer(x)["logits"]` around a keras TFSMLayer.
        epsilon: the ball's radius, in the units of `bounds`.
        bounds: (lowest, highest) pixel value.
        norm: the ball's norm, "linf" or "l2".
        jit_compile: whether XLA compiles the attack: True, False or "auto", see
            `compiles_with_xla`.
        precision: the arithmetic of gradients and queries: "float32", "bfloat16", or "auto", which
            is bfloat16 if this machine multiplies it fast and the model can run in it, see
            `precision_of`. Weights, pixels and steps stay float32, and the float32 model decides
            which examples are misclassified. On a GPU TensorFlow multiplies float32 in TF32 unless
            the program switches it off, as evaluations do.
        step_size: length of a step, in the units of `bounds`, if the attack has steps of one.
        **options: further arguments of `AttackedModel`.

    Attributes:
        name: the attack's name in records.
        epsilon, bounds, norm: as given.
        random_start: whether the result depends on the seed, so that a restart may find more.
        leaves_early: whether batches shrink as examples are broken.
        num_gradients: the largest number of gradients of a call for an example; see `passes`.
        num_queries: the largest number of further forward passes, without that of the image.

    Raises:
        InputError: a number is out of range; the message says what was expected and what came.
    """

    name = "attack"
    random_start = False
    leaves_early = False
    num_gradients = 0
    num_queries = 0
    SETTINGS = ()  # names of the hyperparameters beside name, norm and epsilon
    _runs_in_graphs = False  # within a tf.function

    def __init__(
        self,
        model,
        *,
        epsilon,
        bounds=(0.0, 1.0),
        norm="linf",
        jit_compile="auto",
        precision="auto",
        step_size=0.0,
        **options,
    ):
        if norm not in NORMS:
            raise InputError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
        check_radius(epsilon, step_size, bounds, norm)
        self.epsilon = float(epsilon)
        self.bounds = pixel_range(bounds)
        self.norm = norm
        self._model = AttackedModel(model, self.bounds, jit_compile, precision, **options)
        self._passes = None
        self._undefined = ()

    def perturb(self, x_nat, y, seed=0, index=None):
        """Adversarial examples for `x_nat`.

        Args:
            x_nat: images (batch, height, width, channels), pixels in `bounds`; NumPy, tf or lists,
                any real dtype (integers are converted first, so that nothing wraps round).
            y: labels: classes (batch,) or (batch, 1), of any integer dtype or whole numbers in a
                floating one; or one-hot (batch, classes).
            seed: int; or a pair of ints, the second of which is the number of a restart, 0 for an
                int; or int (batch, 2), a pair for each example; within int32.
            index: int (batch,), the number of each example in its data set, which together with
                `seed` decides its random numbers; by default 0, 1, 2, ...; within int32.

        Returns:
            float32 tensor, the shape of `x_nat`, finite, in the ball and within `bounds`, to which
            `x_nat` is clipped first, as it may exceed them by rounding.

        Raises:
            InputError: images are outside `bounds` by more than rounding, or not finite; labels are
                not classes of the model, one for each image; seed or index is not as above; the
                model does not return logits, or has no gradient for the attack. In a tf.function
                wrong values raise tf.errors.InvalidArgumentError instead, when it runs.
        """
        raise NotImplementedError

    @property
    def precision(self):
        """The arithmetic, a `Precision`; None before the first call if that decides it."""
        return self._model.precision

    @property
    def verdict_dtype(self):
        """The arithmetic that decides whether an example is misclassified: "float32".

        For a keras.Model with a dtype policy of its own it is that policy's, in words.
        """
        return self._model.verdict_dtype

    @property
    def num_undefined(self):
        """The number of images of the last call with a gradient that was not a number, at any step.

        The attack takes no step along such a gradient, and may have missed adversarial examples.
        Calls within a tf.function do not count.
        """
        return int(np.count_nonzero(self._undefined))

    def fix_batch_size(self, count):
        """Pads every batch of up to `count` images to the size `count` from now on.

        Rounding depends on a batch's size. With one size an image's result does not depend on the
        other images of its batch. Broken examples no longer make a batch smaller.

        Args:
            count: int; 0 undoes it.
        """
        self._model.fix_batch_size(count)

    def passes(self, num_examples):
        """The passes of the last call of `perturb`: fewer if examples were broken early.

        An example counts until it is broken, in a batch of any size.

        Args:
            num_examples: how many examples that call had.

        Returns:
            int64 (2,): numbers of gradients, counted by example, and of further forward passes,
            without those of the images themselves.
        """
        if self._passes is None:
            return num_examples * np.array([self.num_gradients, self.num_queries])
        return self._passes

    def settings(self):
        """The hyperparameters as a dict, for the files that record what was run."""
        names = ("name", "norm", "epsilon", *self.SETTINGS)
        return {name: getattr(self, name) for name in names}

    def _inputs(self, x_nat, y, seed, index):
        """The arguments of `perturb` as tensors; seeds are one pair, or a pair for each."""
        if not (tf.executing_eagerly() or self._runs_in_graphs):
            raise InputError(f"{self.name}: expected a call outside of tf.function, got one within")
        x_nat = to_images(x_nat, self.bounds)
        self._model.decide_precision(tuple(x_nat.shape[1:]))
        count = tf.shape(x_nat)[0] if x_nat.shape[0] is None else x_nat.shape[0]
        seed, index = to_seed(seed, count), to_index(index, count)
        if self._model.num_classes is None and x_nat.shape[0] != 0:
            to_labels(y, count)  # for what is wrong with any model
            with as_raised():
                self._trace(x_nat)
                if self._model.num_classes is None and tf.executing_eagerly():
                    # The shape of a traced batch does not tell.
                    self._model.num_classes = int(self._model.logits(x_nat).shape[-1])
        y = to_labels(y, count, self._model.num_classes)
        return x_nat, tf.convert_to_tensor(y), seed, index

    def _trace(self, x_nat):
        """Traces the model for such a batch, to find its classes."""
        self._model.logits_of_padded.get_concrete_function(self._model.spec(x_nat))
