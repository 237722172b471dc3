"""Shards of an evaluation: equal parts of the images, one for each process, whose results join.

Every shard of an evaluation has a file in one directory, with its results and the key of what was
evaluated: shard-03-of-16.unfinished.npz, from which the same command resumes, and
shard-03-of-16.npz once it is finished. An example keeps its number in the whole set, and with it
its random numbers, so that the shards together give the result of a single run.
"""

import dataclasses
import pathlib
import re

from common.errors import InputError
from common.evaluation.presets import make_state_dir, resumable
from common.evaluation.state import Found, State, text_in
from common.files import Lock
from common.provenance import provenance

_UNFINISHED = ".unfinished"
_DIGESTS = {"model_digest": "model", "source_digest": "source", "data_sha256": "data"}
_MOST_WORDS = 4  # differences that a message names


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of `count` parts of an evaluation's images; `number` is from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text):
        """Returns the shard that a text such as "3/16" names; raises InputError without one."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(text))
        shard = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise InputError(f"expected K/N, with K from 1 to N, such as 3/16, got {text!r}")
        return shard

    def __str__(self):
        return f"{self.number}/{self.count}"

    def examples(self, num_examples):
        """Returns the slice of the examples; the sizes of two shards differ by one at most.

        Raises:
            InputError: there are more shards than examples.
        """
        if self.count > num_examples:
            raise InputError(f"expected at most {num_examples:,} shards, one an image, got {self}")
        first, last = (n * num_examples // self.count for n in (self.number - 1, self.number))
        return slice(first, last)

    @property
    def name(self):
        """The name of its file, without the suffix."""
        return f"shard-{self.number:0{len(str(self.count))}d}-of-{self.count}"


def check_trials(flag, trials):
    """Raises InputError if the result of one of `trials` for an image depends on other images."""
    for trial in trials:
        if trial.share < 1:
            raise InputError(
                f"{flag}: expected attacks on each image by itself, got {trial.name}, which takes "
                "the closest of all"
            )


class Writer:
    """Evaluates one shard and writes it to a directory; within the context no other process does.

    Args:
        directory: path of the directory of all shards, which is made if there is none.
        shard: a `Shard`.
        images: the `common.data.Split` of the whole evaluation.
        key: see `common.evaluation.subject.key_of`, of the whole evaluation.

    Attributes:
        path: pathlib.Path of the finished shard.
        examples: the slice of its examples.

    Raises:
        InputError: on entering, another process evaluates this shard, the directory has shards of
            another evaluation, or it cannot be written to.
    """

    def __init__(self, directory, shard, images, key):
        self._directory, self._shard = pathlib.Path(directory), shard
        self._images, self._key = images, key
        self._flag = f"--shard={shard}"
        try:
            self.examples = shard.examples(len(images.images))
        except InputError as error:
            raise InputError(f"--shard: {error}") from None
        self.path = self._directory / f"{shard.name}.npz"
        lock = self._directory / f".{shard.name}.lock"
        self._lock = Lock(self.path, self._flag, lock, noun="shard")

    def __enter__(self):
        make_state_dir(self._directory)
        self._lock.__enter__()
        try:
            for path in _files(self._directory):
                try:
                    _check_shard(self._flag, path, self._key, self._shard.count)
                except InputError:
                    if path.exists():  # else another process has just finished that shard
                        raise
        except BaseException as error:
            self._lock.__exit__(error)
            raise
        return self

    def __exit__(self, *error):
        self._lock.__exit__(*error)

    @property
    def is_finished(self):
        """Whether the shard was finished before."""
        return self.path.exists()

    def run(self, evaluator, report=None):
        """Evaluates the shard, or resumes it, and writes it.

        Args:
            evaluator: the whole evaluation's `Evaluator`.
            report: see `Evaluator.run`.

        Returns:
            The shard's `Result`.

        Raises:
            InputError, Interrupted: as `Evaluator.run`; or the file cannot be written.
        """
        state = State(
            self._directory / f"{self._shard.name}{_UNFINISHED}.npz",
            {**self._key, "shard": str(self._shard)},
        )
        images, labels = self._images.images, self._images.labels
        with resumable(state, f"shard {self._shard}"):
            result = evaluator.run(images, labels, state, report, self.examples)
        state.finish(self.path, provenance())
        return result


@dataclasses.dataclass(frozen=True)
class Shards:
    """All shards of an evaluation.

    Attributes:
        found: list of what each has found, see `Evaluator.join`.
        provenance: list of each one's `common.provenance.provenance()`.
    """

    found: list
    provenance: list


def read(directory, images, num_trials, key):
    """Returns the `Shards` of an evaluation in a directory.

    Args:
        directory: its path.
        images: the `common.data.Split` of the whole evaluation.
        num_trials: number of its attacks.
        key: see `common.evaluation.subject.key_of`, of the whole evaluation.

    Raises:
        InputError: a shard is missing, not finished, there twice, damaged or of another evaluation.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise InputError(f"--merge: expected the directory of the shards, got {directory}")
    finished, unfinished, count = {}, set(), None
    for path in _files(directory):
        shard = _check_shard("--merge", path, key, count)
        count = shard.count
        if path.stem.endswith(_UNFINISHED):
            unfinished.add(shard.number)
        elif shard.number in finished:
            both = f"{finished[shard.number].name} and {path.name}"
            raise InputError(f"--merge: expected each shard once, got {shard} twice: {both}")
        else:
            finished[shard.number] = path
    if count is None:
        raise InputError(f"--merge: expected the shards of an evaluation in {directory}, got none")
    missing = [number for number in range(1, count + 1) if number not in finished]
    if missing:
        words = [
            f"{Shard(number, count)}" + " (not finished)" * (number in unfinished)
            for number in missing
        ]
        raise InputError(
            f"--merge: expected {count} finished shards in {directory}, got {len(finished)}, "
            f"without {', '.join(words)}; the command of a shard begins or resumes it"
        )
    found = []
    for number, path in sorted(finished.items()):
        shard = Shard(number, count)
        part = Found.nothing(images.images[shard.examples(len(images.images))], num_trials)
        State(path, {**key, "shard": str(shard)}).read_finished(part)
        found.append(part)
    return Shards(found, [text_in(path, "note") for _, path in sorted(finished.items())])


