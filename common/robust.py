"""Robustness of any Keras model: an evaluation as strong as AutoAttack's, and training by `fit`.

Ten lines evaluate a network of yours on images of yours, any number of classes, grey or colour:

    import numpy as np, keras
    from common.attack import PGD
    from common.robust import AdversarialModel, RobustAccuracy, evaluate

    model = keras.models.load_model("mine.keras")  # logits or a softmax at its end
    x, y = np.load("images.npy"), np.load("labels.npy")  # (n, height, width, channels), (n,)
    print(evaluate(model, x, y, epsilon=8 / 255, bounds=(0, 1)))

    def attack(logits):
        return PGD(logits, epsilon=8 / 255, step_size=2 / 255, num_steps=10, bounds=(0, 1))

    trainer = AdversarialModel(model, attack)
    trainer.compile("adam", metrics=["accuracy"])
    trainer.fit(x, y, epochs=10, callbacks=[RobustAccuracy((x[:500], y[:500]), attack)])

An attack is given as a function from the logits to a `common.attack.Attack`, as here, or as an
attack on the model, if this returns logits. The last line watches training images only for
brevity; watch others.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.attack import APGD, is_misclassified, standard_suite, xent_loss
from common.attack.gradient import as_logits
from common.attack.inputs import (
    as_raised,
    pixel_range,
    real_number,
    to_images,
    to_labels,
    whole_number,
)
from common.errors import InputError, one_line
from common.evaluation import Evaluator, Result, Trial, pitfalls
from common.evaluation.report import describe, table_lines
from common.training import losses, steps

NUM_PROBED = 8  # images that tell whether a model returns logits
_XENT = ("sparse_categorical_crossentropy", "categorical_crossentropy")


# A model's logits.


def logits_of(model, images):
    """A model as attacks take it: without the softmax at its end, if there is one.

    Args:
        model: keras.Model, an `AdversarialModel`, or any function from float32 images to logits.
        images: float32 (n, height, width, channels), some that the model takes.

    Returns:
        `model` itself, if it returns logits; else a keras.Model of the same weights that does.

    Raises:
        InputError: it returns probabilities by something else than a softmax that is its last
            layer, or the activation of that layer; or neither logits nor probabilities.
    """
    model = model.model if isinstance(model, AdversarialModel) else model
    is_keras = isinstance(model, keras.Model)
    images = tf.convert_to_tensor(images, tf.float32)[:NUM_PROBED]
    with as_raised():
        outputs = as_logits(model(images, training=False) if is_keras else model(images), images)
    _refuse_nan(tf.reduce_any(tf.math.is_nan(outputs), axis=1))
    last = _last_operation(model) if is_keras else None
    if last is not None and _is_softmax(last):
        logits = _Logits(model, last)
        tolerance = 1e-4 if model.compute_dtype == "float32" else 2e-2
        again = tf.nn.softmax(as_logits(logits(images, training=False)))
        if np.allclose(again, outputs, atol=tolerance):
            return logits
    if pitfalls.softmax_outputs(outputs):
        raise InputError(
            "model: expected logits, or a softmax as the last layer of a keras.Model; got "
            "probabilities whose softmax was not found; give the model without it"
        )
    return model


class _Logits(keras.Model):
    """A keras.Model without the softmax that its last operation is, or has as activation."""

    def __init__(self, model, softmax):
        # Keras's own name would begin with an underscore, which TensorFlow's scopes refuse.
        super().__init__(autocast=False, dtype=model.dtype_policy, name="logits")
        self.model = model
        # A function, so that Keras does not hold the layer twice.
        self._without = functools.partial(_without_softmax, softmax)

    def call(self, images, training=None):
        """The logits."""
        with self._without():
            return self.model(images, training=training)


def _last_operation(model):
    """The layer or op that makes a model's output; in a subclassed model the last one it holds."""
    while isinstance(model, keras.Model):
        layers = model.layers
        if isinstance(model, keras.Sequential) or not getattr(model, "outputs", None):
            if not layers:
                return None
            model = layers[-1]
        elif len(model.outputs) == 1:
            model = model.outputs[0]._keras_history.operation
        else:
            return None
    return model


