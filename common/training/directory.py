"""A training's directory: what may lie in it, and what the training writes there."""

import dataclasses
import json
import pathlib

from common import checkpoint_files, checkpoints
from common import config as config_lib
from common.attack import precision
from common.errors import InputError, reason_of
from common.files import Lock, keep_aside, write_atomically, write_json
from common.messages import tell
from common.original_checkpoints import is_original
from common.training import runs, validation
from common.training.distribution import settings_digest
from common.training.progress import check_finite


class TrainingDirectory:
    """Keeps a training's checkpoints, config.json and runs.json in `config.model_dir`.

    As a context manager it locks the directory, so that no other process trains there.

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        devices: a `Devices`. Workers other than the chief only read, after the chief.

    Attributes:
        path: pathlib.Path.
        first_step: the step that this run begins with.

    Raises:
        InputError: on entering, it holds another training or a model, is in use by another process
            or cannot be written.
    """

    def __init__(self, config, challenge, devices):
        self.path, self.first_step = pathlib.Path(config.model_dir), 0
        self._config, self._challenge, self._devices = config, challenge, devices
        self._lock = Lock(self.path, "--model_dir")

    def __enter__(self):
        if not self._devices.is_chief:
            return self
        check(self.path, self._config, self._challenge)
        self._lock.__enter__()
        try:
            # Another process may have begun a training in between.
            check(self.path, self._config, self._challenge)
        except BaseException as error:
            self._lock.__exit__(error)
            raise
        return self

    def __exit__(self, *error):
        if self._devices.is_chief:
            self._lock.__exit__(*error)

    def restore(self, result, optimizer, trained):
        """Reads the newest checkpoint, if there is one, and removes what a kill cut off.

        Args:
            result: keras.Model that is evaluated and exported.
            optimizer: keras optimizer.
            trained: keras.Model that the optimizer updates, which may be `result`.

        Raises:
            InputError: no checkpoint is whole, or it belongs to another network; the workers have
                different settings or directories.
        """
        own, is_chief = None if trained is result else trained, self._devices.is_chief
        self._checkpoints = checkpoints.TrainingRun(self.path, result, optimizer, own)
        if not is_chief:
            self._devices.total(0)  # waits for the chief
        self.first_step = self._checkpoints.restore() or 0
        if is_chief:
            checkpoint_files.tidy(self.path)
            self._devices.total(0)
        self._devices.check_same(
            settings_digest(self._config),
            "TF_CONFIG: expected workers with the same settings, got others here than elsewhere",
        )
        self._devices.check_same(
            self.first_step,
            "--model_dir: expected one directory that all workers share, got one here that ends "
            f"with step {self.first_step} and another elsewhere",
        )

    def begin(self, data):
        """Writes the settings, and adds this run, on the images named `data`, to runs.json."""
        if not self._devices.is_chief:
            return
        _write_config(self.path, self._config)
        self._runs = runs.Runs(self.path, self.first_step, data, self._devices.num_replicas)

    def seconds(self):
        """The training's time so far, in seconds."""
        return self._runs.seconds()

    def save(self, step, xent):
        """Writes checkpoint-`step`, and the step to runs.json; checks the loss `xent` first."""
        check_finite(xent, step)
        if not self._devices.is_chief:
            return
        self._checkpoints.save(step)
        self._runs.update(step)


def write(config, challenge, step, entries, result, optimizer=None, trained=None):
    """Makes `config.model_dir` the directory of a training that ran elsewhere.

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        step: how many steps the training has taken.
        entries: what runs.json holds, see `common.training.runs`.
        result: keras.Model that is evaluated and exported.
        optimizer: keras optimizer; None if its state is not known, and no training can resume.
        trained: keras.Model that the optimizer updates, which may be `result`, or None.

    Raises:
        InputError: the directory is not new, or cannot be written; a weight is not finite.
    """
    path = pathlib.Path(config.model_dir)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"--model_dir: expected a new directory, got {path}")
    with Lock(path, "--model_dir"):
        own = None if trained is result else trained
        checkpoints.TrainingRun(path, result, optimizer, own).save(step)
        write_json(path / runs.FILE, entries)
        _write_config(path, config)


