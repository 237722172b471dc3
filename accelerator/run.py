"""Runs the trainings of export.py with JAX and NumPy, without TensorFlow.

    python accelerator/run.py --jobs_dir=DIR --data_dir=DIR --output_dir=DIR JOB [JOB ...]

Each job is trained, its weights are saved, and it is evaluated, before the next one begins. Ctrl-C,
SIGTERM and the end of --seconds leave the training's whole state; the same command resumes it. If
the device fails, it resumes from the last saved state.
"""

import argparse
import contextlib
import math
import os
import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

os.environ.setdefault("JAX_ENABLE_X64", "1")  # Keras counts its steps in int64
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's errors come as exceptions, too

import gzip
import json
import re
import shlex
import time

try:
    import jax
    import jaxlib
    import numpy as np
    from jax._src.lib import xla_client
except ImportError as error:
    sys.exit(f"error: run.py needs JAX and NumPy (pip install jax): {error}")

from accelerator import RECORD, STATE, WEIGHTS, job_files, packed_images
from accelerator.initial import initial_values
from accelerator.stream import Batches
from common import rounded_weights
from common.errors import InputError, one_line, reason_of
from common.files import write_json
from common.interruption import SIGPIPE, Interrupted, Interruption, drop_output
from common.scripts.console import show_messages


class Program:
    """A program of export.py, compiled for the first device of JAX.

    Args:
        path: the program's file.
    """

    def __init__(self, path):
        begin, device = time.perf_counter(), jax.devices()[0]
        try:
            program = json.loads(gzip.decompress(path.read_bytes()))
            self.variables, self._updates = program["variables"], dict(program["updates"])
            self._arguments = program["arguments"]
            self._executable = device.client.compile_and_load(
                program["module"].encode(),
                xla_client.DeviceList((device,)),
                xla_client.CompileOptions(),
            )
        except Exception as error:  # a damaged file may raise anything
            raise InputError(f"--jobs_dir: cannot compile {path}: {_reason_of(error)}") from error
        self.seconds = time.perf_counter() - begin

    def __call__(self, state, *arguments):
        """Runs the program, which puts the new values of variables into `state`.

        Args:
            state: dict of names to arrays of JAX; old arrays of updated variables may be deleted.
            *arguments: arrays of NumPy or JAX, in the shapes and dtypes of the export.

        Returns:
            The results, a list of arrays of JAX, which need not be computed yet.
        """
        missing = [name for name in self.variables if name not in state]
        if missing:
            raise InputError(f"--jobs_dir: expected a job with {missing[0]}, which a program needs")
        for value, (shape, _) in zip(arguments, self._arguments, strict=True):
            if np.shape(value) != tuple(shape):
                raise InputError(
                    f"--data_dir: expected data of shape {tuple(shape)}, which the programs are "
                    f"made for, got {np.shape(value)}"
                )
        buffers = [
            jax.device_put(np.asarray(value, dtype) if not hasattr(value, "devices") else value)
            for value, (_, dtype) in zip(arguments, self._arguments, strict=True)
        ]
        buffers += [state[name] for name in self.variables]
        outputs = self._executable.execute_sharded(buffers).disassemble_into_single_device_arrays()
        for number, name in self._updates.items():
            state[name] = outputs[number][0]
        return [output[0] for i, output in enumerate(outputs) if i not in self._updates]


