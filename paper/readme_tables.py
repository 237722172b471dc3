"""Writes the tables of README.md from paper/results/*.json.

    python paper/readme_tables.py

Each result is what `mnist_challenge/eval.py --output_json` wrote for the preset that names it.
"""

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "paper" / "results"

# Preset, attack as the paper names it, the paper's Table 1 (source A), the published secret
# network's number on the leaderboard.
MNIST_ROWS = (
    ("paper_fgsm", "FGSM", 95.6, 96.36),
    ("paper_pgd_40", "PGD, 40 steps of 0.01", 93.2, None),
    ("paper_pgd_100", "PGD, 100 steps of 0.01", 91.8, 92.52),
    ("paper_cw", "CW, 40 steps", 94.0, None),
    ("paper_cw_plus", "CW+, 40 steps", 93.9, None),
)
NATURAL = ("none: natural images", 98.8, 98.53)


def mnist_table():
    """The table of attacks on the shipped MNIST network, as Markdown."""
    results = {
        preset: json.loads((RESULTS / f"mnist_{preset}.json").read_text())
        for preset, *_ in MNIST_ROWS
    }
    lines = [
        "| attack, epsilon 0.3 | paper | published net | shipped net | images | command |",
        "|---|---|---|---|---|---|",
    ]
    widest = max(results.values(), key=lambda result: result["num_examples"])
    rows = [(*NATURAL, widest["natural_accuracy"], widest, "eval.py")]
    rows += [
        (name, paper, published, results[preset]["adversarial_accuracy"], results[preset],
         f"eval.py --preset={preset}")
        for preset, name, paper, published in MNIST_ROWS
    ]  # fmt: skip
    for name, paper, published, ours, result, command in rows:
        published = "" if published is None else f"{published:.2f}"
        if command != "eval.py" and result["num_examples"] != 10000:
            command += f" --num_eval_examples={result['num_examples']}"
        lines.append(
            f"| {name} | {paper} | {published} | {ours:.2f} | {result['num_examples']:,} | "
            f"`{command}` |"
        )
    return "\n".join(lines)


def fill_in(readme):
    """The README's text with every generated part made anew."""
    start, end = "<!-- mnist table -->\n", "\n<!-- end -->"
    before, rest = readme.split(start)
    return before + start + mnist_table() + end + rest.split(end, 1)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(fill_in(path.read_text()))
