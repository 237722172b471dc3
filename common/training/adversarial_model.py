"""Any keras.Model, trained against an attack by `fit`."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.attack import is_misclassified, xent_loss
from common.attack.gradient import as_logits
from common.attack.inputs import (
    as_lines,
    check_image_shape,
    real_number,
    refuse_structure,
    to_images,
    to_labels,
    whole_number,
)
from common.attack.softmax import NUM_PROBED, attack_on, check_attack, logits_of
from common.errors import InputError, one_line
from common.messages import tell
from common.training import losses, steps

_XENT = ("sparse_categorical_crossentropy", "categorical_crossentropy")
_XENTS = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy)


@dataclasses.dataclass(frozen=True)
class _Target:
    """The attacked function and its attack, in an object that Keras neither tracks nor saves."""

    logits: Callable
    attack: Any
    num_classes: int


class AdversarialModel(keras.Model):
    """Trains a keras.Model against an attack: `compile`, `fit`, `evaluate`, as any other model.

    A step of `fit` is that of `common.training.steps`. The attack runs the model in inference
    mode, unless it has `batch_statistics` (see `common.attack.PGD`). Random augmentation belongs
    in the data set: the attack does not see a layer that augments only in training mode.

    `fit`, `evaluate` and the like take images (batch, height, width, channels) of any real dtype,
    pixels in the attack's bounds, and labels, classes (batch,) or one-hot (batch, classes). They
    raise InputError for other ones, before the batch changes a weight.

    `fit` reports the loss, the metrics and robust_accuracy of the batches' adversarial images, as
    they were before each update. `evaluate`, and `fit` with validation_data, report cross-entropy
    and metrics of the natural images, and as robust_accuracy the share that is classified correctly
    both unattacked and attacked. `save` writes the inner model, and `export` exports it, without
    the optimizer's state. Only `save_weights` writes the state of the optimizer, of the dropouts
    and of the random starts; `load_weights` restores it. With `keras.callbacks.BackupAndRestore` an
    interrupted `fit` resumes to the same weights if its data come in the same order.

    Made and compiled in the scope of a `tf.distribute.Strategy`, together with the inner model, it
    trains on several devices. A step is that of one device up to rounding and batch norm, which
    uses each device's own statistics unless it is synchronized. XLA compiles only the attack. Every
    batch needs an example for each device; `drop_remainder=True` of a tf.data.Dataset drops a
    smaller last one.

    Args:
        model: keras.Model from images to logits or, by a softmax at its end, to probabilities.
        attack: a `common.attack.PGD` on `model`, or a function from logits to one, which is called
            twice, first for the attack's bounds; with run_eagerly=True any `common.attack.Attack`.
        loss: one of `common.training.losses.LOSSES`, or a function (x_nat, x_adv, y, model) as
            described there.
        natural_weight, trades_beta: see `common.training.losses`.
        epsilon_warmup_steps: batches over which epsilon and step_size grow to their values; more
            than 0 needs a PGD.
        seed: int, which decides the random starts together with the number of batches so far.
        kwargs: `name`, see `keras.Model`.

    Raises:
        InputError: a setting is none of these. Models that cannot be attacked raise it on the first
            step.
    """

    def __init__(
        self,
        model,
        attack,
        *,
        loss="adversarial",
        natural_weight=0.5,
        trades_beta=6.0,
        epsilon_warmup_steps=0,
        seed=0,
        **kwargs,
    ):
        if not isinstance(model, keras.Model):
            raise InputError(f"model: expected a keras.Model, got {type(model).__name__}")
        check_attack(attack)
        weight = real_number("natural_weight", natural_weight, 0.0, 1.0)
        beta = real_number("trades_beta", trades_beta, 0.0)
        # The pixels keep their dtype until the inner model casts them.
        super().__init__(autocast=False, dtype=model.dtype_policy, **kwargs)
        self.model, self.attack = model, attack
        self.epsilon_warmup_steps = whole_number("epsilon_warmup_steps", epsilon_warmup_steps, 0)
        self.seed = whole_number("seed", seed, -(2**31))
        self._loss_of = loss if callable(loss) else losses.make_loss(loss, weight, beta)
        self._robust_accuracy = keras.metrics.Mean(name="robust_accuracy")
        self._target, self._state = None, _State(model)

    def compile(self, optimizer="rmsprop", loss=None, loss_weights=None, *args, **kwargs):
        """Compiles the model; see `keras.Model.compile`.

        Args:
            optimizer: keras optimizer.
            loss: None, or Keras's plain cross-entropy for classes or one-hot labels; in either case
                the loss is the constructor's, on logits.
            loss_weights: None.
            args, kwargs: the further ones of `keras.Model.compile`.

        Raises:
            InputError: `loss` or `loss_weights` is another one.
        """
        if not _is_plain_xent(loss):
            name = loss if isinstance(loss, str) else getattr(loss, "name", None)
            name = name or getattr(loss, "__name__", None) or repr(loss)
            reduction = getattr(loss, "reduction", None) or "none"
            name += f" of reduction {reduction}" if isinstance(loss, keras.Loss) else ""
            raise InputError(
                f"loss: expected None or one of {', '.join(_XENT)}, without label smoothing, a "
                "class to ignore or a reduction other than the mean over the batch, "
                f"got {one_line(name)}; AdversarialModel(loss=...) takes a function "
                "(x_nat, x_adv, y, model)"
            )
        if loss_weights is not None:
            raise InputError(
                f"loss_weights: expected None, as there is one loss, got {one_line(loss_weights)}"
            )
        super().compile(optimizer, None, None, *args, **kwargs)
        self._state.batches.assign(0)

    def call(self, x, training=None):
        """The inner model's outputs for images `x`."""
        return self.model(x, training=training)

    def fit(self, *args, **kwargs):
        """Trains the inner model; see `keras.Model.fit`."""
        self.built = self.built or self.model.built  # callbacks ask before the first batch
        with as_lines():
            return super().fit(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Natural loss and metrics, and robust_accuracy; see `keras.Model.evaluate`."""
        with as_lines():
            return super().evaluate(*args, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        """One step on a batch; see `keras.Model.train_on_batch`."""
        with as_lines():
            return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """`evaluate` of a batch; see `keras.Model.test_on_batch`."""
        with as_lines():
            return super().test_on_batch(*args, **kwargs)

    def make_train_function(self, force=False):
        """Makes the function of a step, anew with `force`; see `keras.Model`."""
        with self._checks_kept():
            return super().make_train_function(force)

    def make_test_function(self, force=False):
        """Makes the function of `evaluate`, anew with `force`; see `keras.Model`."""
        with self._checks_kept():
            return super().make_test_function(force)

    def train_step(self, data):
        """One step of the min-max on a batch (x, y) or (x, y, sample_weight).

        Returns:
            Dict from the metrics' names to their values so far.
        """
        x, y, weights, target, x_nat, labels = self._batch_of(data)
        index, count = _places(labels)

        @self._compiled
        def min_max(x_nat, labels, step):
            x_adv = steps.ascend(
                target.attack, x_nat, labels, step, self.seed, self.epsilon_warmup_steps, index
            )
            return steps.descend(
                self._loss_of,
                functools.partial(_weighted_mean, weights, count),
                target.logits,
                self.optimizer,
                x_nat,
                x_adv,
                labels,
            )

        loss, logits = min_max(x_nat, labels, self._state.next_batch())
        correct = ~is_misclassified(logits, labels)
        return self._update_metrics(x, y, weights, loss, count, self._outputs(logits), correct)

    def test_step(self, data):
        """Natural loss and metrics of a batch, and its robust accuracy.

        Returns:
            Dict from the metrics' names to their values so far.
        """
        x, y, weights, target, x_nat, labels = self._batch_of(data)
        index, count = _places(labels)

        @self._compiled
        def outputs(x_nat, labels):
            logits = as_logits(target.logits(x_nat, training=False), x_nat)
            loss = _weighted_mean(weights, count, xent_loss(logits, labels))
            loss += steps.regularization(target.logits, loss.dtype)
            places = {} if index is None else {"index": index}
            x_adv = target.attack.perturb(x_nat, labels, seed=self.seed, **places)
            return loss, logits, as_logits(target.logits(x_adv, training=False), x_nat)

        loss, logits, attacked = outputs(x_nat, labels)
        correct = ~(is_misclassified(logits, labels) | is_misclassified(attacked, labels))
        return self._update_metrics(x, y, weights, loss, count, self._outputs(logits), correct)

    def get_config(self):
        """Raises InputError: an attack has no config, so `keras.saving` cannot save the trainer.

        `keras.saving.save_model` has emptied an earlier file of its path by then.
        """
        raise InputError(
            "AdversarialModel: expected trainer.save(path), which writes the inner model, or "
            "trainer.save_weights(path), which also writes the training's state; the trainer "
            "itself cannot be saved"
        )

    def save(self, *args, **kwargs):
        """Saves the inner model; see `keras.Model.save`."""
        return self.model.save(*args, **kwargs)

    def export(self, *args, **kwargs):
        """Exports the inner model; see `keras.Model.export`."""
        return self.model.export(*args, **kwargs)

    def save_weights(self, *args, **kwargs):
        """Saves weights and the training's state; see `keras.Model.save_weights`."""
        with self._held_by_model():
            return self.model.save_weights(*args, **kwargs)

    def load_weights(self, *args, **kwargs):
        """Loads weights, and the state if it is there; see `keras.Model.load_weights`."""
        with self._held_by_model():
            return self.model.load_weights(*args, **kwargs)

    @contextlib.contextmanager
    def _held_by_model(self):
        """Within it the inner model holds the training's state, for Keras to save or load it."""
        held = {"training_state": self._state}
        if self.compiled:
            held["optimizer"] = self.optimizer
            if self.model.built and not self.optimizer.built:
                with self.distribute_strategy.scope():
                    self.optimizer.build(self.model.trainable_variables)
        own = {name: getattr(self.model, name) for name in held if hasattr(self.model, name)}
        for name, part in held.items():
            setattr(self.model, name, part)
        try:
            yield
        finally:
            for name in held:
                delattr(self.model, name)
            for name, part in own.items():
                setattr(self.model, name, part)

    @contextlib.contextmanager
    def _checks_kept(self):
        """Within it Keras does not compile a whole step by XLA, which leaves assertions out."""
        asked, self.jit_compile = self.jit_compile, False
        try:
            yield
        finally:
            self.jit_compile = asked

    def _compiled(self, function):
        """`function`, the part of a step behind its checks, compiled by XLA if `compile` asks."""
        is_one_device = tf.distribute.get_strategy().num_replicas_in_sync == 1
        if self.run_eagerly or not self.jit_compile or not is_one_device:
            return function
        return tf.function(function, autograph=False, jit_compile=True)

    def _batch_of(self, data):
        """A batch of `fit`: x, y, sample weights, the `_Target`, float32 images, int labels."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        refuse_structure(x)
        if y is None:
            raise InputError("y: expected the labels of the images x, got none")
        x, y, weights = (  # train_on_batch may give NumPy arrays
            tf.convert_to_tensor(part) if isinstance(part, np.ndarray) else part
            for part in (x, y, weights)
        )
        target = self._target_of(x)
        x_nat = to_images(x, target.attack.bounds, "x")
        count = tf.shape(x_nat)[0] if x_nat.shape[0] is None else x_nat.shape[0]
        labels = tf.convert_to_tensor(to_labels(y, count, target.num_classes))
        return x, y, weights, target, x_nat, labels

    def _target_of(self, x):
        """The `_Target`, made on the first batch, whose shape the model needs."""
        check_image_shape(x.shape)
        if self._target is None:
            its = getattr(self.model, "input_shape", None)
            if not isinstance(its, tuple) or len(its) != 4:  # `logits_of` says what is wrong
                its = (None,) * 4
            shape = tuple(a or b or 32 for a, b in zip(x.shape[1:], its[1:], strict=True))
            with tf.init_scope():  # a step may be traced
                bounds = attack_on(self.attack, self.model, self.model).bounds
                noise = np.random.default_rng(0).uniform(*bounds, size=(NUM_PROBED, *shape))
                noise = noise.astype(np.float32)
                logits = logits_of(self.model, noise)
                num_classes = as_logits(logits(noise, training=False)).shape[1]
                attack = attack_on(self.attack, self.model, logits)
                takes = inspect.signature(attack.perturb).parameters
                if self.epsilon_warmup_steps and "scale" not in takes:
                    raise InputError(
                        "epsilon_warmup_steps: expected 0 with an attack other than PGD, "
                        f"got {self.epsilon_warmup_steps}"
                    )
                if hasattr(attack, "_model"):
                    attack._model.decide_precision(shape)
                    tell(f"arithmetic of the attack: {attack.precision}")
            self._target = _Target(logits, attack, num_classes)
        return self._target

    def _outputs(self, logits):
        """The model's own outputs for these logits."""
        return logits if self._target.logits is self.model else tf.nn.softmax(logits)

    def _update_metrics(self, x, y, weights, loss, count, outputs, correct):
        """Updates the metrics by a batch, and returns them."""
        self._loss_tracker.update_state(loss, sample_weight=count)
        self._robust_accuracy.update_state(tf.cast(correct, tf.float32))
        return self.compute_metrics(x, y, outputs, sample_weight=weights)


class _State(keras.Operation):
    """The state of a training beside weights and optimizer, which Keras saves and loads.

    It is the number of batches, which the optimizer's steps are not if it accumulates gradients;
    and the states of the model's random layers, such as dropout, which Keras leaves out of files.
    """

    def __init__(self, model):
        super().__init__(name="training_state")
        self.batches = keras.Variable(
            0, dtype="int32", trainable=False, aggregation="only_first_replica", name="batches"
        )
        # A function, so that Keras does not find the model within its own state.
        self._random_states = lambda: [
            variable for variable in model.variables if variable.name == "seed_generator_state"
        ]

    def next_batch(self):
        """The number of batches so far, an int32 tensor; counts one more."""
        number = tf.identity(self.batches.value)
        self.batches.assign_add(1)
        return number

    def _variables(self):
        return [self.batches, *self._random_states()]

    def save_own_variables(self, store):
        for number, variable in enumerate(self._variables()):
            store[str(number)] = variable.numpy()

    def load_own_variables(self, store):
        if len(store.keys()) == len(self._variables()):  # a file of the model itself has none
            for number, variable in enumerate(self._variables()):
                variable.assign(store[str(number)])


def _is_plain_xent(loss):
    """Whether a loss for `compile` is none, or the mean over the batch of the cross-entropy."""
    if isinstance(loss, _XENTS):
        return (
            type(loss) in _XENTS
            and not getattr(loss, "label_smoothing", 0)
            and getattr(loss, "ignore_class", None) is None
            and loss.reduction in ("sum_over_batch_size", "mean")
        )
    functions = [getattr(keras.losses, name) for name in _XENT]
    return loss is None or loss in _XENT or loss in functions


def _places(labels):
    """The positions of a replica's examples in the batch of a `tf.distribute.Strategy`.

    Args:
        labels: int (batch,), the replica's.

    Returns:
        int32 (batch,), and the mean number of examples of a replica. On one device None, for
        0, 1, 2, ..., and the number of examples.
    """
    count, replica = tf.shape(labels)[0], tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return None, count
    # Keras divides a batch into blocks, of which the last ones may be smaller.
    number, among = replica.replica_id_in_sync_group, replica.num_replicas_in_sync
    counts = tf.one_hot(number, among, dtype=tf.int64) * tf.cast(count, tf.int64)
    counts = tf.cast(replica.all_reduce(tf.distribute.ReduceOp.SUM, counts), tf.int32)
    mean = tf.cast(tf.reduce_sum(counts), tf.float32) / among
    return tf.reduce_sum(counts[:number]) + tf.range(count), mean


def _weighted_mean(weights, count, values):
    """Keras's loss of a batch: the mean over its examples of weight times loss.

    Args:
        weights: (batch,) or None for 1.
        count: the number of examples, or on several devices the mean number of a replica's, so
            that the mean of the replicas' results is the loss of the whole batch.
        values: float32 (batch,).
    """
    if weights is not None:
        values = values * tf.reshape(tf.cast(weights, tf.float32), [-1])
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tf.reduce_mean(values)
    return tf.reduce_sum(values) / count
