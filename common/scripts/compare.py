"""compare.py: our numbers beside the original leaderboards'."""

import dataclasses
import datetime
import hashlib
import math
import pathlib

from absl import flags

from common import cards, checkpoints
from common import config as config_lib
from common.errors import InputError, one_line
from common.evaluation import pitfalls, suites
from common.evaluation.presets import evaluate_row, make_state_dir
from common.evaluation.report import arithmetic, warn
from common.evaluation.subject import line_of, load_test_images, model_path, record_of
from common.files import check_writable, write_json
from common.leaderboard import (
    BOARD,
    BOARDS,
    NUM_TEST_IMAGES,
    Entry,
    rank,
    ranked,
    read_leaderboard,
    standing,
    to_csv,
)
from common.scripts import attack_file
from common.scripts.flags import EVALUATION, MODEL, define_path

USES = (config_lib.EVALUATION,)


@dataclasses.dataclass(frozen=True)
class Row:
    """A published number and ours, in percent and points.

    Attributes:
        name: "natural", or a preset of the challenge.
        published: accuracy of the original challenge's secret network.
        accuracy: accuracy of the model that is compared.
        num_examples: number of images that `accuracy` counts.
    """

    name: str
    published: float
    accuracy: float
    num_examples: int

    @property
    def difference(self):
        """Our accuracy minus the published one, in points."""
        return self.accuracy - self.published

    @property
    def sampling_error(self):
        """Standard error of the published accuracy p over n images: 100 sqrt(p (1 - p) / n)."""
        p = self.published / 100
        return 100 * math.sqrt(p * (1 - p) / self.num_examples)

    @property
    def is_beyond(self):
        """Whether the difference is more than two sampling errors."""
        return abs(self.difference) > 2 * self.sampling_error

    def to_dict(self):
        """Returns the row as a dict for JSON."""
        return {
            "row": self.name,
            "published": self.published,
            "accuracy": self.accuracy,
            "difference": round(self.difference, 4),
            "sampling_error": round(self.sampling_error, 4),
            "beyond_two_sampling_errors": self.is_beyond,
            "num_examples": self.num_examples,
        }


def define_flags(challenge, flag_values):
    """Declares the flags of compare.py beside the config's."""
    flags.DEFINE_string(
        "rows",
        None,
        f"rows to compare, in place of all but the long ones: {', '.join(challenge.published)}",
        flag_values,
        module_name=EVALUATION,
    )
    flags.DEFINE_bool(
        "long",
        False,
        f"compare the long rows, too: {', '.join(long_rows(challenge))}",
        flag_values,
        module_name=EVALUATION,
    )
    define_path(
        "attack_file",
        None,
        "score this attack file, and rank it on the leaderboards",
        flag_values,
        MODEL,
    )
    define_path(
        "output_json",
        "comparison.json",
        "file to write the result to; an attack file's result is written only if this is given",
        flag_values,
        EVALUATION,
    )
    define_path(
        "state_dir",
        None,
        "directory that an interrupted comparison resumes from (default: OUTPUT_JSON.state)",
        flag_values,
        EVALUATION,
    )


def compare(challenge, config, flag_values):
    """compare.py: a model under the leaderboard's own attacks, or an attack file on a model.

    Ctrl-C ends it after the current batch, and the same command resumes there.

    Raises:
        InputError: there is no model, no data or no such row, or the attack file breaks a rule.
    """
    if flag_values.attack_file is None:
        _compare_rows(challenge, config, flag_values)
        return
    for name in ("rows", "long", "state_dir"):
        if flag_values[name].present:
            raise InputError(f"--{name}: expected none beside --attack_file, which is one number")
    _rank_attack_file(challenge, config, flag_values)


def long_rows(challenge):
    """Returns the names of the rows that take hours on a CPU: those with restarts."""
    return [
        name
        for name in challenge.published
        if challenge.presets.get(name, {}).get("num_restarts", 1) > 1
    ]


def choose_rows(challenge, names, long):
    """Returns the rows to compare, in the order of `challenge.published`.

    Args:
        challenge: a `common.challenge.Challenge`.
        names: comma-separated names, or None for all but the long rows.
        long: whether None includes the long rows.

    Raises:
        InputError: there is no row of such a name.
    """
    if names is None:
        return [row for row in challenge.published if long or row not in long_rows(challenge)]
    asked = {name.strip() for name in names.split(",")}
    unknown = sorted(asked - set(challenge.published))
    if unknown:
        raise InputError(
            f"--rows: expected some of {', '.join(challenge.published)}, "
            f"got {', '.join(map(repr, unknown))}"
        )
    return [row for row in challenge.published if row in asked]


