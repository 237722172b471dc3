"""Weights rounded to bfloat16, in files below 50 MB, to ship large networks.

bfloat16 is the upper half of a float32. Kernels are rounded; weights with one axis, such as biases
and batch norm's averages, stay float32. Reading and writing needs only NumPy.
"""

import hashlib
import pathlib
import re

import numpy as np

from common.errors import InputError, one_line

MOST_BYTES = 45_000_000  # of a part before compression; its file is below 50 MB in any case
_NAME = re.compile(r"weights-(\d+)-of-(\d+)\.npz")


def rounded(weights):
    """Weights as they are after `save` and `load`.

    Args:
        weights: list of float32 arrays.

    Returns:
        List of float32 arrays; those with two axes or more are rounded to the nearest bfloat16,
        ties to even.
    """
    return [_to_float32(_to_bfloat16(w)) if w.ndim > 1 else w for w in map(np.asarray, weights)]


def save(directory, weights):
    """Writes weights-1-of-N.npz, ... into a directory that exists.

    Args:
        directory: path.
        weights: list of float32 arrays.
    """
    arrays = [_to_bfloat16(w) if w.ndim > 1 else w for w in map(np.asarray, weights)]
    parts, size = [{}], 0
    for number, array in enumerate(arrays):
        if parts[-1] and size + array.nbytes > MOST_BYTES:
            parts.append({})
            size = 0
        parts[-1][f"{number:04d}"] = array
        size += array.nbytes
    digest = _digest(arrays)
    for number, part in enumerate(parts, start=1):
        path = pathlib.Path(directory) / f"weights-{number}-of-{len(parts)}.npz"
        np.savez_compressed(path, digest=np.array(digest), **part)


def are_in(directory):
    """Whether a directory holds such weights, or a part of them."""
    return any(_NAME.fullmatch(path.name) for path in pathlib.Path(directory).glob("weights-*.npz"))


def load(directory):
    """The weights in a directory, a list of float32 arrays.

    Raises:
        InputError: a part is missing, damaged or of other weights.
    """
    directory = pathlib.Path(directory)
    found = [path for path in directory.glob("weights-*.npz") if _NAME.fullmatch(path.name)]
    counts = {int(_NAME.fullmatch(path.name)[2]) for path in found}
    num_parts = counts.pop() if len(counts) == 1 else 0
    names = {f"weights-{number}-of-{num_parts}.npz" for number in range(1, num_parts + 1)}
    if {path.name for path in found} != names:
        raise InputError(
            f"expected all files weights-1-of-N.npz to weights-N-of-N.npz in {directory}, got "
            f"{', '.join(sorted(path.name for path in found)) or 'none'}"
        )
    arrays, digests = {}, set()
    for name in sorted(names):
        try:
            with np.load(directory / name, allow_pickle=False) as part:
                digests.add(str(part["digest"]))
                arrays |= {int(key): part[key] for key in part.files if key != "digest"}
        except Exception as error:  # a damaged archive may raise anything
            raise InputError(f"cannot read {directory / name}: {one_line(error)}") from error
    arrays = [arrays[number] for number in sorted(arrays)]
    if digests != {_digest(arrays)}:
        raise InputError(f"expected the parts of one network's weights in {directory}, got others")
    return [_to_float32(array) if array.dtype == np.uint16 else array for array in arrays]


def _to_bfloat16(array):
    """The upper halves of the nearest bfloat16 values, uint16; ties go to the even one."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _to_float32(halves):
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _digest(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.name} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
