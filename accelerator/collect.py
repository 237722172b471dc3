"""Makes a training directory of run.py's files, for eval.py, export_model.py and train.py.

    python accelerator/collect.py --job_dir=JOBS/NAME --run_dir=OUTPUT/NAME --model_dir=DIR

With the training's state, state.npz in --state_dir, train.py can resume the directory; without it
the directory holds only the result's weights.
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import numpy as np
from absl import flags

from accelerator import RECORD, STATE, WEIGHTS, programs
from accelerator.export import CHALLENGES
from common import rounded_weights
from common.config import make_config
from common.errors import InputError, one_line
from common.files import read_json
from common.scripts import app
from common.scripts.flags import define_path
from common.training import directory as training_directory
from common.training.loop import build_networks

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    define_path("job_dir", None, "the job's folder of export.py")
    define_path("run_dir", None, "the job's folder of run.py")
    define_path("state_dir", None, "where state.npz is, if it came back too")
    define_path("model_dir", None, "new directory of the training")
    for name in ("job_dir", "run_dir", "model_dir"):
        flags.mark_flag_as_required(name)


def main(words):
    """Makes the directory that the flags ask for."""
    if words:
        raise InputError(f"expected flags only, got {words[0]!r}")
    step = collect(FLAGS.job_dir, FLAGS.run_dir, FLAGS.model_dir, FLAGS.state_dir)
    print(one_line(f"step {step} in {FLAGS.model_dir}"))


def collect(job_dir, run_dir, model_dir, state_dir=None):
    """Makes a training directory; returns its step.

    Args:
        job_dir, run_dir, model_dir, state_dir: what the flags of these names say; paths.

    Raises:
        InputError: a file is missing, damaged or another job's; `model_dir` is not new.
    """
    job, run_dir = read_json(pathlib.Path(job_dir) / "job.json"), pathlib.Path(run_dir)
    record = read_json(run_dir / RECORD)
    if record["job_digest"] != job["digest"]:
        raise InputError(f"--run_dir: expected a run of the job in {job_dir}, got another's")
    challenge, script, _ = CHALLENGES[job["challenge"]]
    config = make_config(challenge, (job_dir, {**job["config"], "model_dir": str(model_dir)}))
    result, trained = build_networks(config, challenge)
    optimizer = script.experiment(config)["optimizer"]
    optimizer.build(trained.trainable_variables)
    step = None
    if state_dir is not None:
        saved = _arrays(pathlib.Path(state_dir) / STATE, job)
        step = int(saved["step"])
        for name, variable in programs.variables_of(result, trained, optimizer).items():
            variable.assign(saved[name])
    if rounded_weights.are_in(run_dir):
        result.set_weights(rounded_weights.load(run_dir))
        if record["steps"] != step:
            trained = optimizer = None
        step = record["steps"]
    elif state_dir is None:
        saved = _arrays(run_dir / WEIGHTS, job)
        result.set_weights([saved[f"{i:04d}"] for i in range(len(result.weights))])
        step, trained, optimizer = int(saved["step"]), None, None
    origin = job["provenance"]
    runs = [
        {
            **run,
            "commit": origin["commit"],
            "versions": {**origin["versions"], **run["versions"]},
            "data": job["data"],
            "exported_by": origin["command"],
        }
        for run in record["runs"]
    ]
    training_directory.write(config, challenge, step, runs, result, optimizer, trained)
    return step


def _arrays(path, job):
    """The arrays of a file that run.py wrote for a job."""
    try:
        with np.load(path) as saved:
            arrays = {name: saved[name] for name in saved.files}
    except Exception as error:  # a damaged archive may raise anything
        raise InputError(f"cannot read {path}: {one_line(error)}") from error
    if str(arrays.get("job_digest")) != job["digest"]:
        raise InputError(f"expected arrays of the job {job['name']} in {path}, got others")
    return arrays


if __name__ == "__main__":
    define_flags()
    app.run_words(main)
