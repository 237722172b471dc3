"""Data that are damaged, elsewhere or not readable: one line that names the file."""

import functools
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from common import data
from common.errors import InputError
from tests.helpers import write_mnist


def refusal(function, *args, **kwargs):
    """The message of an InputError, which is one line."""
    with pytest.raises(InputError) as error:
        function(*args, **kwargs)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture(params=["mnist", "cifar10"])
def prepared(request, tfds_dir, tmp_path):
    """A copy of a data set as TFDS prepares it, without the training images; and its loader."""
    name, version = {"mnist": "mnist/3.0.1", "cifar10": "cifar10/3.0.2"}[request.param].split("/")
    source, directory = pathlib.Path(tfds_dir) / name / version, tmp_path / name / version
    directory.mkdir(parents=True)
    for path in source.iterdir():
        if "test.tfrecord" in path.name:
            (directory / path.name).symlink_to(path)
        elif "tfrecord" not in path.name:
            shutil.copyfile(path, directory / path.name)
    load = getattr(data, f"load_{name}")
    return directory, lambda: load("test", data_dir=tmp_path, allow_sample=True)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"\xff\xfe\x00",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"pythonClassName": "os.path.join"}',
        b'{"name": 7, "splits": {}}',
    ],
    ids=lambda content: content[:12].decode("latin-1"),
)
def test_a_damaged_description_is_named(prepared, name, content):
    directory, load = prepared
    (directory / name).write_bytes(content)
    message = refusal(load)
    assert str(directory) in message
    if b"name" not in content and b"Name" not in content:
        assert str(directory / name) in message


def test_modules_that_features_name_are_not_imported(prepared, tmp_path, monkeypatch):
    directory, load = prepared
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for features in (
        {"pythonClassName": "hostile.Image"},
        {"featuresDict": {"features": {"image": {"pythonClassName": "hostile.Image"}}}},
        {"python_class_name": "hostile.Image"},
        {"type": "hostile.Image", "content": {}},
    ):
        (directory / "features.json").write_text(json.dumps(features))
        assert "to begin with tensorflow_datasets.core.features., got hostile" in refusal(load)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "none", "directory", "huge"])
def test_damaged_records_are_named(prepared, damage):
    directory, load = prepared
    (path,) = directory.glob("*-test.tfrecord-*")
    content = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage != "none":
        middle = len(content) // 2
        path.write_bytes(
            {
                "empty": b"",
                "half": content[:middle],
                "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "huge": b"\xff" * 8 + content[8:],
            }[damage]
        )
    assert f"TFDS directory {directory} cannot be read: " in refusal(load)


def test_another_dataset_in_the_directory_is_refused(tfds_dir, tmp_path):
    (tmp_path / "mnist").mkdir()
    source = pathlib.Path(tfds_dir) / "cifar10" / "3.0.2"
    (tmp_path / "mnist" / "3.0.1").symlink_to(source)
    message = refusal(data.load_mnist, "test", data_dir=tmp_path)
    assert "expected 10,000 images (28, 28, 1)" in message and "(10000, 32, 32, 3)" in message


def test_a_description_that_is_a_directory_is_named(nothing_at_hand):
    path = nothing_at_hand / "mnist" / "3.0.1" / "dataset_info.json"
    path.mkdir(parents=True)
    message = refusal(data.load_mnist, "test", data_dir=nothing_at_hand, allow_sample=True)
    assert message == f"cannot read {path}: Is a directory"


def test_a_directory_instead_of_an_original_file_is_named(nothing_at_hand):
    write_mnist(nothing_at_hand, np.zeros((1, 28, 28, 1), np.uint8), np.zeros(1, np.uint8))
    path = nothing_at_hand / "t10k-images-idx3-ubyte.gz"
    path.unlink()
    path.mkdir()
    message = refusal(data.load_mnist, "test", data_dir=nothing_at_hand)
    assert f"{path} cannot be read: IsADirectoryError" in message
    (nothing_at_hand / "test_batch").mkdir()
    message = refusal(data.load_cifar10, "test", data_dir=nothing_at_hand)
    assert f"{nothing_at_hand / 'test_batch'} cannot be read: IsADirectoryError" in message


def test_a_directory_that_cannot_be_read_is_named(nothing_at_hand, monkeypatch):
    stat, denied = pathlib.Path.stat, nothing_at_hand / "mnist" / "3.0.1" / "dataset_info.json"

    def guarded(path, **kwargs):
        if path == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **kwargs)

    monkeypatch.setattr(pathlib.Path, "stat", guarded)
    message = refusal(data.load_mnist, "test", data_dir=nothing_at_hand)
    assert message == f"cannot read {denied}: Permission denied"


