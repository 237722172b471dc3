"""A job's files, as run.py and collect.py read them: what is damaged or missing is one line."""

import hashlib
import json
import pathlib

import numpy as np

from common import json_shapes
from common.errors import InputError, reason_of
from common.json_shapes import BOOL, COUNT, NUMBER, TEXT, Nullable, Optional, Values

_AT_LEAST_1, _SEED, _OBJECT = json_shapes.whole(1), json_shapes.whole(0), {}
# See `accelerator.initial.describe`.
_INITIAL = {
    "kept": Optional(TEXT),
    "like": Optional(TEXT),
    "value": Optional(NUMBER),
    "dtype": Optional(TEXT),
    "normal": Optional((_SEED, COUNT)),
    "deviation": Optional(NUMBER),
    "shape": Optional([json_shapes.whole(0)]),
}
_JOB = {
    "name": TEXT,
    "challenge": TEXT,
    "config": {
        "max_num_training_steps": _AT_LEAST_1,
        "training_batch_size": _AT_LEAST_1,
        "random_seed": _SEED,
    },
    "steps_per_call": _AT_LEAST_1,
    "phases": [(json_shapes.whole(0), TEXT), ...],
    "evaluations": Values(TEXT),
    "eval_batch_size": _AT_LEAST_1,
    "round_to_bfloat16": BOOL,
    "num_training_images": _AT_LEAST_1,
    "num_test_images": _AT_LEAST_1,
    "data": TEXT,
    "initial": Values(_INITIAL),
    "result": [TEXT, ...],
    "programs": Values(TEXT),
    "digest": TEXT,
    "provenance": {"command": TEXT, "commit": Nullable(TEXT), "versions": Values(TEXT)},
}
_RECORD = {
    "job": TEXT,
    "job_digest": TEXT,
    "steps": json_shapes.whole(0),
    "runs": [
        {
            "command": TEXT,
            "hardware": _OBJECT,
            "versions": Values(TEXT),
            "first_step": json_shapes.whole(0),
            "last_step": json_shapes.whole(0),
            "seconds": NUMBER,
        }
    ],
    "losses": [(json_shapes.whole(0), NUMBER, NUMBER)],
    "evaluations": Values({"num_examples": _AT_LEAST_1}),
}


def digest_of(job):
    """The digest of what a job computes: of a job.json's values without digest and provenance."""
    values = {name: v for name, v in job.items() if name not in ("digest", "provenance")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def digest_of_file(path):
    """The digest of a program's file, which job.json holds."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def read_job(path):
    """Returns what a job.json of export.py holds, a dict.

    Args:
        path: the file's path.

    Raises:
        InputError: the file cannot be read, is not a job.json, or was changed by hand.
    """
    job = json_shapes.read(path, _JOB)
    if digest_of(job) != job["digest"]:
        raise InputError(
            f"{path}: expected a job as export.py wrote it, got one that was changed since; change "
            "its recipe, and export it again"
        )
    return job


def check_programs(job, directory):
    """Raises InputError unless the programs in the jobs' directory are those of a job's export."""
    for name, digest in job["programs"].items():
        path = pathlib.Path(directory) / name
        try:
            found = digest_of_file(path)
        except OSError as error:
            raise InputError(f"--jobs_dir: cannot read {path}: {reason_of(error)}") from error
        if found != digest:
            raise InputError(
                f"--jobs_dir: expected the program of the job {job['name']} in {path}, got another "
                "or a damaged one; export the job again"
            )


def read_record(path, job, flag):
    """Returns what a record.json of run.py holds, a dict.

    Args:
        path: the file's path.
        job: what `read_job` returned.
        flag: the flag that gave the path; the message begins with it.

    Raises:
        InputError: the file cannot be read, is not a record.json, or is of another job.
    """
    record = json_shapes.read(path, _RECORD)
    if (record["job"], record["job_digest"]) != (job["name"], job["digest"]):
        name = job["name"]
        raise InputError(f"{flag}: expected a run of the job {name}, got another's in {path}")
    return record


def read_arrays(path, job, shapes):
    """Returns the arrays by name, the step and the seconds of a file that run.py wrote.

    Args:
        path: path of state.npz or weights.npz.
        job: what `read_job` returned.
        shapes: dict of the names that must be there to their shapes, or to None for any.

    Raises:
        InputError: the file cannot be read, is of another job, or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        step, seconds = int(arrays.pop("step")), float(arrays.pop("seconds"))
        digest = str(arrays.pop("job_digest"))
    except Exception as error:  # a damaged archive may raise anything
        raise InputError(f"cannot read {path}: {reason_of(error)}") from error
    if digest != job["digest"]:
        raise InputError(f"expected arrays of the job {job['name']} in {path}, got another's")
    check_shapes(path, arrays, shapes)
    return arrays, step, seconds


def check_shapes(path, arrays, shapes):
    """Raises InputError unless the arrays of a file have these shapes; both are dicts by name."""
    for name, shape in shapes.items():
        found = arrays[name].shape if name in arrays else None
        if found is None or shape is not None and found != tuple(shape):
            expected = name if shape is None else f"{name} of shape {tuple(shape)}"
            raise InputError(f"expected {expected} in {path}, got {found or 'none'}")
