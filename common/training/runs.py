"""runs.json of a training directory: machine, time and memory of each run of the training."""

import pathlib
import time

from common import json_shapes
from common.attack import precision
from common.files import write_json
from common.json_shapes import NUMBER
from common.messages import tell
from common.provenance import peak_memory, provenance

FILE = "runs.json"
_SHAPE = [{"seconds": NUMBER}]


class Runs:
    """Adds a run to runs.json, and keeps its step and time up to date.

    The file holds a list of {"command", "commit", "hardware", "versions", "data",
    "first_step", "last_step", "seconds", "peak_memory_gib"}; steps, time and peak resident memory
    are those of the run's newest checkpoint. The memory is left out where the system does not tell.
    A run on several devices has their number as "num_replicas".
    A damaged file is renamed, and a new list begins.

    Args:
        directory: the training's directory.
        step: the step that the run begins with.
        data: the name of the training images.
        num_replicas: number of devices that share each batch.
    """

    def __init__(self, directory, step, data, num_replicas=1):
        self._path = pathlib.Path(directory) / FILE
        consequence = "a new one is begun"
        self._runs = json_shapes.read_or_keep_aside(self._path, _SHAPE, consequence) or []
        before = self._runs[-1] if self._runs else {}
        self._earlier = sum(run["seconds"] for run in self._runs)
        self._begin = time.monotonic()
        self._runs.append({**provenance(), "data": data, "first_step": step})
        # Processors of one name may differ in it.
        self._runs[-1]["hardware"]["bfloat16"] = precision.bfloat16_unit()
        if num_replicas > 1:
            self._runs[-1]["num_replicas"] = num_replicas
        for part in ("versions", "hardware"):
            now, earlier = self._runs[-1][part], before.get(part)
            # An earlier version recorded less.
            if isinstance(earlier, dict) and not earlier.items() <= now.items():
                tell(f"note: the run before had other {part}, {before[part]}")
        self.update(step)

    def update(self, step):
        """Writes that the run has reached `step`."""
        seconds = round(time.monotonic() - self._begin, 1)
        self._runs[-1].update(last_step=step, seconds=seconds)
        if (memory := peak_memory()) is not None:
            self._runs[-1]["peak_memory_gib"] = round(memory, 2)
        write_json(self._path, self._runs)

    def seconds(self):
        """The time of all runs so far, in seconds."""
        return self._earlier + time.monotonic() - self._begin


def read(directory):
    """The entries of a training directory's runs.json, or an empty list without such a file.

    Raises:
        InputError: the file is damaged.
    """
    path = pathlib.Path(directory) / FILE
    return json_shapes.read(path, _SHAPE) if path.exists() else []
