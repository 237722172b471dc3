"""Images and labels of a user: arrays, or a data set, which is read to its end."""

import keras
import numpy as np
import tensorflow as tf

from common.attack.inputs import check_image_shape, refuse_structure
from common.errors import InputError

_ONE_SIZE = "x: expected images of one size"


def to_arrays(x, y=None):
    """Images and labels as arrays; a data set is read to its end.

    Args:
        x, y: see `common.robust.evaluate`.

    Returns:
        Images (n, height, width, channels), and labels; both arrays.

    Raises:
        InputError: they are none of the forms there. Neither pixels nor labels are checked.
    """
    is_dataset = isinstance(x, tf.data.Dataset)
    if is_dataset or isinstance(x, keras.utils.PyDataset):
        if y is not None:
            raise InputError("y: expected none beside a data set, which has its own labels")
        is_endless = (
            x.cardinality() == tf.data.INFINITE_CARDINALITY if is_dataset else x.num_batches is None
        )
        if is_endless:
            raise InputError("x: expected a data set with an end, got one that repeats for ever")
        x, y = _read(x if is_dataset else (x[number] for number in range(x.num_batches)))
    elif not (hasattr(x, "__array__") or isinstance(x, (list, tuple, dict))):
        raise InputError(
            "x: expected an array, a tf.data.Dataset or a keras PyDataset of images and labels, "
            f"got {type(x).__name__}"
        )
    elif y is None:
        raise InputError("y: expected the labels of the images x, got none")
    if isinstance(x, dict) or (isinstance(x, (list, tuple)) and np.ndim(x[:1]) > 4):
        refuse_structure(x)
    x, y = _as_array(x, "x"), _as_array(y, "y")
    if not len(x):
        raise InputError("x: expected one image or more, got none")
    check_image_shape(tf.TensorShape(x.shape))
    return x, y


def _read(batches):
    """The images and labels of a data set, in batches or one by one, each as a list or array."""
    parts = []
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise InputError("x: expected a data set of pairs (images, labels)")
        refuse_structure(batch[0])
        parts.append((np.asarray(batch[0]), np.asarray(batch[1])))
        images, labels = parts[-1]
        # One image of three axes has one label, or a row of 0 and a single 1.
        if images.ndim == 3 and labels.ndim and np.count_nonzero(labels) != 1:
            check_image_shape(tf.TensorShape(images.shape))
    if parts and parts[0][0].ndim == 4:
        sizes = {images.shape[1:] for images, _ in parts}
        if len(sizes) == 1:
            return (np.concatenate(part) for part in zip(*parts, strict=True))
        raise InputError(f"{_ONE_SIZE}, got {' and '.join(map(str, sorted(sizes)))}")
    return zip(*parts, strict=True) if parts else ((), ())


def _as_array(values, name):
    """`values` as an array, which a list of images is if they have one size."""
    if isinstance(values, (list, tuple)):
        sizes = sorted({np.shape(value) for value in values})
        if name == "x" and len(sizes) > 1:
            raise InputError(f"{_ONE_SIZE}, got {' and '.join(map(str, sizes[:3]))}")
    return values if isinstance(values, np.ndarray) else np.asarray(values)
