"""Writes the tables of the READMEs from paper/results/*.json.

    python paper/readme_tables.py

Each result is what `mnist_challenge/eval.py --output_json` wrote for the preset that names it.
"""

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "paper" / "results"
READMES = (ROOT / "README.md", ROOT / "mnist_challenge" / "models" / "adv_trained" / "README.md")

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


def mnist_table():
    """The table of attacks on the shipped MNIST network, as Markdown."""
    lines = [
        "| attack, epsilon 0.3 | paper | published net | shipped net | images | flags of eval.py |",
        "|---|---|---|---|---|---|",
    ]
    for preset, name, paper, published in MNIST_ROWS:
        result = json.loads((RESULTS / f"mnist_{preset}.json").read_text())
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


def fill_in(readme):
    """The README's text with its table made anew."""
    start, end = "<!-- mnist table -->\n", "\n<!-- end -->"
    before, rest = readme.split(start)
    return before + start + mnist_table() + end + rest.split(end.strip(), 1)[1]


if __name__ == "__main__":
    for path in READMES:
        path.write_text(fill_in(path.read_text()))
