"""Helpers of several tests: scripts run as users run them, tiny trainings, images, gradients."""

import dataclasses
import gzip
import json
import os
import pathlib
import pickle
import signal
import struct
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge import train as cifar10_train
from cifar10_challenge.challenge import CIFAR10
from cifar10_challenge.model import build_model as build_cifar10
from common import data
from common.config import make_config
from common.errors import InputError
from common.training import loop, optimizers
from tests import forked

ROOT = pathlib.Path(__file__).resolve().parents[1]
EMPTY_HOME = tempfile.mkdtemp()  # so that no data set of the user is found
TINY = {
    "max_num_training_steps": 6,
    "training_batch_size": 7,
    "num_steps": 2,
    "num_output_steps": 2,
    "num_summary_steps": 3,
    "num_checkpoint_steps": 2,
    "epsilon_warmup_steps": 4,
    "num_validation_steps": 3,
}
TINY_CIFAR10 = {"width": "simple", "training_batch_size": 4, "num_steps": 1}


# Scripts.


def start(*command, cwd, data_dir=None, afresh=False):
    """Starts a script, -m or -c; in a new Python if it says `afresh`, which takes seconds more."""
    environment = {**os.environ, "PYTHONPATH": "", "HOME": EMPTY_HOME}
    environment.pop("TFDS_DATA_DIR", None)
    if data_dir is not None:
        environment["TFDS_DATA_DIR"] = data_dir
    if sys.platform == "linux" and not afresh:
        return forked.start(command, cwd, environment)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=forked.heed_signals,
    )


def run(*command, code=0, **kwargs):
    """Runs a script to its end; returns what it printed (stderr if it was to fail)."""
    process = start(*command, **kwargs)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return err if code else out


def error_line(stderr):
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return line


def interrupted_in_its_attack(process):
    """Sends Ctrl-C to a script once its attack shows progress; returns stdout and later stderr."""
    seen = ""
    while "attack:" not in seen or "image/s" not in seen.split("attack:")[-1]:
        seen += (letter := process.stderr.read(1))
        assert letter, seen
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)


# Trainings.


def end_of_sample(challenge):
    """The last 50 images of the shipped sample, whose first images are evaluated."""
    sample = challenge.load("sample")
    return dataclasses.replace(sample, images=sample.images[-50:], labels=sample.labels[-50:])


def train(challenge, model_dir, watched=False, images=None, **settings):
    """Trains on a `Split`, or the shipped sample's head, with the challenges' optimizers."""
    config = make_config(challenge, ("test", {**TINY, "model_dir": str(model_dir), **settings}))
    sample = images or challenge.load("sample").head(50)

    rate = optimizers.learning_rate(config.step_size_schedule)
    if challenge is CIFAR10:
        optimizer = optimizers.Momentum(rate, momentum=0.9)
    else:
        optimizer = keras.optimizers.Adam(rate, epsilon=1e-8)
    return loop.train(
        config,
        challenge,
        sample,
        optimizer=optimizer,
        reduce_loss=tf.reduce_sum,
        augment=cifar10_train.augment if challenge is CIFAR10 else None,
        batch_statistics=challenge is CIFAR10,
        validation_images=sample if watched else None,
    )


def checkpoint_arrays(directory):
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(directory)))
    names = reader.get_variable_to_shape_map()
    # save_counter counts the checkpoints written, of which a stop adds one.
    skipped = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    return {name: reader.get_tensor(name) for name in names if name not in skipped}


# Data sets in the originals' own files.


def write_idx(path, array, magic):
    header = struct.pack(f">{1 + array.ndim}I", magic, *array.shape)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header + array.astype(np.uint8).tobytes())


def write_mnist(folder, images, labels, name="t10k"):
    folder.mkdir(exist_ok=True)
    write_idx(folder / f"{name}-images-idx3-ubyte.gz", images[..., 0], 2051)
    write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels, 2049)


def write_cifar10(folder, images, labels, name="test_batch"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    batch = {b"data": rows, b"labels": labels.tolist()}
    (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


# Images, and gradients with respect to them.


def digits(count):
    """Digits of the shipped sample, as float32 pixels, and their labels."""
    with np.load(pathlib.Path(data.__file__).parent / "samples" / "mnist.npz") as sample:
        images, labels = sample["images"][:count, ..., None], sample["labels"][:count]
    return data.mnist_pixels(images), labels.astype(np.int32)


def pictures(count):
    """Images of the shipped sample, as float32 pixels, and their labels."""
    with np.load(pathlib.Path(data.__file__).parent / "samples" / "cifar10.npz") as sample:
        return data.cifar10_pixels(sample["images"][:count]), sample["labels"][:count].astype("i4")


def sum_xent(logits, y):
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))


def input_gradient(logits_of, x, y):
    """The gradient of the summed cross-entropy with respect to `x`."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = sum_xent(logits_of(x), y)
    return tape.gradient(loss, x)


def normed_network(width, dtype="float32"):
    """A network with batch norms that are not the identity, some with negative factors."""
    model = build_cifar10(width, seed=2, dtype=dtype)
    random = np.random.default_rng(3)
    for weight in model.weights:
        if not weight.path.endswith("kernel"):
            low, high = (0.5, 1.5) if weight.path.endswith("moving_variance") else (-0.5, 1.5)
            weight.assign(random.uniform(low, high, weight.shape))
    return model


# Files and errors.


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def rows_of(path):
    """The rows of a result, without the time they took."""
    result = json.loads(path.read_text())
    return [{name: row[name] for name in row if name != "seconds"} for row in result["rows"]]


def refused(expected, call, *args, **kwargs):
    """`call` raises an InputError of one line, in which `expected` occurs; returns the line."""
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    message = str(error.value)
    assert expected in message and "\n" not in message
    return message
