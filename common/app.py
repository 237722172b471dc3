"""Runs a script: parses its flags, and turns an InputError into one line and exit code 1."""

import sys

from absl import app, flags, logging

from common import config as config_lib
from common.errors import InputError


def run(main, challenge, define_flags=None):
    """Calls `main(challenge, config, flag_values)` with what the command line says, then exits.

    Args:
        main: the script's work.
        challenge: a `common.challenge.Challenge`, which has a flag for each of its settings.
        define_flags: function (challenge, flag_values) that declares the script's further flags.
    """
    config_lib.define_flags(challenge, flags.FLAGS)
    if define_flags is not None:
        define_flags(challenge, flags.FLAGS)
    for module, declared in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("common."):
            for flag in declared:  # so that --help shows it
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise flags.Error(f"expected flags only, got {' '.join(rest[1:])!r}")
        except flags.Error as error:
            fail(error)
        return rest

    def guarded(argv):
        del argv
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            main(challenge, config_lib.config_from_flags(challenge, flags.FLAGS), flags.FLAGS)
        except InputError as error:
            fail(error)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def fail(error):
    """Prints the error as one line and exits with code 1."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(1)
