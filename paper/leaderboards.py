"""The leaderboards of the shipped robust networks: our entries, from cards and benchmarks.

`readme_tables.py` writes them. Other submitters' entries stay as they are in the file.
"""

import dataclasses
import datetime
import pathlib

from common import cards
from common.config import read_json
from common.errors import InputError, one_line
from common.leaderboard import BOARD, NUM_TEST_IMAGES, OURS, Entry, to_csv

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def texts(challenge):
    """Returns the boards and READMEs of a challenge's shipped networks, as a dict from paths.

    Only networks trained against PGD have a board, and not those that PGD leaves 20 % or less.

    Raises:
        InputError: a card, a board or a result is damaged.
    """
    found = {}
    for path in sorted((challenge.directory / "models").glob(f"*/{cards.CARD}")):
        directory, card, boards = path.parent, cards.read_from(path.parent), None
        if card["training"]["config"]["adversary"] == "pgd" and _is_robust(challenge, card):
            boards = in_boards(challenge, card, cards.find_boards(directory))
            entries = [entry for board in sorted(boards) for entry in boards[board]]
            found[directory / BOARD] = to_csv(entries)
        found[directory / "README.md"] = cards.readme(challenge, card, boards)
    return found


def _is_robust(challenge, card):
    """Whether PGD leaves more than twice what a constant prediction has."""
    found = cards.find(card, challenge.validation_preset)
    return found is None or found["accuracy"] > 2 * 100 / len(challenge.class_names)


def in_boards(challenge, card, boards):
    """Returns a network's boards with our entries made anew; others' stay.

    An entry of ours keeps its date unless attack, accuracy or number of images change.

    Args:
        challenge: a `common.challenge.Challenge`.
        card: the network's card.
        boards: its boards so far, see `cards.find_boards`.
    """
    before = [entry for entries in boards.values() for entry in entries]
    dates = {_without_date(entry): entry.date for entry in before}
    today = datetime.date.today().isoformat()
    entries = [entry for entry in before if entry.submitted_by != OURS]
    for entry in (*card_entries(challenge, card), *suite_entries(challenge, card)):
        entries.append(dataclasses.replace(entry, date=dates.get(_without_date(entry), today)))
    entries.sort(key=lambda entry: (entry.board, -entry.num_examples, entry.accuracy))
    return {
        board: [entry for entry in entries if entry.board == board]
        for board in dict.fromkeys(entry.board for entry in entries)
    }


def _without_date(entry):
    return dataclasses.replace(entry, date="")


def card_entries(challenge, card):
    """Returns the attacks of a card as entries without a date; made on another model: black-box.

    Suites are left to `suite_entries`.
    """
    own_seed = read_json(challenge.directory / "config.json")["random_seed"]
    entries = []
    for found in card["results"]:
        if found["row"] == "natural" or found["row"] in cards.SUITES:
            continue
        flags = [f"--model_dir={card['name']}", f"--preset={found['row']}"]
        if found["source"]:
            flags.append(f"--source={found['source']}")
        flags.append(f"--precision={cards.precision_of(found)}")
        if found["num_examples"] < NUM_TEST_IMAGES:
            flags.append(f"--num_eval_examples={found['num_examples']}")
        if found["seed"] != own_seed:
            flags.append(f"--random_seed={found['seed']}")
        entries.append(
            Entry(
                board="black-box" if found["source"] else "white-box",
                attack=cards.full_title(found),
                submitted_by=OURS,
                accuracy=round(found["accuracy"], 2),
                date="",
                links="",
                num_examples=found["num_examples"],
                made_by=f"python {challenge.directory.name}/eval.py {' '.join(flags)}",
            )
        )
    return entries


def suite_entries(challenge, card):
    """Returns the suites on a network's card, and in benchmarks, as entries without a date.

    For each suite it takes the run on the most images, and among several seeds the lowest accuracy.
    """
    model, best = f"{challenge.directory.name}/models/{card['name']}", {}
    for suite, entry in (*_suites_on(model, card), *_suite_runs(model)):
        order = (-entry.num_examples, entry.accuracy)
        if suite not in best or order < best[suite][0]:
            best[suite] = order, entry
    return [best[suite][1] for suite in cards.SUITES if suite in best]


def _suites_on(model, card):
    """Returns (suite, entry) for each suite on a card."""
    return [
        (
            found["row"],
            _suite_entry(
                model,
                found["row"],
                found["accuracy"],
                found["num_examples"],
                found["seed"],
                cards.precision_of(found),
            ),
        )
        for found in card["results"]
        if found["row"] in cards.SUITES
    ]


def _suite_runs(model):
    """Returns (suite, entry) for each run of a suite on a model, a challenge/models/NAME."""
    found = []
    for path in sorted((*RESULTS.glob("autoattack_*.json"), *RESULTS.glob("suites_*.json"))):
        result = read_json(path)
        try:
            found += _runs_in(result) if result["model"] == model else []
        except Exception as error:  # a result that is not as its benchmark wrote it
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"{path} is damaged: {reason}") from error
    return found


def _runs_in(result):
    """Returns (suite, entry) for each run of a suite in a benchmark's result."""

    def entry(suite, accuracy, seed, precision):
        count = result["num_examples"]
        return suite, _suite_entry(result["model"], suite, accuracy, count, seed, precision)

    if "worst_case" in result:  # of autoattack.py
        worst = result["worst_case"]
        if not is_standard(worst["attacks"]):
            return []
        precision = result.get("precision", "float32")
        return [entry("standard", worst["accuracy"]["ours"], result["seed"], precision)]
    runs = [(*split_run(name), found["accuracy"]) for name, found in result["attacks"].items()]
    return [
        entry(suite, accuracy, seed, precision)
        for suite, precision, seed, accuracy in runs
        if suite in cards.SUITES
    ]


def is_standard(attacks):
    """Whether the attacks of a run of `benchmarks/autoattack.py` are the whole standard suite."""
    return len(attacks) == 4 or attacks == ["suite"]


def _suite_entry(model, suite, accuracy, num_examples, seed, precision):
    folder, _, name = model.split("/")
    return Entry(
        board="white-box",
        attack=cards.SUITES[suite],
        submitted_by=OURS,
        accuracy=round(accuracy, 2),
        date="",
        links="",
        num_examples=num_examples,
        made_by=f"python {folder}/eval.py --model_dir={name} --suite={suite} "
        f"--precision={precision} --num_eval_examples={num_examples} --random_seed={seed}",
    )


def split_run(name):
    """Returns suite, precision and seed of a run's name in a result of `benchmarks/suites.py`."""
    suite, precision, seed = name.split(", ")
    return suite, precision, seed.removeprefix("seed ")
