"""run.py on a job that is written by hand: results, resuming, and failures of the device."""

import os
import shutil
import signal

import numpy as np
import pytest

from common.files import read_json, write_json
from tests.accelerator import tiny

pytestmark = [tiny.needs_jax, pytest.mark.slow]


def state(directory):
    """The variable and the step that were saved."""
    with np.load(directory / "runs" / "tiny" / "state.npz") as saved:
        return saved["result/w"].tolist(), int(saved["step"])


def record(directory):
    return read_json(directory / "runs" / "tiny" / "record.json")


def test_a_stopped_training_resumes_and_its_rows_are_evaluated_once(tmp_path):
    tiny.write(tmp_path)
    out = tiny.run(tmp_path, "tiny", "--seconds=0")
    assert out.endswith("tiny: stopped at step 2; the same command resumes\n")
    assert state(tmp_path) == ([2.0] * 3, 2)
    out = tiny.run(tmp_path, "tiny")
    assert "tiny: resuming at step 2 of 6" in out and state(tmp_path) == ([6.0] * 3, 6)
    assert "tiny: natural 75.00%, row 75.00% of 8 in " in out
    found = record(tmp_path)
    assert [step for step, _, _ in found["losses"]] == [2, 4, 6]
    assert [(r["first_step"], r["last_step"]) for r in found["runs"]] == [(0, 2), (2, 6)]
    out = tiny.run(tmp_path, "tiny")
    assert "natural" not in out and record(tmp_path) == found


def test_a_reader_that_closes_the_pipe_ends_the_run_as_other_scripts(tmp_path):
    tiny.write(tmp_path)
    read, write = os.pipe()
    os.close(read)
    assert tiny.run(tmp_path, "tiny", code=128 + signal.SIGPIPE, stdout=write) == ""


@pytest.mark.parametrize(
    "kind, reason, hint",
    [
        ("needs 16 TB", "RESOURCE_EXHAUSTED: Out of memory", "a smaller training_batch_size or "),
        ("another shape", "INVALID_ARGUMENT: ", "; the same command resumes"),
    ],
)
def test_a_failure_of_the_device_is_one_line_and_loses_no_saved_step(tmp_path, kind, reason, hint):
    tiny.write(tmp_path, second=kind)
    for resumed in (False, True):
        (line,) = tiny.run(tmp_path, "tiny", "--save_seconds=0", code=1).splitlines()
        assert line.startswith(f"error: tiny: the device failed in steps 5 to 6 of 6: {reason}")
        assert hint in line and line.endswith("; the same command resumes at step 4")
        assert state(tmp_path) == ([4.0] * 3, 4) and record(tmp_path)["steps"] == 4
        assert len(record(tmp_path)["losses"]) == 2, resumed
    # Of a job that was exported again only its own results are resumed.
    tiny.write(tmp_path)
    (line,) = tiny.run(tmp_path, "tiny", code=1).splitlines()
    assert line.startswith("error: --output_dir: expected a run of the job tiny, got another's")
    assert state(tmp_path) == ([4.0] * 3, 4)


def test_a_failure_in_the_evaluation_keeps_the_training(tmp_path):
    tiny.write(tmp_path, evaluation="evaluate another shape")
    (line,) = tiny.run(tmp_path, "tiny", code=1).splitlines()
    assert line.startswith("error: tiny: the device failed in the evaluation row: INVALID_ARGUMENT")
    assert line.endswith("; the same command resumes at step 6")
    assert state(tmp_path) == ([6.0] * 3, 6)


@pytest.mark.parametrize(
    "words, message",
    [
        (["tiny", "--seconds=soon"], "--seconds: expected a number of 0 or more, got 'soon'"),
        (["tiny", "--save_seconds=nan"], "--save_seconds: expected a number of 0 or more, got "),
        (["tiny", "--num_eval_examples=0"], "--num_eval_examples: expected a whole number of 1 or"),
        ([], "the following arguments are required: JOB"),
        (["tiny", "--sedonds=1"], "unrecognized arguments: --sedonds=1"),
        (["huge"], "JOB: expected some of tiny, got 'huge'"),
    ],
)
def test_words_that_cannot_be_used_are_one_line(tmp_path, words, message):
    tiny.write(tmp_path)
    (line,) = tiny.run(tmp_path, *words, code=1).splitlines()
    assert line.startswith(f"error: {message}")
    assert not (tmp_path / "runs").exists()


def test_a_missing_or_changed_file_is_one_line(tmp_path):
    _, path = tiny.write(tmp_path)

    def line():
        (line,) = tiny.run(tmp_path, "tiny", code=1).splitlines()
        return line

    (tmp_path / "data" / "mnist" / "test-1-of-1.npz").unlink()
    assert line().startswith("error: --data_dir: expected all files test-1-of-N.npz to ")
    assert state(tmp_path) == ([6.0] * 3, 6)
    (tmp_path / "runs" / "tiny" / "state.npz").unlink()
    assert line().startswith("error: --state_dir: expected the state.npz of tiny")
    shutil.rmtree(tmp_path / "runs")
    (path.parent / "initial.npz").write_bytes(b"PK")
    assert line().startswith("error: cannot read ")
    write_json(path, {**read_json(path), "steps_per_call": 0})
    assert line().endswith("as steps_per_call, got 0")


def test_a_missing_device_is_one_line(tmp_path):
    tiny.write(tmp_path)
    (line,) = tiny.run(tmp_path, "tiny", code=1, JAX_PLATFORMS="cuda").splitlines()
    assert line.startswith("error: JAX_PLATFORMS: expected a device of cuda, got none: ")


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    tiny.write(tmp_path)
    (tmp_path / "runs").write_text("a file")
    (line,) = tiny.run(tmp_path, "tiny", code=1).splitlines()
    assert line.startswith("error: ") and "runs/tiny" in line
