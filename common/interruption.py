"""Ctrl-C and SIGTERM as a request that long work heeds where it can go on later."""

import signal


class Interruption:
    """Within it Ctrl-C and SIGTERM only set `requested`; a second one acts as ever."""

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._request)
        return self

    def _request(self, number, frame):
        self.requested = True
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error):
        self._restore()
