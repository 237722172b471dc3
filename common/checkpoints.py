"""Models on disk: training directories, ours and the originals', SavedModels and .keras files."""

import dataclasses
import functools
import hashlib
import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from common import checkpoint_files
from common import config as config_lib
from common.attack import FastModel
from common.errors import InputError, one_line, reason_of
from common.files import plain_path
from common.original_checkpoints import is_original, load_original

NUM_KEPT = 3  # checkpoints of a training


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to be evaluated.

    Attributes:
        logits: function from float32 images to float32 logits, in inference mode; a `FastModel`
            where the model is the challenge's own network.
        weights: the model's variables.
        path: where it lies.
        step: training step, or None where that is not known.
        model: the same as a keras.Model of the challenge's own network with trainable weights, or
            None where it is another network.
    """

    logits: Callable
    weights: list
    path: pathlib.Path
    step: int | None = None
    model: keras.Model | None = None

    @property
    def name(self):
        """The path, for records: within the project where it lies there."""
        path, project = self.path.resolve(), pathlib.Path(__file__).resolve().parents[1]
        return str(path.relative_to(project) if path.is_relative_to(project) else self.path)

    def restore_newest(self):
        """This training's newest checkpoint, read into the same weights.

        Raises:
            InputError: there is none that is whole, or it is of another network.
        """
        step = TrainingRun(self.path, self.model).restore()
        if step is None:
            raise InputError(f"--model_dir: expected a checkpoint in {self.path}, got none")
        return dataclasses.replace(self, step=step)

    def digest(self):
        """sha256 of the weights: the same for a checkpoint, a SavedModel and a .keras file."""
        parts = sorted(hashlib.sha256(np.asarray(w).tobytes()).hexdigest() for w in self.weights)
        return hashlib.sha256("".join(parts).encode()).hexdigest()


class TrainingRun:
    """The checkpoints of a training: model, optimizer and step, of which three are kept.

    Args:
        directory: where checkpoint-N lie.
        model: keras.Model that is evaluated.
        optimizer: keras optimizer, or None to restore the model alone.
        trained: keras.Model that the optimizer moves, if `model` is an average of it.
    """

    def __init__(self, directory, model, optimizer=None, trained=None):
        parts = {"model": model, "optimizer": optimizer, "trained": trained}
        parts = {name: part for name, part in parts.items() if part is not None}
        self._directory = pathlib.Path(directory)
        self._checkpoint = tf.train.Checkpoint(**parts)
        self._parts = parts

    def save(self, step):
        """Writes checkpoint-`step`, unless it is the newest already, and removes the fourth last.

        Raises:
            InputError: a weight is not finite, or the checkpoint cannot be written; the ones before
                are as they were.
        """
        if self.latest_step() == step:
            return
        if not all(_are_finite(part.variables) for part in self._parts.values()):
            raise InputError(
                f"the weights became infinite or NaN by step {step}; the newest checkpoint is from "
                "before. What helps: smaller rates in --step_size_schedule"
            )
        with checkpoint_files.written(self._directory) as place:
            self._checkpoint.write(str(place / f"checkpoint-{step}"))
        steps = checkpoint_files.steps_in(self._directory)
        checkpoint_files.name_newest(self._directory, steps[-NUM_KEPT:])
        for old in steps[:-NUM_KEPT]:
            checkpoint_files.remove(self._directory, old)

    def restore(self):
        """Restores the newest checkpoint that is whole, and prints which newer ones are not.

        Returns:
            Its step, or None if none was finished yet.

        Raises:
            InputError: none is whole, or it is of another network.
        """
        faults = {}
        for step in reversed(checkpoint_files.steps_in(self._directory)):
            fault = checkpoint_files.fault_of(self._directory, step)
            if fault is None:
                self._read(step)
                self._report(faults, f"taking checkpoint-{step}")
                return step
            faults[step] = fault
        # A kill can leave the first checkpoint unfinished, but no later one without one before it.
        for step, fault in faults.items():
            if step or fault.is_damage:
                raise self._unreadable(fault)
        self._report(faults, "no step was finished before it")
        return None

    def latest_step(self):
        """The step of the newest checkpoint, whole or not, or None."""
        return max(checkpoint_files.steps_in(self._directory), default=None)

    def _read(self, step):
        try:
            with plain_path(self._directory) as place:
                status = self._checkpoint.read(str(place / f"checkpoint-{step}"))
            status.assert_existing_objects_matched()
            status.expect_partial()  # evaluation leaves the optimizer's state unread
        except AssertionError as error:  # TensorFlow's, with a list of every variable
            raise self._unreadable(
                "expected a checkpoint of the network that its config.json describes, got another's"
            ) from error
        except checkpoint_files.READ_ERRORS as error:
            raise self._unreadable(error) from error

    def _report(self, faults, consequence):
        for step, fault in faults.items():
            print(f"note: checkpoint-{step} in {self._directory} is {fault}; {consequence}")

    def _unreadable(self, reason):
        return InputError(
            f"--model_dir: cannot load the checkpoint in {self._directory}: {one_line(reason)}"
        )


def _are_finite(variables):
    floats = [v for v in variables if tf.as_dtype(v.dtype).is_floating]
    return all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in floats)


def find_model(challenge, model_dir):
    """The path that `model_dir` means: a path, or the name of a shipped or fetched model.

    Raises:
        InputError: there is neither; the message names the shipped and the fetched models.
    """
    shipped = challenge.directory / "models"
    for path in (pathlib.Path(model_dir), shipped / model_dir):
        if path.exists():
            return path
    found = [*shipped.glob("*/saved_model.pb"), *shipped.glob("published/*/saved_model.pb")]
    names = ", ".join(sorted(path.parent.relative_to(shipped).as_posix() for path in found))
    raise InputError(
        f"--model_dir: expected a training directory, a SavedModel, a .keras file or a shipped "
        f"model ({names or 'none so far'}), got {model_dir}, which does not exist"
    )


def load_model(challenge, model_dir):
    """Loads a training directory's newest checkpoint, a SavedModel or a .keras file.

    The directory may be one of the original TensorFlow 1 code, as it is.

    Args:
        challenge: a `common.challenge.Challenge`; the model must take its images.
        model_dir: what --model_dir takes: a path, or the name of a shipped or fetched model.

    Returns:
        A `LoadedModel`.

    Raises:
        InputError: `model_dir` is no such thing, or a model for other images.
    """
    path = find_model(challenge, model_dir)
    try:
        if path.is_file() and path.suffix == ".keras":
            model = keras.models.load_model(path)
            _check_shapes(model.input_shape, model.output_shape, challenge, path)
            return _loaded(functools.partial(model, training=False), model.weights, path, challenge)
        if (path / "saved_model.pb").is_file():
            return _from_saved_model(path, challenge)
        is_own = (path / "config.json").is_file() and checkpoint_files.steps_in(path)
        if is_own or is_original(path):
            model, step = restore_training(challenge, path)
            logits = fast_model(model, challenge)
            return LoadedModel(logits, model.weights, path, step=step, model=model)
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"--model_dir: cannot load {path}: {one_line(error)}") from error
    raise InputError(
        f"--model_dir: expected a training directory with a checkpoint, a SavedModel or a .keras "
        f"file, got {path}"
    )


def load_keras_model(challenge, model_dir):
    """Loads a model as the challenge's own network in Keras, to train it further or to attack it.

    Args:
        challenge, model_dir: as in `load_model`.

    Returns:
        A keras.Model from float32 images (batch, height, width, channels), pixels in
        `challenge.bounds`, to float32 logits (batch, 10), with trainable weights.

    Raises:
        InputError: as in `load_model`, or the model is another network.
    """
    loaded = load_model(challenge, model_dir)
    if loaded.model is None:
        raise InputError(
            f"--model_dir: expected the {challenge.name} challenge's own network, which comes as a "
            f"keras.Model, got another one in {loaded.path}"
        )
    return loaded.model


def restore_training(challenge, directory):
    """The keras.Model of a training directory's newest checkpoint, and its step.

    Args:
        challenge: a `common.challenge.Challenge`.
        directory: of a training by `common.training.train` or by the original code.

    Raises:
        InputError: `directory` holds no training.
    """
    directory = pathlib.Path(directory)
    if is_original(directory):
        return load_original(challenge, directory)
    if not checkpoint_files.steps_in(directory):
        raise InputError(f"--model_dir: expected a training with a checkpoint, got {directory}")
    own = directory / "config.json"
    config = config_lib.make_config(challenge, (own, config_lib.read_json(own)))
    model = challenge.build_model(config)
    step = TrainingRun(directory, model).restore()
    if step is None:
        raise InputError(
            f"--model_dir: expected a training with a whole checkpoint, got {directory}"
        )
    return model, step


def fast_model(model, challenge):
    """The challenge's own keras.Model, in inference mode, as attacks run it fastest."""
    return FastModel(
        functools.partial(model, training=False),
        functools.partial(challenge.fast_logits, model),
        challenge.bounds,
    )


