"""export_model.py, which writes a training's SavedModel with its card, and adds rows to a card."""

import contextlib
import pathlib

from absl import flags

from common import cards, checkpoints, config, json_shapes, rounded_weights
from common.cards import CARD
from common.errors import InputError, one_line
from common.evaluation.presets import evaluate_row, make_state_dir
from common.evaluation.subject import load_test_images, record_of
from common.evaluation.suites import ANY_MODEL
from common.scripts.flags import EVALUATION, define_path

USES = (config.EVALUATION,)


def define_flags(challenge, flag_values):
    """Declares the flags of export_model.py beside the config's."""
    define_path(
        "output_dir",
        None,
        "directory of the model, such as models/mine; none adds rows to the card of --model_dir",
        flag_values,
        EVALUATION,
    )
    flags.DEFINE_bool(
        "round_to_bfloat16",
        False,
        "write the weights, with kernels rounded to bfloat16, in files below 50 MB, and evaluate "
        "that network; not a SavedModel",
        flag_values,
        module_name=EVALUATION,
    )
    flags.DEFINE_list(
        "rows",
        list(challenge.card_rows),
        f"what to evaluate, some of natural, {', '.join(challenge.presets)}, or a suite: "
        f"{', '.join(ANY_MODEL)}",
        flag_values,
        module_name=EVALUATION,
    )
    flags.DEFINE_list(
        "sources",
        [],
        "models whose examples are tried on this one (transfer)",
        flag_values,
        module_name=EVALUATION,
    )
    flags.DEFINE_list(
        "transfer_rows",
        list(challenge.transfer_rows),
        "what to evaluate with the examples of --sources",
        flag_values,
        module_name=EVALUATION,
    )


def export_model(challenge, config, flag_values):
    """export_model.py: writes a training's SavedModel, its card and README.

    Without --output_dir it adds rows to the card of --model_dir. A row that the card holds for as
    many images, or more, is not evaluated again. Ctrl-C ends an evaluation after the current batch,
    and the same command resumes there.

    Raises:
        InputError: there is no training, no card to add to, no data, no such row or source, or
            there is another model in the directory.
    """
    known = ("natural", *challenge.presets, *ANY_MODEL)
    for flag, possible in (("rows", known), ("transfer_rows", known[: -len(ANY_MODEL)])):
        unknown = sorted(set(flag_values[flag].value) - set(possible))
        if unknown:
            words = ", ".join(possible)
            raise InputError(f"--{flag}: expected some of {words}, got {unknown[0]!r}")
    path = checkpoints.find_model(challenge, config.model_dir)
    loaded = checkpoints.load_model(challenge, path)
    is_new = flag_values.output_dir is not None
    if flag_values.round_to_bfloat16 and not is_new:
        raise InputError("--round_to_bfloat16: expected an --output_dir to write to, got none")
    card = None if is_new else _own_card(path, loaded)
    sources = [cards.load_source(challenge, name) for name in flag_values.sources]
    images = load_test_images(config, challenge)
    if images.is_sample:
        raise InputError("a card needs the full test set; give its place with TFDS_DATA_DIR")
    output = pathlib.Path(flag_values.output_dir) if is_new else path
    if is_new:
        card = _export(challenge, path, loaded, output, flag_values.round_to_bfloat16)
    # Before any row is written, as a written row makes the clone differ from its commit.
    record = record_of(config, loaded, images)
    names = ("data", "seed", "command", "commit", "hardware", "versions")
    of_all = {name: record[name] for name in names}
    num_examples = len(images.images)
    state_dir = make_state_dir(output / "rows", "--output_dir" if is_new else "--model_dir")

    def in_order(entry):
        row = entry["row"]  # an unknown row is another version's, and comes last
        return entry["source"] or "", known.index(row) if row in known else len(known)

    tasks = [(row, None, None) for row in flag_values.rows]
    tasks += [(row, *source) for source in sources for row in flag_values.transfer_rows]
    for row, source_card, source in tasks:
        place = {"row": row, "source": source_card and source_card["name"]}
        of_source = {} if source is None else {"source_digest": source.digest()}
        if any(
            entry.items() >= {**place, **of_source}.items()
            and entry["num_examples"] >= num_examples
            for entry in card["results"]
        ):
            continue
        entry = {**place, "num_examples": num_examples, **of_source}

        def put_in(found, entry=entry, place=place, source_card=source_card):
            entry.update(found)
            if source_card is not None:
                entry["source_adversary"] = source_card["training"]["config"]["adversary"]
            entry.update(of_all)
            others = [
                old
                for old in card["results"]
                if (old["row"], old["source"]) != tuple(place.values())
            ]
            card["results"] = sorted([*others, entry], key=in_order)
            cards.write(challenge, output, card)

        evaluate_row(challenge, config, row, loaded, images, state_dir, source, put_in)
        print(one_line(f"{cards.full_title(entry)}: {entry['accuracy']:.2f}%"), flush=True)
    with contextlib.suppress(OSError):  # another command's row may be there, interrupted
        state_dir.rmdir()
    kind = "rounded weights" if flag_values.round_to_bfloat16 else "SavedModel"
    print(one_line(f"{f'{kind}, ' if is_new else ''}{CARD} and README.md in {output}"))


def _export(challenge, training, loaded, output, is_rounded=False):
    """Writes a training's model and its card, which keeps the results of an earlier card.

    Args:
        challenge: a `common.challenge.Challenge`.
        training: pathlib.Path of the training.
        loaded: its `LoadedModel`, whose weights are rounded if `is_rounded`.
        output: pathlib.Path of the model's directory.
        is_rounded: whether the model is rounded weights, and not a SavedModel.

    Raises:
        InputError: `training` is not a training, or there is another model at `output`.
    """
    if not cards.runs_of(training):
        raise InputError(
            f"--model_dir: expected a training directory with runs.json, got {training}"
        )
    if is_rounded:
        loaded.model.set_weights(rounded_weights.rounded(loaded.model.get_weights()))
    if output.exists():
        try:
            earlier = checkpoints.load_model(challenge, output)
        except InputError as error:
            raise InputError(str(error).replace("--model_dir", "--output_dir", 1)) from None
        if earlier.digest() != loaded.digest():
            raise InputError(
                f"--output_dir: expected a new directory or the model of {training}, got another "
                f"model in {output}"
            )
    elif is_rounded:
        checkpoints.export_rounded(loaded.model, output)
    else:
        print(one_line(f"exporting the SavedModel {output}"), flush=True)  # it takes ten seconds
        checkpoints.export(loaded.model, output)
    described = cards.describe(challenge, training, loaded)
    before = json_shapes.read_or_keep_aside(
        output / CARD,
        cards.SHAPE,
        "its rows are evaluated anew",
        lambda card: card["weights_digest"] == loaded.digest(),
    )
    card = {
        "name": output.resolve().name,
        **described,
        **({"is_rounded": True} if is_rounded else {}),
        "results": [] if before is None else before["results"],
    }
    cards.write(challenge, output, card)
    return card


def _own_card(path, loaded):
    """Returns the card of the model at `path`, to add rows to.

    Raises:
        InputError: there is no card, or it is damaged or of other weights.
    """
    card = cards.find_card(path)
    if card is None:
        raise InputError(
            "--output_dir: expected the directory to write the model to, got none; only a model "
            f"that has a {CARD} needs none, and {path} has none"
        )
    if card["weights_digest"] != loaded.digest():
        raise InputError(f"--model_dir: expected the model of {path / CARD}, got other weights")
    return card
