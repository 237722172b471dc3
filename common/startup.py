"""Signals and TensorFlow's log while a script imports TensorFlow, which takes seconds.

Scripts import this module first and call `begin`; `common.scripts.app` calls `end`. In between
Ctrl-C prints one line, and only the errors in TensorFlow's C++ log are shown: it logs other lines
at its start whatever TF_CPP_MIN_LOG_LEVEL is. TF_CPP_MIN_LOG_LEVEL=0 shows all, also what it logs
when it aborts Python.
"""

import atexit
import contextlib
import os
import re
import signal
import sys
import tempfile

_ERROR = re.compile(r"[EF]\d{4} \d\d:\d\d:\d\d")  # how a message of severity ERROR or FATAL begins
_ANY = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d|WARNING: All log messages before absl")
_captured = None


def begin():
    """Until `end`: Ctrl-C prints one line and exits with 130; TensorFlow's messages are kept."""
    global _captured
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_in_one_line)
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0" and _captured is None:
        with contextlib.suppress(OSError):  # no place for a file, or no stderr: all is shown
            _captured = _CapturedLog()
            atexit.register(_captured.end)


def end():
    """Has TensorFlow look for devices, prints its errors, and undoes `begin`."""
    if _captured is not None:
        import tensorflow as tf

        tf.config.list_physical_devices()
        _captured.end()
    if signal.getsignal(signal.SIGINT) is _end_in_one_line:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def errors_in(text, has_nvidia_device):
    """The lines of TensorFlow's log that report an error, as text.

    Args:
        text: what TensorFlow wrote to stderr.
        has_nvidia_device: whether the machine has one; if not, CUDA's errors are dropped.
    """
    lines, is_error = [], True
    for line in text.splitlines(keepends=True):
        if _ANY.match(line):  # a message begins, and the one before ends
            is_error = bool(_ERROR.match(line)) and (has_nvidia_device or "cuda" not in line)
        if is_error:
            lines.append(line)
    return "".join(lines)


class _CapturedLog:
    """Keeps what C++ code writes to stderr; Python's sys.stderr still writes to the true one."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  `end` closes it
        self._true = os.dup(2)
        self._before = sys.stderr
        sys.stderr.flush()
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
        os.dup2(self._file.fileno(), 2)

    def end(self):
        if self._file.closed:
            return
        os.dup2(self._true, 2)
        sys.stderr.flush()
        sys.stderr = self._before
        self._file.seek(0)
        text = self._file.read().decode(errors="replace")
        self._file.close()
        sys.stderr.write(errors_in(text, os.path.exists("/dev/nvidiactl")))

    def write(self, data):
        os.write(self._true, data)


def _end_in_one_line(number, frame):
    # An exception would surface wherever the import is at that moment, even within C++.
    line = b"interrupted\n"
    if _captured is None:
        os.write(2, line)
    else:
        _captured.write(line)
    os._exit(128 + number)
