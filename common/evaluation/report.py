"""What an evaluation found, as lines of text and as a dict for JSON."""

import dataclasses
import sys


def line(trial):
    """Returns what an attack did, in a line; `trial` is a `TrialResult`."""
    return (
        f"{trial.name}: {trial.num_broken:,} of {trial.num_given:,} broken in "
        f"{trial.seconds:.0f} s, {trial.accuracy:.2f}% stand"
    )


def arithmetic(trials):
    """Returns the arithmetic that attacks compute in, and why, as a line of text."""
    found = {str(trial.attack.precision) for trial in trials}
    return f"arithmetic of attacks: {', '.join(sorted(found))}; of every accuracy: float32"


def describe(trials, result):
    """Returns what an evaluation found, as a dict for JSON.

    Args:
        trials: list of `Trial`.
        result: their `Result`.

    Returns:
        `Result.summary()`; confidence_interval, the robust accuracy's 95 % interval in percent;
        attacks, a list with each attack's settings and `TrialResult`.
    """
    return {
        **result.summary(),
        "confidence_interval": result.confidence_interval,
        "attacks": [
            {
                **dataclasses.asdict(done),
                "seconds": round(done.seconds, 2),
                "attack": trial.settings(),
            }
            for trial, done in zip(trials, result.trials, strict=True)
        ],
    }


def table(trials, result):
    """Returns the numbers of `describe` as aligned lines of text."""
    found = describe(trials, result)
    head = ("attack", "given", "broken", "accuracy", "alone", "seconds", "gradients", "queries")
    rows = [head, ("none", "", "", f"{found['natural_accuracy']:.2f}%", "", "", "", "")]
    for entry in found["attacks"]:
        alone = entry["accuracy_alone"]
        rows.append(
            (
                entry["name"],
                f"{entry['num_given']:,}",
                f"{entry['num_broken']:,}",
                f"{entry['accuracy']:.2f}%",
                "" if alone is None else f"{alone:.2f}%",
                f"{entry['seconds']:.1f}",
                f"{entry['num_gradients']:,}",
                f"{entry['num_queries']:,}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    low, high = found["confidence_interval"]
    return "\n".join(
        [
            *lines,
            "accuracy: in the worst case over this attack and those above; alone: under it alone",
            f"robust accuracy: {found['adversarial_accuracy']:.2f}%, 95% confidence interval "
            f"{low:.2f}% to {high:.2f}%, {found['num_examples']:,} examples",
        ]
    )


def warn(warnings):
    """Prints warnings to stderr, a line each, and returns them as a list."""
    warnings = list(warnings)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return warnings