def _loaded(logits, weights, path, challenge):
    """A `LoadedModel` that knows the challenge's own network where it is one."""
    model = _own_network(logits, weights, challenge)
    if model is not None:
        logits = dataclasses.replace(fast_model(model, challenge), model=logits)
    return LoadedModel(logits, weights, path, model=model)


def _own_network(logits, weights, challenge):
    """The challenge's keras.Model with these weights, or None where it is another function."""
    shapes = [tuple(weight.shape) for weight in weights]
    size = challenge.size_of(shapes)
    if size is None:
        return None
    config = config_lib.make_config(challenge, ("weights", size))
    model = challenge.build_model(config)
    if shapes != [tuple(weight.shape) for weight in model.weights]:
        return None
    model.set_weights([np.asarray(weight) for weight in weights])
    low, high = challenge.bounds
    noise = np.random.default_rng(0).uniform(low, high, (4, *challenge.image_shape))
    x = tf.constant(noise, tf.float32)
    theirs, ours = logits(x).numpy(), model(x, training=False).numpy()
    scale = np.max(np.abs(ours), initial=1.0)
    return model if np.max(np.abs(theirs - ours)) <= 1e-4 * scale else None


def _from_saved_model(path, challenge):
    with plain_path(path) as place:
        loaded = tf.saved_model.load(str(place))
    if "serving_default" not in loaded.signatures:
        raise InputError(f"--model_dir: expected a signature serving_default in {path}")
    signature = loaded.signatures["serving_default"]
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            f"--model_dir: expected one input and one output of the signature serving_default in "
            f"{path}, got {', '.join(inputs)} and {', '.join(outputs)}"
        )
    ((name, image),), ((output, logits),) = inputs.items(), outputs.items()
    _check_shapes(image.shape, logits.shape, challenge, path)
    weights = getattr(loaded, "weights", None) or signature.variables
    # `loaded` must outlive the function, or its variables are gone.
    return _loaded(
        lambda x, keep=loaded: signature(**{name: x})[output], list(weights), path, challenge
    )


