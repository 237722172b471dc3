"""An item's numbers in results/NAME.json, part by part, and their state."""

import dataclasses
import functools
import json
import os
import pathlib
import re

from common import json_shapes
from common.errors import InputError
from common.files import write_atomically
from common.json_shapes import ANYTHING, COUNT, NUMBER, TEXT, Nullable, Optional, Values
from paper.item import IN_PART, REPRODUCED

DONE, STALE, PARTLY, OPEN, IMPOSSIBLE = "done", "stale", "partly", "open", "not possible yet"
_PART = {
    "networks": {},
    "data": Nullable({"name": TEXT, "sha256": TEXT}),
    "version": COUNT,
    "attack": Optional({}),
    "run": COUNT,
    "seconds": NUMBER,
    "numbers": ANYTHING,
}
_SHAPE = {
    "item": TEXT,
    "settings": {},
    "runs": [
        {
            "command": TEXT,
            "commit": Nullable(TEXT),
            "hardware": {"processor": TEXT, "cores": Nullable(COUNT), "gpus": [TEXT]},
            "versions": {},
        }
    ],
    "parts": Values(_PART),
}
_LIST = re.compile(r"\[\n[^\[\]{}]*\]")  # without lists or objects in it


class Shipped:
    """The networks that the project ships, with the digests on their cards."""

    def exists(self, network):
        """Whether there is such a network."""
        return network.exists()

    def is_shipped(self, network):
        """Whether it is the one that the project ships."""
        return network.exists()

    def digest(self, network):
        """The digest of its weights."""
        return network.digest()


@dataclasses.dataclass
class Result:
    """The results of an item so far.

    Attributes:
        item: the `paper.item.Item`.
        settings: the settings of its computation.
        records: by the part's name, its numbers and their origin, as in the file.
        runs: the `provenance` of each command that computed some of them.
        source: which networks there are, see `Shipped`.
        directory: where results/ and figures/ are, or None.
        is_of_another_version: whether the file has numbers of settings that the item lacks.
    """

    item: object
    settings: dict
    records: dict = dataclasses.field(default_factory=dict)
    runs: list = dataclasses.field(default_factory=list)
    source: object = dataclasses.field(default_factory=Shipped)
    directory: pathlib.Path | None = None
    is_of_another_version: bool = False

    @classmethod
    def read(cls, item, directory, source=None):
        """Reads results/NAME.json of `directory`; returns an empty result without the file.

        Numbers of settings that the item no longer has are ignored, and `is_of_another_version` is
        then True.

        Args:
            item: the `Item`.
            directory: where results/ and figures/ are.
            source: which networks there are; None for the shipped ones.

        Raises:
            InputError: the file is damaged.
        """
        path, directory = path_of(item, directory), pathlib.Path(directory)
        empty = cls(item, dict(item.settings), source=source or Shipped(), directory=directory)
        if not os.path.lexists(path):
            return empty
        values = json_shapes.read(path, _SHAPE)
        if values["item"] != item.name or any(
            not part["run"] < len(values["runs"]) for part in values["parts"].values()
        ):
            raise InputError(f"{path}: expected results of {item.name}, got another's")
        if set(values["settings"]) != set(item.settings):
            return dataclasses.replace(empty, is_of_another_version=True)
        read = {"settings": values["settings"], "records": values["parts"], "runs": values["runs"]}
        return dataclasses.replace(empty, **read)

    def write(self):
        """Writes results/NAME.json, whole or not at all."""
        values = {
            "item": self.item.name,
            "settings": self.settings,
            "runs": self.runs,
            "parts": self.records,
        }
        text = json.dumps(values, indent=1, allow_nan=False)
        text = _LIST.sub(lambda match: " ".join(match[0].split()), text)  # a list is a line
        write_atomically(path_of(self.item, self.directory), (text + "\n").encode())

    def add(self, part, numbers, seconds, networks, data, run):
        """Adds a part's numbers; drops its earlier ones, and runs without remaining numbers.

        Args:
            part: the `Part`.
            numbers: dict for JSON.
            seconds: how long it took.
            networks: the digests of its networks, by their labels.
            data: name and sha256 of its images as a dict, or None.
            run: the `provenance` of this command.
        """
        if run not in self.runs:
            self.runs.append(run)
        self.records[part.name] = {
            "networks": networks,
            "data": data,
            "version": self.item.version,
            **({} if part.attack is None else {"attack": dict(part.attack)}),
            "run": self.runs.index(run),
            "seconds": round(seconds, 1),
            "numbers": json.loads(json.dumps(numbers)),
        }
        used = sorted({record["run"] for record in self.records.values()})
        self.runs = [self.runs[number] for number in used]
        for record in self.records.values():
            record["run"] = used.index(record["run"])

    @functools.cached_property
    def parts(self):
        """The item's `Part`s under these settings, a list."""
        found = []
        for part in self.item.parts(self.settings) if self.item.parts else ():
            is_own = part.otherwise and not all(map(self.source.is_shipped, part.networks))
            found += part.otherwise if is_own else [part]
        return found

    @property
    def numbers(self):
        """The numbers of each computed part, by its name, in the parts' order."""
        names = [part.name for part in self.parts]
        return {name: self.records[name]["numbers"] for name in names if name in self.records}

    @property
    def seconds(self):
        """The total time of the computed parts."""
        return sum(record["seconds"] for record in self.records.values())

    def is_possible(self, part):
        """Whether all networks of a `Part` exist."""
        return all(self.source.exists(network) for network in part.networks)

    def is_whole(self):
        """Whether all parts whose networks exist are computed, at least one."""
        possible = {part.name for part in self.parts if self.is_possible(part)}
        return bool(self.numbers) and possible <= set(self.records)

    def is_shown(self):
        """Whether there are enough numbers for table, picture and verdict, and none is stale."""
        if self.item.parts is None:
            return True
        is_enough = bool(self.numbers) if self.item.shows_parts else self.is_whole()
        return is_enough and self.state() != STALE

    def is_stale(self, part):
        """Whether a part's numbers are of another network, card or computation.

        Numbers of a network that is not here cannot be compared, and stay.
        """
        record = self.records[part.name]
        here = [network for network in part.networks if self.source.exists(network)]
        digests = {network.label: self.source.digest(network) for network in here}
        is_another = not digests.items() <= record["networks"].items()
        is_another |= part.known is not None and part.known != record["numbers"]
        is_another |= record.get("attack", part.attack) != part.attack  # kept since lately
        return is_another or record["version"] != self.item.version

    def verdict(self):
        """The item's `Verdict`, at most "in part" while parts are missing."""
        verdict = self.item.verdict(self)
        is_all = len(self.numbers) == len(self.parts)
        if verdict.word == REPRODUCED and not is_all:
            return dataclasses.replace(verdict, word=IN_PART)
        return verdict

    def state(self):
        """One of `DONE`, `STALE`, `PARTLY`, `OPEN` and `IMPOSSIBLE`."""
        parts = self.parts
        if self.item.parts is None:
            return DONE
        there = [part for part in parts if part.name in self.records]
        if any(self.is_stale(part) for part in there):
            return STALE
        if not there:
            return OPEN if any(self.is_possible(part) for part in parts) else IMPOSSIBLE
        return DONE if len(there) == len(parts) else PARTLY


def path_of(item, directory):
    """The pathlib.Path of an item's results below `directory`."""
    return pathlib.Path(directory) / "results" / f"{item.name}.json"
