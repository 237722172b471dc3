"""Downloads and checks the networks that the original challenges published; makes SavedModels."""

import contextlib
import dataclasses
import datetime
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import stat
import tempfile
import time
import urllib.request
import zipfile

import tensorflow as tf
from tqdm import tqdm

from common import checkpoints, messages
from common.errors import InputError, one_line, reason_of
from common.files import Lock, write_json
from common.messages import tell
from common.original_checkpoints import load_original

_CHUNK = 1 << 20  # bytes read at a time
_TRANSIENT = (408, 425, 429)  # HTTP errors below 500 after which another try may succeed


class _ArchiveError(InputError):
    """An archive is not as expected; another download may help."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The address of an archive of the originals, and what is known about it.

    Attributes:
        url: the address of a zip file that holds the directory of a TensorFlow 1 training.
        sha256: the digest that the originals state, or None if they state none.
        max_bytes: the most bytes that the archive, and its content, may have.
        timeout: seconds without a byte after which a transfer counts as broken.
        pauses: seconds to wait before each retry; they start over whenever a try brought bytes.
    """

    url: str
    sha256: str | None = None
    max_bytes: int
    timeout: float = 30.0
    pauses: tuple[float, ...] = (1.0, 2.0, 4.0)


def fetch(challenge, name, source, models_dir, from_file=None):
    """Writes a published network to `models_dir`/`name`, unless it is there already.

    That directory is a SavedModel; in it, original/ holds the files of the TensorFlow 1 training,
    and card.json says where they came from and what they are.

    Args:
        challenge: a `common.challenge.Challenge`.
        name: the model's name.
        source: its `Source`.
        models_dir: the directory to write to; it is made if need be. A broken download leaves
            NAME.zip.part there, from which the next call resumes.
        from_file: path of the archive on disk; None downloads it.

    Returns:
        The model's path.

    Raises:
        InputError: the archive cannot be read or downloaded, has another digest than the originals
            state or holds no checkpoint of the challenge's network; `models_dir` cannot be written;
            or another process fetches the same model into it. No part of a model is left then.
    """
    models_dir = pathlib.Path(models_dir)
    target = models_dir / name
    if _is_fetched(name, target):
        return target
    _make_directory(models_dir)
    with Lock(target, "--models_dir", models_dir / f".{name}.lock") as lock:
        if _is_fetched(name, target):  # by another process, just now
            return target
        if lock.is_held:
            _remove_left_over(models_dir, name)
        if from_file is None:
            archive = models_dir / f"{name}.zip"
            download(source, archive)
        else:
            archive = pathlib.Path(from_file)
            if not os.path.isfile(archive):
                raise InputError(
                    f"--from_file: expected a zip file, got {archive}, which is not a file"
                )
        try:
            _make_model(challenge, name, source, archive, target)
            if from_file is None:
                archive.unlink()
        except _ArchiveError:
            if from_file is None:
                archive.unlink()  # so that the next call does not meet it again
            raise
        except (OSError, tf.errors.OpError) as error:
            raise InputError(f"cannot make {target}: {one_line(error)}") from error
    return target


def download(source, path):
    """Downloads an archive, and resumes from what a broken download left in PATH.part.

    Args:
        source: a `Source`.
        path: pathlib.Path of the file to write. It is written whole or not at all; a file that is
            already there is left alone.

    Raises:
        InputError: the server does not answer, has no such file or has one larger than
            `source.max_bytes`; or the disk refuses what comes, and the part that came is kept.
    """
    if os.path.lexists(path):
        return
    part = path.with_name(path.name + ".part")
    longest, pauses = _size(part), list(source.pauses)
    while True:
        try:
            _transfer(source, part)
            break
        except (OSError, http.client.HTTPException) as error:
            # HTTPError's own reason lacks its number.
            reason = error.reason if type(error) is urllib.error.URLError else error
            if _size(part) > longest:
                longest, pauses = _size(part), list(source.pauses)
            if not pauses:
                raise InputError(
                    f"cannot download {source.url}: {reason}; an archive from elsewhere can be "
                    f"given with --from_file={path.name}"
                ) from error
            messages.warn(f"{path.name}: {reason}; next try in {pauses[0]:g} s")
            time.sleep(pauses.pop(0))
    try:
        part.rename(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason_of(error)}") from error


