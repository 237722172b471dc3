"""Writes trainings as programs for run.py, with their data, on a machine that has TensorFlow.

    python accelerator/export.py --output_dir=DIR JOB [JOB ...]

The jobs are those of jobs.json: a challenge, a config file in recipes/, a seed, and the rows to
evaluate. DIR/jobs gets the programs and each job's folder, DIR/data the images, once.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import numpy as np
from absl import flags

from accelerator import initial, packed_images, programs
from cifar10_challenge import train as cifar10_train
from cifar10_challenge.challenge import CIFAR10
from common import json_shapes
from common.config import NOT_OF_TRAINING, make_config, read_json
from common.errors import InputError, one_line
from common.files import write_json
from common.json_shapes import COUNT, TEXT, Optional
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
_JOBS = {
    "challenge": json_shapes.one_of(CHALLENGES),
    "recipe": TEXT,
    "random_seed": COUNT,
    "rows": [TEXT],
    "steps_per_call": COUNT,
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
    jobs_file = pathlib.Path(FLAGS.jobs)
    known = json_shapes.read(jobs_file, {})
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(
            f"JOB: expected some of {', '.join(known)}, got {unknown[0] if unknown else 'none'}"
        )
    output, exported = pathlib.Path(FLAGS.output_dir), {}
    for name in names:
        json_shapes.check(known[name], _JOBS, jobs_file)
        job = {"name": name, **known[name]}
        data = write_data(job["challenge"], output / "data", FLAGS.data_dir)
        export_job(job, jobs_file.parent / job["recipe"], data, output / "jobs", exported)
        print(one_line(f"{name} in {output / 'jobs' / name}"), flush=True)


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


def export_job(job, recipe, data, directory, exported):
    """Writes a job's folder, and its programs if they are not exported yet.

    Args:
        job: an entry of jobs.json, with its name.
        recipe: path of its config file.
        data: its challenge's (train, test), two `common.data.Split`s.
        directory: pathlib.Path of the jobs.
        exported: dict of programs that are there, which gets further ones.
    """
    challenge, script, _ = CHALLENGES[job["challenge"]]
    config = make_config(
        challenge,
        (recipe, read_json(recipe)),
        (job["name"], {"random_seed": job["random_seed"], "jit_compile": True}),
    )
    if config.precision == "auto":  # accelerators multiply bfloat16 fast
        config = dataclasses.replace(config, precision="bfloat16")
    train, test = data
    networks, experiment = build_networks(config, challenge), script.experiment(config)
    result, trained = networks
    experiment["optimizer"].build(trained.trainable_variables)
    variables = programs.variables_of(result, trained, experiment["optimizer"])

    def exported_once(kind, settings, make, exact=False):
        """The file of a program, relative to `directory`; jobs of the same settings share it."""
        of_training = {
            name: value
            for name, value in dataclasses.asdict(settings).items()
            if name not in NOT_OF_TRAINING and name != "random_seed"
        }
        key = json.dumps([job["challenge"], kind, of_training, len(train.images)], default=str)
        if key not in exported:
            digest = hashlib.sha256(key.encode()).hexdigest()[:12]
            path = directory / "programs" / f"{kind}-{digest}.json.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            programs.export(*make(), variables, path, exact)
            exported[key] = f"programs/{path.name}"
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
    known = [
        row for row, settings in challenge.presets.items() if settings.get("num_restarts", 1) == 1
    ]
    unknown = sorted(set(job["rows"]) - set(known))
    if unknown:
        raise InputError(f"rows: expected some of {', '.join(known)}, got {unknown[0]}")
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
    contents = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in files}
    entry["digest"] = hashlib.sha256(json.dumps([entry, contents]).encode()).hexdigest()
    write_json(folder / "job.json", {**entry, "provenance": provenance()})


if __name__ == "__main__":
    define_flags()
    app.run_words(main)
