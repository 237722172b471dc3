"""A file that keeps the results of an evaluation so far, so that the same command resumes it."""

import dataclasses
import hashlib
import io
import json
import pathlib
import time
import zipfile

import numpy as np

from common.errors import InputError, one_line, reason_of
from common.files import write_atomically

SAVE_SECONDS = 60  # between two writings of a `State`
_LONGEST_TEXT = 1 << 20  # bytes


@dataclasses.dataclass
class Found:
    """The results of an evaluation so far, as in `Result`, and its position.

    Attributes:
        adversarial_correct: as in `Result`, under the attacks that have been run.
        num_natural: how many natural images have been classified.
        trial: the number of the attack that is being run.
        turn: its next turn, see `Evaluator._attack_batches`.
        num_attacks, num_undefined, trial_seconds: each attack's number, as in `TrialResult`.
        passes: int64 (attacks, 2), each attack's gradients and queries.
        margins: float32 (n,), the least margin of each example so far, its image's included.
        given: bool (attacks, n), the examples that each attack was given.
    """

    natural_correct: np.ndarray
    natural_losses: np.ndarray
    adversarial_correct: np.ndarray
    adversarial_losses: np.ndarray
    x_adv: np.ndarray
    withstood: np.ndarray
    num_attacks: np.ndarray
    num_undefined: np.ndarray
    passes: np.ndarray
    trial_seconds: np.ndarray
    margins: np.ndarray
    given: np.ndarray
    num_natural: int = 0
    trial: int = 0
    turn: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def nothing(cls, images, num_trials):
        """Returns the state before the first batch of `images`."""
        count = len(images)
        return cls(
            natural_correct=np.zeros(count, bool),
            natural_losses=np.zeros(count, np.float32),
            adversarial_correct=np.ones(count, bool),
            adversarial_losses=np.full(count, -np.inf, np.float32),
            x_adv=np.zeros(images.shape, np.float32),
            withstood=np.ones((num_trials, count), bool),
            num_attacks=np.zeros(num_trials, np.int64),
            num_undefined=np.zeros(num_trials, np.int64),
            passes=np.zeros((num_trials, 2), np.int64),
            trial_seconds=np.zeros(num_trials),
            margins=np.full(count, np.inf, np.float32),
            given=np.zeros((num_trials, count), bool),
        )

    @classmethod
    def joined(cls, parts):
        """Joins the `Found` of the finished parts of one evaluation."""

        one, two = (cls.nothing(np.zeros((count, 1, 1, 1)), 3) for count in (1, 2))

        def join(name):
            """Joins arrays along the axis of the examples, which differs in `one` and `two`."""
            values = [getattr(part, name) for part in parts]
            shapes = (np.shape(getattr(empty, name)) for empty in (one, two))
            grows = [size != larger for size, larger in zip(*shapes, strict=True)]
            if any(grows):
                return np.concatenate(values, axis=grows.index(True))
            return values[-1] if name in ("trial", "turn") else sum(values)

        return cls(**{field.name: join(field.name) for field in dataclasses.fields(cls)})

    def add_natural(self, batch, x, correct, losses, margins, counts_as_broken):
        """Adds the model's results on natural images.

        Args:
            batch: int (size,), the examples' numbers.
            x: float32 (size, height, width, channels), their pixels.
            correct: bool (size,).
            losses, margins: float32 (size,).
            counts_as_broken: whether a misclassified image counts as an adversarial one.
        """
        self.natural_correct[batch], self.natural_losses[batch] = correct, losses
        self.margins[batch], self.x_adv[batch] = margins, x
        if counts_as_broken:
            broken = batch[~correct]
            self.adversarial_correct[broken] = False
            self.adversarial_losses[broken] = self.natural_losses[broken]
        self.num_natural += len(batch)

    def add_attacked(self, batch, x_adv, correct, losses, margins):
        """Adds the results of the attack `trial`, as arrays with an entry for each example."""
        # An example that an earlier attack has broken keeps its image.
        worse = ~correct | (losses > self.adversarial_losses[batch])
        worse &= self.adversarial_correct[batch]
        self.x_adv[batch[worse]] = x_adv[worse]
        self.adversarial_losses[batch[worse]] = losses[worse]
        self.adversarial_correct[batch] &= correct
        self.margins[batch] = np.minimum(self.margins[batch], margins)
        self.withstood[self.trial, batch] = correct
        self.num_attacks[self.trial] += len(batch)

    def leave_alone(self):
        """Counts the examples that no attack was given as their images."""
        alone = np.isneginf(self.adversarial_losses)
        self.adversarial_correct[alone] = self.natural_correct[alone]
        self.adversarial_losses[alone] = self.natural_losses[alone]


