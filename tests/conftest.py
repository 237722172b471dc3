"""Fixtures shared by all tests."""

import ctypes
import fcntl
import gc
import os
import pathlib

import numpy as np
import pytest

from cifar10_challenge.challenge import CIFAR10
from common.attack import precision
from mnist_challenge.challenge import MNIST
from tests.helpers import write_cifar10, write_mnist

gc.freeze()  # TensorFlow's modules, which each collection would read


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    """Returns to the system what a module's traces and networks took.

    glibc keeps freed memory that is scattered: a worker grew to 7 GB.
    """
    yield
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Cuts tests and the scripts they start off from the network: nothing is downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.delenv("no_proxy", raising=False)
        patch.delenv("NO_PROXY", raising=False)
        yield


@pytest.fixture(autouse=True)
def float32_unless_asked(monkeypatch):
    """Precision "auto" is float32 on every machine, within the tests' own process."""
    monkeypatch.setattr(precision, "bfloat16_unit", lambda: None)


@pytest.fixture(scope="session")
def tfds_dir():
    """Returns the directory that holds the full data sets, or skips the test."""
    place = pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if not all((place / name).is_dir() for name in ("mnist", "cifar10")):
        pytest.skip("needs the full data sets: set TFDS_DATA_DIR")
    return str(place)


@pytest.fixture(scope="session")
def data_dir(tfds_dir, tmp_path_factory):
    """Returns a directory that holds the full data sets in the originals' own files.

    These are read in a tenth of the time. All workers have one directory.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    place = place / "data"
    with open(place.with_name("data.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "whole").exists():
            parts = [MNIST.load(name, data_dir=tfds_dir) for name in ("validation", "train")]
            images, labels = (
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("images", "labels")
            )
            write_mnist(place, images, labels, "train")
            test = MNIST.load("test", data_dir=tfds_dir)
            write_mnist(place, test.images, test.labels)
            train = CIFAR10.load("train", data_dir=tfds_dir)
            for i in range(5):
                part = slice(10000 * i, 10000 * (i + 1))
                write_cifar10(place, train.images[part], train.labels[part], f"data_batch_{i + 1}")
            test = CIFAR10.load("test", data_dir=tfds_dir)
            write_cifar10(place, test.images, test.labels)
            (place / "whole").touch()
    return str(place)
