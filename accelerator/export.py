"""Writes trainings as programs for run.py, with their data, on a machine that has TensorFlow.

    python accelerator/export.py --output_dir=DIR JOB [JOB ...]

The jobs are those of jobs.json: a challenge, a config file in recipes/, a seed, and the rows to
evaluate. DIR/jobs gets the programs and each job's folder, DIR/data the images, once.
"""

import dataclasses
import json
import pathlib
import re
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import numpy as np
from absl import flags

from accelerator import initial, job_files, packed_images, programs
from cifar10_challenge import train as cifar10_train
from cifar10_challenge.challenge import CIFAR10
from common import json_shapes
from common.config import NOT_OF_TRAINING, make_config, read_json
from common.errors import InputError, one_line
from common.files import write_json
from common.json_shapes import TEXT, Optional
from common.provenance import provenance
from common.scripts import app
from common.scripts.flags import define_path
from common.training.loop import build_networks
from mnist_challenge import train as mnist_train
from mnist_challenge.challenge import MNIST

HERE = pathlib.Path(__file__).resolve().parent
# Name in jobs.json and of the data's folder: challenge, its train.py, files of training images.
CHALLENGES = {"mnist": (MNIST, mnist_train, 1), "cifar10": (CIFAR10, cifar10_train, 2)}
EVAL_BATCH_SIZE = 500
PROGRAMS = "programs"  # the folder beside the jobs'
_JOB = {
    "challenge": json_shapes.one_of(CHALLENGES),
    "recipe": TEXT,
    "random_seed": json_shapes.whole(0),
    "rows": [TEXT],
    "steps_per_call": json_shapes.whole(1),
    "round_to_bfloat16": Optional(json_shapes.BOOL),
}

FLAGS = flags.FLAGS


def define_flags():
    """Declares the flags."""
    define_path("output_dir", None, "directory of programs, jobs and data")
    define_path("jobs", str(HERE / "jobs.json"), "list of jobs")
    define_path("data_dir", None, "where the data sets are, as in train.py")
    flags.mark_flag_as_required("output_dir")


def main(names):
    """Exports the jobs of the command line."""
    output, exported = pathlib.Path(FLAGS.output_dir), {}
    for job, config in read_jobs(pathlib.Path(FLAGS.jobs), names):
        data = write_data(job["challenge"], output / "data", FLAGS.data_dir)
        export_job(job, config, data, output / "jobs", exported)
        print(one_line(f"{job['name']} in {output / 'jobs' / job['name']}"), flush=True)


def read_jobs(path, names):
    """Returns jobs of a file such as jobs.json, and their configs, as (dict, config) pairs.

    Args:
        path: the file's path; recipes are relative to its directory.
        names: the jobs' names.

    Raises:
        InputError: a job, its recipe or one of its rows is unknown, or cannot be used.
    """
    known, jobs = json_shapes.read(path, {}), []
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(
            f"JOB: expected some of {', '.join(known)}, got {unknown[0] if unknown else 'none'}"
        )
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name) or name == PROGRAMS:
            raise InputError(f"{path}: expected a name of letters, digits and _ . -, got {name!r}")
        json_shapes.check({name: known[name]}, {name: _JOB}, path)
        surplus = sorted(set(known[name]) - set(_JOB))
        if surplus:
            raise InputError(
                f"{path}: expected some of {', '.join(_JOB)} as {name}, got {surplus[0]}"
            )
        job = {"name": name, **known[name]}
        challenge = CHALLENGES[job["challenge"]][0]
        rows = [
            row for row, preset in challenge.presets.items() if preset.get("num_restarts", 1) == 1
        ]
        unknown = sorted(set(job["rows"]) - set(rows))
        if unknown:
            raise InputError(
                f"{path}: expected some of {', '.join(rows)} as {name}.rows, got {unknown[0]}"
            )
        jobs.append((job, make_job_config(job, path.parent / job["recipe"])))
    return jobs


