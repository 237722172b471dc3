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

from absl import flags

from accelerator import RECORD, STATE, WEIGHTS, job_files, programs
from accelerator.export import CHALLENGES
from common import rounded_weights
from common.config import make_config
from common.errors import InputError, one_line
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
    job, run_dir = job_files.read_job(pathlib.Path(job_dir) / "job.json"), pathlib.Path(run_dir)
    record = job_files.read_record(run_dir / RECORD, job, "--run_dir")
    if job["challenge"] not in CHALLENGES:
        known, challenge = ", ".join(CHALLENGES), one_line(job["challenge"])
        raise InputError(f"--job_dir: expected a challenge of {known}, got {challenge}")
    challenge, script, _ = CHALLENGES[job["challenge"]]
    config = make_config(challenge, (job_dir, {**job["config"], "model_dir": str(model_dir)}))
    result, trained = build_networks(config, challenge)
    optimizer = script.experiment(config)["optimizer"]
    optimizer.build(trained.trainable_variables)
    step, shapes_of_result = None, _named([weight.shape for weight in result.weights])
    if state_dir is not None:
        variables = programs.variables_of(result, trained, optimizer)
        shapes = {name: variable.shape for name, variable in variables.items()}
        saved, step, _ = job_files.read_arrays(pathlib.Path(state_dir) / STATE, job, shapes)
        for name, variable in variables.items():
            variable.assign(saved[name])
    if rounded_weights.are_in(run_dir):
        weights = _named(rounded_weights.load(run_dir))
        job_files.check_shapes(run_dir, weights, shapes_of_result)
        result.set_weights([weights[name] for name in shapes_of_result])
        if record["steps"] != step:
            trained = optimizer = None
        step = record["steps"]
    elif state_dir is None:
        weights, step, _ = job_files.read_arrays(run_dir / WEIGHTS, job, shapes_of_result)
        result.set_weights([weights[name] for name in shapes_of_result])
        trained = optimizer = None
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


def _named(values):
    """Values by the names that the weights of a result have in its files, a dict."""
    return {f"{number:04d}": value for number, value in enumerate(values)}


if __name__ == "__main__":
    define_flags()
    app.run_words(main)
