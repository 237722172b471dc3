"""The arguments of attacks: images, labels, seeds and numbers, which are refused if ambiguous.

NumPy arrays, lists and eager tensors that cannot be used raise `InputError`. In a tf.function wrong
shapes and dtypes raise it as the function is traced, and assertion ops refuse wrong values as it
runs, unless XLA compiles it. `as_lines` makes one line of their message.
"""

import contextlib
import operator
import re

import numpy as np
import tensorflow as tf

from common.errors import InputError, one_line

INT32 = np.iinfo(np.int32)
# float32 can square such numbers and add them up over an image's pixels without overflow or 0.
LARGEST, SMALLEST = 1e15, float(np.finfo(np.float32).tiny)
TOLERANCE = 1e-4  # of rounding beyond the pixel range, as a share of it, or of 1 if that is less


def whole_number(name, value, least, most=int(INT32.max)):
    """A count or seed as an int.

    Args:
        name: the argument's name, which begins the message.
        value: the argument's value.
        least, most: the range, both included.

    Raises:
        InputError: it is not a whole number, or out of the range.
    """
    count = _whole(value)
    if count is None:
        raise InputError(f"{name}: expected a whole number, got {one_line(repr(value))}")
    if count < least and most == INT32.max:
        raise InputError(f"{name}: expected {least} or more, got {count}")
    if not least <= count <= most:
        raise InputError(f"{name}: expected {least} to {most}, got {count}")
    return count


def real_number(name, value, least=-LARGEST, most=LARGEST):
    """A number as a float that float32 can hold.

    Args:
        name, value: see `whole_number`.
        least, most: the range, both included.

    Raises:
        InputError: it is not a number, not finite, out of the range, or so small that float32
            takes it for 0.
    """
    found = to_float(name, value)
    if not least <= found <= most or 0 < abs(found) < SMALLEST:
        raise InputError(f"{name}: expected {least:g} to {most:g}, got {found:g}")
    return found


def to_float(name, value):
    """A number of any size as a float; raises InputError if it is not one."""
    found = _real(value)
    if found is None:
        raise InputError(f"{name}: expected a number, got {one_line(repr(value))}")
    return found


def pixel_range(bounds):
    """The lowest and highest pixel value as floats.

    Raises:
        InputError: they are not two finite numbers, the first below the second in float32.
    """
    try:
        numbers = [_real(value) for value in bounds]
    except TypeError:
        numbers = []
    if len(numbers) == 2 and None not in numbers:
        low, high = numbers
        if max(abs(low), abs(high)) <= LARGEST and np.float32(low) < np.float32(high):
            return low, high
    raise InputError(
        "bounds: expected two finite numbers, the lowest pixel value and a higher one, "
        f"got {one_line(repr(bounds))}"
    )


def to_images(x, bounds, name="x_nat"):
    """Images as attacks take them.

    Args:
        x: images (batch, height, width, channels), pixels in `bounds` but for rounding; NumPy,
            tensor or list, any real dtype.
        bounds: (lowest, highest) pixel value.
        name: the argument's name, for the message.

    Returns:
        float32 tensor, the shape of `x`, clipped to `bounds`.

    Raises:
        InputError: another rank or dtype; a pixel is outside `bounds` or not finite.
    """
    x = _real_tensor(x, name)
    if x.shape.rank is None:
        x = tf.ensure_shape(x, [None] * 4)
    check_image_shape(x.shape, name)
    x = tf.cast(x, tf.float32)
    low, high = bounds
    slack = max(TOLERANCE * min(1.0, high - low), 2**-22 * max(abs(low), abs(high)))
    least, most = np.float32(low - slack), np.float32(high + slack)
    expected = f"{name}: expected pixels in [{low:g}, {high:g}]"
    if tf.is_symbolic_tensor(x):
        is_right = tf.reduce_all((x >= least) & (x <= most))
        x = _asserted(x, is_right, expected, lambda: _range_of(x))
    elif not _is_within(x, least, most):
        pixels = x.numpy()
        if not np.isfinite(pixels).all():
            count = np.count_nonzero(~np.isfinite(pixels))
            raise InputError(f"{expected}, got {count:,} that are not finite numbers")
        raise InputError(f"{expected}, got [{pixels.min():g}, {pixels.max():g}]")
    return tf.clip_by_value(x, low, high)


