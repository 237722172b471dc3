"""fetch_model.py, which fetches the networks that the originals published."""

import pathlib
import sys

from absl import flags

from common.errors import InputError
from common.fetching import default_directory, fetch
from common.scripts import app
from common.scripts.flags import define_path


def run_script(challenge, published):
    """Runs a challenge's fetch_model.py on its command line.

    Args:
        challenge: a `common.challenge.Challenge`.
        published: dict from a model's name to its `Source`.
    """
    flags.DEFINE_bool("all", False, f"fetch all of them: {', '.join(published)}")
    define_path(
        "from_file", None, "archive that is already at hand, such as adv_trained.zip: no download"
    )
    define_path(
        "models_dir", None, f"where NAME/ is written (default: {default_directory(challenge)})"
    )

    def main(words):
        from_file = flags.FLAGS.from_file
        names = chosen(words, published, flags.FLAGS.all, from_file)
        models_dir = flags.FLAGS.models_dir or default_directory(challenge)
        try:
            for name in names:
                fetch(challenge, name, published[name], models_dir, from_file)
        except KeyboardInterrupt:
            print("interrupted; the same command resumes there", file=sys.stderr)
            sys.exit(130)

    app.run_words(main)


def chosen(words, published, fetch_all, from_file):
    """Returns the names of the models that a command line asks for.

    Args:
        words: the command line's words that are not flags.
        published: dict with the known names.
        fetch_all, from_file: the flags' values.

    Raises:
        InputError: no model is asked for, an unknown one, or more than one for `from_file`.
    """
    if from_file is not None:
        names = words or [pathlib.Path(from_file).stem]
        if fetch_all or len(names) > 1:
            raise InputError("--from_file: expected one model, got more")
    else:
        if fetch_all and words:
            raise InputError(f"expected --all or names of models, got both: {' '.join(words)}")
        names = list(published) if fetch_all else words
    unknown = [name for name in names if name not in published]
    if unknown or not names:
        got = ", ".join(unknown) or "none"
        raise InputError(f"expected a model out of {', '.join(published)}, or --all; got {got}")
    return names
