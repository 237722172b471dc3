import json
import math
import os

import pytest

from common import files
from common.errors import LONGEST_LINE, InputError, one_line, reason_of


def test_write_atomically(tmp_path):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(TypeError):
        files.write_atomically(path, "not bytes")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_reported_and_leaves_the_file_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def full_disk(handle, mode):
        os.close(handle)
        return open("/dev/full", mode)

    monkeypatch.setattr(os, "fdopen", full_disk)
    with pytest.raises(InputError, match="cannot write .*file: No space left on device"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["none/file", "file/below", "x" * 300, "nul\0"])
def test_a_file_that_cannot_be_written_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="^--flag: cannot write "):
        files.check_writable("--flag", tmp_path / name)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    """https://github.com/iterative/vscode-dvc/issues/2733: JavaScript reads no NaN."""
    values = {"a": math.nan, "b": [math.inf, 1.5, {"c": (-math.inf, 2)}], "d": True, "e": None}
    files.write_json(tmp_path / "f.json", values)
    text = (tmp_path / "f.json").read_text()
    found = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert found == {"a": None, "b": [None, 1.5, {"c": [None, 2]}], "d": True, "e": None}


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "f.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert files.read_json(tmp_path / "f.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 1_000_000, "nested too deep"),
        (b'{"a":' * 1_000_000, "nested too deep"),
        (b'{"a": 1, "b": 2, "a": 3}', "the name 'a' is there twice"),
        (b"1" * 10_000, "is not JSON"),
        (None, "cannot read .*: No such file or directory"),
    ],
    ids=["empty", "half", "not text", "lists", "objects", "twice", "digits", "none"],
)
def test_what_is_not_json_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        files.read_json(tmp_path / "f.json")


def test_a_damaged_file_is_renamed_to_a_new_name(tmp_path):
    names = []
    for content in ("first", "second"):
        (tmp_path / "f.json").write_text(content)
        names.append(files.keep_aside(tmp_path / "f.json"))
    assert [path.name for path in names] == ["f.json.damaged", "f.json.damaged-2"]
    assert [path.read_text() for path in names] == ["first", "second"]
    assert not (tmp_path / "f.json").exists()


def test_text_of_others_becomes_one_line_that_a_terminal_shows_unchanged():
    assert one_line("a\nerror:  all is\r\nwell\n") == "a error: all is well"
    assert one_line("\x1b[2Jgone\x00\u202e\x85x") == "\\x1b[2Jgone\\x00\\u202e x"
    assert one_line("caf\u00e9 \udcff") == "caf\u00e9 \\udcff"
    long = one_line("x" * 1_000_000)
    assert len(long) < LONGEST_LINE + 50 and "(998,000 characters)" in long


def test_a_reason_is_never_empty():
    assert reason_of(OSError(28, "No space left on device")) == "No space left on device"
    assert reason_of(MemoryError()) == "MemoryError"
    tensorflows = (
        "{{function_node __wrapped__SaveV2_device_/job:localhost/task:0}} /x; No space [Op:SaveV2]"
    )
    assert reason_of(RuntimeError(tensorflows)) == "/x; No space"


def test_a_link_is_written_through_and_what_is_not_a_file_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for content in (b"first", b"second"):
        files.write_atomically(tmp_path / "link", content)
        assert (tmp_path / "file").read_bytes() == content and (tmp_path / "link").is_symlink()
    with pytest.raises(InputError, match="--flag: expected a file, got /dev/null"):
        files.check_writable("--flag", "/dev/null")
    with pytest.raises(InputError, match="expected a file, got /dev/null"):
        files.write_atomically("/dev/null", b"")
