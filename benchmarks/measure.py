"""How the benchmarks measure: rounds in turn, the matrix product's rate, memory of a process."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

from common import provenance
from common.errors import InputError
from common.files import read_json, write_json
from common.scripts import app

# The implementations that the benchmarks compare, without the peers.
OURS, PLAIN, OURS_BFLOAT16 = "ours", "plain tf.function", "ours in bfloat16"
# Ours without the network's fast form, as on any keras.Model.
OURS_KERAS, OURS_KERAS_BFLOAT16 = "ours on a keras.Model", "ours on a keras.Model in bfloat16"


def run(main, define_flags):
    """Runs a benchmark with its flags; an input error becomes one line and exit code 1."""

    def without_words(words):
        if words:
            raise InputError(f"expected flags only, got {words[0]!r}")
        main()

    define_flags()
    app.run_words(without_words)


def in_turn(functions, rounds, cpu_seconds=None):
    """Times each function once a round: a drift of the machine's speed affects all alike.

    Every other round runs in the opposite order.

    Args:
        functions: name to function without arguments; each is called once before the first round.
        rounds: how often each function is timed.
        cpu_seconds: None, or a dict that gets the same in seconds of the processor, which are more
            reliable if the machine has other work.

    Returns:
        Dict of each name to the list of its seconds.
    """
    for name, function in functions.items():
        print(f"warming up {name}", file=sys.stderr, flush=True)
        function()
    seconds = {name: [] for name in functions}
    cpu_seconds = {} if cpu_seconds is None else cpu_seconds
    for number in range(rounds):
        # So that no function always follows the same other one.
        for name, function in list(functions.items())[:: -1 if number % 2 else 1]:
            begin, cpu_begin = time.perf_counter(), time.process_time()
            function()
            seconds[name].append(time.perf_counter() - begin)
            cpu_seconds.setdefault(name, []).append(time.process_time() - cpu_begin)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return seconds


def rates(seconds, work):
    """The median, lowest and highest `work` per second, as a dict."""
    each = work / np.array(seconds)
    return {"median": np.median(each), "lowest": each.min(), "highest": each.max()}


def matmul(dtype, size):
    """A function that multiplies two matrices (size, size) of a dtype in 2 * size**3 operations."""
    matrix = tf.cast(tf.random.normal((size, size)), dtype)
    multiply = tf.function(lambda a: tf.linalg.trace(tf.cast(a @ a, tf.float32)))
    return lambda: multiply(matrix).numpy()


def peak_memory(script, *flags):
    """The peak resident memory, in GiB, of a benchmark in a process of its own."""
    command = [sys.executable, script, *flags, "--print_peak_memory"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(result.stdout.splitlines()[-1])


def own_peak_memory():
    """The peak resident memory of this process, in GiB."""
    found = provenance.peak_memory()
    if found is None:
        raise InputError("peak memory: expected VmHWM in /proc/self/status, which Linux has")
    return found


def earlier_entries(path, what, check=lambda entries: None):
    """The entries, by name, of the attacks in a result file, which need not exist yet.

    Args:
        path: the file, or None.
        what: dict that describes the measurement; the file must have the same.
        check: function of the entries that raises anything if they are damaged.

    Raises:
        InputError: it holds something else.
    """
    if path is None or not os.path.exists(path):
        return {}
    try:
        result = read_json(path)
        differing = [name for name, value in what.items() if result[name] != value]
        entries = result["attacks"]
        check(entries)
    except Exception:  # a file of something else may raise anything
        raise InputError(f"--output_json: expected a new file, got {path}") from None
    if differing:
        raise InputError(
            f"--output_json: expected a new file or one of the same comparison, got {path}, which "
            f"differs in {', '.join(differing)}"
        )
    return entries


def save(path, result, packages=()):
    """Writes a benchmark's result as JSON, with command, hardware, threads and versions."""
    record = provenance.provenance()
    record["hardware"]["threads"] = tf.config.threading.get_intra_op_parallelism_threads() or len(
        os.sched_getaffinity(0)
    )
    for package in packages:
        record["versions"][package] = importlib.metadata.version(package)
    # NumPy's numbers become Python's.
    write_json(path, json.loads(json.dumps({**record, **result}, default=float)))
