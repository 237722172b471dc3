"""Ctrl-C, SIGTERM and SIGHUP as requests, which long work obeys once it can be resumed."""

import os
import signal
import sys
import threading

SIGPIPE = 13  # Windows does not have it
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupted(KeyboardInterrupt):
    """A signal ended the work, whose results so far are kept.

    Args:
        number: the signal's number.
    """

    def __init__(self, number=signal.SIGINT):
        super().__init__(number)
        self.number = int(number)


class Interruption:
    """Within its context the first of `SIGNALS` only sets `requested`; a second acts as usual.

    A signal that the process ignores stays ignored, such as SIGHUP under nohup. Python handles
    signals in the main thread alone: in another thread nothing is ever requested.

    Attributes:
        requested: None, or the number of the signal that came.
    """

    def __init__(self):
        self.requested = None
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                # Shells start background jobs with SIGINT ignored; a training still obeys it.
                if handler is not None and (handler != signal.SIG_IGN or number == signal.SIGINT):
                    self._before[number] = handler
                    signal.signal(number, self._request)
        return self

    def _request(self, number, frame):
        self.requested = number
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error):
        self._restore()


def drop_output():
    """Discards what is printed from now on, after the reader of a pipe has gone.

    Otherwise Python would fail again as it flushes its streams at its end.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
