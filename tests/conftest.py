"""Fixtures shared by all tests."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def tfds_dir():
    """Returns the directory that holds the full data sets, or skips the test."""
    candidates = [
        pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser(),
        pathlib.Path(__file__).resolve().parents[2] / "shared" / "tensorflow_datasets",
    ]
    for candidate in candidates:
        if (candidate / "mnist").is_dir():
            return str(candidate)
    pytest.skip("needs the full data set: set TFDS_DATA_DIR")
