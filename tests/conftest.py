"""Fixtures shared by all tests."""

import os
import pathlib

import pytest

from common.attack import precision


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
    """Lets precision "auto" mean float32 on every machine, within the tests' own process."""
    monkeypatch.setattr(precision, "bfloat16_unit", lambda: None)


@pytest.fixture(scope="session")
def tfds_dir():
    """Returns the directory that holds the full data sets, or skips the test."""
    place = pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if not all((place / name).is_dir() for name in ("mnist", "cifar10")):
        pytest.skip("needs the full data sets: set TFDS_DATA_DIR")
    return str(place)