def _is_softmax(operation):
    activation = getattr(operation, "activation", None)
    if activation is not None:
        return getattr(activation, "__name__", "") == "softmax"
    return type(operation).__name__ == "Softmax"


@contextlib.contextmanager
def _without_softmax(operation):
    """Within it, a softmax operation returns its input, or has no activation."""
    name = "activation" if getattr(operation, "activation", None) is not None else "call"
    before = getattr(operation, name)
    setattr(operation, name, lambda x, *args, **kwargs: x)
    try:
        yield
    finally:
        if name == "call":
            del operation.call  # the class's own is seen again
        else:
            operation.activation = before


def _refuse_nan(is_nan):
    count = int(np.count_nonzero(is_nan))
    if count:
        raise InputError(
            f"model: expected logits that are numbers, got NaN for {count} of {len(is_nan)} images"
        )


def _on(attack, model, logits):
    """The attack, on `logits` if it is a function from those to an attack."""
    if not hasattr(attack, "perturb"):
        made = attack(logits) if callable(attack) else None
        if not hasattr(made, "perturb"):
            got = one_line(repr(attack if made is None else made))
            raise InputError(
                f"attack: expected an attack, or a function from logits to one, got {got}"
            )
        return made
    if logits is not model and getattr(getattr(attack, "_model", None), "_model", None) is model:
        raise InputError(
            "attack: the model ends in a softmax, and attacks need the logits before it; give a "
            "function, such as lambda logits: PGD(logits, epsilon=...)"
        )
    return attack


# Training.


@dataclasses.dataclass(frozen=True)
class _Target:
    """What is attacked and how; no part that Keras would hold or save."""

    logits: Callable
    attack: Any
    num_classes: int


