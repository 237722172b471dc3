"""Runs a script: parses its flags, and turns a failure into one line and exit code 1."""

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
from common.scripts.console import show_messages
from common.scripts.flags import config_from_flags, define_flags, help_text

# Failures of disk, memory or files that the scripts do not handle where they occur.
FAILURES = (OSError, MemoryError, RecursionError, tf.errors.OpError)


def run(main, challenge, define_own_flags=None, uses=None):
    """Calls `main(challenge, config, flag_values)` as the command line says, then exits.

    Args:
        main: the script's work.
        challenge: a `common.challenge.Challenge`.
        define_own_flags: function (challenge, flag_values) that declares the script's further
            flags.
        uses: the kinds of work that the script does, see `flags.define_flags`.
    """
    define_flags(challenge, flags.FLAGS, uses)
    if define_own_flags is not None:
        define_own_flags(challenge, flags.FLAGS)

    def work(argv):
        if argv[1:]:
            raise InputError(f"expected flags only, got {' '.join(argv[1:])!r}")
        main(challenge, config_from_flags(challenge, flags.FLAGS), flags.FLAGS)

    with _failures_in_one_line():
        app.run(work, flags_parser=_parser(challenge))


def run_words(main):
    """Calls `main(words)` with the command line's words that are not flags, then exits.

    Args:
        main: the work of a script whose flags are declared.
    """

    def work(argv):
        main(argv[1:])  # what it returns is not an exit code

    with _failures_in_one_line():
        app.run(work, flags_parser=_parser())


def _parser(challenge=None):
    """Returns absl's `flags_parser`, which ends what `common.startup` began.

    Args:
        challenge: the `Challenge` whose settings are known, also those without a flag in this
            script; None for a script without settings.
    """
    app.define_help_flags()
    flags.DEFINE_flag(_Help())
    fields = dataclasses.fields(challenge.config_class) if challenge is not None else ()
    settings = {field.name for field in fields}

    def parse(argv):
        try:
            words = flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            name = error.flagname
            if not settings & {name, name.removeprefix("no")}:
                fail(error)
            script = pathlib.Path(argv[0]).name
            fail(f"--{name}: expected a setting that {script} uses; a --config file may hold it")
        except flags.Error as error:
            fail(error)
        startup.end()
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        return words

    return parse


@contextlib.contextmanager
def _failures_in_one_line():
    """Turns a failure into one line and an exit code, and shows messages."""
    show_messages()
    try:
        yield
    except InputError as error:
        fail(error)
    except BrokenPipeError:  # the reader of what is printed is gone, such as `head`
        drop_output()
        sys.exit(128 + SIGPIPE)
    except FAILURES as error:
        fail(_described(error))
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr)
        drop_output()
        sys.exit(128 + number)


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
    """Returns an error as text that begins with the file, or else with the error's class."""
    what, reason = getattr(error, "filename", None), reason_of(error)
    if what is None:
        what = type(error).__name__
    return reason if reason == what else f"{what}: {reason}"


def fail(error):
    """Prints the error as one line and exits with code 1."""
    print("error: " + one_line(error), file=sys.stderr)
    sys.exit(1)
