"""The code, machine and command that computed a result, so that it can be repeated."""

import contextlib
import os
import pathlib
import platform
import shlex
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

_GIT_TIMEOUT = 30.0  # seconds, on a disk that may hang


def provenance():
    """The command, this project's commit, hardware and library versions, as a dict for JSON."""
    return {
        "command": _command(),
        "commit": _commit(),
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": [
                tf.config.experimental.get_device_details(device).get("device_name", device.name)
                for device in tf.config.list_physical_devices("GPU")
            ],
        },
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
    }


def machine(hardware):
    """A record's "hardware" in words: its GPUs, or "2 cores of" its processor."""
    cores = f"{hardware['cores']} cores of {hardware['processor']}"
    return ", ".join(hardware["gpus"]) or cores


def peak_memory():
    """The peak resident memory of this process in GiB, or None where the system does not tell."""
    # Not getrusage, which on Linux counts the parent's memory at the time of its fork.
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    return None


def _command():
    """The command line, with the script's path relative to the working directory."""
    script, *words = sys.argv or [""]
    if not script:  # in an interactive session
        return shlex.join(words)
    # The working directory may have been deleted, or be on another drive.
    with contextlib.suppress(OSError, ValueError):
        script = os.path.relpath(script)
    return shlex.join([script, *words])


def _processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit():
    """The commit of this project's clone, with -dirty if files differ; None outside a clone."""

    def git(*words):
        command = ["git", "-C", str(project), *words]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=_GIT_TIMEOUT,
        )
        return done.stdout.strip()

    try:
        project = pathlib.Path(__file__).resolve().parents[1]
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != project:
            return None  # installed below somebody else's repository
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
