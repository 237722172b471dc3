"""What a script does before it imports TensorFlow, which takes seconds.

Scripts import this module first and call `begin`; it imports nothing that is slow.
"""

import os
import signal


def begin():
    """Makes Ctrl-C one line and exit code 130 from now on, until `end`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_in_one_line)


def end():
    """Lets Ctrl-C raise KeyboardInterrupt again, which `common.app` turns into one line."""
    if signal.getsignal(signal.SIGINT) is _end_in_one_line:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_in_one_line(number, frame):
    # An exception would surface wherever the import happens to be, in C++ too.
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