@contextlib.contextmanager
def _as_lines():
    """Lets what is wrong with a batch out as an `InputError`, also from a compiled step."""
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
    in the data set, since a layer that augments in training mode alone is not in what the attack
    sees. Labels are classes or one-hot.

    `fit` tells the loss, the metrics and robust_accuracy of the batches' adversarial images, from
    before their updates. `evaluate`, and `fit` with validation_data, tell cross-entropy and metrics
    of the natural images, and as robust_accuracy the share that is classified correctly both as it
    is and under the attack. `save`, `export`, `save_weights` and `load_weights` are the inner
    model's.

    Made and compiled in the scope of a `tf.distribute.Strategy`, together with the inner model, it
    trains on several devices. A step is that of one device but for rounding, and for batch norm,
    whose statistics are of each device's part unless it is synchronized.

    Args:
        model: keras.Model from images to logits or, by a softmax at its end, to probabilities.
        attack: a `common.attack.PGD` on `model`, or a function from logits to one; with
            run_eagerly=True any `common.attack.Attack`.
        loss: one of `common.training.losses.LOSSES`, or a function (x_nat, x_adv, y, model) as
            described there.
        natural_weight, trades_beta: see `common.training.losses`.
        epsilon_warmup_steps: steps over which epsilon and step_size grow to their values.
        seed: int, which decides the random starts together with the optimizer's steps.
        **kwargs: name, see keras.Model.

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
        if not (hasattr(attack, "perturb") or callable(attack)):
            _on(attack, model, model)
        weight = real_number("natural_weight", natural_weight, 0.0, 1.0)
        beta = real_number("trades_beta", trades_beta, 0.0)
        # The pixels stay as they are until the inner model casts them.
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
            loss: None, or Keras's plain cross-entropy for classes or one-hot labels, which is what
                this class takes in any case, and of the logits.
            *args, **kwargs: see `keras.Model.compile`.

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
        """The inner model's outputs."""
        return self.model(x, training=training)

    def fit(self, *args, **kwargs):
        """Trains the inner model; see `keras.Model.fit`."""
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
        return self._told(x, y, weights, loss, count, self._outputs(logits), correct)

    def test_step(self, data):
        """Natural loss and metrics of a batch, and its robust accuracy."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        target = self._target_of(x)
        x_nat, labels = _batch_of(x, y, target)
        logits = as_logits(target.logits(x_nat, training=False), x_nat)
        index, count = _places(labels)
        loss = _weighted_mean(weights, count, xent_loss(logits, labels))
        loss += tf.add_n(target.logits.losses or [0.0])
        x_adv = target.attack.perturb(x_nat, labels, seed=self.seed, index=index)
        attacked = as_logits(target.logits(x_adv, training=False), x_nat)
        correct = ~(is_misclassified(logits, labels) | is_misclassified(attacked, labels))
        return self._told(x, y, weights, loss, count, self._outputs(logits), correct)

    def save(self, *args, **kwargs):
        """Saves the inner model; see `keras.Model.save`."""
        return self.model.save(*args, **kwargs)

    def export(self, *args, **kwargs):
        """Exports the inner model; see `keras.Model.export`."""
        return self.model.export(*args, **kwargs)

    def save_weights(self, *args, **kwargs):
        """Saves the inner model's weights; see `keras.Model.save_weights`."""
        return self.model.save_weights(*args, **kwargs)

    def load_weights(self, *args, **kwargs):
        """Loads the inner model's weights; see `keras.Model.load_weights`."""
        return self.model.load_weights(*args, **kwargs)

    def _target_of(self, x):
        """The `_Target`, made on the first batch, whose shape the model needs."""
        if self._target is None:
            shape = tuple(size or 32 for size in x.shape[1:])
            with tf.init_scope():  # a step may be traced
                noise = np.random.default_rng(0).uniform(size=(NUM_PROBED, *shape))
                noise = noise.astype(np.float32)
                logits = logits_of(self.model, noise)
                num_classes = as_logits(logits(noise, training=False)).shape[1]
                attack = _on(self.attack, self.model, logits)
                if hasattr(attack, "_model"):
                    attack._model.decide_precision(shape)
            self._target = _Target(logits, attack, num_classes)
        return self._target

    def _outputs(self, logits):
        """What the model itself returns for these logits."""
        return logits if self._target.logits is self.model else tf.nn.softmax(logits)

    def _told(self, x, y, weights, loss, count, outputs, correct):
        """The metrics after a batch."""
        self._loss_tracker.update_state(loss, sample_weight=count)
        self._robust_accuracy.update_state(tf.cast(correct, tf.float32))
        return self.compute_metrics(x, y, outputs, sample_weight=weights)


def _batch_of(x, y, target):
    """A batch as float32 images and int labels."""
    x_nat = to_images(x, target.attack.bounds, "x")
    count = tf.shape(x_nat)[0] if x_nat.shape[0] is None else x_nat.shape[0]
    return x_nat, tf.convert_to_tensor(to_labels(y, count, target.num_classes))


def _places(labels):
    """Where a replica's examples stand in the batch of all devices of a `tf.distribute.Strategy`.

    Args:
        labels: int (batch,), the replica's.

    Returns:
        Their numbers, int32 (batch,), and the mean number of examples of a replica. On one device
        None, for 0, 1, 2, ..., and the number of examples.
    """
    count, replica = tf.shape(labels)[0], tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return None, count
    # Keras deals a batch out in blocks, of which the last ones may be smaller.
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