class Training:
    """One job on the device.

    Args:
        job: what its job.json holds.
        directory: the jobs' directory, a pathlib.Path.
        output: where the job's files go, a pathlib.Path.
        state_dir: where state.npz goes, a pathlib.Path.
        programs: dict that keeps compiled programs, by file, for all jobs.
    """

    def __init__(self, job, directory, output, state_dir, programs):
        self.job, self._directory, self._programs = job, directory, programs
        self._output, self._state_dir = output, state_dir
        self.step, self.seconds = 0, 0.0
        self.record = {"job": job["name"], "runs": [], "steps": 0, "losses": [], "evaluations": {}}
        if (output / RECORD).exists():
            self.record = job_files.read_record(output / RECORD, job, "--output_dir")
            if self.record["steps"] and not (state_dir / STATE).exists():
                raise InputError(
                    f"--state_dir: expected the {STATE} of {job['name']}, which has taken "
                    f"{self.record['steps']} steps, got none in {state_dir}; a new --output_dir "
                    "begins anew"
                )
        self.record["job_digest"] = job["digest"]
        with self.on_device("its variables"):
            self._state = self._read_state()

    @contextlib.contextmanager
    def on_device(self, work):
        """Says in one line that the device failed in `work`, and what is saved."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            saved = self.record["steps"]
            raise InputError(
                f"{self.job['name']}: the device failed in {work}: {_reason_of(error)}; the same "
                + (f"command resumes at step {saved}" if saved else "command begins again")
            ) from error

    @property
    def total(self):
        """How many steps the training has."""
        return self.job["config"]["max_num_training_steps"]

    def _read_state(self):
        path = self._state_dir / STATE
        if not path.exists():
            values = initial_values(self.job["initial"], self._directory / self.job["name"])
        else:
            shapes = {name: entry.get("shape") for name, entry in self.job["initial"].items()}
            values, self.step, self.seconds = job_files.read_arrays(path, self.job, shapes)
            print(f"{self.job['name']}: resuming at step {self.step} of {self.total}", flush=True)
        return {name: jax.device_put(value) for name, value in values.items()}

    def program(self, name):
        """A program of the job, compiled once."""
        if name not in self._programs:
            print(f"{self.job['name']}: compiling {name}", flush=True)
            self._programs[name] = program = Program(self._directory / name)
            print(f"{self.job['name']}: compiled in {program.seconds:.0f} s", flush=True)
        return self._programs[name]

    def train(self, images, labels, deadline, save_seconds, interruption):
        """Takes the remaining steps, and saves the state every `save_seconds`.

        Args:
            images, labels: the training images, arrays of JAX.
            deadline: time.monotonic() at which it stops; infinity for none.
            save_seconds: seconds between two savings.
            interruption: an `Interruption`.

        Returns:
            Whether the training has ended.

        Raises:
            InputError: the loss is not finite.
        """
        config = self.job["config"]
        batch, per_call = config["training_batch_size"], self.job["steps_per_call"]
        batches = Batches(len(images), batch, config["random_seed"])
        starts = [first for first, _ in self.job["phases"]]
        programs = [self.program(name) for _, name in self.job["phases"]]
        run = {**_provenance(), "first_step": self.step, "last_step": self.step, "seconds": 0.0}
        begin = last_saved = last_shown = time.monotonic()
        first_step, before = self.step, self.seconds
        indices = batches.of_steps(self.step, per_call)
        while self.step < self.total:
            phase = max(i for i, first in enumerate(starts) if first <= self.step)
            end = min([self.total, *(first for first in starts if first > self.step)])
            count = min(per_call, end - self.step)
            with self.on_device(f"steps {self.step + 1} to {self.step + count} of {self.total}"):
                results = programs[phase](
                    self._state, images, labels, indices, self.step, count, config["random_seed"]
                )
                indices = batches.of_steps(self.step + count, per_call)  # as the device computes
                xent, accuracy = (np.asarray(values)[:count] for values in results)  # waits
            self.step += count
            now = time.monotonic()
            self.seconds = before + now - begin
            run.update(last_step=self.step, seconds=round(now - begin, 1))
            self.record["losses"].append([self.step, float(xent.mean()), float(accuracy.mean())])
            if not np.isfinite(xent).all():
                raise InputError(
                    f"{self.job['name']}: the loss is not finite at step {self.step}; try "
                    "smaller rates in step_size_schedule"
                )
            if now - last_shown > 5 or self.step == self.total:
                last_shown = now
                rate = (self.step - first_step) * batch / (now - begin)
                left = (self.total - self.step) * batch / rate
                print(
                    f"{self.job['name']}: step {self.step} of {self.total}, loss {xent[-1]:.4f}, "
                    f"adversarial accuracy {100 * accuracy.mean():.1f}%, {rate:,.0f} images/s, "
                    f"{left:.0f} s left",
                    flush=True,
                )
            stops = interruption.requested or now > deadline
            if stops or now - last_saved > save_seconds or self.step == self.total:
                self._save(run)
                last_saved = time.monotonic()
            if stops:
                break
        if self.record["steps"] != self.step:  # an earlier run ended between two files
            self._save(run)
        return self.step == self.total

    def _save(self, run):
        """Writes state.npz, the weights of the result and record.json, each whole or not at all."""
        values = {name: np.asarray(value) for name, value in self._state.items()}
        if not all(np.isfinite(v).all() for v in values.values() if v.dtype.kind == "f"):
            raise InputError(f"{self.job['name']}: a weight is not finite at step {self.step}")
        own = {"step": self.step, "seconds": self.seconds, "job_digest": self.job["digest"]}
        _write_arrays(self._state_dir / STATE, {**values, **own})
        if not self.job["round_to_bfloat16"]:
            names = self.job["result"]
            weights = {f"{i:04d}": values[name] for i, name in enumerate(names)}
            _write_arrays(self._output / WEIGHTS, {**weights, **own}, is_compressed=True)
        runs = [r for r in self.record["runs"] if r["first_step"] < run["first_step"]]
        self.record.update(runs=[*runs, run], steps=self.step)
        write_json(self._output / RECORD, self.record)

    def finish(self):
        """Rounds the result's weights, if the job says so, and writes them."""
        if self.job["round_to_bfloat16"]:
            names = self.job["result"]
            weights = rounded_weights.rounded([np.asarray(self._state[name]) for name in names])
            for old in self._output.glob("weights-*.npz"):
                old.unlink()
            rounded_weights.save(self._output, weights)
            self._state |= {n: jax.device_put(w) for n, w in zip(names, weights, strict=True)}

    def evaluate(self, images, labels, interruption, limit=None):
        """Evaluates the result under the job's rows that have no number yet, and prints them.

        Args:
            images, labels: the test images, arrays of JAX.
            interruption: an `Interruption`.
            limit: evaluate the first images only, or None.
        """
        number = min(limit or len(images), len(images))
        for row, name in self.job["evaluations"].items():
            done = self.record["evaluations"].get(row)
            if done is not None and done["num_examples"] >= number:
                continue
            program = self.program(name)
            batch = self.job["eval_batch_size"]
            begin = time.monotonic()
            found = []
            for first in range(0, number, batch):
                indices = np.minimum(np.arange(first, first + batch), number - 1)
                with self.on_device(f"the evaluation {row}"):
                    results = program(
                        self._state, images, labels, indices, self.job["config"]["random_seed"]
                    )
                    found.append([np.asarray(part)[: number - first] for part in results])
                if interruption.requested:
                    return
            natural, adversarial = (np.concatenate(parts) for parts in zip(*found, strict=True))
            entry = {
                "num_examples": number,
                "natural_accuracy": 100 * float(natural.mean()),
                "adversarial_accuracy": 100 * float(adversarial.mean()),
                "seconds": round(time.monotonic() - begin, 1),
            }
            self.record["evaluations"][row] = entry
            write_json(self._output / RECORD, self.record)
            print(
                f"{self.job['name']}: natural {entry['natural_accuracy']:.2f}%, {row} "
                f"{entry['adversarial_accuracy']:.2f}% of {number:,} in {entry['seconds']:.0f} s",
                flush=True,
            )