def check_image_shape(shape, name="x"):
    """Raises InputError if a tf.TensorShape is not (batch, height, width, channels)."""
    if shape.rank != 4:
        hint = "; x[..., None] adds the channel" if shape.rank == 3 else ""
        raise InputError(
            f"{name}: expected images (batch, height, width, channels), got shape "
            f"{shape if shape.rank is None else tuple(shape)}{hint}"
        )


def refuse_structure(x):
    """Raises InputError if `x` is a dict, or a tuple or list of arrays, and not one array."""
    if isinstance(x, (dict, tuple, list)):
        raise InputError(
            f"x: expected one array of images, got {type(x).__name__}; a model of several inputs "
            "needs a function of the image alone"
        )


def to_labels(y, count, num_classes=None, name="y"):
    """Labels as classes.

    Args:
        y: classes (count,) or (count, 1), of any integer dtype or whole numbers in a floating one;
            or one-hot labels (count, classes) of any real dtype, a single 1 in each row and else
            0. NumPy, tensor or list.
        count: number of images; int, or a tensor in a tf.function.
        num_classes: number of the model's classes, or None if that is not known yet.
        name: the argument's name, for the message.

    Returns:
        int32 array (count,); in a tf.function a tensor.

    Raises:
        InputError: they are not such labels of `count` images, or a class is not from 0 to below
            `num_classes`.
    """
    if _is_symbolic(y) or tf.is_symbolic_tensor(count):
        return _symbolic_labels(y, count, num_classes, name)
    y = _real_array(y, name)
    _check_label_shape(y.shape, count, num_classes, name)
    if y.ndim == 2 and y.shape[1] != 1:
        is_one = y == 1
        wrong = (is_one.sum(axis=1) != 1) | ~(is_one | (y == 0)).all(axis=1)
        if wrong.any():
            row = one_line(np.array2string(y[wrong][0], threshold=20))
            raise InputError(f"{name}: expected a single 1 and else 0 in each row, got {row}")
        return is_one.argmax(axis=1).astype(np.int32)
    y = y.reshape(-1)
    if y.dtype.kind == "b" and y.size:
        raise InputError(f"{name}: expected classes, got bools")
    if y.dtype.kind == "f":
        y = y.astype(np.float64)
        wrong = ~(np.isfinite(y) & (y == np.rint(y)))
        if wrong.any():
            raise InputError(f"{name}: expected whole numbers, got {y[wrong][0]:g}")
    most = INT32.max if num_classes is None else num_classes - 1
    wrong = (y < 0) | (y > most)
    if wrong.any():
        raise InputError(f"{name}: expected {_classes(num_classes)}, got {y[wrong][0]:.0f}")
    return y.astype(np.int32)


def to_seed(seed, count):
    """The seeds of the examples' random numbers.

    Args:
        seed: int, which stands for (int, 0); a pair of ints; or int (count, 2), a pair for each
            example.
        count: number of examples; int, or a tensor in a tf.function.

    Returns:
        int32 tensor (2,) or (count, 2).

    Raises:
        InputError: another shape; a seed is not a whole number, or not within int32.
    """
    seed = _to_int32(seed, "seed")
    if len(seed.shape) == 0:
        seed = tf.stack([seed, 0]) if tf.is_tensor(seed) else np.int32([seed, 0])
    shape = tuple(seed.shape)
    is_of_each = len(shape) == 2 and _agree(shape[0], count) and shape[1] == 2
    if shape != (2,) and not is_of_each:
        count = "batch" if tf.is_symbolic_tensor(count) else count
        raise InputError(
            f"seed: expected an int, a pair or a pair for each example ({count}, 2), "
            f"got shape {shape}"
        )
    return tf.convert_to_tensor(seed)


def to_index(index, count):
    """The numbers of examples in their data set.

    Args:
        index: int (count,), or None for 0, 1, 2, ...
        count: number of examples; int, or a tensor in a tf.function.

    Returns:
        int32 tensor (count,).

    Raises:
        InputError: another shape; a number is not whole, or not within int32.
    """
    if index is None:
        return tf.range(count)
    index = _to_int32(index, "index")
    if len(index.shape) != 1 or not _agree(index.shape[0], count):
        count = "batch" if tf.is_symbolic_tensor(count) else count
        raise InputError(f"index: expected shape ({count},), got {tuple(index.shape)}")
    return tf.convert_to_tensor(index)