class RobustAccuracy(keras.callbacks.Callback):
    """Logs val_robust_accuracy: the share of some images that withstands an attack.

    It must stand before the callbacks that look at it, which want mode="max":

        callbacks=[
            RobustAccuracy(data, attack),
            keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=5),
        ]

    For any keras.Model. An `AdversarialModel` with validation_data logs one under its own attack,
    which this one's takes the place of.

    Args:
        data: images and labels, (x, y), or a data set of them, see `evaluate`.
        attack: a `common.attack.Attack` on the model, or a function from logits to one.
        every: epochs from one to the next; the others log none.
        batch_size: images at a time.
        seed: int, which decides the random numbers.
    """

    def __init__(self, data, attack, every=1, *, batch_size=100, seed=0):
        super().__init__()
        is_pair = isinstance(data, (tuple, list))
        self._x, self._y = _arrays(*data[:2]) if is_pair else _arrays(data)
        self._attack, self.every = attack, whole_number("every", every, 1)
        self._options = {"batch_size": batch_size, "seed": seed}
        self._evaluator = self._of = None

    def on_epoch_end(self, epoch, logs=None):
        """Adds val_robust_accuracy to `logs`."""
        if (epoch + 1) % self.every:
            return
        if self._of is not self.model:
            model = self.model.model if isinstance(self.model, AdversarialModel) else self.model
            logits = logits_of(model, np.asarray(self._x[:NUM_PROBED], np.float32))
            attack = _on(self._attack, model, logits)
            self._evaluator = _evaluator(logits, [Trial(attack)], attack.bounds, **self._options)
            self._of = self.model
        result = self._evaluator.run(self._x, self._y)
        if logs is not None:
            logs["val_robust_accuracy"] = float(np.mean(result.adversarial_correct))


# Evaluation.


@dataclasses.dataclass(frozen=True)
class Report:
    """What `evaluate` found; `str` is a table, warnings and the line to quote.

    Attributes:
        result: a `common.evaluation.Result`, which has the images that the attacks found.
        trials: the attacks, a tuple of `common.evaluation.Trial`.
        warnings: what speaks against the evaluation, a list of lines, see `pitfalls`.
        settings: dict of suite, epsilon, bounds, norm, seed and batch_size.
    """

    result: Result
    trials: tuple
    warnings: list
    settings: dict

    @property
    def line(self):
        """The line to quote."""
        found, its = self.to_dict(), self.settings
        (low, high), bounds = found["confidence_interval"], its["bounds"]
        return (
            f"robust accuracy {found['adversarial_accuracy']:.2f}% (95% confidence interval "
            f"{low:.2f}% to {high:.2f}%), natural {found['natural_accuracy']:.2f}%: "
            f"{found['num_examples']:,} images, {its['norm']} epsilon {its['epsilon']:g} of pixels "
            f"in [{bounds[0]:g}, {bounds[1]:g}], attacks: {its['suite']}"
        )

    def to_dict(self):
        """All numbers as a dict for JSON; accuracies in percent, see `report.describe`."""
        return {**self.settings, **describe(self.trials, self.result), "warnings": self.warnings}

    def __str__(self):
        warnings = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([*table_lines(self.trials, self.result), *warnings, self.line])


def evaluate(
    model,
    x,
    y=None,
    *,
    epsilon,
    bounds,
    norm="linf",
    suite="standard",
    batch_size=100,
    seed=0,
    precision="auto",
    jit_compile="auto",
    show_progress=True,
):
    """Natural accuracy, and accuracy in the worst case over attacks, of any model.

    An image that is misclassified as it is counts as broken. The numbers are those of eval.py.

    Args:
        model: keras.Model, which may end in a softmax, or a function from float32 images to logits.
        x: images (n, height, width, channels) of any real dtype, pixels in `bounds`; or a
            tf.data.Dataset or keras PyDataset of (x, y), in batches or, if a Dataset, one by one.
        y: labels: classes (n,) or (n, 1), or one-hot (n, classes); None beside a data set.
        epsilon: radius of the ball, in the units of `bounds`.
        bounds: (lowest, highest) pixel value that the model is given: (0, 1) or (0, 255), say.
        norm: "linf" or "l2".
        suite: "standard", AutoAttack's four attacks; or a list of attacks, each as in
            `RobustAccuracy`, of the same epsilon, bounds and norm. The targeted DLR loss needs
            four classes: for three the plain one takes its place, and for two none does.
        batch_size: images at a time.
        seed: int, which decides the random numbers.
        precision, jit_compile: see `common.attack.Attack`.
        show_progress: whether to show bars on stderr.

    Returns:
        A `Report`.

    Raises:
        InputError: pixels are outside `bounds` or not finite; labels are not classes of the model;
            its outputs are not numbers, no logits, or have no gradient for the images; a setting is
            out of range. The message is one line.
    """
    x, y = _arrays(x, y)
    bounds = pixel_range(bounds)
    few = to_images(x[: pitfalls.NUM_IMAGES], bounds, "x")
    to_labels(y, len(x))
    inner = model.model if isinstance(model, AdversarialModel) else model
    logits = logits_of(inner, few)
    options = {"epsilon": epsilon, "bounds": bounds, "norm": norm}
    name, attacks = _attacks(
        suite, inner, logits, few, {**options, "precision": precision, "jit_compile": jit_compile}
    )
    trials = [Trial(attack, name=attack.name) for attack in attacks]
    evaluator = _evaluator(logits, [], bounds, batch_size, seed)
    # All that is wrong with an image, a label or a logit shows before the first attack.
    _refuse_nan(np.isnan(evaluator.run(x, y).natural_losses))
    evaluator.trials, evaluator.show_progress = trials, show_progress
    warnings = pitfalls.check_model(
        logits, few, y[: len(few)], batch_size=evaluator.batch_size, seed=evaluator.seed, **options
    )
    result = evaluator.run(x, y)
    warnings += pitfalls.check_result(result, trials) + pitfalls.undefined_gradients_in(result)
    settings = {"suite": name, **options, "bounds": list(bounds), "epsilon": float(epsilon)}
    settings |= {"seed": evaluator.seed, "batch_size": evaluator.batch_size}
    return Report(result, tuple(trials), warnings, settings)


