"""Models on disk: trainings, ours and the originals', SavedModels, .keras files, npz files."""

import dataclasses
import functools
import hashlib
import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from common import checkpoint_files, rounded_weights
from common import config as config_lib
from common.attack import FastModel
from common.attack.gradient import in_inference_mode
from common.errors import InputError, one_line, reason_of
from common.files import expand_path, plain_path
from common.messages import tell
from common.original_checkpoints import is_original, load_original

MOST_UNROLLED = 8  # calls that one graph contains of a model with a fixed batch size
NUM_KEPT = 3  # checkpoints of a training


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to be evaluated.

    Attributes:
        logits: function from float32 images to float32 logits, in inference mode: a `FastModel`
            for the challenge's own network; for another .keras file of float32 images in batches
            of any size, `in_inference_mode` of its keras.Model, which attacks can run in bfloat16.
        weights: the model's variables.
        path: pathlib.Path of the model.
        step: training step, or None if it is not known.
        model: the challenge's own network as a keras.Model with trainable weights, or None for
            another network.
    """

    logits: Callable
    weights: list
    path: pathlib.Path
    step: int | None = None
    model: keras.Model | None = None

    @property
    def name(self):
        """The path, for records: relative to the project if the model lies within it."""
        path, project = self.path.resolve(), pathlib.Path(__file__).resolve().parents[1]
        return str(path.relative_to(project) if path.is_relative_to(project) else self.path)

    def restore_newest(self):
        """Reads this training's newest checkpoint into the same weights.

        Returns:
            A `LoadedModel` of that step.

        Raises:
            InputError: no checkpoint is whole, or it belongs to another network.
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
    """The checkpoints of a training: model, optimizer and step. The newest three are kept.

    Args:
        directory: the folder of checkpoint-N.
        model: keras.Model that is evaluated.
        optimizer: keras optimizer, or None to restore only the model.
        trained: keras.Model that the optimizer updates, or None if that is `model`.
    """

    def __init__(self, directory, model, optimizer=None, trained=None):
        parts = {"model": model, "optimizer": optimizer, "trained": trained}
        parts = {name: part for name, part in parts.items() if part is not None}
        seeds = [] if optimizer is None else _seeds_of(parts.get("trained", model))
        self._directory = pathlib.Path(directory)
        self._checkpoint = tf.train.Checkpoint(**parts, **({"seeds": seeds} if seeds else {}))
        self._parts = parts

    def save(self, step):
        """Writes checkpoint-`step`, unless it is the newest already, and keeps the newest three.

        Raises:
            InputError: a weight is not finite, or the checkpoint cannot be written; the earlier
                ones are unchanged.
        """
        if self.latest_step() == step:
            return
        if not all(_are_finite(part.variables) for part in self._parts.values()):
            raise InputError(
                f"the weights became infinite or NaN by step {step}; the newest checkpoint is from "
                "before. Try smaller rates in --step_size_schedule"
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
            Its step, or None if no checkpoint was finished yet.

        Raises:
            InputError: no checkpoint is whole, or it belongs to another network.
        """
        faults = {}
        for step in reversed(checkpoint_files.steps_in(self._directory)):
            fault = checkpoint_files.fault_of(self._directory, step)
            if fault is None:
                self._read(step)
                self._report(faults, f"taking checkpoint-{step}")
                return step
            faults[step] = fault
        # A kill can leave the first checkpoint unfinished; a later one has a whole one before it.
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
            status.expect_partial()  # evaluation does not read the optimizer's state
        except AssertionError as error:  # TensorFlow's, with a list of every variable
            raise self._unreadable(
                "expected a checkpoint of the network that its config.json describes, got another's"
            ) from error
        except checkpoint_files.READ_ERRORS as error:
            raise self._unreadable(error) from error

    def _report(self, faults, consequence):
        for step, fault in faults.items():
            tell(f"note: checkpoint-{step} in {self._directory} is {fault}; {consequence}")

    def _unreadable(self, reason):
        return InputError(
            f"--model_dir: cannot load the checkpoint in {self._directory}: {one_line(reason)}"
        )


def _seeds_of(model):
    """The seeds of a network's random layers, such as dropout, which are not among its weights."""
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _are_finite(variables):
    floats = [v for v in variables if tf.as_dtype(v.dtype).is_floating]
    return all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in floats)


