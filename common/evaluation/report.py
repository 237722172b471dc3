"""The results of an evaluation as lines of text and as a dict for JSON."""

import dataclasses

from common import messages


def line(trial):
    """Returns the `TrialResult` of an attack as a line of text."""
    text = (
        f"{trial.name}: {trial.num_broken:,} of {trial.num_given:,} broken in "
        f"{trial.seconds:.0f} s, {trial.accuracy:.2f}% remain"
    )
    return text + (f"; {trial.num_left_alone:,} left alone" if trial.num_left_alone else "")


def arithmetic(trials):
    """Returns the arithmetic that attacks and verdicts compute in, and why, as a line of text."""
    own = sorted({getattr(trial.attack, "verdict_dtype", "float32") for trial in trials})
    return f"arithmetic of attacks: {precisions(trials)}; of every accuracy: {', '.join(own)}"


def precisions(trials):
    """Returns the arithmetic of the attacks' gradients and queries, and why, in words."""

    def of_one(attack):
        found = getattr(attack, "precision", None)
        if found is None:  # not a `common.attack.Attack`
            return "its own"
        # Attacks in float32 leave a model of another dtype as it is.
        own = attack.verdict_dtype
        return own if found.name == "float32" and own != "float32" else str(found)

    return ", ".join(sorted({of_one(trial.attack) for trial in trials}))


def describe_settings(settings):
    """Returns an attack's settings, a dict, as a line of text."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def describe(trials, result):
    """Returns the results of an evaluation as a dict for JSON.

    Args:
        trials: list of `Trial`.
        result: their `Result`.

    Returns:
        `Result.summary()`; confidence_interval, the robust accuracy's 95 % interval in percent;
        num_left_alone, see `Result`; attacks, a list with each attack's settings and `TrialResult`.
    """
    return {
        **result.summary(),
        "confidence_interval": result.confidence_interval,
        "num_left_alone": result.num_left_alone,
        "attacks": [
            {
                **dataclasses.asdict(done),
                "seconds": round(done.seconds, 2),
                "attack": trial.settings(),
            }
            for trial, done in zip(trials, result.trials, strict=True)
        ],
    }


def table(trials, result, published=None):
    """Returns the numbers of `describe` as aligned lines of text, and the robust accuracy's line.

    Args:
        trials, result, published: see `table_lines`.
    """
    found = describe(trials, result)
    low, high = found["confidence_interval"]
    return "\n".join(
        [
            *table_lines(trials, result, published),
            f"robust accuracy: {found['adversarial_accuracy']:.2f}%, 95% confidence interval "
            f"{low:.2f}% to {high:.2f}%, {found['num_examples']:,} examples{left_alone(result)}",
        ]
    )


def left_alone(result):
    """Returns how many examples late attacks of a `Result` skipped, as the end of a line."""
    count = result.num_left_alone
    if not count:
        return ""
    return f"; the last attacks skipped up to {count:,} images that were far from the boundary"


def table_lines(trials, result, published=None):
    """Returns the table of the attacks, and what its columns are, as a list of lines.

    Args:
        trials, result: see `describe`.
        published: dicts of published accuracies in percent by source, such as {"paper": 93.2}, for
            the natural images and for each of `trials`; None for no such columns.
    """
    found = describe(trials, result)
    published = published or [{}] * (1 + len(trials))
    places = list(dict.fromkeys(place for numbers in published[1:] for place in numbers))
    names_left = ("left alone",) if result.num_left_alone else ()

    def cells_of(numbers):
        return [f"{numbers[place]}%" if place in numbers else "" for place in places]

    rows = [
        ("attack", *names_left, "given", "broken", "accuracy", "alone", *places)
        + ("seconds", "gradients", "queries"),
        ("none", *("" for _ in names_left), "", "", f"{found['natural_accuracy']:.2f}%", "")
        + (*cells_of(published[0]), "", "", ""),
    ]
    for entry, numbers in zip(found["attacks"], published[1:], strict=True):
        alone = entry["accuracy_alone"]
        rows.append(
            (
                entry["name"],
                *(f"{entry['num_left_alone']:,}" for _ in names_left),
                f"{entry['num_given']:,}",
                f"{entry['num_broken']:,}",
                f"{entry['accuracy']:.2f}%",
                "" if alone is None else f"{alone:.2f}%",
                *cells_of(numbers),
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
    under = ", ".join(["alone", *places])
    return [
        *lines,
        "accuracy: share of images that withstand this attack and all above it; "
        f"{under}: this attack only",
    ]


def warn(warnings):
    """Warns of each of `warnings`, and returns them as a list."""
    warnings = list(warnings)
    for warning in warnings:
        messages.warn(f"warning: {warning}")
    return warnings
