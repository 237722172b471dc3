"""--shard and --merge of eval.py and pgd_attack.py: an evaluation in parts, by many processes."""

import pathlib

from absl import flags

from common.errors import InputError, one_line
from common.evaluation import shards
from common.evaluation.state import State
from common.files import check_writable
from common.scripts.flags import EVALUATION, define_path


def define_shard_flags(flag_values):
    """Declares --shard, --merge, --state_dir and --fixed_batches."""
    flags.DEFINE_string(
        "shard",
        None,
        "K/N: evaluate the K-th of N equal parts of the images alone, such as 3/16, and keep it in "
        "--state_dir; see CLUSTER.md",
        flag_values,
        module_name=EVALUATION,
    )
    define_path(
        "merge",
        None,
        "directory of all the shards of this evaluation, which are joined to its result",
        flag_values,
        EVALUATION,
    )
    define_path(
        "state_dir",
        None,
        "directory of what an interrupted evaluation resumes from, and of shards (default: that of "
        "the output file, or the working directory)",
        flag_values,
        EVALUATION,
    )

    flags.DEFINE_bool(
        "fixed_batches",
        False,
        "keep batches in one size although examples are broken, so that shards find the same as a "
        "single run to the last bit also under attacks that take this from rounding",
        flag_values,
        module_name=EVALUATION,
    )


def asked_shard(flag_values, outputs):
    """Returns the `Shard` that the command line asks for, or None.

    Args:
        flag_values: absl's FlagValues.
        outputs: names of the flags of the whole evaluation's output.

    Raises:
        InputError: --shard is not valid, or cannot be combined with another flag.
    """
    merge, text = flag_values.merge, flag_values.shard
    if merge is not None:
        for name in ("shard", "state_dir"):
            if flag_values[name].present:
                raise InputError(f"--{name}: expected none beside --merge, which names its own")
    if text is None:
        return None
    for name in outputs:
        if flag_values[name].present:
            raise InputError(f"--{name}: expected none beside --shard; --merge writes the result")
    try:
        return shards.Shard.parse(text)
    except InputError as error:
        raise InputError(f"--shard: {error}") from None


def state_dir(flag_values, output):
    """Returns the path of the directory of an evaluation's state.

    Args:
        flag_values: absl's FlagValues.
        output: path of the file of the result, or None.

    Raises:
        InputError: it cannot be written to; that of shards need not exist.
    """
    place = pathlib.Path(flag_values.state_dir or pathlib.Path(output or "output").parent)
    if flag_values.shard is None or place.exists():
        check_writable("--state_dir", place / "evaluation.npz")
    return place


def state_or_parts(flag_values, directory, images, trials, key):
    """Returns the `State` that an evaluation resumes from, or with --merge its `Shards`.

    Args:
        flag_values: absl's FlagValues.
        directory: path of the directory of the state.
        images: the `common.data.Split` of the whole evaluation.
        trials: list of its `Trial`.
        key: see `common.evaluation.subject.key_of`.

    Returns:
        (state, parts), of which one is None.

    Raises:
        InputError: a trial cannot be evaluated in shards; or as `shards.read`.
    """
    if flag_values.shard or flag_values.merge:
        shards.check_trials("--shard" if flag_values.shard else "--merge", trials)
    if flag_values.merge:
        return None, shards.read(flag_values.merge, images, len(trials), key)
    return State.in_directory(directory, key), None


def run(shard, directory, images, key, evaluator, check, report=None):
    """Evaluates one shard, writes it, and prints its result.

    Args:
        shard: a `Shard`.
        directory, images, key: see `shards.Writer`.
        evaluator: the `Evaluator`.
        check: function that prints warnings, called before the attacks.
        report: see `Evaluator.run`.
    """
    count = len(images.images)
    with shards.Writer(directory, shard, images, key) as writer:
        examples = writer.examples
        print(f"shard {shard}: images {examples.start + 1:,} to {examples.stop:,} of {count:,}")
        if writer.is_finished:
            print(one_line(f"finished before: {writer.path}"), flush=True)
            return
        check()
        summary = writer.run(evaluator, report).summary()
    print(
        f"of these {summary['num_examples']:,} images: natural {summary['natural_accuracy']:.2f}%, "
        f"adversarial {summary['adversarial_accuracy']:.2f}%"
    )
    print(one_line(f"finished: {writer.path}"), flush=True)
