"""Images in files small enough to copy to another machine; reading them needs only NumPy."""

import io
import pathlib

import numpy as np

from common.errors import InputError, one_line
from common.files import write_atomically


def pack(images):
    """Images as differences, which compress to three fifths of the images' size.

    The second channel is subtracted from the others; then each pixel is replaced by its difference
    from the prediction left + above - above left, all modulo 256.

    Args:
        images: uint8 (n, height, width, channels).

    Returns:
        uint8 (n, channels, height, width).
    """
    planes = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    if planes.shape[1] > 1:
        planes[:, [0, *range(2, planes.shape[1])]] -= planes[:, 1:2]
    for axis in (2, 3):
        planes = np.diff(planes, axis=axis, prepend=np.uint8(0))
    return planes


def unpack(planes):
    """The inverse of `pack`."""
    for axis in (3, 2):
        planes = np.cumsum(planes, axis=axis, dtype=np.uint8)
    if planes.shape[1] > 1:
        planes[:, [0, *range(2, planes.shape[1])]] += planes[:, 1:2]
    return np.ascontiguousarray(np.moveaxis(planes, 1, -1))


def save(directory, split, images, labels, num_parts):
    """Writes SPLIT-1-of-N.npz, ...: NumPy files of about equal size.

    Args:
        directory: pathlib.Path, which exists.
        split: name of the files, such as "train".
        images: uint8 (n, height, width, channels).
        labels: int (n,).
        num_parts: N.
    """
    parts = zip(np.array_split(images, num_parts), np.array_split(labels, num_parts), strict=True)
    for number, (x, y) in enumerate(parts, start=1):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, planes=pack(x), labels=y.astype(np.uint8))
        write_atomically(directory / f"{split}-{number}-of-{num_parts}.npz", buffer.getbuffer())


def load(directory, split):
    """The images and labels that `save` wrote: uint8 (n, height, width, channels), int32 (n,).

    Raises:
        InputError: a part is missing or damaged.
    """
    paths = sorted(pathlib.Path(directory).glob(f"{split}-*-of-*.npz"))
    names = [f"{split}-{number}-of-{len(paths)}.npz" for number in range(1, len(paths) + 1)]
    if not paths or {path.name for path in paths} != set(names):
        found = ", ".join(path.name for path in paths) or "none"
        raise InputError(
            f"--data_dir: expected all files {split}-1-of-N.npz to {split}-N-of-N.npz in "
            f"{directory}, got {found}"
        )
    parts = []
    for name in names:
        try:
            with np.load(pathlib.Path(directory) / name) as part:
                images, labels = unpack(part["planes"]), part["labels"].astype(np.int32)
            if images.ndim != 4 or labels.shape != images.shape[:1]:
                raise InputError("expected images, and a label of each")
            if parts and images.shape[1:] != parts[0][0].shape[1:]:
                raise InputError(f"expected images of the shape of {names[0]}")
            parts.append((images, labels))
        except Exception as error:  # a damaged archive may raise anything
            raise InputError(f"--data_dir: cannot read {name}: {one_line(error)}") from error
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)