def _files(directory):
    return sorted(directory.glob("shard-*.npz"))


def _check_shard(flag, path, key, count):
    """Returns the `Shard` that a file holds, if it is of the evaluation `key` in `count` shards."""
    theirs = text_in(path, "key")
    try:
        shard = Shard.parse(theirs.pop("shard"))
        differing = _differences(_entries(theirs), _entries(key))
    except (AttributeError, KeyError, TypeError, InputError):
        raise InputError(f"{flag}: expected a shard of an evaluation, got {path}") from None
    if count is not None and shard.count != count:
        differing.insert(0, f"number of shards ({shard.count}, not {count})")
    if differing:
        words = ", ".join(differing[:_MOST_WORDS]) + ", ..." * (len(differing) > _MOST_WORDS)
        raise InputError(
            f"{flag}: expected shards of one evaluation, that of this command, got {path} "
            f"with another {words}"
        )
    return shard


def _entries(key):
    """Returns the entries of an evaluation's key, those of its attacks among them, as a dict."""
    attacks = key.get("attacks")
    if isinstance(attacks, list):
        named = {f"{entry['name']}'s ": entry["attack"] for entry in attacks}
    else:
        named = {"": key.get("attack")}
    entries = {name: value for name, value in key.items() if name not in ("attack", "attacks")}
    entries["attacks"] = ", ".join(name.removesuffix("'s ") for name in named)
    for name, settings in named.items():
        for setting, value in {"precision": "float32", **(settings or {})}.items():
            entries[f"{name}{setting}"] = value
    return entries


def _differences(theirs, ours):
    """Returns the names of the entries that differ, with both values, as a list of text."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return [
        _DIGESTS.get(name) or f"{name.replace('_', ' ')} ({theirs.get(name)}, not {ours.get(name)})"
        for name in names
    ]
