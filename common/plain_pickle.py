"""A reader of pickles that hold plain values and NumPy arrays of integers, and nothing else.

`pickle.Unpickler` calls the functions that a pickle names, and NumPy uses a pickle's bytes as
pointers if it describes an array of objects. This reader calls nothing: it runs the few
instructions that such pickles need, records an array's description, and builds it from its bytes.
"""

import math
import pickle
import pickletools

import numpy as np

from common.errors import InputError, one_line

_INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")
_MOST_DIMENSIONS = 32  # NumPy 1's limit

# The functions and classes that a pickle may name, and our names; NumPy 2 renamed its modules.
_GLOBALS = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy.core.numeric _frombuffer": "frombuffer",
    "numpy._core.numeric _frombuffer": "frombuffer",
    "_codecs encode": "encode",
}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_PUSHED = _NUMBERS | _BYTES | _TEXTS
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # Python 2's: bytes
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_MARKED = {
    "LIST": lambda items: list(map(_plain, items)),
    "TUPLE": tuple,
    "DICT": lambda items: dict(_pairs(items)),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_SKIPPED = {"PROTO", "FRAME"}


def loads(data, name):
    """Reads what a pickle holds.

    Args:
        data: the pickle's bytes, in any protocol. Strings that Python 2 wrote become bytes.
        name: the file's name, for messages.

    Returns:
        None, bool, int, float, bytes, str, np.ndarray of integers, lists of these, and dicts of
        these with bytes or str as keys.

    Raises:
        InputError: the pickle names a function or class that is not among NumPy's few for arrays.
        pickle.UnpicklingError: it is damaged, or holds something else.
    """
    try:
        return _Reader(data, name).read()
    except InputError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise pickle.UnpicklingError(one_line(error)) from error


class _Global:
    """A function or class that a pickle names: only its name, so that nothing can be called."""

    def __init__(self, name):
        self.name = name


class _Dtype:
    """NumPy's type of an array's elements as a pickle gives it: the name, then the byte order."""

    def __init__(self, name):
        if _text(name) not in _INTEGERS:
            raise ValueError("expected an array of integers, got one of another type")
        self._name, self._order = _text(name), "|"

    def build(self, state):
        """Takes the byte order; refuses what would make fields, subarrays or objects."""
        if not all(value is None or isinstance(value, (int, bytes, str)) for value in state):
            raise ValueError("expected a plain type of an array's elements, got one with parts")
        self._order = _text(state[1])
        if self._order not in ("|", "<", ">", "="):
            raise ValueError("expected a byte order of an array")

    def numpy(self):
        return np.dtype(self._order + self._name)


class _Array:
    """An array that a pickle describes: `array` is None until the description is complete."""

    array = None

    def build(self, state):
        _, shape, dtype, is_fortran, data = state
        self.array = _make_array(data, dtype, shape, "F" if is_fortran else "C")


class _Reader:
    """Runs the instructions of one pickle; see `loads`."""

    def __init__(self, data, name):
        self._data, self._name = data, name
        self._stack, self._marks, self._memo = [], [], {}
        self._left_to_encode = len(data)

    def read(self):
        for opcode, argument, _ in pickletools.genops(self._data):
            if opcode.name == "STOP":
                (value,) = self._stack
                if self._marks:
                    raise ValueError("expected the end of a list, got the end of the pickle")
                return _plain(value)
            self._run(opcode.name, argument)
        raise ValueError("the pickle has no end")

    def _run(self, name, argument):
        stack = self._stack
        if name in _PUSHED:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _STRINGS:
            stack.append(argument.encode("latin-1"))
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _MARKED:
            stack.append(_MARKED[name](self._since_mark()))
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in _PUTS:
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name == "APPEND":
            self._extend(self._pop(1))
        elif name == "APPENDS":
            self._extend(self._since_mark())
        elif name == "SETITEM":
            self._update(self._pop(2))
        elif name == "SETITEMS":
            self._update(self._since_mark())
        elif name == "GLOBAL":
            stack.append(self._global(argument))
        elif name == "STACK_GLOBAL":
            module, name = self._pop(2)
            stack.append(self._global(f"{_text(module)} {_text(name)}"))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._call(function, arguments))
        elif name == "BUILD":
            target, state = self._pop(2)
            if not isinstance(target, (_Array, _Dtype)) or not isinstance(state, tuple):
                raise ValueError("expected the state of an array")
            target.build(state)
            stack.append(target)
        elif name not in _SKIPPED:
            raise ValueError(f"expected plain values and arrays, got the instruction {name}")

    def _pop(self, count):
        bottom = len(self._stack) - count
        if bottom < (self._marks[-1] if self._marks else 0):
            raise ValueError("expected more values before an instruction")
        values = self._stack[bottom:]
        del self._stack[bottom:]
        return values

    def _since_mark(self):
        return self._pop(len(self._stack) - self._marks.pop())

    def _extend(self, values):
        if type(self._stack[-1]) is not list:
            raise ValueError("expected a list")
        self._stack[-1].extend(map(_plain, values))

    def _update(self, values):
        if type(self._stack[-1]) is not dict:
            raise ValueError("expected a dict")
        self._stack[-1].update(_pairs(values))

    def _global(self, name):
        if name not in _GLOBALS:
            shown = one_line(name.replace(" ", "."))
            raise InputError(f"{self._name}: refused to load {shown} from this pickle")
        return _Global(_GLOBALS[name])

    def _call(self, function, arguments):
        name = function.name if isinstance(function, _Global) else None
        if name == "reconstruct":
            kind, _, _ = arguments
            if not (isinstance(kind, _Global) and kind.name == "ndarray"):
                raise ValueError("expected an array, got an object of another class")
            return _Array()
        if name == "dtype":
            return _Dtype(arguments[0])
        if name == "frombuffer":
            data, dtype, shape, order = arguments
            return _make_array(data, dtype, shape, _text(order))
        if name == "encode":  # how Python 3 writes bytes for Python 2
            text, encoding = arguments
            if not isinstance(text, str) or _text(encoding) not in ("latin1", "latin-1"):
                raise ValueError("expected bytes")
            # The texts are parts of the pickle; together they are longer only if one is repeated.
            self._left_to_encode -= len(text)
            if self._left_to_encode < 0:
                raise ValueError("expected no more bytes than the pickle has")
            return text.encode("latin-1")
        raise ValueError("expected an array, got a call of something else")


def _make_array(data, dtype, shape, order):
    """Makes an array of exactly these bytes, without a copy."""
    if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
        raise ValueError("expected the bytes of an array")
    if order not in ("C", "F") or not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError("expected the shape of an array")
    if not all(isinstance(n, int) and 0 <= n <= len(data) for n in shape):
        raise ValueError("expected the shape of an array that its bytes fill")
    dtype = dtype.numpy()
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("expected as many bytes as the shape of an array says")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _pairs(items):
    """The pairs of keys and values that a dict is made of."""
    if len(items) % 2:
        raise ValueError("expected a value for each key of a dict")
    for key in items[::2]:
        if not isinstance(key, (bytes, str)):  # a tuple may be too deep to be hashed
            raise ValueError("expected text as the keys of a dict")
    return zip(items[::2], map(_plain, items[1::2]), strict=True)


def _plain(value):
    """A value for the caller: an array in place of its description."""
    if isinstance(value, _Array):
        value = value.array
        if value is None:
            raise ValueError("expected the state of an array, got none")
    if isinstance(value, (_Global, _Dtype, tuple)):
        raise ValueError("expected plain values and arrays, got a part of what makes an array")
    return value


def _text(value):
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value
