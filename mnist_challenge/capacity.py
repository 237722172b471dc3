"""Trains the paper's capacity family (Figure 4), and the other networks of its MNIST experiments.

    python mnist_challenge/capacity.py --output_dir=/tmp/capacity [--seeds=0,1,2] [--list]

Networks of the scales 1, 2, 4, 8 and 16 are trained on natural images, against FGSM, and against
PGD with an epsilon that rises at the start and with a constant one. Model B and the very large
network of Figure 8 are trained, too. Each has a training directory in --output_dir, like those of
train.py; capacity.json has the recipes. The first seed comes first, and small networks before large
ones. Finished trainings are skipped, interrupted ones resume. Several of these commands may share
an --output_dir: each skips what another trains.
"""

import dataclasses
import gc
import pathlib
import sys
import time

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

import keras
from absl import flags

from common import checkpoint_files
from common.config import NOT_OF_TRAINING, integer, make_config
from common.config import read_json as read_settings
from common.errors import InputError, one_line
from common.files import read_json
from common.scripts import app
from common.scripts.flags import define_path

# isort: split
from mnist_challenge.challenge import MNIST
from mnist_challenge.train import train

FILE = MNIST.directory / "capacity.json"


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the family.

    Attributes:
        name: its directory's name, of training, network and seed, such as pgd_scale_4_seed_0.
        config: the `Config` of its training.
        minutes: the processor time of its training, see capacity.json.
    """

    name: str
    config: object
    minutes: float

    @property
    def steps(self):
        """The step of its newest checkpoint, or 0."""
        directory = pathlib.Path(self.config.model_dir)
        return max(checkpoint_files.steps_in(directory), default=0) if directory.is_dir() else 0

    @property
    def is_done(self):
        """Whether its training has ended; a training writes its SavedModel last."""
        saved_model = pathlib.Path(self.config.model_dir) / "saved_model" / "saved_model.pb"
        return saved_model.is_file() and self.steps >= self.config.max_num_training_steps

    @property
    def minutes_left(self):
        """The remaining processor time of its training."""
        share = self.steps / self.config.max_num_training_steps
        return 0.0 if self.is_done else self.minutes * max(0.0, 1 - share)


def family(output_dir, seeds=(0,), trainings=None, networks=None, **settings):
    """The networks of capacity.json, in the order in which they are trained.

    Args:
        output_dir: the directory of the trainings' directories.
        seeds: ints, each a `random_seed`.
        trainings, networks: names of capacity.json; None means all.
        **settings: further settings of every training, such as data_dir.

    Returns:
        List of `Network`.

    Raises:
        InputError: a name is unknown.
    """
    recipes = read_json(FILE)
    trainings = _known("--trainings", trainings, recipes["trainings"])
    networks = _known("--networks", networks, recipes["networks"])
    return [
        Network(
            name=(name := f"{training}_{network}_seed_{seed}"),
            config=make_config(
                MNIST,
                (str(FILE), recipes["trainings"][training]),
                (str(FILE), recipes["networks"][network]["settings"]),
                ("command line", {**settings, "random_seed": seed}),
                ("command line", {"model_dir": str(pathlib.Path(output_dir) / name)}),
            ),
            minutes=recipes["networks"][network]["minutes"][training],
        )
        for seed in seeds
        for network in networks
        for training in trainings
        if training in recipes["networks"][network]["minutes"]
    ]


def _known(flag, names, known):
    """The names of `known` that are among `names`, in the order of `known`; None means all."""
    for name in names or ():
        if name not in known:
            raise InputError(f"{flag}: expected some of {', '.join(known)}, got {name!r}")
    return [name for name in known if names is None or name in names]


def train_all(networks, train=train):
    """Trains the networks that are not done.

    Args:
        networks: list of `Network`.
        train: function from a config, which trains.

    Raises:
        InputError: trainings failed; the others have ended.
        Interrupted: see `common.training.loop.train`; the same call resumes.
    """
    failed, seconds, minutes = [], 0.0, 0.0
    for number, network in enumerate(networks, start=1):
        place = f"{number} of {len(networks)}: {network.name}"
        if network.is_done:
            try:
                _check_is_same(network)
                print(one_line(f"{place} is done"))
            except InputError as error:
                failed.append(network.name)
                print(one_line(f"error: {network.name}: {error}"), file=sys.stderr)
            continue
        # The time of this machine over that of capacity.json's.
        pace = seconds / 60 / minutes if minutes else 1.0
        left = pace * sum(other.minutes_left for other in networks[number - 1 :])
        print(one_line(f"{place}; the whole list takes about {_duration(left)} more"), flush=True)
        expected, begin = network.minutes_left, time.monotonic()
        try:
            train(network.config)
        except InputError as error:
            failed.append(network.name)
            print(one_line(f"error: {network.name}: {error}"), file=sys.stderr)
            continue
        finally:
            keras.backend.clear_session()
            gc.collect()
        seconds, minutes = seconds + time.monotonic() - begin, minutes + expected
    if failed:
        raise InputError(
            f"{len(failed)} of {len(networks)} networks are not trained: {', '.join(failed)}"
        )


def _check_is_same(network):
    """Raises InputError if a finished training had another recipe than capacity.json has now."""
    recorded = read_settings(pathlib.Path(network.config.model_dir) / "config.json")
    # The machine decides the precision; settings that do not change the numbers may differ.
    own = NOT_OF_TRAINING - {"max_num_training_steps"} | {"precision"}
    there = dataclasses.asdict(make_config(MNIST, ("config.json", recorded)))
    now = dataclasses.asdict(network.config)
    differing = [name for name in now if name not in own and now[name] != there[name]]
    if differing:
        raise InputError(
            f"--output_dir: expected trainings by {FILE.name}, got one with another "
            f"{', '.join(differing)} in {network.config.model_dir}"
        )


def _duration(minutes):
    hours, minutes = divmod(round(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def show(networks):
    """Prints the networks, their steps so far, and the remaining processor time."""
    width = max(len(network.name) for network in networks)
    print(f"{'network':{width}}  steps         CPU minutes left")
    for network in networks:
        steps = f"{network.steps:5} of {network.config.max_num_training_steps}"
        state = "done" if network.is_done else f"{network.minutes_left:.0f}"
        print(f"{network.name:{width}}  {steps}  {state:>16}")
    left = sum(network.minutes_left for network in networks)
    print(f"{_duration(left)} of processor time left")


def define_flags(flag_values):
    """Declares the flags of this script."""
    define_path("output_dir", None, "directory of the trainings' directories", flag_values)
    define_path("data_dir", None, "TFDS directory, or one with the data files", flag_values)
    flags.DEFINE_list("seeds", ["0"], "random seeds; each makes a family", flag_values)
    for name in ("trainings", "networks"):
        choices = ", ".join(read_json(FILE)[name])
        flags.DEFINE_list(name, None, f"some of {choices} (default: all)", flag_values)
    flags.DEFINE_bool("list", False, "only show the networks and how far each is", flag_values)


def main(words):
    """Trains, or shows, what the command line asks for."""
    if words:
        raise InputError(f"expected flags only, got {' '.join(words)!r}")
    values = flags.FLAGS
    if values.output_dir is None:
        raise InputError("--output_dir: expected a directory, got none")
    try:
        seeds = [integer(0)(seed, None) for seed in values.seeds]
    except ValueError as error:
        raise InputError(f"--seeds: {error}") from None
    networks = family(
        values.output_dir, seeds, values.trainings, values.networks, data_dir=values.data_dir
    )
    if not networks:
        raise InputError("expected trainings that the networks have, got none of them")
    if values.list:
        show(networks)
    else:
        MNIST.load("train", data_dir=values.data_dir)  # missing data end the script, not a training
        train_all(networks)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run_words(main)
