import gzip
import hashlib
import os
import pickle
import struct
import threading

import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from common import data
from common.errors import InputError
from common.training.batches import training_batches
from mnist_challenge.challenge import MNIST
from tests.helpers import write_cifar10, write_idx, write_mnist


@pytest.fixture(scope="module")
def mnist_train(full_set):
    return full_set(MNIST, "train")


@pytest.fixture(scope="module")
def mnist_validation(full_set):
    return full_set(MNIST, "validation")


@pytest.fixture(scope="module")
def mnist_test(full_set):
    return full_set(MNIST, "test")


@pytest.fixture(scope="module")
def cifar10_train(full_set):
    return full_set(CIFAR10, "train")


@pytest.fixture(scope="module")
def cifar10_test(full_set):
    return full_set(CIFAR10, "test")


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


# The full data sets.


def test_mnist_train_and_validation_are_the_whole_training_set_in_order(
    mnist_train, mnist_validation
):
    images = np.concatenate([mnist_validation.images, mnist_train.images])
    labels = np.concatenate([mnist_validation.labels, mnist_train.labels])
    assert images.shape == (60000, 28, 28, 1) and images.dtype == np.uint8
    assert labels.shape == (60000,) and labels.dtype == np.int32
    assert len(mnist_validation.images) == 5000
    assert sha256(images) == "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as every tutorial shows them


def test_mnist_test_is_in_the_originals_order(mnist_test, tfds_dir):
    assert sha256(mnist_test.images) == (
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"
    )
    assert mnist_test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert not mnist_test.is_sample
    assert mnist_test.source == (
        f"MNIST test set (10,000 images) from TFDS directory {tfds_dir}/mnist/3.0.1"
    )


def test_cifar10_is_in_the_originals_order(cifar10_train, cifar10_test):
    assert cifar10_train.images.shape == (50000, 32, 32, 3)
    assert sha256(cifar10_train.images) == (
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"
    )
    assert cifar10_train.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert sha256(cifar10_test.images) == (
        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"
    )
    assert cifar10_test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    assert cifar10_test.labels.dtype == np.int32


def test_head_keeps_the_first_examples_and_says_so(mnist_test):
    head = mnist_test.head(20)
    np.testing.assert_array_equal(head.images, mnist_test.images[:20])
    np.testing.assert_array_equal(head.labels, mnist_test.labels[:20])
    assert head.source.startswith("first 20 of: MNIST test set (10,000 images)")
    assert mnist_test.head(10000) is mnist_test
    with pytest.raises(InputError, match="positive number of examples, got 0"):
        mnist_test.head(0)


# The originals' own files.


@pytest.mark.parametrize("folder", [".", "MNIST_data"])
def test_mnist_from_the_originals_files(mnist_test, nothing_at_hand, folder):
    write_mnist(nothing_at_hand / folder, mnist_test.images, mnist_test.labels)
    loaded = data.load_mnist("test", data_dir=nothing_at_hand)
    np.testing.assert_array_equal(loaded.images, mnist_test.images)
    np.testing.assert_array_equal(loaded.labels, mnist_test.labels)
    assert str(nothing_at_hand / folder) in loaded.source and not loaded.is_sample


def test_cifar10_from_the_originals_files_in_the_working_directory(cifar10_test, nothing_at_hand):
    folder = nothing_at_hand / "cifar10_data" / "cifar-10-batches-py"
    write_cifar10(folder, cifar10_test.images, cifar10_test.labels)
    (nothing_at_hand / "elsewhere").mkdir()
    loaded = data.load_cifar10("test", data_dir=nothing_at_hand / "elsewhere")
    np.testing.assert_array_equal(loaded.images, cifar10_test.images)
    np.testing.assert_array_equal(loaded.labels, cifar10_test.labels)


def test_changed_bytes_are_refused(mnist_test, nothing_at_hand):
    images = mnist_test.images.copy()
    images[5000, 14, 14, 0] ^= 1
    write_mnist(nothing_at_hand, images, mnist_test.labels)
    with pytest.raises(InputError, match="test images are not MNIST's: expected sha256") as error:
        data.load_mnist("test", data_dir=nothing_at_hand)
    assert str(nothing_at_hand) in str(error.value)


