"""A result's origin is recorded in any working directory, with or without git."""

import os
import subprocess
import sys

import pytest

from common import provenance
from tests.helpers import ROOT


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["", "--flag=a b"], "'--flag=a b'"),
        ([], ""),
        (["-c", "x"], "-c x"),
        (["./eval.py", "--norm=l2"], "eval.py --norm=l2"),
        ([os.path.join(os.getcwd(), "a", "..", "eval.py")], "eval.py"),
    ],
)
def test_the_command_line(argv, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert provenance.provenance()["command"] == command


def test_a_script_on_another_drive_keeps_its_path(monkeypatch):
    def relpath(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(provenance.os.path, "relpath", relpath)
    monkeypatch.setattr(sys, "argv", ["D:/eval.py", "x"])
    assert provenance.provenance()["command"] == "D:/eval.py x"


def test_a_working_directory_that_was_deleted(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "argv", ["eval.py"])
    assert provenance.provenance()["command"] == "eval.py"


def fake_git(directory, monkeypatch, text):
    path = directory / "git"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)


@pytest.mark.parametrize(
    "text",
    ["exec sleep 60", "exit 128", "kill -9 $$", "cat", "printf '\\377\\376'"],
    ids=["hangs", "fails", "killed", "asks", "not text"],
)
def test_a_git_that_does_not_answer_leaves_no_commit(text, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_GIT_TIMEOUT", 0.3)
    fake_git(tmp_path, monkeypatch, text)
    assert provenance.provenance()["commit"] is None


def test_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.provenance()["commit"] is None


def test_the_commit_of_a_clone():
    found = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("needs a clone")
    assert provenance.provenance()["commit"].removesuffix("-dirty") == found.stdout.strip()
