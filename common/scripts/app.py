"""Runs a script: parses its flags, and turns what it cannot do into one line and exit code 1."""

import contextlib
import dataclasses
import pathlib
import signal
import sys

import tensorflow as tf
from absl import app, flags, logging

from common import startup
from common.errors import InputError, one_line, reason_of
from common.interruption import SIGPIPE, drop_output
from common.scripts.flags import config_from_flags, define_flags, help_text

# What a disk, the memory or a file may cause anywhere, beside what the scripts foresee.
FAILURES = (OSError, MemoryError, RecursionError, tf.errors.OpError)


def run(main, challenge, define_own_flags=None, uses=None):
    """Calls `main(challenge, config, flag_values)` with what the command line says, then exits.

    Args:
        main: the script's work.
        challenge: a `common.challenge.Challenge`.
        define_own_flags: function (challenge, flag_values) that declares the script's further
            flags.
        uses: which settings have a flag, see `flags.define_flags`.
    """
    define_flags(challenge, flags.FLAGS, uses)
    if define_own_flags is not None:
        define_own_flags(challenge, flags.FLAGS)

    def with_config(words):
        if words:
            raise InputError(f"expected flags only, got {' '.join(words)!r}")
        main(challenge, config_from_flags(challenge, flags.FLAGS), flags.FLAGS)

    run_words(with_config, [field.name for field in dataclasses.fields(challenge.config_class)])


def run_words(main, settings=()):
    """Calls `main(words)` with the command line's words that are not flags, then exits.

    Args:
        main: the work of a script whose flags are declared.
        settings: names that a config file may hold; one that has no flag here is another script's.
    """
    app.define_help_flags()
    flags.DEFINE_flag(_Help())

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            name = error.flagname
            if name not in settings and name.removeprefix("no") not in settings:
                fail(error)
            script = pathlib.Path(argv[0]).name
            fail(f"--{name}: expected a setting that {script} uses; a --config file may hold it")
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


class _Help(flags.BooleanFlag):
    """--help, which lists the script's flags in groups."""

    def __init__(self):
        super().__init__("help", False, "show this help", short_name="h", allow_override=True)

    def parse(self, argument):
        """Shows the help and exits, unless the argument is false."""
        super().parse(argument)
        if self.value:
            description = sys.modules["__main__"].__doc__
            print(help_text(flags.FLAGS, sys.argv[0], description))
            sys.exit(0)


def _described(error):
    """Returns what went wrong, as text that begins with the file, or else with the error's kind."""
    what, reason = getattr(error, "filename", None), reason_of(error)
    if what is None:
        what = type(error).__name__
    return reason if reason == what else f"{what}: {reason}"


def fail(error):
    """Prints the error as one line and exits with code 1."""
    print("error: " + one_line(error), file=sys.stderr)
    sys.exit(1)
