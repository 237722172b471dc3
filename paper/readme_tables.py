"""Writes the READMEs' tables and the networks' leaderboards from cards, benchmarks and items.

python paper/readme_tables.py
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

from benchmarks.measure import PLAIN
from cifar10_challenge.challenge import CIFAR10
from common import cards
from common.errors import InputError, one_line
from common.evaluation import suites
from common.files import read_json, write_atomically
from common.scripts import app
from mnist_challenge.challenge import MNIST
from paper import accuracies, document, leaderboards

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPEED = ROOT / "benchmarks" / "results"

# Network and rows of the README's table.
SUMMARY = (
    (
        MNIST,
        "adv_trained",
        (
            "natural",
            "paper_fgsm",
            "paper_pgd_40",
            "paper_pgd_100",
            "paper_pgd_100x20",
            "paper_cw_plus",
        ),
    ),
    (CIFAR10, "simple_adv_trained", ("natural", "paper_fgsm", "paper_pgd_7", "paper_pgd_20")),
)

# Networks by the benchmarks' names, with the README's names.
SPEED_COLUMNS = {
    "mnist": "MNIST",
    "mnist_natural": "MNIST natural",
    "cifar_simple": "CIFAR-10 simple",
    "cifar_wide": "CIFAR-10 wide",
}


def read_speed(name):
    """A file of a benchmark's results."""
    return read_json(SPEED / f"{name}.json")