def _evaluator(logits, trials, bounds, batch_size, seed):
    return Evaluator(
        logits,
        trials,
        to_pixels=lambda images: to_images(images, bounds, "x"),
        batch_size=batch_size,
        seed=seed,
        spare_misclassified=True,
        show_progress=False,
    )


def _attacks(suite, model, logits, few, options):
    """The name and the list of a suite's attacks."""
    if not isinstance(suite, str):
        attacks = [_on(attack, model, logits) for attack in suite]
        if not attacks:
            raise InputError("suite: expected one attack or more, got none")
        for attack in attacks:
            for name in ("epsilon", "bounds", "norm"):
                its, asked = getattr(attack, name, options[name]), options[name]
                if its != asked:
                    raise InputError(
                        f"suite: expected attacks of {name} {asked}, got {attack.name} of {its}"
                    )
        return ", ".join(attack.name for attack in attacks), attacks
    if suite != "standard":
        raise InputError(f"suite: expected standard or a list of attacks, got {suite!r}")
    attacks = [attack for _, attack in standard_suite(logits, **options)]
    with as_raised():
        num_classes = as_logits(logits(few[:1])).shape[1]
    if num_classes < 4:
        plain = [APGD(logits, loss_func="dlr", **options)] if num_classes == 3 else []
        attacks = [attacks[0], *plain, *attacks[2:]]
        return ", ".join(attack.name for attack in attacks), attacks
    return suite, attacks


def _arrays(x, y=None):
    """Images and labels as arrays; a data set is read to its end."""
    is_dataset = isinstance(x, tf.data.Dataset)
    if is_dataset or isinstance(x, keras.utils.PyDataset):
        if y is not None:
            raise InputError("y: expected none beside a data set, which has its own labels")
        batches = x if is_dataset else (x[number] for number in range(x.num_batches or 0))
        if is_dataset and x.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise InputError("x: expected a data set with an end, got one that repeats for ever")
        parts = []
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) < 2:
                raise InputError("x: expected a data set of pairs (images, labels)")
            parts.append((np.asarray(batch[0]), np.asarray(batch[1])))
        join = np.concatenate if parts and parts[0][0].ndim == 4 else np.stack
        x, y = (join(part) for part in zip(*parts)) if parts else ((), ())
    elif y is None:
        raise InputError("y: expected the labels of the images x, got none")
    x, y = (values if isinstance(values, np.ndarray) else np.asarray(values) for values in (x, y))
    if not len(x):
        raise InputError("x: expected one image or more, got none")
    return x, y
