"""Fixtures shared by all tests.

The process that only starts the others reads this file, too: TensorFlow is imported in fixtures.
"""

import contextlib
import ctypes
import fcntl
import gc
import os
import pathlib
import pickle

import numpy as np
import pytest

from common.scripts.console import show_messages


@pytest.fixture(scope="session", autouse=True)
def imported_modules_are_kept():
    """Keeps what has been imported out of each later collection, which would read all of it."""
    gc.collect()
    gc.freeze()


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
def messages_are_shown():
    """Shows the library's messages, as scripts do."""
    show_messages()


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
    from common.attack import precision

    monkeypatch.setattr(precision, "bfloat16_unit", lambda: None)


@pytest.fixture
def two_units(monkeypatch):
    """Gives CIFAR-10's networks two units in a group: the others are of the kind of the second."""
    import cifar10_challenge.model

    monkeypatch.setattr(cifar10_challenge.model, "UNITS_PER_GROUP", 2)


@pytest.fixture(scope="session")
def tfds_dir():
    """Returns the directory that holds the full data sets, or skips the test."""
    place = pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if not all((place / name).is_dir() for name in ("mnist", "cifar10")):
        pytest.skip("needs the full data sets: set TFDS_DATA_DIR")
    return str(place)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Returns a function from a name to a context with a path, which all workers have.

    One worker at a time is in the context of a name.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    @contextlib.contextmanager
    def locked(name):
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield base / name

    return locked


@pytest.fixture(scope="session")
def full_set(tfds_dir, shared):
    """Returns a function from a challenge and a split to the full `Split`, as read from TFDS.

    TFDS's images take seconds to decode; one worker does so.
    """

    def full_set(challenge, split):
        with shared(f"{challenge.name}-{split}.pickle") as path:
            if not path.exists():
                part = path.with_suffix(".part")
                part.write_bytes(pickle.dumps(challenge.load(split, data_dir=tfds_dir)))
                part.rename(path)
            return pickle.loads(path.read_bytes())

    return full_set


@pytest.fixture(scope="session")
def data_dir(full_set, shared):
    """Returns a directory that holds the full data sets in the originals' own files.

    These are read in a tenth of the time. All workers have one directory.
    """
    from cifar10_challenge.challenge import CIFAR10
    from mnist_challenge.challenge import MNIST
    from tests.helpers import write_cifar10, write_mnist

    with shared("data") as place:
        if not (place / "whole").exists():
            parts = [full_set(MNIST, name) for name in ("validation", "train")]
            images, labels = (
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("images", "labels")
            )
            write_mnist(place, images, labels, "train")
            test = full_set(MNIST, "test")
            write_mnist(place, test.images, test.labels)
            train = full_set(CIFAR10, "train")
            for i in range(5):
                part = slice(10000 * i, 10000 * (i + 1))
                write_cifar10(place, train.images[part], train.labels[part], f"data_batch_{i + 1}")
            test = full_set(CIFAR10, "test")
            write_cifar10(place, test.images, test.labels)
            (place / "whole").touch()
    return str(place)


@pytest.fixture
def nothing_at_hand(monkeypatch, tmp_path):
    """Returns an empty directory, with no network and no data in the working directory."""
    from common import data

    monkeypatch.setattr(data, "_reachable", lambda url: False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Returns a function from flags to what compare.py prints, run here in an empty directory."""
    from absl import flags

    from common.scripts import compare as compare_lib
    from common.scripts.flags import config_from_flags, define_flags
    from mnist_challenge.challenge import MNIST
    from tests.helpers import EMPTY_HOME

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", EMPTY_HOME)  # the sample, as for `start`
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    def compare(*arguments, challenge=MNIST):
        flag_values = flags.FlagValues()
        define_flags(challenge, flag_values)
        compare_lib.define_flags(challenge, flag_values)
        flag_values(["compare.py", *arguments])
        settings = config_from_flags(challenge, flag_values)
        capsys.readouterr()
        compare_lib.compare(challenge, settings, flag_values)
        return capsys.readouterr().out

    return compare
