"""The logits of a keras.Model, without the softmax at its end if it has one."""

import contextlib
import functools
import re
import threading

import keras
import numpy as np
import tensorflow as tf

from common.attack.gradient import as_logits, in_inference_mode
from common.errors import InputError, one_line

NUM_PROBED = 8  # images for checking whether a model returns logits
PROBABILITY_TOLERANCE = 1e-5  # AutoAttack's
ROUNDED_TOLERANCE = 2e-2  # for outputs of float16 and bfloat16
_ROUNDED = {tf.float16, tf.bfloat16, "float16", "bfloat16"}
_LOCK, _REMOVED = threading.Lock(), {}  # of `without_softmax`


def are_probabilities(outputs, tolerance=PROBABILITY_TOLERANCE):
    """Whether outputs (n, classes) are within 0 and 1 and add up to 1, to a tolerance."""
    outputs = np.asarray(outputs)
    is_within = (outputs > -tolerance) & (outputs < 1 + tolerance)
    return bool(is_within.all() and (np.abs(outputs.sum(axis=-1) - 1) < tolerance).all())


def logits_of(model, images):
    """A model that returns logits: without the softmax at its end, if there is one.

    Args:
        model: keras.Model, or any function from float32 images to logits.
        images: float32 (n, height, width, channels), to check the outputs.

    Returns:
        `model` itself, if it returns logits; else a keras.Model of the same weights that does.

    Raises:
        InputError: it returns probabilities by something else than a softmax that is its last
            layer, or the activation of that layer; or neither logits nor probabilities.
    """
    is_keras = isinstance(model, keras.Model)
    if not callable(model):
        raise InputError(
            f"model: expected a keras.Model or a function, got {one_line(repr(model))}"
        )
    images = tf.convert_to_tensor(images, tf.float32)[:NUM_PROBED]
    try:
        given = in_inference_mode(model)(images)
    except InputError:
        raise
    except Exception as error:  # whatever Keras, TensorFlow or the function itself raises
        size = " x ".join(map(str, images.shape[1:]))
        raise InputError(
            f"model: expected one that takes images of {size}, got {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error
    outputs = as_logits(given, images)
    refuse_nan(tf.reduce_any(tf.math.is_nan(outputs), axis=1))
    is_rounded = {getattr(given, "dtype", None), getattr(model, "compute_dtype", None)} & _ROUNDED
    last = last_operation(model) if is_keras else None
    if last is not None and _may_be_softmax(last):
        logits = WithoutSoftmax(model, last)
        tolerance = ROUNDED_TOLERANCE if is_rounded else 1e-4
        again = tf.nn.softmax(as_logits(logits(images, training=False)))
        if np.allclose(again, outputs, atol=tolerance):
            return logits
    if are_probabilities(outputs, ROUNDED_TOLERANCE if is_rounded else PROBABILITY_TOLERANCE):
        raise InputError(
            "model: expected logits, or a softmax as the last layer of a keras.Model; got "
            "probabilities whose softmax was not found; give the model without it"
        )
    return model


class WithoutSoftmax(keras.Model):
    """A keras.Model without the softmax that its last operation is, or has as activation."""

    def __init__(self, model, softmax):
        # Keras's own name would begin with an underscore, which TensorFlow's scopes refuse.
        super().__init__(autocast=False, dtype=model.dtype_policy, name="logits")
        self.model = model
        # A function, so that Keras does not hold the layer twice.
        self._without = functools.partial(without_softmax, softmax)

    def call(self, images, training=None):
        """The logits."""
        with self._without():
            return self.model(images, training=training)


def last_operation(model):
    """The layer or op of a model's output; in a subclassed model its last layer."""
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


def _may_be_softmax(operation):
    """Whether it has an activation, such as tf.nn.softmax, or is a softmax by its class."""
    has_one = getattr(operation, "activation", None) is not None
    return has_one or type(operation).__name__ == "Softmax"


@contextlib.contextmanager
def without_softmax(operation):
    """Within it, a softmax operation returns its input, or has no activation.

    Several threads, such as the replicas of a `tf.distribute.Strategy`, may be within it at once:
    the last one to leave puts the softmax back.
    """
    key = id(operation)
    with _LOCK:
        if key not in _REMOVED:
            name = "activation" if getattr(operation, "activation", None) is not None else "call"
            _REMOVED[key] = [name, getattr(operation, name), 0]
            setattr(operation, name, lambda x, *args, **kwargs: x)
        _REMOVED[key][2] += 1
    try:
        yield
    finally:
        with _LOCK:
            name, before, count = _REMOVED[key]
            _REMOVED[key][2] = count - 1
            if count == 1:
                del _REMOVED[key]
                if name == "call":
                    del operation.call  # the class's own is seen again
                else:
                    operation.activation = before


def _first_line(error):
    """The first line of an exception, without Keras's preamble and colours."""
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()
    told = [line for line in lines if line.strip() and not line.startswith("Exception encountered")]
    return one_line(told[0] if told else "no reason")


def refuse_nan(is_nan):
    """Raises InputError if any entry of bool (n,) says that an image's logits are not numbers."""
    count = int(np.count_nonzero(is_nan))
    if count:
        raise InputError(
            f"model: expected logits that are numbers, got NaN for {count} of {len(is_nan)} images"
        )


def check_attack(attack):
    """Raises InputError if it is neither an attack nor a function, which may make one."""
    if not (hasattr(attack, "perturb") or callable(attack)):
        raise InputError(f"{_EXPECTED}, got {one_line(repr(attack))}")


def check_parts(attack):
    """Raises InputError if an attack lacks what an evaluation needs beside `perturb`."""
    missing = [name for name in _PARTS if not hasattr(attack, name)]
    if missing:
        raise InputError(
            f"{_EXPECTED}, got {one_line(repr(attack))} without {', '.join(missing)}; "
            "common.attack.Attack has them"
        )


def attack_on(attack, model, logits):
    """Returns an attack, or the result of a function from logits to one.

    Args:
        attack: a `common.attack.Attack`, or a function from logits to one.
        model: what the user gave.
        logits: `logits_of(model)`.

    Raises:
        InputError: it is neither; or the attack is on `model`, which returns no logits.
    """
    check_attack(attack)
    if not hasattr(attack, "perturb"):
        made = attack(logits)
        if not hasattr(made, "perturb"):
            raise InputError(f"{_EXPECTED}, got a function to {one_line(repr(made))}")
        attack = made
    if logits is not model and getattr(getattr(attack, "_model", None), "_model", None) is model:
        raise InputError(
            "attack: the model ends in a softmax, and attacks need the logits before it; give a "
            "function that attacks its argument, such as lambda logits: PGD(logits, epsilon=...)"
        )
    return attack


_PARTS = ("name", "bounds", "num_gradients", "settings")
_EXPECTED = "attack: expected an attack, or a function from logits to one"