def find_model(challenge, model_dir):
    """The path that `model_dir` means: a path, or the name of a shipped or fetched model.

    Args:
        challenge: a `common.challenge.Challenge`.
        model_dir: the path or name, a str or pathlib.Path.

    Raises:
        InputError: there is neither (the message names the shipped and the fetched models), or the
            path is not valid or cannot be read.
    """
    shipped = challenge.directory / "models"
    try:
        model_dir = expand_path(model_dir)
        for path in (pathlib.Path(model_dir), shipped / model_dir):
            if path.exists():
                return path
    except InputError as error:
        raise InputError(f"--model_dir: {error}") from None
    except OSError as error:  # such as a name that is too long
        raise InputError(f"--model_dir: cannot read {model_dir}: {reason_of(error)}") from None
    kinds = "*/saved_model.pb", "published/*/saved_model.pb", "*/weights-1-of-*.npz"
    found = {path.parent for kind in kinds for path in shipped.glob(kind)}
    names = ", ".join(sorted(path.relative_to(shipped).as_posix() for path in found))
    raise InputError(
        f"--model_dir: expected a training directory, a SavedModel, a .keras file or a shipped "
        f"model ({names or 'none so far'}), got {model_dir}, which does not exist"
    )


def load_model(challenge, model_dir):
    """Loads a training directory's newest checkpoint, a SavedModel or a .keras file.

    It also loads directories of the original TensorFlow 1 code, and those of `export_rounded`.

    A model is a program: when it is loaded or called, a SavedModel or .keras file does whatever its
    author wrote into it, such as reading and writing files. TensorFlow's SECURITY.md says the same.
    Keras's safe mode is on, which refuses Lambda layers and nothing else; the README says how to
    evaluate a model that you do not trust.

    The model may compute in any float dtype, and take images of any size and batches of any or of
    one fixed size: `LoadedModel.logits` takes any number of float32 images.

    Args:
        challenge: a `common.challenge.Challenge`; the model must take its images.
        model_dir: what --model_dir takes: a path, or the name of a shipped or fetched model.

    Returns:
        A `LoadedModel`.

    Raises:
        InputError: `model_dir` is not such a model, or it is a model for other images.
    """
    path = find_model(challenge, model_dir)
    try:
        if path.is_file() and path.suffix == ".keras":
            return _from_keras(path, challenge)
        if (path / "saved_model.pb").is_file():
            return _from_saved_model(path, challenge)
        if rounded_weights.are_in(path):
            return _from_rounded(path, challenge)
        is_own = (path / "config.json").is_file() and checkpoint_files.steps_in(path)
        if is_own or is_original(path):
            model, step = restore_training(challenge, path)
            logits = fast_model(model, challenge)
            return LoadedModel(logits, model.weights, path, step=step, model=model)
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"--model_dir: cannot load {path}: {one_line(error)}") from error
    hint = "; Keras saves such a model as .keras, too" if path.suffix in (".h5", ".hdf5") else ""
    raise InputError(
        f"--model_dir: expected a training directory with a checkpoint, a SavedModel or a .keras "
        f"file, got {path}{hint}"
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
        directory: a training's, by `common.training.train` or by the original code.

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
    """The challenge's own keras.Model, in inference mode, in its fastest form for attacks.

    Args:
        model: keras.Model of the challenge's network.
        challenge: a `common.challenge.Challenge`.

    Returns:
        A `common.attack.FastModel`.
    """
    return FastModel(
        functools.partial(model, training=False),
        functools.partial(challenge.fast_logits, model),
        challenge.bounds,
        model,
    )


def _loaded(logits, weights, path, challenge):
    """Makes a `LoadedModel`, which knows whether it is the challenge's own network."""
    model = _own_network(logits, weights, challenge)
    if model is not None:
        logits = dataclasses.replace(fast_model(model, challenge), model=logits)
    return LoadedModel(logits, weights, path, model=model)


def _own_network(logits, weights, challenge):
    """The challenge's keras.Model with these weights, or None if it is another function."""
    model = _network_of([tuple(weight.shape) for weight in weights], challenge)
    if model is None:
        return None
    model.set_weights([np.asarray(weight) for weight in weights])
    x = _noise(challenge)
    theirs, ours = logits(x).numpy(), model(x, training=False).numpy()
    scale = np.max(np.abs(ours), initial=1.0)
    return model if np.max(np.abs(theirs - ours)) <= 1e-4 * scale else None


def _network_of(shapes, challenge):
    """The challenge's keras.Model whose weights have these shapes, or None if there is none."""
    size = challenge.size_of(shapes)
    if size is None:
        return None
    try:
        config = config_lib.make_config(challenge, ("weights", size))
    except InputError:  # larger than any network of the challenge
        return None
    model = challenge.build_model(config)
    return model if shapes == [tuple(weight.shape) for weight in model.weights] else None


def _noise(challenge):
    """Four float32 images of random pixels."""
    low, high = challenge.bounds
    noise = np.random.default_rng(0).uniform(low, high, (4, *challenge.image_shape))
    return tf.constant(noise, tf.float32)


def _from_keras(path, challenge):
    # Its loss and metrics are not needed, and may be classes that are not defined here.
    model = keras.models.load_model(path, compile=False, safe_mode=True)
    inputs, outputs = (getattr(model, part, None) for part in ("inputs", "outputs"))
    if not inputs or not outputs:  # a subclassed model, which shows them only in a call
        image, logits = tf.TensorSpec(None, model.input_dtype), tf.TensorSpec(None)
    elif len(inputs) != 1 or len(outputs) != 1:
        raise _several([x.name for x in inputs], [x.name for x in outputs], path)
    else:
        image, logits = (tf.TensorSpec(x.shape, x.dtype) for x in (*inputs, *outputs))

    def call(x):
        results = tf.nest.flatten(model(x, training=False))
        if len(results) != 1:
            raise _several(["1"], [str(len(results))], path)
        return results[0]

    function = _as_logits(call, image, logits, challenge, path)
    loaded = _loaded(function, model.weights, path, challenge)
    if loaded.model is None and _is_plain(sized := _of_size(model, challenge.image_shape)):
        return dataclasses.replace(loaded, logits=in_inference_mode(sized))
    return loaded


def _of_size(model, image_shape):
    """A keras.Model of images of any size as one of the challenge's images; another unchanged."""
    image = model.inputs[0] if getattr(model, "inputs", None) else None
    if image is None or None not in image.shape[1:] or image.shape[0] is not None:
        return model
    given = keras.Input(image_shape, dtype=image.dtype)
    return keras.Model(given, model(given))


def _is_plain(model):
    """Whether a keras.Model is a function of float32 images, any number of them, to logits."""
    if not getattr(model, "inputs", None):  # a subclassed model
        return False
    ends = [model.inputs[0], model.compute_output_spec(model.inputs[0])]  # not in a list or dict
    return all(
        isinstance(end, keras.KerasTensor)
        and end.dtype == "float32"
        and end.shape[0] is None
        and None not in end.shape[1:]
        for end in ends
    )


def _from_saved_model(path, challenge):
    with plain_path(path) as place:
        loaded = tf.saved_model.load(str(place))
    if "serving_default" not in loaded.signatures:
        raise InputError(f"--model_dir: expected a signature serving_default in {path}")
    signature = loaded.signatures["serving_default"]
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise _several(inputs, outputs, path)
    ((name, image),), ((output, logits),) = inputs.items(), outputs.items()
    weights = getattr(loaded, "weights", None)
    if not isinstance(weights, (list, tuple)) or not weights:  # of another kind of module
        weights = signature.variables

    # `keep` keeps `loaded` alive, and with it the variables.
    def call(x, keep=loaded):
        return signature(**{name: x})[output]

    return _loaded(_as_logits(call, image, logits, challenge, path), list(weights), path, challenge)


def _from_rounded(path, challenge):
    """The challenge's network with the weights that `export_rounded` wrote."""
    try:
        weights = rounded_weights.load(path)
    except InputError as error:
        raise InputError(f"--model_dir: {error}") from None
    shapes = [weight.shape for weight in weights]
    model = _network_of(shapes, challenge)
    if model is None:
        raise InputError(
            f"--model_dir: expected weights of the {challenge.name} challenge's own network in "
            f"{path}, got another's"
        )
    model.set_weights(weights)
    return LoadedModel(fast_model(model, challenge), model.weights, path, model=model)


def _several(inputs, outputs, path):
    return InputError(
        f"--model_dir: expected one input and one output of the model (in a SavedModel: of its "
        f"signature serving_default) in {path}, got {', '.join(inputs)} and {', '.join(outputs)}"
    )


def _as_logits(call, image, logits, challenge, path):
    """A loaded model as a function from any number of float32 images to float32 logits.

    Args:
        call: function from a batch of images to their logits, in the model's own dtypes.
        image, logits: their tf.TensorSpecs; dimensions and ranks may be unknown.
        challenge: a `common.challenge.Challenge`.
        path: the model's path.

    Raises:
        InputError: it takes other images, or gives other logits.
    """
    if not image.dtype.is_floating:
        raise InputError(
            f"--model_dir: expected a model of float images, got one of {image.dtype.name} images "
            f"in {path}"
        )
    batches = [shape[0] for shape in (image.shape, logits.shape) if shape.rank]
    batch = next((size for size in batches if size is not None), None)
    fits = image.shape.is_compatible_with((batch, *challenge.image_shape))
    if not fits or not logits.shape.is_compatible_with((batch, 10)):
        raise _misfit(image.shape, logits.shape, challenge, path)

    def function(x):
        return tf.cast(call(tf.cast(x, image.dtype)), tf.float32)

    if batch is not None:
        function = _in_batches_of(batch, function)
    if image.shape[1:].is_fully_defined() and logits.shape[1:].is_fully_defined():
        return function
    # A call shows the dimensions that the shapes leave open; attacks need them.
    x = _noise(challenge)
    found = function(x).shape
    if found != (len(x), 10):
        raise _misfit(image.shape, found, challenge, path)
    return lambda x: tf.ensure_shape(function(x), (x.shape[0], 10))


def _in_batches_of(size, function):
    """Extends a function of `size` images to any number of them, by filling up the last batch.

    Args:
        size: int.
        function: from float32 images (size, height, width, channels) to float32 logits
            (size, classes).
    """

    @tf.custom_gradient
    def one_by_one(batches):
        # XLA has no gradient of a loop around a SavedModel's function.
        def gradient(d, variables=()):
            d = tf.map_fn(gradient_of_one, (batches, d), fn_output_signature=tf.float32)
            return (d, [None] * len(variables)) if variables else d

        def gradient_of_one(batch_and_d):
            batch, d = batch_and_d
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(batch)
                logits = function(batch)
            return tape.gradient(logits, batch, d, unconnected_gradients="zero")

        return tf.map_fn(function, batches, fn_output_signature=tf.float32), gradient

    def in_batches(x):
        if x.shape[0] == size:
            return function(x)
        # Filled with an image, since a model may divide by zero on an empty one.
        fill = tf.tile(tf.stop_gradient(x[:1]), (-tf.shape(x)[0] % size, 1, 1, 1))
        batches = tf.reshape(tf.concat([x, fill], axis=0), (-1, size, *x.shape[1:]))
        number = batches.shape[0]
        if number is not None and 0 < number <= MOST_UNROLLED:
            logits = tf.concat([function(batches[i]) for i in range(number)], axis=0)
        else:
            logits = tf.reshape(one_by_one(batches), (-1, 10))
        return logits[: tf.shape(x)[0]]

    return in_batches


def _misfit(image, logits, challenge, path):
    image, logits = (
        "unknown shape" if shape.rank is None else tuple(shape) for shape in (image, logits)
    )
    return InputError(
        f"--model_dir: expected a model of {challenge.name} images "
        f"{(None, *challenge.image_shape)} to logits (None, 10), got one of {image} to {logits} "
        f"in {path}"
    )


def export(model, path):
    """Writes a SavedModel: signature serving_default, input `image`, output `logits`.

    Args:
        model: keras.Model from images to logits.
        path: directory to write; an existing one is replaced once the new one is complete.

    Raises:
        InputError: it cannot be written; an existing one is unchanged.
    """
    # Keras's own export would write every weight twice.
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    module.serve = tf.function(
        lambda image: {"logits": model(image, training=False)},
        input_signature=[
            tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image"),
        ],
        autograph=False,
    )

    def write(directory):
        with plain_path(directory.parent) as place:
            tf.saved_model.save(
                module,
                str(place / directory.name),
                signatures={"serving_default": module.serve},
            )

    _write_whole(path, write, "the SavedModel")


def export_rounded(model, path):
    """Writes the weights with kernels rounded to bfloat16, in files below 50 MB; see `load_model`.

    Args:
        model: keras.Model of a challenge, whose weights are rounded too.
        path: directory to write; an existing one is replaced once the new one is complete.

    Raises:
        InputError: it cannot be written; an existing one is unchanged.
    """
    weights = rounded_weights.rounded([np.asarray(weight) for weight in model.weights])
    model.set_weights(weights)

    def write(directory):
        directory.mkdir()
        rounded_weights.save(directory, weights)

    _write_whole(path, write, "the rounded weights")


def _write_whole(path, write, what):
    """Writes a directory so that it is there whole or not at all.

    Args:
        path: the directory; an existing one is replaced.
        write: function of a path, which writes the directory there.
        what: what it is, for the message.

    Raises:
        InputError: it cannot be written; an existing one is unchanged.
    """
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True
        ) as scratch:
            new, old = pathlib.Path(scratch) / "new", pathlib.Path(scratch) / "old"
            write(new)
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"cannot write {what} {path}: {reason_of(error)}") from error