def unpack(archive, directory, max_bytes):
    """Unpacks a zip file that is not trusted.

    Args:
        archive: path of the zip file.
        directory: pathlib.Path of a directory to make.
        max_bytes: the most bytes that its files may have together, counted as they are written.

    Raises:
        InputError: it is not a zip file, or is damaged; or it holds more than `max_bytes`, a file
            that would lie outside `directory`, or anything but plain files and directories. The
            caller removes what was unpacked until then.
    """
    directory.mkdir()
    written = 0
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            for member in members:
                _check_member(archive, member)
            total = sum(member.file_size for member in members)
            with tqdm(total=total, unit="B", unit_scale=True, desc="unpacking") as progress:
                for member in members:
                    if member.is_dir():
                        continue
                    path = directory / member.filename
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with zipped.open(member) as packed, path.open("xb") as file:
                        while chunk := packed.read(_CHUNK):
                            written += len(chunk)
                            if written > max_bytes:
                                raise InputError(
                                    f"expected at most {max_bytes:,} bytes in {archive}, got more"
                                )
                            file.write(chunk)
                            progress.update(len(chunk))
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"{archive} holds {member.filename!r} twice, or in a file") from error
    except (InputError, OSError):
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise InputError(f"expected a zip file in {archive}: {one_line(error)}") from error


def default_directory(challenge):
    """Returns the directory that fetched models are written to."""
    return challenge.directory / "models" / "published"


def _is_fetched(name, target):
    """Returns whether the model is there, and says so; raises InputError if something else is."""
    if os.path.isfile(target / "saved_model.pb"):
        tell(f"{name}: already in {target}; delete that to fetch it again")
        return True
    if os.path.lexists(target):
        raise InputError(f"expected a fetched model or nothing in {target}, got something else")
    return False


def _make_directory(directory):
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except (OSError, ValueError) as error:
        raise InputError(f"--models_dir: cannot write {directory}: {reason_of(error)}") from None


def _remove_left_over(models_dir, name):
    """Removes what a killed fetch of this model has left, except the part of a download."""
    left_over = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}")  # as tempfile names it
    for path in models_dir.iterdir():
        if left_over.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _size(path):
    return path.stat().st_size if path.exists() else 0