# The sample.


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((2, 784), np.uint8)},
        {"labels": np.zeros(2, np.uint8)},
        {"images": np.zeros((2, 783), np.uint8), "labels": np.zeros(2, np.uint8)},
        {"images": np.zeros((2, 784)), "labels": np.zeros(2, np.uint8)},
        {"images": np.zeros((2, 784), np.uint8), "labels": np.zeros(3, np.uint8)},
        {"images": np.zeros((2, 784), np.uint8), "labels": np.zeros((2, 1), np.uint8)},
        {"images": np.zeros((2, 784), np.uint8), "labels": np.zeros(2)},
        {"images": np.array([{}]), "labels": np.zeros(1, np.uint8)},
        b"",
        b"no zip file",
        None,
    ],
)
def test_a_damaged_sample_is_named(tmp_path, monkeypatch, arrays):
    monkeypatch.setattr(data, "SAMPLES", tmp_path)
    path = tmp_path / "mnist.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    assert f"the sample {path} cannot be read: " in refusal(data.load_mnist, "sample")


def test_a_sample_cut_anywhere_is_named(tmp_path, monkeypatch):
    content = (data.SAMPLES / "mnist.npz").read_bytes()
    monkeypatch.setattr(data, "SAMPLES", tmp_path)
    for size in range(0, len(content), len(content) // 50):
        (tmp_path / "mnist.npz").write_bytes(content[:size])
        assert "mnist.npz cannot be read" in refusal(data.load_mnist, "sample")


# Places.


@pytest.mark.parametrize(
    "place", ["file", "file/below", "none", "x" * 300, "nul\0", "~nobody-here/x"]
)
def test_a_data_dir_that_does_not_exist_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    place = place if place.startswith("~") else str(tmp_path / place)
    message = refusal(data.load_mnist, "test", data_dir=place, allow_sample=True)
    assert message.startswith(
        ("expected data_dir to be an existing", "--data_dir: expected a path")
    )


@pytest.fixture
def no_home(nothing_at_hand, monkeypatch):
    """A user without HOME and without an entry in passwd, as os.path tells of one.

    https://github.com/NousResearch/hermes-agent/issues/107295
    """
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    return nothing_at_hand


def test_without_a_home_directory_the_default_place_is_not_there(no_home, monkeypatch):
    # Nothing is downloaded into a directory of the name ~.
    monkeypatch.setattr(data, "_reachable", lambda url: True)
    monkeypatch.setattr(data, "_download", lambda dataset, root: pytest.fail("downloads"))
    split = data.load_mnist("test", allow_sample=True)
    assert split.is_sample and "the home directory is not known" in split.place
    message = refusal(data.load_mnist, "test", data_dir="~/data")
    assert message == "--data_dir: expected a path, got '~/data', whose home directory is not known"
    assert "the home directory is not known" in refusal(data.load_cifar10, "train")
    assert list(no_home.iterdir()) == []


def test_without_a_home_directory_other_places_are_read(no_home, tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
    assert not data.load_mnist("test").is_sample


def test_a_working_directory_that_was_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_reachable", lambda url: False)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    (tmp_path / "data").rmdir()
    assert data.load_mnist("test", data_dir=tmp_path, allow_sample=True).is_sample


@pytest.mark.parametrize("fault", ["file", "full"])
def test_an_unwritable_directory_is_reported_before_the_download(
    nothing_at_hand,
    monkeypatch,
    fault,
):
    monkeypatch.setattr(data, "_reachable", lambda url: True)
    monkeypatch.setattr(data, "_download", lambda dataset, root: pytest.fail("downloads"))
    if fault == "file":
        (nothing_at_hand / "file").write_text("")
        root, reason = nothing_at_hand / "file" / "data", "Not a directory"
    else:
        root, reason = nothing_at_hand, "No space left on device"
        full = functools.partial(open, "/dev/full", "wb", buffering=0)
        monkeypatch.setattr(data.tempfile, "TemporaryFile", lambda dir: full())
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    message = refusal(data.load_cifar10, "train")
    assert f"and the download failed ({root} cannot be written: {reason})" in message
    assert data.load_mnist("test", allow_sample=True).place.endswith(f"{reason})")
