"""Reproduces the paper's tables, figures and claims, one by one.

    python paper/reproduce.py                    list the items, their cost and their state
    python paper/reproduce.py figure_1           compute one item, or several
    python paper/reproduce.py --all              compute all that the available networks allow

Numbers go to results/NAME.json part by part, so that the same command resumes after an interruption
and computes nothing twice. The picture goes to figures/NAME.png, and README.md is made from the
results. Numbers of a network that has changed since are computed again.

--num_images, --num_restarts and so on replace a setting of the items that have it. Only --afresh
replaces a result of other settings; if it is interrupted, the same command without it goes on.
--own_models=adv_trained=/tmp/robust --output_dir=/tmp/mine
computes an item with your own network. --networks_dir=/tmp/capacity takes the networks that are not
shipped from a directory that has them by their names, such as that of mnist_challenge/capacity.py.
"""

import pathlib
import sys
import time

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

from absl import flags

from common import cards, checkpoints, files
from common.attack.precision import without_tf32
from common.errors import InputError, one_line
from common.messages import warn
from common.provenance import provenance
from common.scripts import app
from common.scripts.flags import define_path
from paper import document, items, readme_tables, style
from paper.item import Work
from paper.results import Result

HERE = pathlib.Path(__file__).resolve().parent
SAMPLE_DIR = "paper_sample"


class Source:
    """The networks and images that items are computed from, each loaded once.

    Args:
        data_dir: see `Challenge.load`.
        is_sample: whether small networks with random weights and the shipped sample's images
            replace all networks and images.
        own: paths of models that replace networks, by the networks' names.
        networks_dir: path of a directory with models by the names of networks that are not shipped;
            None for none.
    """

    def __init__(self, data_dir, is_sample, own=(), networks_dir=None):
        self._data_dir, self._is_sample, self._own = data_dir, is_sample, dict(own)
        self._networks_dir = None if networks_dir is None else pathlib.Path(networks_dir)
        self._models, self._splits = {}, {}

    def exists(self, network):
        """Whether there is such a network."""
        return self._is_sample or self._path(network) is not None or network.exists()

    def is_shipped(self, network):
        """Whether it is the one that the project ships."""
        return not self._is_sample and self._path(network) is None and network.exists()

    def _path(self, network):
        """The path of a network that is not the shipped one, or None."""
        if network.name in self._own:
            return self._own[network.name]
        if self._networks_dir is None or network.exists():
            return None
        path = self._networks_dir / network.name
        is_trained = (path / "saved_model").is_dir() or (path / cards.CARD).is_file()
        return str(path) if is_trained else None

    def model(self, network):
        """The network as a `LoadedModel`."""
        if network not in self._models:
            path = None if self._is_sample else self._path(network)
            if path is not None:
                loaded = checkpoints.load_model(network.challenge, path)
            else:
                loaded = network.load_sample() if self._is_sample else network.load()
            self._models[network] = loaded
        return self._models[network]

    def digest(self, network):
        """The digest of its weights, read from its card if it is a shipped one."""
        if self._is_sample or network in self._models or self._path(network) is not None:
            return self.model(network).digest()
        return network.digest()

    def images(self, challenge, count):
        """The first `count` test images, or sample images without the test set; None for none."""
        if count is None:
            return None
        if challenge.name not in self._splits:
            split = (
                challenge.load("sample")
                if self._is_sample
                else challenge.load("test", data_dir=self._data_dir, allow_sample=True)
            )
            print(one_line(split.source), flush=True)
            self._splits[challenge.name] = split
        return self._splits[challenge.name].head(count)