def summary_table():
    """The table of the main README, as Markdown."""
    lines = ["| | attack | paper | ours | command |", "|---|---|---|---|---|"]
    for challenge, name, rows in SUMMARY:
        card = cards.read(challenge, name)
        config = card["training"]["config"]
        for row in rows:
            entry = cards.find(card, row)
            flag = "" if row == "natural" else f" --preset={row}"
            cells = [
                challenge.name,
                cards.full_title(entry),
                str(cards.paper_accuracy(challenge, config, entry)),
                accuracies.shown_accuracy(entry),
                f"`eval.py{flag}`",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def attack_speed_table():
    """The table of PGD's speed by implementation, as Markdown."""
    columns, matmul, machines = {}, {"float32": [], "bfloat16": []}, {}
    for model, name in SPEED_COLUMNS.items():
        machines.setdefault(_machine(f"attack_{model}"), []).append(name)
        for batch in read_speed(f"attack_{model}")["batches"]:
            columns[f"{name}, {batch['batch_size']}"] = batch["implementations"]
            for dtype, prefix in (("float32", ""), ("bfloat16", "bfloat16_")):
                if found := batch.get(f"{prefix}matmul_flop_per_second"):
                    matmul[dtype].append(found["median"] / 1e9)
    names = dict.fromkeys(name for column in columns.values() for name in column)
    versions = read_speed("attack_mnist")["versions"]
    lines = ["| PGD | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [_speed(column[name]) if name in column else "" for column in columns.values()]
        lines.append(f"| {_with_arithmetic(name)} | " + " | ".join(cells) + " |")
    products = " and ".join(
        f"{min(rates):.0f} to {max(rates):.0f} GFLOP/s in {dtype}"
        for dtype, rates in matmul.items()
        if rates
    )
    packages = {
        "tensorflow": "TensorFlow",
        "torch": "torch",
        "cleverhans": "CleverHans",
        "foolbox": "Foolbox",
        "adversarial-robustness-toolbox": "ART",
        "torchattacks": "torchattacks",
    }
    lines += [
        "",
        _places(machines)
        + f"; matrix products at {products}. "
        + ", ".join(
            f"{name} {versions[package].split('+')[0]}" for package, name in packages.items()
        )
        + ". Peak memory of the wide network's: "
        + ", ".join(
            f"{name} {entry['peak_memory_gib']:.1f} GiB"
            for name, entry in columns["CIFAR-10 wide, 100"].items()
        )
        + ".",
    ]
    return "\n".join(lines)


def training_speed_table():
    """The table of the speed of adversarial training, as Markdown."""
    lines = [
        "| training step | implementation | examples/s | times as fast as plain | memory, GiB |",
        "|---|---|---|---|---|",
    ]
    machines, shares = {}, []
    for model, name in SPEED_COLUMNS.items():
        path = f"training_{model}"
        if model == "mnist_natural":  # a training does not depend on the network's weights
            continue
        result = read_speed(path)
        machines.setdefault(_machine(path), []).append(name)
        plain = result["implementations"][PLAIN]["examples_per_second"]["median"]
        for implementation, entry in result["implementations"].items():
            rate = entry["examples_per_second"]["median"]
            lines.append(
                f"| {name}, {result['num_steps']} steps, batch {result['batch_size']} | "
                f"{_with_arithmetic(implementation)} | {rate:.2f} | {rate / plain:.2f} | "
                f"{entry['peak_memory_gib']:.2f} |"
            )
        if "loop_share" in result:
            steps = f"{name}, {result['loop_steps']} steps"
            shares.append(f"{100 * result['loop_share']:.1f}% ({steps})")
    lines += [
        "",
        f"{_places(machines)}. Attack and update are {' and '.join(shares)} of the time of a "
        "training in float32.",
    ]
    return "\n".join(lines)


def _with_arithmetic(implementation):
    """An implementation's name with its arithmetic."""
    return implementation + ("" if "bfloat16" in implementation else " in float32")


def _places(machines):
    """The machines of networks, a dict from a machine to their names, in words."""
    where = [f"{', '.join(networks)}: {machine}" for machine, networks in machines.items()]
    return "; ".join(where if len(where) > 1 else machines)


def autoattack_table():
    """The table of our suite beside the public AutoAttack, as Markdown."""
    lines = [
        "| network, images, seed, ours in | attack | ours | AutoAttack in float32 | broken by "
        "ours alone | by theirs alone | times as fast | in CPU time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    machines = set()
    for path in sorted(SPEED.glob("autoattack_*.json")):
        result = read_speed(path.stem)
        model = pathlib.Path(result["model"]).name
        what = f"{model}, {result['num_examples']:,}, {result['seed']}, {result['precision']}"
        entries = dict(result["attacks"])
        machines |= set(map(_threads, entries.values()))
        if len(entries) > 1:
            entries["worst case"] = result["worst_case"]
        for name, entry in entries.items():
            ours, theirs = (entry["accuracy"][who] for who in ("ours", "theirs"))
            lines.append(
                f"| {what} | {name} | {ours:.2f} | {theirs:.2f} | {len(entry['only_ours_breaks'])} "
                f"| {len(entry['only_theirs_breaks'])} | {entry['ratio']:.2f} | "
                f"{entry['cpu_ratio']:.2f} |"
            )
            what = ""
    return _with_machines(lines, machines)


def keras_speed_table():
    """The table of PGD's speed on a plain keras.Model beside CleverHans, as Markdown."""
    lines = [
        "| PGD on a plain keras.Model | CPU time, CleverHans's over its own | lowest and highest "
        "round | time of the clock | lowest and highest round |",
        "|---|---|---|---|---|",
    ]
    result = read_speed("attack_keras")
    (batch,) = result["batches"]
    for name, entry in batch["implementations"].items():
        cells = [name + ("" if "bfloat16" in name else " in float32")]
        for times in (entry["times_as_fast_in_cpu_time"], entry["times_as_fast"]):
            cells += [f"{times['median']:.2f}", f"{times['lowest']:.2f} to {times['highest']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"MNIST's network, batches of {batch['batch_size']}, {result['rounds']} rounds in turn; "
        f"{_machine('attack_keras')}, which had much other work: compare the CPU time.",
    ]
    return "\n".join(lines)


def agreement_table():
    """The table of one network's accuracy by implementation of the attack, as Markdown."""
    results = [read_speed(path.stem) for path in sorted(SPEED.glob("agreement_*.json"))]
    doors = dict.fromkeys(name for result in results for name in result["doors"])
    lines = [
        "| accuracy under PGD, in brackets the images it decides otherwise than the first | "
        + " | ".join(f"{result['model']}, epsilon {result['epsilon']}" for result in results)
        + " |",
        "|---" * (1 + len(results)) + "|",
        "| none: natural images | "
        + " | ".join(f"{result['natural_accuracy']:.2f}" for result in results)
        + " |",
    ]
    for name in doors:
        cells = []
        for result in results:
            entry = result["doors"].get(name)
            cells.append(
                f"{entry['accuracy']:.2f} ({entry['num_other_verdicts']})" if entry else ""
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fast_suite_table():
    """The attacks of the fast suite, as Markdown."""
    lines = ["| attack | examples | starts | settings |", "|---|---|---|---|"]
    for stage in suites.FAST:
        given = "all" if stage.share == 1 else f"closest {100 * stage.share:g}%"
        settings = ", ".join(f"`{name}` {value}" for name, value in stage.settings.items())
        lines.append(f"| {stage.name} | {given} | {stage.num_restarts} | {settings} |")
    return "\n".join(lines)


def suites_table():
    """The table of suites beside the standard one, on the same images from the same seed.

    Times are compared in the same arithmetic. Verdicts are too, unless the benchmark has not run
    the standard suite: then they are those of `autoattack.py`, in float32. Its run of AutoAttack,
    in turn as ours and in float32, gives the last column.
    """
    lines = [
        "| network, images, seed | suite | accuracy | standard | broken by it alone | by standard "
        "alone | left alone | CPU time, s | times as fast | AutoAttack's CPU time, times as long |",
        "|---" * 10 + "|",
    ]
    machines, known, theirs = set(), _standard_verdicts(), _autoattack_seconds()
    for result, runs in _suite_runs():
        for (suite, precision, seed), entry in runs.items():
            if suite not in suites.ANY_MODEL:
                continue
            machines.add(_threads(entry))
            standard = runs.get(("standard", precision, seed))
            verdicts = standard["withstood"] if standard else known.get(_images(result, seed))
            cells = ["", "", ""]
            if verdicts and suite != "standard":
                other = "" if standard or precision == "float32" else " (float32)"
                cells = [f"{_accuracy(verdicts):.2f}{other}"]
                cells += _only_one(entry["withstood"], verdicts)
            ratio = standard["cpu_seconds"] / entry["cpu_seconds"] if standard else None
            of_theirs = theirs.get((result["model"], result["data"], _threads(entry)))
            longer = f"{of_theirs / entry['cpu_seconds']:.1f}" if of_theirs else ""
            lines.append(
                f"| {_subject(result)}, {seed} | {suite}, {precision} | {entry['accuracy']:.2f} | "
                f"{' | '.join(cells)} | "
                f"{entry['num_left_alone'] or ''} | {entry['cpu_seconds']:.0f} | "
                f"{'' if ratio is None or suite == 'standard' else f'{ratio:.1f}'} | "
                f"{longer} |"
            )
    return _with_machines(lines, machines, "These commands have not run to their end yet.")


def precision_table():
    """The table of attacks in bfloat16 beside the same in float32, as Markdown."""
    lines = [
        "| network, images, seed | attack | float32 | bfloat16 | broken by float32 alone | by "
        "bfloat16 alone | CPU time, s | times as fast |",
        "|---|---|---|---|---|---|---|---|",
    ]
    machines = set()
    for result, runs in _suite_runs():
        for (suite, precision, seed), exact in runs.items():
            rounded = runs.get((suite, "bfloat16", seed))
            if precision != "float32" or rounded is None:
                continue
            machines.add(_threads(exact))
            times = exact["cpu_seconds"], rounded["cpu_seconds"]
            lines.append(
                f"| {_subject(result)}, {seed} | {suite} | {exact['accuracy']:.2f} | "
                f"{rounded['accuracy']:.2f} | "
                f"{' | '.join(_only_one(exact['withstood'], rounded['withstood']))} | "
                f"{times[0]:.0f} and {times[1]:.0f} | {times[0] / times[1]:.1f} |"
            )
    return _with_machines(lines, machines, "This command has not run to its end yet.")


def _suite_runs():
    """Yields each result of `suites.py`, and its entries by (suite, precision, seed)."""
    for path in sorted(SPEED.glob("suites_*.json")):
        result = read_speed(path.stem)
        entries = result["attacks"].items()
        yield result, {leaderboards.split_run(name): entry for name, entry in entries}


def _threads(entry):
    return f"{entry['threads']} of {entry['processor']}"


def _with_machines(lines, machines, otherwise=""):
    """A table and where it was measured, as Markdown; `otherwise` if nothing was measured."""
    if not machines:
        return otherwise
    return "\n".join([*lines, "", f"Threads and processor: {'; '.join(sorted(machines))}."])


def _subject(result):
    return f"{pathlib.Path(result['model']).name}, {result['num_examples']:,}"


def _accuracy(withstood):
    return 100 * withstood.count("1") / len(withstood)


def _only_one(first, second):
    """How many examples only the first, and only the second broke, as text."""
    pairs = list(zip(first, second, strict=True))
    return [str(pairs.count(pair)) for pair in (("0", "1"), ("1", "0"))]


def distribution_table():
    """The table of training steps on several parts of one processor, as Markdown."""
    paths = sorted(SPEED.glob("distribution_*.json"))
    if not paths:
        return "This command has not run yet."
    results = [read_speed(path.stem) for path in paths]
    counts = [count for count in results[0]["devices"] if count != "none"]
    lines = [
        "| training step, batch norm | without `tf.distribute`, examples/s | "
        + " | ".join(f"{count} device{'s' * (count != '1')}" for count in counts)
        + " |",
        "|---" * (2 + len(counts)) + "|",
    ]
    for result in results:
        devices = result["devices"]
        whole = devices["none"]["median"]
        cells = [SPEED_COLUMNS[result["model"]] + f", batch {result['batch_size']}"]
        if "batch_norm" in result:
            cells[0] += f", {result['batch_norm']}"
        cells.append(f"{whole:.1f}")
        for count in counts:
            rate = devices[count]
            low, high = (f"{100 * rate[end] / whole:.0f}" for end in ("lowest", "highest"))
            cells.append(f"{100 * rate['median'] / whole:.0f}% ({low} to {high})")
        lines.append(f"| {' | '.join(cells)} |")
    machines = dict.fromkeys(_machine(path.stem) for path in paths)
    lines += ["", f"Medians of {results[0]['rounds']} rounds; {'; '.join(machines)}."]
    return "\n".join(lines)


def _standard_verdicts():
    """The examples that withstood our standard suite in float32, by (model, data, seed)."""
    results = [read_speed(path.stem) for path in sorted(SPEED.glob("autoattack_*.json"))]
    return {
        _images(result, result["seed"]): result["worst_case"]["withstood"]["ours"]
        for result in results
        if leaderboards.is_standard(result["worst_case"]["attacks"])
        and result.get("precision", "float32") == "float32"
    }


def _autoattack_seconds():
    """CPU time of AutoAttack's suite, by (model, data, threads and processor)."""
    found = {}
    for path in sorted(SPEED.glob("autoattack_*.json")):
        result = read_speed(path.stem)
        if suite := result["attacks"].get("suite"):
            key = result["model"], result["data"], _threads(suite)
            found[key] = suite["cpu_seconds"]["theirs"]
    return found


def _images(result, seed):
    return result["model"], result["data"], int(seed)


def _speed(entry):
    rate = entry["example_steps_per_second"]["median"]
    return f"{rate:.{0 if rate > 100 else 1}f} ({100 * entry['share']:.0f}%)"


def _machine(name):
    hardware = read_speed(name)["hardware"]
    return f"{hardware['threads']} threads on {hardware['cores']} cores of {hardware['processor']}"


TABLES = {
    ROOT / "README.md": (summary_table,),
    ROOT / "paper" / "README.md": (
        document.items_table,
        document.sections,
        accuracies.mnist_table,
        accuracies.cifar10_table,
    ),
    ROOT / "benchmarks" / "README.md": (
        attack_speed_table,
        training_speed_table,
        keras_speed_table,
        agreement_table,
        autoattack_table,
        fast_suite_table,
        suites_table,
        precision_table,
        distribution_table,
    ),
}


def fill_in(path):
    """A README's text with its tables made anew.

    Raises:
        InputError: a file that a table is made of is damaged.
    """
    text = path.read_text(encoding="utf-8")
    return document.filled(text, [_careful(table) for table in TABLES[path]])


def _careful(table):
    """A function that makes a table, or raises InputError if a file for it is damaged."""

    def make():
        try:
            return table()
        except InputError:
            raise
        except Exception as error:  # a result that is not as its benchmark wrote it
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(
                f"{SPEED}: a file for {table.__name__} is damaged: {reason}"
            ) from error

    return make


def main(words=()):
    """Writes all READMEs, or none if a table cannot be made.

    Args:
        words: the command line's words that are not flags.
    """
    if words:
        raise InputError(f"expected no words, got {' '.join(words)!r}")
    texts = {path: fill_in(path) for path in TABLES}
    for challenge in (MNIST, CIFAR10):
        texts |= leaderboards.texts(challenge)
    for path, text in texts.items():
        write_atomically(path, text.encode())


if __name__ == "__main__":
    app.run_words(main)