def to_scale(scale, most):
    """A factor of epsilon and step_size, as float32 tensor or scalar.

    Raises:
        InputError: it is not a number from 0 to `most`.
    """
    if not tf.is_symbolic_tensor(scale):
        return tf.constant(real_number("scale", scale, 0.0, most), tf.float32)
    scale = tf.cast(scale, tf.float32)
    expected = f"scale: expected 0 to {most:g}"
    is_right = tf.reduce_all((scale >= 0.0) & (scale <= most))
    return _asserted(scale, is_right, expected, lambda: scale)


@contextlib.contextmanager
def as_raised():
    """Raises the original `InputError`, which AutoGraph replaces by a report of many lines."""
    try:
        yield
    except Exception as error:
        raised, cause = error, error
        while cause is not None:
            raised = cause if isinstance(cause, InputError) else raised
            cause = cause.__context__
        if raised is error:
            raise
        raise raised from None


@contextlib.contextmanager
def as_lines():
    """Raises an `InputError` for a wrong batch, also from an assertion of a compiled step."""
    with as_raised():
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            told = r"assertion failed: \[(\w+: expected .*?), got\] (\[*[^]]*)"
            said = re.search(told, str(error))
            if said is None:
                raise
            came = said[2].replace("[", "", 1)
            if "pixels" in said[1]:
                is_finite = "nan" not in came
                came = f"[{came.replace(' ', ', ')}]" if is_finite else "some that are not finite"
            raise InputError(f"{said[1]}, got {came}") from None


def _whole(value):
    """`value` as an int, or None if it is not a whole number."""
    try:
        return operator.index(value) if not _is_no_number(value) else None
    except TypeError:
        found = _real(value)
        return int(found) if found is not None and found.is_integer() else None


