"""A job's files, as run.py and collect.py read them: what is damaged or missing is one line."""

import numpy as np

from common import json_shapes
from common.errors import InputError, reason_of
from common.json_shapes import ANYTHING, BOOL, COUNT, INTEGER, TEXT, Kind, Optional

_OBJECT = {}  # whatever it holds
_OBJECTS = Kind(
    "an object of objects",
    lambda value: isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()),
)
_EVALUATIONS = Kind(
    "evaluations with their num_examples",
    lambda value: (
        _OBJECTS.includes(value)
        and all(COUNT.includes(entry.get("num_examples")) for entry in value.values())
    ),
)
_PROGRAMS = Kind(
    "names of programs",
    lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
)
_PHASE = Kind(
    "a pair of a step and a program",
    lambda value: isinstance(value, list) and list(map(type, value)) == [int, str],
)
_JOB = {
    "name": TEXT,
    "digest": TEXT,
    "challenge": TEXT,
    "config": {
        "max_num_training_steps": COUNT,
        "training_batch_size": COUNT,
        "random_seed": INTEGER,
    },
    "data": TEXT,
    "provenance": {"command": ANYTHING, "commit": ANYTHING, "versions": _OBJECT},
}
_JOB_TO_RUN = {
    **_JOB,
    "steps_per_call": COUNT,
    "phases": [_PHASE, ...],
    "evaluations": _PROGRAMS,
    "eval_batch_size": COUNT,
    "round_to_bfloat16": BOOL,
    "num_training_images": COUNT,
    "num_test_images": COUNT,
    "initial": _OBJECTS,
    "result": [TEXT],
}
_RECORD = {
    "job": TEXT,
    "job_digest": TEXT,
    "steps": COUNT,
    "runs": [{"first_step": COUNT, "last_step": COUNT, "versions": _OBJECT}],
    "evaluations": _EVALUATIONS,
    "losses": Optional([ANYTHING]),
}


def read_job(path, to_run=False):
    """Returns what a job.json of export.py holds, a dict.

    Args:
        path: the file's path.
        to_run: whether all that run.py needs must be there.

    Raises:
        InputError: the file cannot be read, or is not a job.json.
    """
    return json_shapes.read(path, _JOB_TO_RUN if to_run else _JOB)


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