def make_job_config(job, recipe):
    """Returns the config of a job.

    Args:
        job: an entry of jobs.json, with its name.
        recipe: path of its config file.
    """
    config = make_config(
        CHALLENGES[job["challenge"]][0],
        (recipe, read_json(recipe)),
        (job["name"], {"random_seed": job["random_seed"], "jit_compile": True}),
    )
    if config.precision == "auto":  # accelerators multiply bfloat16 fast
        config = dataclasses.replace(config, precision="bfloat16")
    return config


def write_data(name, directory, data_dir):
    """Writes a challenge's images, unless they are there; returns their (train, test) `Split`s."""
    challenge, _, num_parts = CHALLENGES[name]
    splits = {split: challenge.load(split, data_dir=data_dir) for split in ("train", "test")}
    place = directory / name
    for split, parts in (("train", num_parts), ("test", 1)):
        if len(list(place.glob(f"{split}-*.npz"))) != parts:
            place.mkdir(parents=True, exist_ok=True)
            packed_images.save(place, split, splits[split].images, splits[split].labels, parts)
    return splits["train"], splits["test"]


def export_job(job, config, data, directory, exported):
    """Writes a job's folder, and its programs if they are not exported yet.

    Args:
        job: an entry of jobs.json, with its name.
        config: its config, see `make_job_config`.
        data: its challenge's (train, test), two `common.data.Split`s.
        directory: pathlib.Path of the jobs.
        exported: dict of programs that are there, which gets further ones.
    """
    challenge, script, _ = CHALLENGES[job["challenge"]]
    train, test = data
    networks, experiment = build_networks(config, challenge), script.experiment(config)
    result, trained = networks
    experiment["optimizer"].build(trained.trainable_variables)
    variables = programs.variables_of(result, trained, experiment["optimizer"])

    def exported_once(kind, settings, make, exact=False):
        """The file of a program, relative to `directory`.

        Jobs of the same settings share it. So do jobs whose programs are the same text, such as
        evaluations after different trainings: run.py compiles each file once.
        """
        of_training = {
            name: value
            for name, value in dataclasses.asdict(settings).items()
            if name not in NOT_OF_TRAINING and name != "random_seed"
        }
        key = json.dumps([job["challenge"], kind, of_training, len(train.images)], default=str)
        if key not in exported:
            fresh = directory / PROGRAMS / f"{kind}.json.gz.part"
            fresh.parent.mkdir(parents=True, exist_ok=True)
            programs.export(*make(), variables, fresh, exact)
            path = fresh.with_name(f"{kind}-{job_files.digest_of_file(fresh)[:12]}.json.gz")
            fresh.replace(path)
            exported[key] = f"{PROGRAMS}/{path.name}"
        return exported[key]

    num_images, num_steps = len(train.images), job["steps_per_call"]
    parts = [
        (
            first,
            exported_once(
                f"train_{num_steps}",
                part,
                lambda part=part: programs.training(
                    part, challenge, networks, experiment, num_images, num_steps
                ),
            ),
        )
        for first, part in programs.phases(config)
        if first < config.max_num_training_steps
    ]
    evaluations = {
        row: exported_once(
            row,
            config,
            lambda row=row: programs.evaluation(
                config, challenge, result, row, len(test.images), EVAL_BATCH_SIZE
            ),
            exact=True,
        )
        for row in job["rows"]
    }
    folder = directory / job["name"]
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: np.asarray(variable) for name, variable in variables.items()}
    entry = {
        "name": job["name"],
        "challenge": job["challenge"],
        "config": dataclasses.asdict(config),
        "steps_per_call": num_steps,
        "phases": parts,
        "evaluations": evaluations,
        "eval_batch_size": EVAL_BATCH_SIZE,
        "round_to_bfloat16": bool(job.get("round_to_bfloat16")),
        "num_training_images": num_images,
        "num_test_images": len(test.images),
        "data": train.name,
        "initial": initial.describe(values, config.random_seed, folder),
        "result": [f"{programs.RESULT}/{weight.path}" for weight in result.weights],
    }
    files = sorted({name for _, name in parts} | set(evaluations.values()))
    entry["programs"] = {name: job_files.digest_of_file(directory / name) for name in files}
    entry["digest"] = job_files.digest_of(entry)
    write_json(folder / "job.json", {**entry, "provenance": provenance()})


if __name__ == "__main__":
    define_flags()
    app.run_words(main)