class _Part:
    """The file that a download is written to; it turns the disk's errors into InputError."""

    def __init__(self, path, mode):
        self._path = path
        with self._refusals():
            self._file = path.open(mode, buffering=0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with self._refusals():
            self._file.close()

    def write(self, chunk):
        with self._refusals():
            while chunk:
                chunk = chunk[self._file.write(chunk) :]

    @contextlib.contextmanager
    def _refusals(self):
        try:
            yield
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {reason_of(error)}") from error


def _transfer(source, part):
    """Appends to `part` what it lacks, in one request; an OSError means that a retry may succeed.

    If the server's file has changed since `part` was begun, the checksums will not fit.
    """
    size = _size(part)
    headers = {"Range": f"bytes={size}-"} if size else {}
    request = urllib.request.Request(source.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=source.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            if error.headers["Content-Range"] == f"bytes */{size}":
                return  # it is complete
            part.unlink(missing_ok=True)  # it is not a part of that file
        elif error.code < 500 and error.code not in _TRANSIENT:
            raise InputError(f"cannot download {source.url}: {error}") from None
        raise
    with response:
        if response.status != 206:
            size = 0  # the server does not support ranges, and sends all
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            part.unlink()
            raise ConnectionError("the server sent another range than asked for")
        total = None if response.length is None else size + response.length
        with (
            _Part(part, "ab" if size else "wb") as file,
            tqdm(total=total, initial=size, unit="B", unit_scale=True, desc=part.stem) as progress,
        ):
            while size != total:
                chunk = response.read1(_CHUNK)
                if not chunk:
                    break
                size += len(chunk)
                if max(size, total or 0) > source.max_bytes:
                    part.unlink()
                    raise InputError(
                        f"expected at most {source.max_bytes:,} bytes of {source.url}, "
                        f"got {total or size:,} or more"
                    )
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size:,} of {total:,} bytes")


def _check_member(archive, member):
    """Raises InputError unless a zip file's member is a plain file or directory within it."""
    # By Windows's rules, which include every separator, root and drive.
    path = pathlib.PureWindowsPath(member.filename)
    if path.anchor or ".." in path.parts or "\\" in member.filename:
        raise InputError(f"expected paths within {archive}, got {member.filename!r}")
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 if the archive was not made on Unix
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(
            f"expected plain files in {archive}, got a link or device: {member.filename!r}"
        )


def _make_model(challenge, name, source, archive, target):
    """Makes the directory `target` from an archive, whole or not at all."""
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{name}.", ignore_cleanup_errors=True
    ) as scratch:
        unpacked, new = pathlib.Path(scratch) / "unpacked", pathlib.Path(scratch) / "new"
        try:
            unpack(archive, unpacked, source.max_bytes)
            directory = _checkpoint_directory(unpacked, archive)
            whole = _describe(archive)
            data = {
                path.name: _describe(path) for path in sorted(directory.glob("checkpoint-*.data-*"))
            }
            _check_digest(source, archive, whole, data)
            model, step = load_original(challenge, directory)
        except InputError as error:  # it may name a directory that will be gone
            raise _ArchiveError(str(error).replace(str(unpacked), str(archive))) from error
        tell(f"{name}: making a SavedModel of it")  # it takes ten seconds
        checkpoints.export(model, new)
        card = {
            "name": name,
            "challenge": challenge.name,
            "url": source.url,
            "fetched": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "archive": whole,
            "data": data,
            "published_sha256": source.sha256,
            "step": step,
            "network": challenge.size_of([tuple(weight.shape) for weight in model.weights]),
            "parameters": model.count_params(),
            "model_digest": checkpoints.LoadedModel(model, model.weights, target).digest(),
        }
        directory.rename(new / "original")
        write_json(new / "card.json", card)
        new.rename(target)
    network = ", ".join(f"{setting} {value}" for setting, value in card["network"].items())
    known = "as published" if source.sha256 else "no digest is published"
    tell(f"{name}: step {step}, {network}, {card['parameters']:,} parameters")
    tell(f"sha256 of the archive: {whole['sha256']} ({known})")
    tell(f"SavedModel in {target}")


def _checkpoint_directory(unpacked, archive):
    found = sorted({path.parent for path in unpacked.rglob("checkpoint-*.index")})
    if len(found) != 1:
        places = ", ".join(str(path.relative_to(unpacked)) for path in found) or "none"
        raise InputError(
            f"expected one directory with a TensorFlow 1 checkpoint (checkpoint-N.index) in "
            f"{archive}, got {places}"
        )
    return found[0]


def _describe(path):
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}


def _check_digest(source, archive, whole, data):
    """Raises InputError if neither an archive nor its data file has the published digest.

    The originals call it the digest of their model file. Their fetch_model.py suggests that this is
    the archive; the words could also mean the checkpoint's data file.
    """
    digests = [whole["sha256"]]
    if len(data) == 1:  # otherwise a file with this digest might not be the one that is used
        digests += [file["sha256"] for file in data.values()]
    if source.sha256 is not None and source.sha256 not in digests:
        raise InputError(
            f"expected the published sha256 {source.sha256} of {archive} or of the data file in "
            f"it, got {' and '.join(digests)}"
        )
