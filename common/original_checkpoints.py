"""Checkpoints of the original challenges' TensorFlow 1 code, read and written.

Its Saver wrote checkpoint-N.index and checkpoint-N.data-*. The files beside them are not read:
`checkpoint`, which names the newest, the graph in .meta, and config.json.
"""

import contextlib
import os
import pathlib

import numpy as np
import tensorflow as tf

from common import config as config_lib
from common.checkpoint_files import reader, steps_in, written
from common.errors import InputError

tf1 = tf.compat.v1

# The optimizers' own variables, beside their slots, which have names such as `Variable/Adam`.
OPTIMIZER_NAMES = frozenset({"global_step", "beta1_power", "beta2_power"})


def is_original(directory):
    """Whether TensorFlow 1's Saver wrote the newest readable checkpoint in `directory`."""
    for step in reversed(steps_in(directory)):
        # A checkpoint whose writing was cut off does not tell.
        with contextlib.suppress(InputError), reader(directory, step) as checkpoint:
            return not checkpoint.has_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    return False


def load_original(challenge, directory, step=None):
    """Loads a checkpoint of the original code; its shapes decide the network's size.

    The optimizer's state is not read.

    Args:
        challenge: a `common.challenge.Challenge`.
        directory: the folder of checkpoint-N.index and checkpoint-N.data-*.
        step: the N, or None for the highest.

    Returns:
        The keras.Model of the challenge's own network, and the N.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or it belongs to another network;
            the message lists every variable that is missing, left over or of another shape.
    """
    steps = steps_in(directory)
    if not steps:
        raise InputError(
            f"expected a TensorFlow 1 checkpoint (checkpoint-N.index and checkpoint-N.data-*) in "
            f"{directory}, got none"
        )
    step = steps[-1] if step is None else step
    if step not in steps:
        numbers = ", ".join(map(str, steps))
        raise InputError(
            f"expected the number of a checkpoint in {directory}: {numbers}; got {step}"
        )
    with reader(directory, step) as checkpoint:
        shapes = checkpoint.get_variable_to_shape_map()
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
        model = _network_of(challenge, shapes)
        names = challenge.original_names(model)
        path = pathlib.Path(directory) / f"checkpoint-{step}"
        _check_variables(challenge, path, shapes, dict(zip(names, _shapes_of(model), strict=True)))
        model.set_weights([checkpoint.get_tensor(name) for name in names])
    return model, step


def save_original(challenge, model, directory, step=0):
    """Writes a checkpoint that the original code restores, and the file `checkpoint` naming it.

    It holds the network's variables and global_step, all that the originals' run_attack.py and
    eval.py read.

    Args:
        challenge: a `common.challenge.Challenge`.
        model: keras.Model of the challenge's own network.
        directory: the directory to write to; it is made if need be.
        step: int, the number of the checkpoint.

    Raises:
        InputError: `model` is another network, or `directory` holds checkpoints already or cannot
            be written; then nothing is changed.
    """
    directory, step = pathlib.Path(directory), int(step)
    if step < 0:
        raise InputError(f"step: expected 0 or more, got {step}")
    size = challenge.size_of(_shapes_of(model))
    if size is None or _shapes_of(_build(challenge, size)) != _shapes_of(model):
        raise InputError(f"expected the {challenge.name} challenge's network, got another")
    if any(directory.glob("checkpoint*")):
        raise InputError(f"expected a directory without checkpoints, got {directory}")
    names, arrays = challenge.original_names(model), map(np.asarray, model.weights)
    values = dict(zip(names, arrays, strict=True))
    values["global_step"] = np.int64(step)
    with written(directory) as place:
        _save(values, place, step)


def _build(challenge, size):
    return challenge.build_model(config_lib.make_config(challenge, ("checkpoint", size)))


def _shapes_of(model):
    return [tuple(weight.shape) for weight in model.weights]


def _network_of(challenge, shapes):
    """Makes a network of the size of a checkpoint's variables, by default of the default size."""
    model = _build(challenge, {})
    found = [shapes.get(name, ()) for name in challenge.original_names(model)]
    size = challenge.size_of(found)
    if size is None or found == _shapes_of(model):
        return model
    return _build(challenge, size)


def _check_variables(challenge, path, found, expected):
    """Raises InputError if a checkpoint's shapes by name, `found`, are not the expected ones."""
    missing = [name for name in expected if name not in found]
    left_over = [
        name
        for name in sorted(found.keys() - expected.keys() - OPTIMIZER_NAMES)
        if name.rpartition("/")[0] not in expected
    ]
    reshaped = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = {"missing": missing, "left over": left_over, "of another shape": reshaped}
    problems = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise InputError(
            f"expected the variables of the original {challenge.name} network in {path}, "
            f"got others; {'; '.join(problems)}"
        )


def _save(values, directory, step):
    """Writes arrays by name as TensorFlow 1's Saver does."""
    with tf.Graph().as_default(), tf1.Session() as session:
        # Fed, because a graph can hold no more than two gigabytes.
        fed = {name: tf1.placeholder(value.dtype, value.shape) for name, value in values.items()}
        variables = {name: tf1.Variable(start) for name, start in fed.items()}
        session.run(
            tf1.variables_initializer(list(variables.values())),
            {fed[name]: value for name, value in values.items()},
        )
        saver = tf1.train.Saver(variables, save_relative_paths=True)
        saver.save(session, os.path.join(directory, "checkpoint"), step, write_meta_graph=False)