def _check_shapes(image, logits, challenge, path):
    image, logits = tuple(image), tuple(logits)
    if image != (None, *challenge.image_shape) or logits != (None, 10):
        raise InputError(
            f"--model_dir: expected a model of {challenge.name} images "
            f"{(None, *challenge.image_shape)} to logits (None, 10), "
            f"got one of {image} to {logits} in {path}"
        )


def export(model, path):
    """Writes a SavedModel: signature serving_default, input `image`, output `logits`.

    Args:
        model: keras.Model from images to logits.
        path: directory to write; an existing one is replaced once the new one is complete.

    Raises:
        InputError: it cannot be written; an existing one is as it was.
    """
    path = pathlib.Path(path)
    # Keras's own export would write every weight twice.
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    module.serve = tf.function(
        lambda image: {"logits": model(image, training=False)},
        input_signature=[
            tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image"),
        ],
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True
        ) as scratch:
            new, old = pathlib.Path(scratch) / "new", pathlib.Path(scratch) / "old"
            with plain_path(scratch) as place:
                tf.saved_model.save(
                    module, str(place / new.name), signatures={"serving_default": module.serve}
                )
            if path.exists():
                path.rename(old)
            new.rename(path)
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"cannot write the SavedModel {path}: {reason_of(error)}") from error
