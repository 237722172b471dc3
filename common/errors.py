"""The exception that scripts print as one line, and functions that make such a line of a text.

A message may quote a path, a flag or a file from somebody else. `one_line` removes line breaks and
terminal escape codes, and limits the length, so that such text cannot imitate the program's lines.
"""

import re

LONGEST_LINE = 2000  # characters


class InputError(ValueError):
    """The user's input cannot be used; the message says what was expected and what came."""

    __init__ = Exception.__init__  # with another __init__ AutoGraph would raise it as another class


def one_line(text):
    """Returns `text` as one line that a terminal shows unchanged.

    Args:
        text: str or exception. A run of white space becomes one space; a character that cannot be
            printed becomes an escape such as \\x1b; text longer than `LONGEST_LINE` loses its
            middle.

    Returns:
        str.
    """
    words = " ".join(str(text).split())
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in words
    )
    if len(line) > LONGEST_LINE:
        half = LONGEST_LINE // 2
        line = f"{line[:half]} ... ({len(line) - 2 * half:,} characters) ... {line[-half:]}"
    return line


def reason_of(error):
    """Returns the reason for an exception as one line: the operating system's words if any.

    Args:
        error: an exception.

    Returns:
        str, never empty.
    """
    strerror = getattr(error, "strerror", None)
    # TensorFlow puts the node of its graph before the reason, and the op after it.
    reason = re.sub(r"\{\{\w+ [^}]*\}\} ?|\[Op:\w+\].*", "", one_line(strerror or error)).strip()
    return reason or type(error).__name__
