"""Attack files: the challenges' rules, and the note beside a file."""

import hashlib
import io
import os
import pathlib

import numpy as np

from common import files
from common.errors import InputError, one_line, reason_of
from common.files import read_json, write_atomically, write_json
from common.messages import tell

TOLERANCE = 1e-4  # the originals', on distance and on pixel range
_CHUNK = 500  # images checked at a time, to bound the memory


def save(path, x_adv, challenge, note):
    """Writes an attack file, atomically, and beside it PATH.json.

    The note of an earlier file is removed before the new file is written, so that a run that is
    killed in between leaves no wrong note.

    Args:
        path: the .npy file.
        x_adv: float32 images (n, height, width, channels) in the challenge's bounds.
        challenge: a `common.challenge.Challenge`.
        note: dict for the .json: model, digest, attack, seed.

    Raises:
        InputError: the file cannot be written, and an earlier one is as before; or its note cannot
            be written.
    """
    buffer = io.BytesIO()
    np.save(buffer, x_adv.astype(np.float32).reshape(-1, *challenge.submission_shape))
    note = {"file_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), **note}
    path = pathlib.Path(path)
    target = path.resolve()  # a link stays a link
    new = target.with_name(f".attack-{os.getpid()}.npy")
    write_atomically(new, buffer.getbuffer())
    try:
        _note_path(path).unlink(missing_ok=True)
        new.replace(target)
    except OSError as error:
        raise InputError(f"cannot replace {path} and its note: {reason_of(error)}") from error
    finally:
        new.unlink(missing_ok=True)
    write_json(_note_path(path), note)


def check_writable(flag, path):
    """Raises InputError, before any work is done, if `save` could not write to `path`.

    Args:
        flag: the flag that gave the path; the message begins with it.
        path: the .npy file's path.
    """
    files.check_writable(flag, path)
    files.check_writable(flag, _note_path(path))


def load(path):
    """Returns the array in a .npy file; pickled objects are never read.

    Raises:
        InputError: there is no such file, or it does not hold a plain array.
    """
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot read the attack file {path}: {reason_of(error)}") from None
    except Exception as error:  # a damaged header may raise anything
        raise InputError(
            f"expected a .npy file with numbers in {path}: {one_line(error)}"
        ) from error


def load_note(path):
    """Returns the note beside an attack file as a dict, empty if it is missing or another file's.

    A damaged note counts as missing, and a printed line says so.
    """
    if not os.path.lexists(_note_path(path)):
        return {}
    try:
        note = read_json(_note_path(path))
        if not isinstance(note, dict):
            raise InputError(f"expected a JSON object, got {type(note).__name__}")
        digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    except (InputError, OSError) as error:
        tell(f"note: {_note_path(path)} cannot be read: {error}")
        return {}
    return note if note.get("file_sha256") == digest else {}


def check(x_adv, x_nat, challenge, epsilon):
    """Raises InputError unless `x_adv` obeys the challenge's rules.

    Args:
        x_adv: array of any shape and dtype, as it came from the file. MNIST images may also have
            the shape (28, 28) or (28, 28, 1).
        x_nat: float32 images (n, height, width, channels) in the challenge's bounds.
        challenge: a `common.challenge.Challenge`.
        epsilon: the ball's radius, in pixel units.

    Raises:
        InputError: the shape, dtype, pixel range or distance is wrong, or a pixel is NaN; the
            message names the first bad image, and hints at what was probably meant.
    """
    shape, image_shape = (len(x_nat), *challenge.submission_shape), challenge.image_shape
    image_shapes = [challenge.submission_shape, image_shape]
    image_shapes += [image_shape[:2]] * (image_shape[2] == 1)
    if x_adv.shape[1:] not in image_shapes or len(x_adv) != len(x_nat):
        hint = ""
        if x_adv.shape[1:] in image_shapes and 0 < len(x_adv) < len(x_nat):
            hint = f"; --num_eval_examples={len(x_adv)} takes the first {len(x_adv):,} test images"
        raise InputError(f"Invalid shape: expected {shape}, found {x_adv.shape}{hint}")
    if not (np.issubdtype(x_adv.dtype, np.floating) or np.issubdtype(x_adv.dtype, np.integer)):
        raise InputError(f"Invalid dtype: expected real numbers, found {x_adv.dtype}")
    low, high = challenge.bounds
    for start in range(0, len(x_nat), _CHUNK):
        part = x_adv[start : start + _CHUNK].astype(np.float64).reshape(-1, *challenge.image_shape)
        distance = np.abs(part - x_nat[start : start + _CHUNK])
        # NaN fails every comparison, so that it is refused.
        is_good = (part >= low - TOLERANCE) & (part <= high + TOLERANCE)
        is_good &= distance <= epsilon + TOLERANCE
        is_good = is_good.reshape(len(part), -1).all(axis=1)
        if not is_good.all():
            first = int(np.argmin(is_good))
            fault = _fault(part[first], distance[first], challenge.bounds, epsilon)
            hint = _hint_at_units(x_adv, x_nat, challenge.bounds)
            raise InputError(f"{fault} (image {start + first}, counted from 0){hint}")


def _hint_at_units(x_adv, x_nat, bounds):
    """Returns a hint if the pixels of a file seem to be in other units than the challenge's."""
    (low, high), least, most = bounds, np.min(x_adv), np.max(x_adv)
    stated = f"pixels are in [{low:g}, {high:g}]"
    if high == 1 and least >= -TOLERANCE and 2 < most <= 255 + TOLERANCE:
        return f"; {stated}: divide pixels in [0, 255] by 255"
    if high == 255 and least >= -TOLERANCE and most <= 1 + TOLERANCE and np.max(x_nat) > 2:
        return f"; {stated}: multiply pixels in [0, 1] by 255"
    return ""


def _fault(image, distance, bounds, epsilon):
    """Returns what is wrong with one image that breaks a rule."""
    low, high = bounds
    if np.isnan(image).any():
        return "Invalid pixels: expected numbers, found NaN"
    if image.min() < low - TOLERANCE or image.max() > high + TOLERANCE:
        return (
            f"Invalid pixel range: expected [{low:g}, {high:g}], "
            f"found [{image.min():.6g}, {image.max():.6g}]"
        )
    return (
        f"Invalid perturbation: expected at most {epsilon:g} from the test image, "
        f"found {distance.max():.6g}"
    )


def _note_path(path):
    path = pathlib.Path(path)
    return path.with_name(path.name + ".json")