class State:
    """A file that keeps the results of an evaluation so far.

    Args:
        path: the .npz file; it need not exist.
        key: dict for JSON with all that decides the result: model, data, attack, seed. The file
            holds it, so that no evaluation resumes another one.
    """

    def __init__(self, path, key):
        self.path = pathlib.Path(path)
        self._key = _as_text(key)
        self._last = time.monotonic()
        self._found, self._is_written = None, True

    @classmethod
    def in_directory(cls, directory, key):
        """Returns the state of the evaluation that `key` describes, named for it."""
        return cls(pathlib.Path(directory) / f"evaluation-{digest_of(key)}.npz", key)

    def read(self, found):
        """Puts what the file holds into `found`; without a file it changes nothing.

        Raises:
            InputError: the file is damaged, or another evaluation's.
        """
        try:
            values = self._values(found)
        except FileNotFoundError:
            return
        except Exception as error:  # a damaged file may raise anything
            raise self._unusable(error) from error
        vars(found).update(values)
        self._found = found

    def read_finished(self, found):
        """Puts what the file of a finished evaluation holds into `found`.

        Raises:
            InputError: there is no such file, or as `read`.
        """
        try:
            values = self._values(found)
            if values["num_natural"] < len(found.natural_correct):
                raise InputError("it is not finished")
        except Exception as error:
            raise InputError(f"cannot read {self.path}: {reason_of(error)}") from error
        vars(found).update(values)

    def _values(self, found):
        """Returns what the file holds, by the names of `found`; raises any exception."""
        with zipfile.ZipFile(self.path) as file:
            text = np.asarray(self._key)
            if _array(file, "key", _has_form_of(text)) != self._key:
                raise InputError("it is of another model, attack, seed or data")
            values = {}
            for name, empty in vars(found).items():
                expected = np.asarray(empty)
                value = _array(file, name, _has_form_of(expected))
                if value is None:
                    raise InputError(f"expected {name} of {expected.dtype} {expected.shape}")
                values[name] = value if value.shape else value.item()
            if not (
                0 <= values["num_natural"] <= len(values["natural_correct"])
                and 0 <= values["trial"] <= len(values["num_attacks"])
                and values["turn"] >= 0
                and values["seconds"] >= 0
                and values["cpu_seconds"] >= 0
                and np.all(values["num_attacks"] >= 0)
                and np.all(values["passes"] >= 0)
                and np.all(values["trial_seconds"] >= 0)
            ):
                raise InputError("its counts are not those of an evaluation")
        return values

    def keep(self, found, at_once=False):
        """Writes `found`, atomically, if `at_once` or if the last writing is a minute ago.

        Raises:
            InputError: the file cannot be written; what was kept before is still there.
        """
        self._found, self._is_written = found, False
        if at_once or time.monotonic() - self._last >= SAVE_SECONDS:
            self.keep_last()

    def keep_last(self):
        """Writes what `keep` got last, in case the result cannot be written.

        Raises:
            InputError: as `keep`.
        """
        if self._is_written:
            return
        self._write(self.path)
        self._last, self._is_written = time.monotonic(), True

    def finish(self, path, note):
        """Writes the finished evaluation to another file, then removes this one.

        Args:
            path: the other file, which `read_finished` of a `State` there takes.
            note: dict for JSON that is kept with it, see `text_in`.

        Raises:
            InputError: the file cannot be written; what was kept before is still there.
        """
        self._write(path, note=_as_text(note))
        self.remove()

    def _write(self, path, **others):
        buffer = io.BytesIO()
        np.savez(buffer, key=self._key, **others, **vars(self._found))
        write_atomically(path, buffer.getbuffer())

    def remove(self):
        """Removes the file, if there is one, once the evaluation's result is written.

        Raises:
            InputError: the file cannot be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot remove {self.path}: {reason_of(error)}") from error

    def _unusable(self, reason):
        return InputError(
            f"cannot resume from {self.path}: {one_line(reason)}; remove it to start anew"
        )


def text_in(path, name):
    """Returns the JSON that a `State`'s file holds as text: its "key", or "note" if it is finished.

    Raises:
        InputError: the file cannot be read, or holds no such text.
    """

    def is_text(shape, dtype):
        return not shape and dtype.kind == "U" and dtype.itemsize <= _LONGEST_TEXT

    try:
        with zipfile.ZipFile(path) as file:
            text = _array(file, name, is_text)
        if text is None:
            raise InputError(f"expected text as its {name}")
        return json.loads(text.item())
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"cannot read {path}: {reason_of(error)}") from error


def _array(file, name, is_expected):
    """Returns an array in a zip file, or None unless `is_expected(shape, dtype)`.

    What the file states is checked first, so that the array cannot fill the memory.
    """
    with file.open(f"{name}.npy") as member:
        # Later versions only have longer headers.
        if np.lib.format.read_magic(member) != (1, 0):
            return None
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    if not is_expected(shape, dtype):
        return None
    with file.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _has_form_of(array):
    """Returns the function of shape and dtype that says whether they are those of `array`."""
    return lambda shape, dtype: (shape, dtype) == (array.shape, array.dtype)


def digest_of(key):
    """Returns 16 hex digits that tell one `State`'s key from another, for its name."""
    return hashlib.sha256(_as_text(key).encode()).hexdigest()[:16]


def _as_text(key):
    return json.dumps(key, sort_keys=True)