def compute(result):
    """Computes the parts of a `Result` that are missing or stale, and writes each at once.

    Args:
        result: the `Result`, which gets the numbers; its source is a `Source`.

    Raises:
        InputError: a part has numbers of other images, which are not replaced.
    """
    name, source, todo = result.item.name, result.source, []
    for part in result.parts:
        if not result.is_possible(part):
            missing = ", ".join(n.label for n in part.networks if not source.exists(n))
            print(f"{name}: {part.name} is left out, as there is no network {missing}", flush=True)
            continue
        challenge = part.networks[0].challenge if part.networks else None
        images = source.images(challenge, part.num_images)
        data = images and {"name": images.name, "sha256": images.digest()}
        record = result.records.get(part.name)
        if record is not None and None not in (data, record["data"]) and data != record["data"]:
            raise InputError(
                f"--data_dir: expected {record['data']['name']}, with which the numbers of {name} "
                f"were made, or --afresh, which replaces them; got {data['name']}"
            )
        if record is None or result.is_stale(part):
            todo.append((part, challenge, images, data))
    todo.sort(key=lambda entry: entry[0].known is None)  # the cards' numbers first
    run, left = provenance(), sum(part.weight for part, *_ in todo)
    spent = weight = 0.0
    for number, (part, challenge, images, data) in enumerate(todo, 1):
        print(f"{name}: {part.name} ({number} of {len(todo)})", end=" ", flush=True)
        models = () if part.known else tuple(source.model(network) for network in part.networks)
        begin = time.monotonic()
        numbers = part.known
        if numbers is None:
            with without_tf32():
                numbers = part.compute(Work(challenge, models, images, result.settings))
        seconds = time.monotonic() - begin
        digests = {network.label: source.digest(network) for network in part.networks}
        result.add(part, numbers, seconds, digests, data, run)
        result.write()
        left -= part.weight
        if part.known is None:
            spent, weight = spent + seconds, weight + part.weight
        is_told = number < len(todo) and weight
        remaining = f", about {duration(spent / weight * left)} left" if is_told else ""
        print(f"{duration(seconds)}{remaining}", flush=True)


def duration(seconds):
    """Returns a time in words: "12 s", "3 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def settings_of(item, earlier, given, is_sample, afresh):
    """Returns the settings for computing an item.

    Args:
        item: the `Item`.
        earlier: the existing `Result`.
        given: the settings that the command line gives, by name.
        is_sample, afresh: the flags.

    Raises:
        InputError: there are numbers of other settings, and `afresh` is False.
    """
    default = {**item.settings, **(item.sample if is_sample else {})}
    given = {name: value for name, value in given.items() if name in default}
    if not earlier.records or afresh:
        return {**default, **given}
    for name, value in given.items():
        if value != earlier.settings[name]:
            raise InputError(
                f"--{name}: expected {earlier.settings[name]}, with which the numbers of "
                f"{item.name} were made, or --afresh, which replaces them; got {value}"
            )
    return earlier.settings


def make(item, flag_values, given, source, directory):
    """Computes the missing parts of an item, and draws its picture of what is there."""
    lock = directory / "results" / f".{item.name}.lock"
    with files.Lock(directory / "results", "reproduce.py", lock):
        result = Result.read(item, directory, source)
        if result.is_of_another_version and not flag_values.afresh:
            raise InputError(
                f"{item.name}: expected numbers of its settings, {', '.join(item.settings)}, or "
                "--afresh, which replaces them; got those of an earlier version"
            )
        settings = settings_of(item, result, given, flag_values.sample, flag_values.afresh)
        if settings != result.settings or flag_values.afresh:
            result = Result(item, settings, source=source, directory=directory)
        try:
            compute(result)
        except KeyboardInterrupt:
            same = "the same command" + " without --afresh" * flag_values.afresh
            print(f"\nstopped; {same} resumes after the last finished part", flush=True)
            draw(result, flag_values.pdf)
            raise
    if not result.records and item.needs:
        print(f"{item.name}: nothing is made, as it needs {item.needs}", flush=True)
    if not result.is_shown():
        return
    draw(result, flag_values.pdf)
    print(f"{item.name}: {document.state_of(result)}")
    for criterion in result.verdict().criteria:
        print(f"    {one_line(criterion)}", flush=True)


def draw(result, as_pdf):
    """Draws an item's picture of the numbers that are there, if it has one."""
    item = result.item
    if item.draw is None or not result.is_shown():
        return
    for ending in ("png", "pdf") if as_pdf else ("png",):
        path = result.directory / "figures" / f"{item.name}.{ending}"
        style.save(item.draw(result), path)
        print(one_line(f"{item.name}: figure in {path}"))


def listing(directory):
    """Returns lines with the state, cost, needs and settings of every item."""
    lines = []
    for item in items.load_all():
        result = Result.read(item, directory)
        networks = dict.fromkeys(n for part in result.parts for n in part.networks)
        needs = [f"{n.label}{'' if n.exists() else ' (missing)'}" for n in networks]
        needs += [item.needs] if item.needs else []
        lines += [
            f"{item.name}: {item.title}",
            f"    state: {document.state_of(result)}",
            f"    cost: {document.cost_of(result)}",
            f"    needs: {'; '.join(needs)}",
            f"    settings: {document.settings_text(item.settings)}",
        ]
    return lines


