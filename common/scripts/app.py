"""Runs a script: parses its flags, and turns what it cannot do into one line and exit code 1."""

import contextlib
import signal
import sys

import tensorflow as tf
from absl import app, flags, logging

from common import startup
from common.errors import InputError, one_line, reason_of
from common.interruption import SIGPIPE, drop_output
from common.scripts.flags import config_from_flags, define_config_flags

# What a disk, the memory or a file may cause anywhere, beside what the scripts foresee.
FAILURES = (OSError, MemoryError, RecursionError, tf.errors.OpError)


def run(main, challenge, define_flags=None):
    """Calls `main(challenge, config, flag_values)` with what the command line says, then exits.

    Args:
        main: the script's work.
        challenge: a `common.challenge.Challenge`, which has a flag for each of its settings.
        define_flags: function (challenge, flag_values) that declares the script's further flags.
    """
    define_config_flags(challenge, flags.FLAGS)
    if define_flags is not None:
        define_flags(challenge, flags.FLAGS)

    def with_config(words):
        if words:
            raise InputError(f"expected flags only, got {' '.join(words)!r}")
        main(challenge, config_from_flags(challenge, flags.FLAGS), flags.FLAGS)

    run_words(with_config)


def run_words(main):
    """Calls `main(words)` with the command line's words that are no flags, then exits.

    Args:
        main: the work of a script whose flags are declared.
    """
    for module, declared in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("common."):
            for flag in declared:  # so that --help shows it
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            fail(error)

    def guarded(argv):
        startup.end()
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            main(argv[1:])
        except InputError as error:
            fail(error)
        except BrokenPipeError:  # the reader of what is printed is gone, such as `head`
            raise
        except FAILURES as error:
            fail(_described(error))
        except KeyboardInterrupt as error:
            number = getattr(error, "number", signal.SIGINT)
            with contextlib.suppress(OSError):
                print("interrupted", file=sys.stderr)
            drop_output()
            sys.exit(128 + number)

    try:
        app.run(guarded, flags_parser=parse)
    except BrokenPipeError:
        drop_output()
        sys.exit(128 + SIGPIPE)


def _described(error):
    """What went wrong, as text: of which file, or else of which kind it is."""
    what, reason = getattr(error, "filename", None), reason_of(error)
    if what is None:
        what = type(error).__name__
    return reason if reason == what else f"{what}: {reason}"


def fail(error):
    """Prints the error as one line and exits with code 1."""
    print("error: " + one_line(error), file=sys.stderr)
    sys.exit(1)