def check(directory, config, challenge):
    """Checks that a directory is new, or holds a training with these settings.

    Raises:
        InputError: it holds anything else, or cannot be read.
    """
    try:
        if directory.exists() and not directory.is_dir():
            raise InputError(f"--model_dir: expected a directory, got the file {directory}")
        names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    except OSError as error:
        raise InputError(f"--model_dir: cannot read {directory}: {reason_of(error)}") from None
    if is_original(directory):
        raise InputError(
            f"--model_dir: expected a new directory or one of a training, got {directory}, which "
            "holds a TensorFlow 1 checkpoint: eval.py takes it, but no training can resume from it"
        )
    is_training = "config.json" in names and bool(checkpoint_files.steps_in(directory))
    others = [name for name in names if not is_training and not _belongs_to_training(name, names)]
    if others:
        raise InputError(
            f"--model_dir: expected a new directory or one of a training, got {directory}, "
            f"which holds other files, such as {min(others)}"
        )
    if not is_training:
        return
    recorded = _recorded(directory)
    if recorded is None:
        return
    # A training from before a setting existed had the value that config.json has now.
    old = {**config_lib.read_json(challenge.directory / "config.json"), **recorded}
    there = config_lib.parsed(challenge, old)
    differing = [
        f"{name} ({json.dumps(old.get(name))} there, {json.dumps(value)} now)"
        for name, value in dataclasses.asdict(config).items()
        if name not in config_lib.NOT_OF_TRAINING and there.get(name) != value
    ]
    if differing:
        raise InputError(
            f"--model_dir: expected a training with the same settings in {directory}, "
            f"got other {', '.join(differing)}; give another directory"
        )


def with_precision(config, challenge):
    """Returns a training's config with `precision` decided; prints the choice and its reason.

    "auto" is the precision that the training in `config.model_dir` began with; for a new one it is
    bfloat16 if this machine multiplies it fast.

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
    """
    unit, chosen = precision.bfloat16_unit(), config.precision
    if chosen == "auto":
        chosen = "float32" if unit is None else "bfloat16"
        recorded = config_lib.parsed(challenge, _recorded(pathlib.Path(config.model_dir)) or {})
        if recorded.get("precision") in ("float32", "bfloat16"):
            chosen = recorded["precision"]
    if chosen == "float32":
        tell("training steps in float32")
    else:
        where = "which this machine has no known unit for" if unit is None else f"by {unit}"
        tell(f"training steps in bfloat16, {where}; weights, validation in float32")
    return dataclasses.replace(config, precision=chosen)


def _recorded(directory):
    """The settings in config.json of a training with checkpoints; None without a whole one."""
    try:
        if not checkpoint_files.steps_in(directory):
            return None
        return {"precision": "float32", **config_lib.read_json(directory / "config.json")}
    except InputError:  # a damaged one is renamed when the new one is written
        return None


_DAMAGED = "config.json.damaged"


def _belongs_to_training(name, names):
    """Whether a training without a finished checkpoint, or `eval.py --watch`, wrote the file."""
    return (
        name in (Lock.NAME, "eval", "config.json", runs.FILE, validation.FILE)
        or name.startswith("events.out.tfevents.")
        or checkpoint_files.is_left_over(name)
        # A checkpoint without its settings may be of any training. After a full disk the damaged
        # settings may be all that is left.
        or (checkpoint_files.is_of_checkpoint(name) and {"config.json", _DAMAGED} & names)
    )


def _write_config(directory, config):
    data_dir = None if config.data_dir is None else str(pathlib.Path(config.data_dir).resolve())
    # Paths in a config file are relative to it.
    config = dataclasses.replace(config, model_dir=".", data_dir=data_dir)
    path = directory / "config.json"
    if path.exists():
        try:
            config_lib.read_json(path)
        except InputError as error:
            aside = keep_aside(path).name
            tell(f"note: {error}; it is kept as {aside}, and this command's settings count")
    write_atomically(path, config.to_json().encode())