def main(words, flag_values=flags.FLAGS):
    """Makes the items that the command line names, or lists all of them.

    Args:
        words: the names of items.
        flag_values: absl's FlagValues, with the flags of `define_flags`.
    """
    for word in words:
        if word not in items.NAMES:
            raise InputError(f"expected some of {', '.join(items.NAMES)}, got {word!r}")
    if flag_values.all and words:
        raise InputError(f"--all: expected no names of items beside it, got {' '.join(words)}")
    given = {name: flag_values[name].value for name in overrides() if flag_values[name].present}
    directory, own, others = HERE, own_models(flag_values), networks_dir(flag_values)
    if flag_values.sample or flag_values.output_dir is not None:
        directory = pathlib.Path(flag_values.output_dir or SAMPLE_DIR)
        if directory.resolve() == HERE:
            directory = HERE
        if directory == HERE and (flag_values.sample or own):
            what = "a sample" if flag_values.sample else "models of yours"
            raise InputError(f"--output_dir: expected another place for {what}, got {HERE}")
    if not (words or flag_values.all):
        print("\n".join(listing(directory)))
        return
    chosen = items.load_all() if flag_values.all else [items.load(word) for word in words]
    for name in given:
        if not any(name in item.settings for item in chosen):
            raise InputError(f"--{name}: expected an item that has it, got {' '.join(words)}")
    for name in own:
        if name not in networks_in(chosen):
            raise InputError(
                f"--own_models: expected an item that has {name}, got {' '.join(words)}"
            )
    for place in (directory, directory / "results", directory / "figures"):
        place.mkdir(exist_ok=True)
    source, failed = Source(flag_values.data_dir, flag_values.sample, own, others), []
    try:
        for item in chosen:
            try:
                make(item, flag_values, given, source, directory)
            except InputError as error:
                if len(chosen) == 1:
                    raise
                failed.append(item.name)
                warn(f"error: {item.name}: {error}")
    finally:
        page = directory / "README.md"
        is_ours = directory == HERE
        text = readme_tables.fill_in(page) if is_ours else document.text(directory, source)
        files.write_atomically(page, text.encode())
    if failed:
        raise InputError(f"expected every item to be made, got errors in {', '.join(failed)}")


def networks_in(chosen):
    """The names of the networks of items, as a dict's keys."""
    parts = [part for item in chosen if item.parts for part in item.parts(item.settings)]
    return dict.fromkeys(network.name for part in parts for network in part.networks)


def own_models(flag_values):
    """Returns the paths of --own_models by the networks' names.

    Raises:
        InputError: no item has such a network, or the project's own results would be replaced.
    """
    own = {}
    for text in flag_values.own_models or ():
        name, _, path = text.partition("=")
        names = networks_in(items.load_all())
        if name not in names or not path:
            raise InputError(
                f"--own_models: expected NAME=PATH with NAME one of {', '.join(names)}, got {text}"
            )
        own[name] = path
    if own and flag_values.output_dir is None:
        raise InputError("--own_models: expected an --output_dir for their results, got none")
    return own


def networks_dir(flag_values):
    """Returns the path of --networks_dir, or None.

    Raises:
        InputError: there is no such directory.
    """
    path = flag_values.networks_dir
    if path is not None and not pathlib.Path(path).is_dir():
        raise InputError(f"--networks_dir: expected a directory, got {path}")
    return path


def overrides():
    """Returns the settings that a flag replaces, by name, with the items that have them."""
    found = {}
    for item in items.load_all():
        for name in item.settings:
            found.setdefault(name, []).append(item)
    return found


def define_flags(flag_values=flags.FLAGS):
    """Declares the flags; every setting of an item has one."""
    flags.DEFINE_bool("all", False, "make all items that the networks at hand allow", flag_values)
    flags.DEFINE_bool("pdf", False, "write figures/NAME.pdf, too", flag_values)
    flags.DEFINE_bool("afresh", False, "compute anew what is there", flag_values)
    flags.DEFINE_bool(
        "sample",
        False,
        f"try it out: random small networks, few images, in ./{SAMPLE_DIR}",
        flag_values,
    )
    text = "models of yours in the place of networks, NAME=PATH,...; they want an --output_dir"
    flags.DEFINE_list("own_models", None, text, flag_values)
    text = "directory of networks that are not shipped, by their names, such as capacity.py's"
    define_path("networks_dir", None, text, flag_values)
    place = "where results/, figures/ and README.md go (default: paper/)"
    define_path("output_dir", None, place, flag_values)
    define_path("data_dir", None, "TensorFlow Datasets directory", flag_values)
    for name, having in overrides().items():
        kinds = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
        defaults = ", ".join(f"{item.name} {item.settings[name]}" for item in having)
        define = kinds[type(having[0].settings[name])]
        define(name, None, f"replaces a setting: {defaults}", flag_values=flag_values)


if __name__ == "__main__":
    define_flags()
    app.run_words(main)