def _reason_of(error):
    """The reason for a device's error, and what to try if its memory is short."""
    reason = reason_of(error).partition(" === Source Location Trace")[0]
    if "RESOURCE_EXHAUSTED" not in reason:
        return reason
    return (
        f"{reason} (end other programs on the device, or export a recipe with a smaller "
        "training_batch_size or network)"
    )


def _write_arrays(path, arrays, is_compressed=False):
    """Writes a NumPy archive so that it is there whole or not at all."""
    scratch = path.with_name(f".{path.name}")
    try:
        with scratch.open("wb") as file:
            (np.savez_compressed if is_compressed else np.savez)(file, **arrays)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {reason_of(error)}") from error


def _provenance():
    """Command, hardware and versions of this run, in the form of `common.provenance`."""
    lines = pathlib.Path("/proc/cpuinfo")
    text = lines.read_text(errors="replace") if lines.exists() else ""
    names = re.findall(r"^model name\s*: (.*)$", text, flags=re.MULTILINE)
    devices = [device for device in jax.devices() if device.platform != "cpu"]
    return {
        "command": shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "hardware": {
            "processor": names[0] if names else "",
            "cores": os.cpu_count(),
            "gpus": [device.device_kind for device in devices],
        },
        "versions": {
            "python": sys.version.split()[0],
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
        },
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """Ends the script as any other input that cannot be used."""
        raise InputError(message.removeprefix("argument "))


def _parser_of(number, low, words):
    """Parser of a flag's numbers, which are finite and not below `low`."""

    def parse(text):
        try:
            value = number(text)
        except ValueError:
            value = -math.inf
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"expected {words} of {low} or more, got {text!r}")
        return value

    return parse


