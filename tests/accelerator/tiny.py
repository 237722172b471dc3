"""A job that is written by hand, and run.py in a Python that has JAX.

Its only variable, "result/w" of three values, begins at 0, and each step adds 1.
"""

import gzip
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from accelerator import initial, job_files, packed_images
from common.files import write_json
from tests.helpers import ROOT

# Another Python that has JAX may be named by JAX_PYTHON.
JAX_PYTHON = os.environ.get("JAX_PYTHON") or (
    sys.executable if importlib.util.find_spec("jax") else None
)
needs_jax = pytest.mark.skipif(JAX_PYTHON is None, reason="needs JAX: see JAX_PYTHON")

NUM_STEPS, STEPS_PER_CALL, BATCH = 6, 2, 4
_DATA = (((8, 2, 2, 1), "uint8"), ((8,), "int32"))
_NUMBER = ((), "int32")
_TRAIN = """module @train {
  func.func public @main(%images: tensor<8x2x2x1xui8>, %labels: tensor<8xi32>,
      %indices: tensor<2x4xi32>, %first: tensor<i32>, %count: tensor<i32>, %seed: tensor<i32>,
      %w: tensor<3xf32>) -> (tensor<2xf32>, tensor<2xf32>, tensor<3xf32>) {
    %steps = stablehlo.convert %count : (tensor<i32>) -> tensor<f32>
    %more = stablehlo.broadcast_in_dim %steps, dims = [] : (tensor<f32>) -> tensor<3xf32>
    %new = stablehlo.add %w, %more : tensor<3xf32>
    %loss = stablehlo.constant dense<0.5> : tensor<2xf32>
    return %loss, %loss, %new : tensor<2xf32>, tensor<2xf32>, tensor<3xf32>
  }
}"""
_EVALUATE = """module @evaluate {
  func.func public @main(%images: tensor<8x2x2x1xui8>, %labels: tensor<8xi32>,
      %indices: tensor<4xi32>, %seed: tensor<i32>, %w: tensor<3xf32>)
      -> (tensor<4xi1>, tensor<4xi1>) {
    %one = stablehlo.constant dense<1> : tensor<4xi32>
    %is_correct = stablehlo.compare GT, %indices, %one
      : (tensor<4xi32>, tensor<4xi32>) -> tensor<4xi1>
    return %is_correct, %is_correct : tensor<4xi1>, tensor<4xi1>
  }
}"""
# Between its input and its output lies a matrix of 16 TB.
_HUGE = """    %rows = stablehlo.broadcast_in_dim %w, dims = [1]
      : (tensor<3xf32>) -> tensor<2097152x3xf32>
    %matrix = stablehlo.dot_general %rows, %rows, contracting_dims = [1] x [1]
      : (tensor<2097152x3xf32>, tensor<2097152x3xf32>) -> tensor<2097152x2097152xf32>
    %product = stablehlo.dot_general %matrix, %rows, contracting_dims = [1] x [0]
      : (tensor<2097152x2097152xf32>, tensor<2097152x3xf32>) -> tensor<2097152x3xf32>
    %row = stablehlo.slice %product [0:1, 0:3] : (tensor<2097152x3xf32>) -> tensor<1x3xf32>
    %sum = stablehlo.reshape %row : (tensor<1x3xf32>) -> tensor<3xf32>
    %new = stablehlo.add %sum, %more : tensor<3xf32>
"""
_NEW = "    %new = stablehlo.add %w, %more : tensor<3xf32>\n"
assert _NEW in _TRAIN
MODULES = {
    "train": _TRAIN,
    "evaluate": _EVALUATE,
    "needs 16 TB": _TRAIN.replace(_NEW, _HUGE),
    "another shape": _TRAIN.replace("<3xf32>", "<5xf32>"),
    "evaluate another shape": _EVALUATE.replace("<3xf32>", "<5xf32>"),
}


def write(directory, second="train", evaluation="evaluate", **changes):
    """Writes the job "tiny" into jobs/ of a directory, and its images into data/.

    Args:
        directory: pathlib.Path.
        second: the key in MODULES of the program that takes the steps from 4 on.
        evaluation: the key of the evaluation's program.
        **changes: other values of job.json.

    Returns:
        The job, and the path of its job.json.
    """
    jobs, data, folder = (directory / name for name in ("jobs", "data/mnist", "jobs/tiny"))
    for place in (jobs / "programs", data, folder):
        place.mkdir(parents=True, exist_ok=True)
    kinds = {"first": "train", "second": second, "evaluation": evaluation}
    for name, kind in kinds.items():
        is_training = name != "evaluation"
        program = {
            "module": MODULES[kind],
            "variables": ["result/w"],
            "updates": [(2, "result/w")] if is_training else [],
            "arguments": [*_DATA, ((2, 4), "int32"), _NUMBER, _NUMBER, _NUMBER]
            if is_training
            else [*_DATA, ((4,), "int32"), _NUMBER],
        }
        path = jobs / "programs" / f"{name}.json.gz"
        path.write_bytes(gzip.compress(json.dumps(program).encode(), mtime=0))
    names = [f"programs/{name}.json.gz" for name in kinds]
    for split in ("train", "test"):
        packed_images.save(data, split, np.zeros((8, 2, 2, 1), np.uint8), np.arange(8), 1)
    job = {
        "name": "tiny",
        "challenge": "mnist",
        "config": {
            "max_num_training_steps": NUM_STEPS,
            "training_batch_size": BATCH,
            "random_seed": 1,
        },
        "steps_per_call": STEPS_PER_CALL,
        "phases": [[0, names[0]], [4, names[1]]],
        "evaluations": {"row": names[2]},
        "eval_batch_size": BATCH,
        "round_to_bfloat16": False,
        "num_training_images": 8,
        "num_test_images": 8,
        "data": "eight images",
        "initial": initial.describe({"result/w": np.zeros(3, np.float32)}, 1, folder),
        "result": ["result/w"],
        "programs": {name: job_files.digest_of_file(jobs / name) for name in names},
        **changes,
    }
    job["digest"] = job_files.digest_of(job)
    job["provenance"] = {"command": "export.py", "commit": None, "versions": {"tensorflow": "2"}}
    write_json(folder / "job.json", job)
    return job, folder / "job.json"


def run(directory, *words, code=0, stdout=subprocess.PIPE, **environment):
    """Runs run.py in the directory of `write`; returns what it printed (stderr if it failed)."""
    command = [JAX_PYTHON, ROOT / "accelerator" / "run.py", f"--jobs_dir={directory / 'jobs'}"]
    command += [f"--data_dir={directory / 'data'}", f"--output_dir={directory / 'runs'}", *words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": "", **environment}
    pipes = {"stdout": stdout, "stderr": subprocess.PIPE}
    done = subprocess.run(command, env=environment, **pipes, text=True, timeout=3600)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr
