"""job.json, record.json and NumPy archives, whole, damaged and changed by hand."""

import copy
import json

import numpy as np
import pytest

from accelerator import job_files
from common.errors import InputError
from common.files import write_json
from tests.accelerator import tiny

WRONG = (None, True, -1, 0, 2**40, 1.5, 1e300, "x", "", "../x", [], [[]], {}, {"a": 1}, {"a": {}})


def places(value, place=()):
    """The places of all values within JSON, as tuples of keys and indices."""
    if place:
        yield place
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*place, key))


def replaced(value, place, new):
    """A copy of JSON with another value at a place; without the value if `new` is `...`."""
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


def test_a_job_is_read_as_it_was_written(tmp_path):
    job, path = tiny.write(tmp_path)
    assert job_files.read_job(path) == job
    job_files.check_programs(job, tmp_path / "jobs")


def test_any_change_of_a_job_by_hand_is_refused_in_one_line(tmp_path):
    job, path = tiny.write(tmp_path)
    tried = 0
    for place in places(job):
        for new in (*WRONG, ...):
            changed = replaced(job, place, new)
            same = json.dumps(changed, sort_keys=True) == json.dumps(job, sort_keys=True)
            if place[0] == "provenance" or same:
                continue
            path.write_text(json.dumps(changed))
            with pytest.raises(InputError) as raised:
                job_files.read_job(path)
            assert str(path) in str(raised.value) and "\n" not in str(raised.value)
            tried += 1
    assert tried > 300


@pytest.mark.parametrize(
    "place, new, message",
    [
        (["initial", "result/w", "shape"], 3, "expected a list as initial.result/w.shape, got 3"),
        (
            ["initial", "result/w", "shape"],
            [-3],
            "expected a whole number of 0 or more .* as initial.result/w.shape.0",
        ),
        (["initial", "result/w"], 3, "expected an object as initial.result/w, got 3"),
        (["steps_per_call"], 0, "expected a whole number of 1 or more .* as steps_per_call, got 0"),
        (
            ["eval_batch_size"],
            0,
            "expected a whole number of 1 or more .* as eval_batch_size, got 0",
        ),
        (
            ["config", "training_batch_size"],
            -4,
            "expected a whole number of 1 or more .* as config.training_batch_size",
        ),
        (
            ["config", "max_num_training_steps"],
            0,
            "expected a whole number of 1 or more .* as config.max_num_training_st",
        ),
        (
            ["config", "random_seed"],
            2**31,
            r".* below 2\*\*31 as config.random_seed, got 2147483648",
        ),
        (["config"], ..., "expected config, got none"),
        (["phases"], [], "expected a list with an entry as phases, got none"),
        (["phases", 0], [0], "expected a list of 2 as phases.0, got one of 1"),
        (["phases", 0], {"0": "x"}, "expected a list as phases.0, got an object"),
        (["phases", 0, 0], -1, "expected a whole number of 0 or more .* as phases.0.0, got -1"),
        (["phases", 0, 0], 1, "expected a job as export.py wrote it, got one that was changed"),
        (["phases", 1, 0], 0, "expected a job as export.py wrote it, got one that was changed"),
        (["evaluations", "row"], 8, "expected text as evaluations.row, got 8"),
        (["evaluations", "row"], "programs/other", "expected a job as export.py wrote it"),
        (["result"], ["result/v"], "expected a job as export.py wrote it"),
        (["unknown"], 1, "expected a job as export.py wrote it"),
        (["provenance", "versions"], [], "expected an object as provenance.versions, got a list"),
        (["provenance", "commit"], 3, "expected text as provenance.commit, got 3"),
    ],
)
def test_a_change_of_a_job_by_hand_is_said(tmp_path, place, new, message):
    job, path = tiny.write(tmp_path)
    write_json(path, replaced(job, place, new))
    with pytest.raises(InputError, match=f"job.json: {message}"):
        job_files.read_job(path)


def test_another_program_than_the_exported_one_is_refused(tmp_path):
    job, _ = tiny.write(tmp_path)
    path = tmp_path / "jobs" / "programs" / "second.json.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        InputError, match="--jobs_dir: expected the program of the job tiny in .*se"
    ):
        job_files.check_programs(job, tmp_path / "jobs")
    path.unlink()
    with pytest.raises(InputError, match="--jobs_dir: cannot read .*second.json.gz: No such file"):
        job_files.check_programs(job, tmp_path / "jobs")


ARRAYS = {"a": np.arange(900.0), "step": 3, "seconds": 1.0, "job_digest": "d"}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "cannot read .*: No such file"),
        (lambda path: path.write_bytes(b""), "cannot read "),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "cannot read "),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"\xf0\x3f", b"ab")), "cannot "),
        (lambda path: np.savez(path, a=np.zeros(900)), "cannot read .*step"),
        (lambda path: np.savez(path, **{**ARRAYS, "job_digest": "e"}), "of the job j .* another's"),
        (lambda path: np.savez(path, **{**ARRAYS, "a": np.zeros(3)}), r"a of shape \(900,\) in "),
    ],
)
def test_what_run_py_left_is_read_or_refused_in_one_line(tmp_path, damage, message):
    path, job = tmp_path / "state.npz", {"name": "j", "digest": "d"}
    np.savez(path, **ARRAYS)
    arrays, step, seconds = job_files.read_arrays(path, job, {"a": [900]})
    assert list(arrays) == ["a"] and (step, seconds) == (3, 1.0)
    damage(path)
    with pytest.raises(InputError, match=message) as raised:
        job_files.read_arrays(path, job, {"a": [900]})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 3}', '{"name": "j"'])
def test_a_json_file_of_another_shape_is_refused(tmp_path, text):
    (tmp_path / "job.json").write_text(text)
    for read in (
        job_files.read_job,
        lambda path: job_files.read_record(path, {"name": "j", "digest": "d"}, "--run_dir"),
    ):
        with pytest.raises(InputError, match="job.json"):
            read(tmp_path / "job.json")


def test_a_record_with_values_of_another_kind_is_refused_in_one_line(tmp_path):
    path, job = tmp_path / "record.json", tiny.write(tmp_path)[0]
    run = {"command": "run.py", "hardware": {}, "versions": {"jax": "0"}, "seconds": 1.5}
    record = {
        "job": "tiny",
        "job_digest": job["digest"],
        "steps": 2,
        "runs": [{**run, "first_step": 0, "last_step": 2}],
        "losses": [[2, 0.5, 0.25]],
        "evaluations": {"row": {"num_examples": 8}},
    }
    write_json(path, record)
    assert job_files.read_record(path, job, "--output_dir") == record
    read_too = [place for place in places(record) if place[-1] not in ("hardware", "row")]
    for place in read_too:
        for new in (None, [[]], {"a": []}):
            write_json(path, replaced(record, place, new))
            with pytest.raises(InputError, match="record.json: expected"):
                job_files.read_record(path, job, "--output_dir")
    for place, new in ((("steps",), -1), (("evaluations", "row", "num_examples"), 0)):
        write_json(path, replaced(record, place, new))
        with pytest.raises(InputError, match=f"record.json: expected .* as {place[0]}"):
            job_files.read_record(path, job, "--output_dir")