def _real(value):
    """`value` as a float, or None if it is not a number."""
    if _is_no_number(value) or tf.is_symbolic_tensor(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_no_number(value):
    if isinstance(value, (bool, np.bool_, str, bytes, complex, np.complexfloating)):
        return True
    return isinstance(value, (list, tuple)) or np.ndim(value) > 0


def _is_symbolic(values):
    """Whether a tensor, or one in a list of some, has no value before the tf.function runs."""
    if isinstance(values, (list, tuple)):
        return any(tf.is_symbolic_tensor(value) for value in tf.nest.flatten(values))
    return tf.is_symbolic_tensor(values)


def _real_tensor(values, name):
    try:
        tensor = tf.convert_to_tensor(values)
    except (TypeError, ValueError, OverflowError, tf.errors.OpError) as error:
        raise InputError(f"{name}: expected an array of numbers: {one_line(error)}") from None
    dtype = tensor.dtype
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        raise InputError(f"{name}: expected real numbers, got {dtype.name}")
    return tensor


def _real_array(values, name):
    if tf.is_tensor(values):
        values = _real_tensor(values, name)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: expected an array of numbers: {one_line(error)}") from None
    if array.dtype == tf.bfloat16.as_numpy_dtype:
        array = array.astype(np.float32)
    if array.dtype.kind not in "iufb":
        raise InputError(f"{name}: expected real numbers, got {array.dtype.name}")
    return array


def _is_within(x, least, most):
    if "CPU" in x.device:
        pixels = x.numpy()
        # A NaN is the minimum, and neither above nor below anything.
        return not pixels.size or (least <= pixels.min() and pixels.max() <= most)
    return bool(tf.reduce_all((x >= least) & (x <= most)))


def _classes(num_classes):
    return "classes of 0 or more" if num_classes is None else f"classes from 0 to {num_classes - 1}"


def _check_label_shape(shape, count, num_classes, name):
    """Refuses labels by their shape, whose sizes may be None."""
    num = "batch" if tf.is_symbolic_tensor(count) else count
    if len(shape) not in (1, 2):
        raise InputError(
            f"{name}: expected classes ({num},) or one-hot labels ({num}, classes), "
            f"got shape {tuple(shape)}"
        )
    if not _agree(shape[0], count):
        raise InputError(f"{name}: expected a label for each of {num} images, got {shape[0]}")
    if len(shape) == 2 and shape[1] not in (1, None) and num_classes not in (shape[1], None):
        raise InputError(f"{name}: expected one of {num_classes} classes, got one of {shape[1]}")


def _symbolic_labels(y, count, num_classes, name):
    y = _real_tensor(y, name)
    if y.shape.rank is None:
        y = tf.ensure_shape(y, [None])
    _check_label_shape(y.shape.as_list(), count, num_classes, name)
    if y.dtype.is_bool and (y.shape.rank == 1 or y.shape[1] == 1):
        raise InputError(f"{name}: expected classes, got bools")
    exact = tf.cast(y, tf.float64)
    most = INT32.max if num_classes is None else num_classes - 1

    def are_classes(labels):
        return (labels == tf.round(labels)) & (labels >= 0) & (labels <= most)

    if exact.shape.rank == 1:
        labels, are_right = exact, are_classes(exact)
    elif exact.shape[1] == 1:
        labels, are_right = exact[:, 0], are_classes(exact[:, 0])
    else:
        is_one = exact == 1
        labels = tf.cast(tf.argmax(is_one, axis=1), tf.float64)
        are_right = tf.reduce_all(is_one | (exact == 0), axis=1)
        are_right &= tf.math.count_nonzero(is_one, axis=1) == 1
        if exact.shape[1] is None:
            is_column = tf.shape(exact)[1] == 1
            column = exact[:, 0]
            if num_classes is not None:
                are_right &= tf.shape(exact)[1] == num_classes
            are_right = tf.where(is_column, are_classes(column), are_right)
            labels = tf.where(is_column, column, labels)

    is_right = tf.reduce_all(are_right) & (tf.shape(labels)[0] == count)
    expected = f"{name}: expected {_classes(num_classes)} or one-hot labels, one for each image"
    first = tf.argmax(tf.cast(~are_right, tf.int32))
    labels = _asserted(labels, is_right, expected, lambda: tf.gather(exact, first))
    return tf.cast(labels, tf.int32)


def _to_int32(values, name):
    """Whole numbers as an int32 array, or if they are a symbolic tensor, as a tensor."""
    if not _is_symbolic(values):
        array = _real_array(values, name)
        wrong = array.dtype.kind == "b" or (array != np.rint(array)) | (
            (array < INT32.min) | (array > INT32.max)
        )
        if np.any(wrong):
            shown = "a bool" if array.dtype.kind == "b" else f"{array[wrong].flat[0]}"
            raise InputError(f"{name}: expected whole numbers within int32, got {shown}")
        return array.astype(np.int32)
    tensor = _real_tensor(values, name)
    if tensor.dtype.is_bool:
        raise InputError(f"{name}: expected whole numbers within int32, got a bool")
    if tensor.dtype == tf.int32:
        return tensor
    exact = tf.cast(tensor, tf.float64)
    is_right = (exact == tf.round(exact)) & (exact >= INT32.min) & (exact <= INT32.max)
    expected = f"{name}: expected whole numbers within int32"
    integers, is_right = tf.cast(tensor, tf.int32), tf.reduce_all(is_right)
    return _asserted(integers, is_right, expected, lambda: exact)


def _agree(size, count):
    """Whether a size, if it is known, is `count`, if that is known."""
    return size is None or tf.is_symbolic_tensor(count) or size == count


def _range_of(x):
    """The lowest and highest pixel, or NaN in place of both if one is not finite."""
    both = tf.stack([tf.reduce_min(x), tf.reduce_max(x)])
    return tf.where(tf.reduce_all(tf.math.is_finite(x)), both, np.nan)


def _asserted(tensor, condition, expected, came):
    """`tensor`, behind an assertion of `condition`; XLA leaves the assertion out.

    Args:
        tensor: returned unchanged.
        condition: bool scalar.
        expected: the message.
        came: function to a tensor of what came instead, which runs only if `condition` is false.
    """

    def fails():
        return tf.debugging.Assert(condition, [f"{expected}, got", came()])

    with tf.control_dependencies([tf.cond(condition, tf.no_op, fails)]):
        return tf.identity(tensor)
