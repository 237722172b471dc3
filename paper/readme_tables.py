"""Writes the tables of the READMEs from paper/results/*.json.

    python paper/readme_tables.py

Each result is what `mnist_challenge/eval.py --output_json` wrote for the preset that names it.
"""

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "paper" / "results"

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


def read(name):
    """A file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


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


TABLES = {
    ROOT / "README.md": mnist_table,
    ROOT / "mnist_challenge" / "models" / "adv_trained" / "README.md": mnist_table,
    ROOT / "mnist_challenge" / "README.md": mnist_natural_table,
}


def fill_in(path):
    """The README's text with its table made anew."""
    start, end = "<!-- table -->\n", "<!-- end -->"
    before, rest = path.read_text().split(start)
    return before + start + TABLES[path]() + "\n" + end + rest.split(end, 1)[1]


if __name__ == "__main__":
    for path in TABLES:
        path.write_text(fill_in(path))