def test_a_damaged_idx_file_is_named(nothing_at_hand):
    images, labels = np.zeros((10000, 28, 28, 1), np.uint8), np.zeros(10000, np.uint8)
    path = nothing_at_hand / "t10k-images-idx3-ubyte.gz"

    def message():
        with pytest.raises(InputError, match=path.name) as error:
            data.load_mnist("test", data_dir=nothing_at_hand)
        return str(error.value)

    write_mnist(nothing_at_hand, images, labels)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read: EOFError" in message()
    path.write_bytes(b"<html>404</html>")
    assert "cannot be read: BadGzipFile" in message()
    path.write_bytes(gzip.compress(b"\x00\x00"))
    assert "IDX header of 16 bytes" in message()
    write_idx(path, images[:9999, ..., 0], 2051)
    assert "expected IDX magic and counts (2051, 10000, 28, 28), got (2051, 9999" in message()
    header = struct.pack(">4I", 2051, 10000, 28, 28)
    path.write_bytes(gzip.compress(header + bytes(99)))
    assert "expected 7,840,000 bytes after the IDX header, got 99" in message()
    path.write_bytes(gzip.compress(header + bytes(7840001)))
    assert "got more" in message()


def test_a_pickle_that_would_run_code_is_refused(nothing_at_hand):
    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {nothing_at_hand / 'ran'}",)

    (nothing_at_hand / "test_batch").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(InputError, match=r"test_batch: refused to load \w+\.system"):
        data.load_cifar10("test", data_dir=nothing_at_hand)
    assert not (nothing_at_hand / "ran").exists()


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"no pickle", "is not a CIFAR-10 batch: UnpicklingError"),
        (pickle.dumps({b"data": 1}), "is not a CIFAR-10 batch: KeyError"),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, 2),
            r"expected uint8 data \(10000, 3072\) and 10,000 labels, got uint8 \(2, 3072\)",
        ),
    ],
)
def test_a_damaged_cifar10_batch_is_named(nothing_at_hand, content, expected):
    (nothing_at_hand / "test_batch").write_bytes(content)
    with pytest.raises(InputError, match=f"test_batch.*{expected}"):
        data.load_cifar10("test", data_dir=nothing_at_hand)


# Nothing at hand: the sample, or an error.


