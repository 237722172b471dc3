"""Any keras.Model, trained against an attack by `fit`."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.attack import is_misclassified, xent_loss
from common.attack.gradient import as_logits
from common.attack.inputs import as_raised, real_number, to_images, to_labels, whole_number
from common.attack.softmax import NUM_PROBED, attack_on, check_attack, logits_of
from common.errors import InputError, one_line
from common.training import losses, steps

_XENT = ("sparse_categorical_crossentropy", "categorical_crossentropy")


@dataclasses.dataclass(frozen=True)
class _Target:
    """The attacked function and its attack, in an object that Keras neither tracks nor saves."""

    logits: Callable
    attack: Any
    num_classes: int


@contextlib.contextmanager
def _as_lines():
    """Raises an `InputError` for a wrong batch, also from within a compiled step."""
    with as_raised():
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            said = re.search(r"assertion failed: \[(\w+: expected .*?), got\]", str(error))
            if said is None:
                raise
            raise InputError(f"{said[1]}, got others") from None


class AdversarialModel(keras.Model):
    """Trains a keras.Model against an attack: `compile`, `fit`, `evaluate`, as any other model.

    A step of `fit` is that of `common.training.steps`. The attack runs the model in inference
    mode, unless it has `batch_statistics` (see `common.attack.PGD`). Random augmentation belongs
    in the data set: the attack does not see a layer that augments only in training mode. Labels
    are classes or one-hot.

    `fit` reports the loss, the metrics and robust_accuracy of the batches' adversarial images, from
    before their updates. `evaluate`, and `fit` with validation_data, report cross-entropy and
    metrics of the natural images, and as robust_accuracy the share that is classified correctly
    both unattacked and attacked. `save` and `export` are the inner model's. So is a file of
    `save_weights`, which also holds the optimizer's and the dropouts' state: `load_weights`
    restores both. With `keras.callbacks.BackupAndRestore` an interrupted `fit` resumes to the same
    weights if its data come in the same order.

    Made and compiled in the scope of a `tf.distribute.Strategy`, together with the inner model, it
    trains on several devices. A step is that of one device up to rounding and batch norm, which
    uses each device's own statistics unless it is synchronized. Every batch needs an example for
    each device; `drop_remainder=True` of a tf.data.Dataset drops a smaller last one.

    Args:
        model: keras.Model from images to logits or, by a softmax at its end, to probabilities.
        attack: a `common.attack.PGD` on `model`, or a function from logits to one; with
            run_eagerly=True any `common.attack.Attack`.
        loss: one of `common.training.losses.LOSSES`, or a function (x_nat, x_adv, y, model) as
            described there.
        natural_weight, trades_beta: see `common.training.losses`.
        epsilon_warmup_steps: steps over which epsilon and step_size grow to their values.
        seed: int, which decides the random starts together with the optimizer's steps.
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
        self._target = None

    def compile(self, optimizer="rmsprop", loss=None, *args, **kwargs):
        """Compiles the model; see `keras.Model.compile`.

        Args:
            optimizer: keras optimizer.
            loss: None, or Keras's plain cross-entropy for classes or one-hot labels; in either case
                the loss is the constructor's, on logits.
            args, kwargs: the further ones of `keras.Model.compile`.

        Raises:
            InputError: `loss` is another one.
        """
        name = loss if isinstance(loss, str) or loss is None else getattr(loss, "name", None)
        name = name or getattr(loss, "__name__", None)
        is_plain = not (getattr(loss, "label_smoothing", 0) or getattr(loss, "ignore_class", None))
        if loss is not None and not (name in _XENT and is_plain):
            raise InputError(
                f"loss: expected None or one of {', '.join(_XENT)}, without label smoothing or a "
                f"class to ignore, got {one_line(name or repr(loss))}; AdversarialModel(loss=...) "
                "takes a function (x_nat, x_adv, y, model)"
            )
        super().compile(optimizer, None, *args, **kwargs)

    def call(self, x, training=None):
        """The inner model's outputs for images `x`."""
        return self.model(x, training=training)

    def fit(self, *args, **kwargs):
        """Trains the inner model; see `keras.Model.fit`."""
        self.built = self.built or self.model.built  # callbacks ask before the first batch
        with _as_lines():
            return super().fit(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Natural loss and metrics, and robust_accuracy; see `keras.Model.evaluate`."""
        with _as_lines():
            return super().evaluate(*args, **kwargs)

    def train_step(self, data):
        """One step of the min-max on a batch (x, y) or (x, y, sample_weight)."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        target = self._target_of(x)
        x_nat, labels = _batch_of(x, y, target)
        step = tf.cast(self.optimizer.iterations, tf.int32)
        index, count = _places(labels)
        x_adv = steps.ascend(
            target.attack, x_nat, labels, step, self.seed, self.epsilon_warmup_steps, index
        )
        loss, logits = steps.descend(
            self._loss_of,
            functools.partial(_weighted_mean, weights, count),
            target.logits,
            self.optimizer,
            x_nat,
            x_adv,
            labels,
        )
        correct = ~is_misclassified(logits, labels)
        return self._update_metrics(x, y, weights, loss, count, self._outputs(logits), correct)

    def test_step(self, data):
        """Natural loss and metrics of a batch, and its robust accuracy."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        target = self._target_of(x)
        x_nat, labels = _batch_of(x, y, target)
        logits = as_logits(target.logits(x_nat, training=False), x_nat)
        index, count = _places(labels)
        loss = _weighted_mean(weights, count, xent_loss(logits, labels))
        loss += tf.add_n(target.logits.losses or [0.0])
        places = {} if index is None else {"index": index}
        x_adv = target.attack.perturb(x_nat, labels, seed=self.seed, **places)
        attacked = as_logits(target.logits(x_adv, training=False), x_nat)
        correct = ~(is_misclassified(logits, labels) | is_misclassified(attacked, labels))
        return self._update_metrics(x, y, weights, loss, count, self._outputs(logits), correct)

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
        held = {"random_states": _RandomStates(self.model)}
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

    def _target_of(self, x):
        """The `_Target`, made on the first batch, whose shape the model needs."""
        if x.shape.rank != 4:
            raise InputError(
                "x: expected images (batch, height, width, channels), got shape "
                f"{x.shape if x.shape.rank is None else tuple(x.shape)}"
            )
        if self._target is None:
            shape = tuple(size or 32 for size in x.shape[1:])
            with tf.init_scope():  # a step may be traced
                noise = np.random.default_rng(0).uniform(size=(NUM_PROBED, *shape))
                noise = noise.astype(np.float32)
                logits = logits_of(self.model, noise)
                num_classes = as_logits(logits(noise, training=False)).shape[1]
                attack = attack_on(self.attack, self.model, logits)
                if hasattr(attack, "_model"):
                    attack._model.decide_precision(shape)
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


class _RandomStates(keras.Operation):
    """The states of a model's random layers, such as dropout, which Keras leaves out of files."""

    def __init__(self, model):
        super().__init__(name="random_states")
        self._states = [v for v in model.variables if v.name == "seed_generator_state"]

    def save_own_variables(self, store):
        for number, state in enumerate(self._states):
            store[str(number)] = state.numpy()

    def load_own_variables(self, store):
        if len(store.keys()) == len(self._states):  # a file of the model itself has none
            for number, state in enumerate(self._states):
                state.assign(store[str(number)])


def _batch_of(x, y, target):
    """A batch as float32 images and int labels."""
    if y is None:
        raise InputError("y: expected the labels of the images x, got none")
    x_nat = to_images(x, target.attack.bounds, "x")
    count = tf.shape(x_nat)[0] if x_nat.shape[0] is None else x_nat.shape[0]
    return x_nat, tf.convert_to_tensor(to_labels(y, count, target.num_classes))


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
