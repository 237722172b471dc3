"""The sections and tables of paper/README.md, made from the items' results."""

import pathlib

from common.provenance import machine
from paper import items
from paper.item import IN_PART, QUESTIONS
from paper.results import IMPOSSIBLE, OPEN, STALE, Result

HERE = pathlib.Path(__file__).resolve().parent
START, END = "<!-- table -->\n", "<!-- end -->"


def filled(text, makers):
    """Returns a Markdown text with the parts between its pairs of `START` and `END` made anew.

    Args:
        text: str.
        makers: for each pair, a function without arguments to Markdown.
    """
    before, *rest = text.split(START)
    for maker, part in zip(makers, rest, strict=True):
        before += START + maker() + "\n" + END + part.split(END, 1)[1]
    return before


def items_table(directory=HERE, source=None):
    """Returns the table of all items with their verdicts, as Markdown.

    Args:
        directory: where results/ and figures/ are.
        source: see `Result.read`.
    """
    lines = ["| item | verdict | the first criterion that fails, or else holds | command |"]
    lines += ["|---" * 4 + "|"]
    for item in items.load_all():
        result = Result.read(item, directory, source)
        cells = [f"[{item.title}](#{_anchor(item.title)})", state_of(result), "", ""]
        if result.is_shown():
            criteria = sorted(result.verdict().criteria, key=lambda text: text.startswith("holds"))
            cells[2] = criteria[0] if criteria else ""
        cells[3] = f"`{command_of(result)}`"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def text(directory, source):
    """Returns table and sections together, for results that are not the project's own."""
    return f"{items_table(directory, source)}\n\n{sections(directory, source)}\n"


def sections(directory=HERE, source=None):
    """Returns the sections of all items, by research question, as Markdown."""
    lines = []
    for question, words in QUESTIONS.items():
        of_it = [item for item in items.load_all() if item.question == question]
        if of_it:
            lines += [f"## {question}. {words}", ""]
        for item in of_it:
            lines += [*section(Result.read(item, directory, source)), ""]
    return "\n".join(lines[:-1])


def section(result):
    """Returns the section of one item, as lines of Markdown."""
    item = result.item
    lines = [
        f"### {item.title}",
        "",
        f"*{item.claim}*",
        "",
        f"`{command_of(result)}`: {cost_of(result)}; {settings_text(result.settings)}.",
    ]
    if not result.is_shown():
        return [*lines, "", f"State: {state_of(result)}."]
    if item.draw is not None:
        lines += ["", f"![{item.title}](figures/{item.name}.png)", "", item.caption]
    if item.table is not None:
        lines += ["", *item.table(result)]
    if item.note:
        lines += ["", item.note]
    verdict = result.verdict()
    lines += [
        "",
        f"**{_counted(verdict).capitalize()}.** Rule: {item.rule}",
        "",
        *(f"- {criterion}" for criterion in verdict.criteria),
    ]
    if item.tried:
        lines += ["", item.tried]
    missing = [part for part in result.parts if part.name not in result.records]
    not_yet = [part for part in missing if result.is_possible(part)]
    if not_yet:
        lines += ["", f"{len(not_yet)} of {len(result.parts)} parts are not computed yet."]
    if impossible := [part for part in missing if not result.is_possible(part)]:
        needed = dict.fromkeys(network for part in impossible for network in part.networks)
        networks = [network.label for network in needed if not result.source.exists(network)]
        words = f"{len(impossible)} of {len(result.parts)} parts are not possible yet, without"
        more = f" and {len(networks) - 6} more" if len(networks) > 6 else ""
        lines += ["", f"{words} {'; '.join(networks[:6])}{more}."]
    return lines


def state_of(result):
    """Returns an item's state in words: its verdict, or what is missing."""
    state, parts = result.state(), result.parts
    there = sum(part.name in result.records for part in parts)
    if state == STALE:
        return "stale: a network, or the computation, has changed since"
    if state == OPEN:
        return "open"
    if state == IMPOSSIBLE:
        networks = dict.fromkeys(n for part in parts for n in part.networks)
        missing = [n.label for n in networks if not result.source.exists(n)]
        return f"not possible yet, without {', '.join(missing) or result.item.needs}"
    if not result.is_shown():
        return f"open; {there} of {len(parts)} parts are there"
    words = _counted(result.verdict())
    if changed := _changed(result):
        words += f", with {settings_text(changed)}"
    if there < len(parts):
        words += f"; {there} of {len(parts)} parts are there"
    return words


def _counted(verdict):
    """A verdict's word; for "in part" also how many criteria hold."""
    if verdict.word != IN_PART:
        return verdict.word
    known = [criterion for criterion in verdict.criteria if not criterion.startswith("open")]
    held = sum(criterion.startswith("holds") for criterion in known)
    if held == len(known):
        return f"{verdict.word} (all {held} criteria hold so far)"
    return f"{verdict.word} ({held} of {len(known)} criteria hold)"


def command_of(result):
    """Returns the command that makes a result, with the settings that are not the defaults."""
    flags = [f"--{name}={value}" for name, value in _changed(result).items()]
    return " ".join(["python paper/reproduce.py", result.item.name, *flags])


def _changed(result):
    """The settings that are not the item's defaults."""
    return {k: v for k, v in result.settings.items() if v != result.item.settings[k]}


def cost_of(result):
    """Returns an item's measured time and hardware, or else its estimated time."""
    estimate = f"about {_minutes(result.item.minutes)} on two cores"
    if result.item.parts is None:
        return "made of the other items' results"
    if not result.is_shown():
        return estimate.replace("about less", "less")
    words = f"{_minutes(result.seconds / 60)} on {machine(result.runs[-1]['hardware'])}"
    on_cards = sum(numbers.get("card_seconds", 0) for numbers in result.numbers.values())
    if on_cards:
        words += f", and {_minutes(on_cards / 60)} for what the networks' cards have"
    return words if result.is_whole() else f"{words} so far, of {estimate}"


def settings_text(settings):
    """Returns settings in words: "num_images 5, seed 0"."""
    shown = (
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
        for name, value in settings.items()
        if value != ""
    )
    return ", ".join(shown)


def _minutes(minutes):
    if minutes < 1:
        return "less than a minute"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} hours"


def _anchor(title):
    """Returns the anchor that Markdown gives a heading."""
    kept = (c for c in title.lower() if c.isalnum() or c in " -")
    return "".join(kept).replace(" ", "-")