@pytest.mark.parametrize("load, shape", [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_the_sample_has_100_a_class_and_says_what_it_is(nothing_at_hand, load, shape):
    split = getattr(data, f"load_{load}")("test", data_dir=nothing_at_hand, allow_sample=True)
    assert split.is_sample
    assert split.images.shape == (1000, *shape) and split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32
    assert np.bincount(split.labels).tolist() == [100] * 10
    assert split.source.startswith("shipped sample: 1,000 images of ")
    assert split.source.endswith(f" in {nothing_at_hand} and no network")
    assert split.head(5).is_sample and "shipped sample" in split.head(5).source


def test_the_samples_are_the_images_at_index(mnist_validation, cifar10_test):
    for name, full in [("mnist", mnist_validation), ("cifar10", cifar10_test)]:
        with np.load(data.SAMPLES / f"{name}.npz") as sample:
            index = sample["index"]
            assert (np.diff(index) > 0).all()
            np.testing.assert_array_equal(
                sample["images"], full.images[index].reshape(sample["images"].shape)
            )
            np.testing.assert_array_equal(sample["labels"], full.labels[index])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_sample_does_not_replace_training_images(nothing_at_hand, split):
    with pytest.raises(InputError, match="no MNIST in .* and no network.*--data_dir"):
        data.load_mnist(split, data_dir=nothing_at_hand, allow_sample=True)


def test_the_sample_is_used_only_if_allowed(nothing_at_hand, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(nothing_at_hand / "unset"))
    with pytest.raises(InputError, match="no CIFAR-10 in .*unset and no network.*test_batch"):
        data.load_cifar10("test")


def test_a_failed_download_is_the_reason_given(nothing_at_hand, monkeypatch):
    monkeypatch.setattr(data, "_reachable", lambda url: True)
    monkeypatch.setattr(data, "_download", lambda dataset, root: "OSError: disk full")
    split = data.load_mnist("test", data_dir=nothing_at_hand, allow_sample=True)
    assert split.source.endswith("and the download failed (OSError: disk full)")


@pytest.mark.parametrize("load", [data.load_mnist, data.load_cifar10])
def test_the_sample_can_be_loaded_without_the_data(load, nothing_at_hand):
    sample = load("sample")
    stand_in = load("test", data_dir=nothing_at_hand, allow_sample=True)
    assert sample.is_sample and sample.name == stand_in.name
    np.testing.assert_array_equal(sample.images, stand_in.images)
    np.testing.assert_array_equal(sample.labels, stand_in.labels)


def test_wrong_use_is_an_error_in_one_line(tmp_path):
    with pytest.raises(InputError, match="existing directory, got .*typo"):
        data.load_mnist("test", data_dir=tmp_path / "typo", allow_sample=True)
    with pytest.raises(InputError, match="among train, validation, test, sample, got 'eval'"):
        data.load_mnist("eval")
    with pytest.raises(InputError, match="among train, test, sample, got 'validation'"):
        data.load_cifar10("validation")


def test_a_server_that_does_not_answer_counts_as_unreachable(monkeypatch):
    release = threading.Event()

    def unanswered(request, timeout):
        release.wait()
        raise OSError

    monkeypatch.setattr(data, "_NETWORK_TIMEOUT", 0.05)
    monkeypatch.setattr(data.urllib.request, "urlopen", unanswered)
    assert not data._reachable("https://example.invalid/")
    release.set()


# Pixels.


def test_mnist_pixels_are_the_tutorial_readers_to_the_bit():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected = np.multiply(images.astype(np.float32), np.float32(1.0 / 255.0))
    pixels = data.mnist_pixels(images)
    assert pixels.dtype == np.float32 and pixels.min() == 0 and pixels.max() == 1
    np.testing.assert_array_equal(pixels, expected)
    compiled = tf.function(data.mnist_pixels, jit_compile=True)
    for function in (data.mnist_pixels, compiled):
        np.testing.assert_array_equal(function(tf.constant(images)), expected)


def test_cifar10_pixels_keep_their_values():
    images = np.arange(256, dtype=np.uint8)
    for pixels in (data.cifar10_pixels(images), data.cifar10_pixels(tf.constant(images)).numpy()):
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, np.arange(256))


# Batches: ten examples whose every pixel, and label, is their position.

POSITIONS = np.arange(10)
IMAGES = np.broadcast_to(POSITIONS[:, None, None, None], (10, 2, 2, 1)).astype(np.uint8)


def batches(**changes):
    options = {"batch_size": 4, "seed": 451760341, "num_steps": 10} | changes
    stream = training_batches(IMAGES, POSITIONS, to_pixels=data.cifar10_pixels, **options)
    return [(x.numpy(), y.numpy()) for x, y in stream]


def stream_of_labels(**changes):
    return np.concatenate([y for _, y in batches(**changes)])


def add_noise(images, seeds):
    noise = tf.map_fn(
        lambda seed: tf.random.stateless_uniform([], seed, 0, 100, tf.int32),
        seeds,
        fn_output_signature=tf.int32,
    )
    return images + tf.cast(noise, tf.uint8)[:, None, None, None]


def test_batches_are_full_and_pair_images_with_labels():
    for x, y in batches():
        assert x.shape == (4, 2, 2, 1) and x.dtype == np.float32
        assert y.shape == (4,) and y.dtype == np.int32
        np.testing.assert_array_equal(x[:, 0, 0, 0], y)
    assert len(batches()) == 10


def test_every_epoch_shows_each_image_once_in_an_order_of_its_own():
    epochs = stream_of_labels().reshape(4, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(POSITIONS, (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("augment", [None, add_noise])
@pytest.mark.parametrize("start_step", [0, 1, 2, 5, 9, 10])
def test_a_resumed_stream_is_the_unbroken_one_to_the_bit(start_step, augment):
    unbroken = batches(augment=augment)[start_step:]
    resumed = batches(augment=augment, start_step=start_step)
    assert len(resumed) == len(unbroken) == 10 - start_step
    for (x, y), (x_unbroken, y_unbroken) in zip(resumed, unbroken, strict=True):
        np.testing.assert_array_equal(x, x_unbroken)
        np.testing.assert_array_equal(y, y_unbroken)


def test_streams_have_different_numbers():
    assert (stream_of_labels() == stream_of_labels()).all()
    assert (stream_of_labels() != stream_of_labels(seed=1)).any()


def test_augmentation_is_seeded_by_seed_and_position():
    noise = np.concatenate([x[:, 0, 0, 0] - y for x, y in batches(augment=add_noise)])
    expected = [
        int(tf.random.stateless_uniform([], [451760341, position], 0, 100, tf.int32))
        for position in range(40)
    ]
    assert noise.tolist() == expected


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"batch_size": 0}, "batch size from 1 to 10 .*, got 0"),
        ({"batch_size": 11}, "batch size from 1 to 10 .*, got 11"),
        ({"start_step": 11}, "start_step from 0 to 10, got 11"),
        ({"start_step": -1}, "start_step from 0 to 10, got -1"),
    ],
)
def test_batches_refuse_numbers_out_of_range(changes, expected):
    with pytest.raises(InputError, match=expected):
        batches(**changes)


def test_batches_refuse_arrays_that_do_not_fit():
    options = {"batch_size": 4, "seed": 0, "num_steps": 1, "to_pixels": data.cifar10_pixels}
    with pytest.raises(InputError, match="expected uint8 images .*got float64"):
        training_batches(IMAGES / 255, POSITIONS, **options)
    with pytest.raises(InputError, match="expected 10 labels for 10 images"):
        training_batches(IMAGES, POSITIONS[:9], **options)
