"""The initial values of a training's variables in few bytes, to copy large networks quickly.

Keras draws a kernel by TensorFlow's Philox from a seed and the kernel's number. If NumPy computes
the same values from these, only seed and number are stored; other values are stored in full.
"""

import hashlib

import numpy as np

from common import philox
from common.errors import InputError, reason_of

_AGREEMENT = 1e-5  # in deviations, between two libraries' logarithms and sines
_FILE = "initial.npz"


def normal(shape, seed):
    """The numbers of tf.random.stateless_normal(shape, seed, alg="philox"), up to rounding.

    Args:
        shape: tuple of ints.
        seed: two ints of 32 bits.

    Returns:
        float32 NumPy array.
    """
    count = int(np.prod(shape))
    words = philox.words(seed, count)
    pairs = []
    for first, second in (words.T[:2], words.T[2:]):  # Box and Muller 1958
        first, second = ((w & (2**23 - 1)).astype(np.float32) * 2.0**-23 for w in (first, second))
        radius = np.sqrt(-2 * np.log(np.maximum(first, np.float32(1e-7))))
        angle = np.float32(2 * np.pi) * second
        pairs += [np.sin(angle) * radius, np.cos(angle) * radius]
    return np.stack(pairs, axis=1).ravel()[:count].reshape(shape).astype(np.float32)


def describe(values, seed, directory):
    """Describes values for `initial_values`; writes those that have no short description.

    Args:
        values: dict of names to arrays.
        seed: the seed of the network's kernels.
        directory: where initial.npz goes.

    Returns:
        Dict of names to descriptions, for JSON.
    """
    described, kept, of_content, number = {}, {}, {}, 0
    for name, value in values.items():
        content = (value.dtype.str, value.shape, value.tobytes())
        if content in of_content:
            described[name] = {"like": of_content[content]}
            continue
        of_content[content] = name
        if value.size and (value == value.flat[0]).all():
            described[name] = {
                "value": value.flat[0].item(),
                "shape": list(value.shape),
                "dtype": value.dtype.name,
            }
            continue
        if value.ndim > 1:
            # The kernels of a network are drawn in its variables' order.
            deviation = float(np.std(value))
            draw = normal(value.shape, (seed, number))
            scale = float(np.vdot(draw, value) / np.vdot(draw, draw))
            if np.abs(draw * np.float32(scale) - value).max() <= _AGREEMENT * deviation:
                described[name] = {
                    "normal": [seed, number],
                    "deviation": scale,
                    "shape": list(value.shape),
                }
                number += 1
                continue
            number += 1
        described[name] = {"kept": _digest(value)}
        kept[name] = value
    np.savez_compressed(directory / _FILE, **kept)
    return described


def initial_values(described, directory):
    """The initial values, a dict of names to NumPy arrays.

    Args:
        described: what `describe` returned.
        directory: where initial.npz is.

    Raises:
        InputError: the file is missing or damaged, or a description is.
    """
    try:
        return _values(described, directory / _FILE)
    except Exception as error:  # a damaged archive may raise anything
        raise InputError(f"cannot read {directory / _FILE}: {reason_of(error)}") from error


def _values(described, path):
    values = {}
    with np.load(path, allow_pickle=False) as kept:
        for name, entry in described.items():
            if "like" in entry:
                values[name] = values[entry["like"]].copy()
            elif "value" in entry:
                values[name] = np.full(entry["shape"], entry["value"], entry["dtype"])
            elif "normal" in entry:
                draw = normal(tuple(entry["shape"]), entry["normal"])
                values[name] = draw * np.float32(entry["deviation"])
            else:
                values[name] = kept[name]
                if _digest(values[name]) != entry["kept"]:
                    raise InputError(f"expected the job's {name}, got other values")
    return values


def _digest(value):
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