def arguments(words=None):
    """The command line's arguments."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="+", metavar="JOB", help="names of jobs, in their order")
    for name, text in (
        ("jobs_dir", "directory of export.py"),
        ("data_dir", "the data folder of export.py, with one folder for each challenge"),
        ("output_dir", "where each job's weights and record go, in a folder of its name"),
    ):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path, help=text)
    parser.add_argument(
        "--state_dir",
        type=pathlib.Path,
        help="where each job's whole state goes (CIFAR-10 wide: 550 MB); default: --output_dir",
    )
    seconds, count = _parser_of(float, 0, "a number"), _parser_of(int, 1, "a whole number")
    parser.add_argument("--seconds", type=seconds, help="stop after this time")
    parser.add_argument("--save_seconds", type=seconds, default=60, help="seconds between savings")
    parser.add_argument("--num_eval_examples", type=count, help="evaluate on the first images only")
    return parser.parse_args(words)


def main(words=None):
    """Runs the jobs of the command line."""
    begin = time.monotonic()
    args = arguments(words)
    deadline = math.inf if args.seconds is None else begin + args.seconds
    jobs = []
    for name in args.jobs:
        path = args.jobs_dir / name / "job.json"
        if not path.is_file():
            known = ", ".join(sorted(p.parent.name for p in args.jobs_dir.glob("*/job.json")))
            raise InputError(f"JOB: expected some of {known or 'export.py'}, got {name!r}")
        jobs.append(job_files.read_job(path))
        job_files.check_programs(jobs[-1], args.jobs_dir)
    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # both occur, and the second says nothing
        wanted = os.environ.get("JAX_PLATFORMS", "any")
        raise InputError(
            f"JAX_PLATFORMS: expected a device of {wanted}, got none: {reason_of(error)}"
        ) from error
    print(f"on {device.device_kind}, JAX {jax.__version__}", flush=True)
    programs, data = {}, {}

    def images_of(challenge, split, expected):
        if (challenge, split) not in data:
            images, labels = packed_images.load(args.data_dir / challenge, split)
            if len(images) != expected:
                raise InputError(
                    f"--data_dir: expected {expected} {split} images, which the programs are made "
                    f"for, got {len(images)}"
                )
            data[challenge, split] = jax.device_put(images), jax.device_put(labels)
        return data[challenge, split]

    with Interruption() as interruption:
        for job in jobs:
            output = args.output_dir / job["name"]
            state_dir = (args.state_dir or args.output_dir) / job["name"]
            for directory in (output, state_dir):
                directory.mkdir(parents=True, exist_ok=True)
            training = Training(job, args.jobs_dir, output, state_dir, programs)
            with training.on_device("loading the images"):
                images, labels = images_of(job["challenge"], "train", job["num_training_images"])
            is_done = training.train(images, labels, deadline, args.save_seconds, interruption)
            if is_done:
                training.finish()
                with training.on_device("loading the images"):
                    test = images_of(job["challenge"], "test", job["num_test_images"])
                training.evaluate(*test, interruption, args.num_eval_examples)
            if interruption.requested:
                raise Interrupted(interruption.requested)
            if not is_done:
                print(f"{job['name']}: stopped at step {training.step}; the same command resumes")
                return


if __name__ == "__main__":
    show_messages()
    try:
        main()
    except BrokenPipeError:  # the reader of what is printed is gone, such as `head`
        drop_output()
        sys.exit(128 + SIGPIPE)
    except (InputError, OSError, MemoryError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print("interrupted; the same command resumes", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", 2))
