"""Messages: scripts show all of them, a program of a user's own only warnings."""

import subprocess
import sys

from tests.helpers import ROOT

TELL = "messages.tell('a\\n note'); messages.warn('a warning')"


def output_of(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_scripts_show_notes_on_stdout_and_warnings_on_stderr_once():
    show = "from common.scripts.console import show_messages; show_messages(); show_messages()"
    both = output_of(
        f"import logging; logging.basicConfig(); from common import messages; {show}; {TELL}"
    )
    assert both == ("a note\n", "a warning\n")


def test_elsewhere_only_warnings_are_shown():
    assert output_of(f"from common import messages; {TELL}") == ("", "a warning\n")
