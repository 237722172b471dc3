"""Writes the tables of the READMEs from paper/results/*.json and benchmarks/results/*.json.

    python paper/readme_tables.py

Each result in paper/ is what `mnist_challenge/eval.py --output_json` wrote for the preset that
names it; those of benchmarks/ are what its scripts wrote.
"""

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "paper" / "results"
SPEED = ROOT / "benchmarks" / "results"

# Preset, attack as the paper names it, the paper's Table 1 (source A), and the leaderboard's number
# for the published secret network.
MNIST_ROWS = (
    ("paper_fgsm", "FGSM", 95.6, 96.36),
    ("paper_pgd_40", "PGD, 40 steps of 0.01", 93.2, None),
    ("paper_pgd_100", "PGD, 100 steps of 0.01", 91.8, 92.52),
    ("paper_pgd_40x20", "PGD, 40 steps, 20 restarts", 90.4, None),
    ("paper_cw", "CW, 40 steps of 0.01", 94.0, None),
    ("paper_cw_plus", "CW+, 40 steps of 0.01", 93.9, None),
)

# Network as the benchmarks name it, as the README does.
SPEED_COLUMNS = {
    "mnist": "MNIST",
    "cifar_simple": "CIFAR-10 simple",
    "cifar_wide": "CIFAR-10 wide",
}


def read(name):
    """A file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def read_speed(name):
    """A file of a benchmark's results."""
    return json.loads((SPEED / f"{name}.json").read_text())


def mnist_table():
    """The table of attacks on the shipped MNIST network, as Markdown."""
    lines = [
        "| attack, epsilon 0.3 | paper | published net | shipped net | images | flags of eval.py |",
        "|---|---|---|---|---|---|",
    ]
    for preset, name, paper, published in MNIST_ROWS:
        result = read(f"mnist_{preset}")
        count = result["num_examples"]
        if len(lines) == 2:
            lines.append(
                f"| none: natural images | 98.8 | 98.53 | {result['natural_accuracy']:.2f} | "
                f"{count:,} | |"
            )
        flags = f"`--preset={preset}" + (f" --num_eval_examples={count}`" if count < 10000 else "`")
        lines.append(
            f"| {name} | {paper} | {published or ''} | {result['adversarial_accuracy']:.2f} | "
            f"{count:,} | {flags} |"
        )
    hardware = result["hardware"]
    lines += [
        "",
        f"Seed {result['seed']}, {hardware['cores']} cores of {hardware['processor']}, "
        f"TensorFlow {result['versions']['tensorflow']}; "
        "each command and its time are in paper/results/.",
    ]
    return "\n".join(lines)


def mnist_natural_table():
    """The table of attacks on a naturally trained MNIST network, as Markdown."""
    fgsm, pgd = read("mnist_natural_paper_fgsm"), read("mnist_natural_paper_pgd_40")
    lines = ["| attack, epsilon 0.3 | paper | ours |", "|---|---|---|"]
    lines += [
        f"| none: natural images | 99.2 | {fgsm['natural_accuracy']:.2f} |",
        f"| FGSM | 6.4 | {fgsm['adversarial_accuracy']:.2f} |",
        f"| PGD, 40 steps of 0.01 | 0 | {pgd['adversarial_accuracy']:.2f} |",
    ]
    return "\n".join(lines)


def attack_speed_table():
    """The table of PGD's speed by implementation, as Markdown."""
    columns, matmul = {}, []
    for model, name in SPEED_COLUMNS.items():
        for batch in read_speed(f"attack_{model}")["batches"]:
            columns[f"{name}, {batch['batch_size']}"] = batch["implementations"]
            matmul.append(batch["matmul_flop_per_second"]["median"] / 1e9)
    names = dict.fromkeys(name for column in columns.values() for name in column)
    versions = read_speed("attack_mnist")["versions"]
    lines = ["| PGD | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [_speed(column[name]) if name in column else "" for column in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
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
        f"{_machine('attack_mnist')}, matrix products at {min(matmul):.0f} to {max(matmul):.0f} "
        "GFLOP/s; "
        + ", ".join(f"{name} {versions[package]}" for package, name in packages.items())
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
        "| training step | plain, examples/s | ours, examples/s | ratio | plain, GiB | ours, GiB | "
        "attack and update, part of the time |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in ("mnist", "cifar_simple"):  # the wide network's training has not been timed
        name, result = SPEED_COLUMNS[model], read_speed(f"training_{model}")
        plain, ours = (result["implementations"][key] for key in ("plain tf.function", "ours"))
        rates = [entry["examples_per_second"]["median"] for entry in (plain, ours)]
        lines.append(
            f"| {name}, {result['num_steps']} steps, batch {result['batch_size']} | "
            f"{rates[0]:.1f} | {rates[1]:.1f} | {rates[1] / rates[0]:.2f} | "
            f"{plain['peak_memory_gib']:.2f} | {ours['peak_memory_gib']:.2f} | "
            f"{100 * result['loop_share']:.1f}% of {result['loop_steps']} steps |"
        )
    return "\n".join(lines)


def _speed(entry):
    rate = entry["example_steps_per_second"]["median"]
    return f"{rate:.{0 if rate > 100 else 1}f} ({100 * entry['share']:.0f}%)"


def _machine(name):
    hardware = read_speed(name)["hardware"]
    return f"{hardware['threads']} threads on {hardware['cores']} cores of {hardware['processor']}"


TABLES = {
    ROOT / "README.md": (mnist_table, attack_speed_table, training_speed_table),
    ROOT / "mnist_challenge" / "models" / "adv_trained" / "README.md": (mnist_table,),
    ROOT / "mnist_challenge" / "README.md": (mnist_natural_table,),
}
START, END = "<!-- table -->\n", "<!-- end -->"


def fill_in(path):
    """The README's text with its tables made anew."""
    before, *rest = path.read_text().split(START)
    for table, part in zip(TABLES[path], rest, strict=True):
        before += START + table() + "\n" + END + part.split(END, 1)[1]
    return before


if __name__ == "__main__":
    for path in TABLES:
        path.write_text(fill_in(path))