def _compare_rows(challenge, config, flag_values):
    names = choose_rows(challenge, flag_values.rows, flag_values.long)
    output = pathlib.Path(flag_values.output_json)
    check_writable("--output_json", output)
    loaded = checkpoints.load_model(challenge, model_path(config, challenge))
    images = load_test_images(config, challenge)
    state_dir = make_state_dir(flag_values.state_dir or f"{output}.state")
    record = record_of(config, loaded, images)
    print(f"model: {line_of(loaded)}")
    attacks = [name for name in names if name != "natural"]
    trials = [suites.preset_trial(name, loaded.logits, config, challenge) for name in attacks]
    if trials:
        print(arithmetic(trials))
    warnings = pitfalls.before(challenge, config, images, trials, loaded) if trials else []
    warn(warnings)
    width = max(map(len, names))
    print(f"{'row':{width}}  published   ours  difference  sampling error")
    rows = []
    for name in names:
        found = evaluate_row(challenge, config, name, loaded, images, state_dir)
        row = Row(name, challenge.published[name], found.pop("accuracy"), len(images.images))
        rows.append({**row.to_dict(), **found})
        print(
            f"{name:{width}}  {row.published:9.2f}  {row.accuracy:5.2f}  {row.difference:+10.2f}  "
            f"{row.sampling_error:14.2f}"
            + ("  difference beyond two sampling errors" if row.is_beyond else ""),
            flush=True,
        )
    note = (
        f"published: the original {challenge.name} challenge's secret network on all "
        f"{NUM_TEST_IMAGES:,} test images; another network has its own numbers"
    )
    print(note)
    left_out = [name for name in long_rows(challenge) if name not in names]
    if left_out and flag_values.rows is None:
        print(f"left out, as they take long: {', '.join(left_out)}; --long runs them")
    write_json(output, {**record, "note": note, "warnings": warnings, "rows": rows})
    print(one_line(f"written to {output}"))


def _rank_attack_file(challenge, config, flag_values):
    is_asked = flag_values["output_json"].present
    if is_asked:
        check_writable("--output_json", flag_values.output_json)
    # The leaderboard's epsilon counts, whatever a --config says.
    config = dataclasses.replace(config, epsilon=config_lib.make_config(challenge).epsilon)
    scored = attack_file.score(challenge, config, flag_values.attack_file)
    accuracy, count = scored.accuracy, len(scored.predictions)
    print(f"Accuracy: {accuracy:.2f}%")
    boards = read_leaderboard(challenge)
    texts = {board: standing(board, entries, accuracy) for board, entries in boards.items()}
    for text in texts.values():
        print(text)
    model = one_line(scored.loaded.path)
    print(
        f"These boards are for the original {challenge.name} challenge's secret network and all "
        f"{NUM_TEST_IMAGES:,} test images; this is {model} on {count:,}. An attack is "
        "black-box if it was made without access to the network."
    )
    own_boards = cards.find_boards(scored.loaded.path)
    own_texts = _print_own_boards(challenge, own_boards, scored, flag_values.attack_file)
    if is_asked:
        result = {
            **record_of(config, scored.loaded, scored.images),
            "attack_file": flag_values.attack_file,
            "accuracy": accuracy,
            "num_examples": count,
            "boards": _places(boards, texts, accuracy),
            "own_boards": _places(own_boards, own_texts, accuracy),
        }
        write_json(pathlib.Path(flag_values.output_json), result)
        print(one_line(f"written to {flag_values.output_json}"))


def _print_own_boards(challenge, boards, scored, attack_file):
    """Prints a file's place on the model's own boards, and the line to hand in.

    Returns:
        Dict from the boards' names to the places in words.
    """
    if not boards:
        return {}
    accuracy, count, path = scored.accuracy, len(scored.predictions), scored.loaded.path
    texts = {
        board: standing(f"{path.name} {board}", entries, accuracy)
        for board, entries in boards.items()
    }
    for text in texts.values():
        print(one_line(text))
    place = one_line(path / BOARD)
    if count < NUM_TEST_IMAGES:
        print(f"An entry in {place} counts {NUM_TEST_IMAGES:,} test images; this is on {count:,}.")
        return texts
    entry = Entry(
        board="BOARD",
        attack="ATTACK",
        submitted_by="NAME",
        accuracy=accuracy,
        date=datetime.date.today().isoformat(),
        links="LINK",
        made_by=f"sha256:{hashlib.sha256(pathlib.Path(attack_file).read_bytes()).hexdigest()}",
    )
    print(
        f"To hand it in, see {challenge.directory.name}/README.md; the line for {place}, with "
        f"{' or '.join(BOARDS)} in place of BOARD:"
    )
    print(to_csv([entry], header=False), end="")
    return texts


def _places(boards, texts, accuracy):
    """Returns an accuracy's places on boards, as a dict for JSON."""
    boards = {board: ranked(entries) for board, entries in boards.items()}
    return {
        board: {"rank": rank(entries, accuracy), "of": len(entries) + 1, "text": texts[board]}
        for board, entries in boards.items()
    }
