"""MNIST and CIFAR-10 as the original challenges read them.

`load_mnist` and `load_cifar10` return uint8 arrays in the originals' order, checked against the
sha256 of the originals' bytes, from the first available source: a TensorFlow Datasets directory,
the originals' own files, a download, or (only if allowed) the shipped sample.
"""

import dataclasses
import gzip
import hashlib
import os
import pathlib
import pickle
import struct
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from common import plain_pickle
from common.errors import InputError, one_line, reason_of
from common.files import expand_path, read_json

_SAMPLES = pathlib.Path(__file__).parent / "samples"
_FEATURES = "tensorflow_datasets.core.features."
_NETWORK_TIMEOUT = 5.0  # seconds
_LARGEST_BATCH = 1 << 27  # bytes; an original pickle has 31 million, written by Python 3 47 million


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
        images: uint8 images (n, height, width, channels), pixels in [0, 255], in the originals'
            order.
        labels: int32 classes (n,).
        name: which images these are, for people.
        place: where they came from.
        is_sample: whether this is the shipped sample, and not the split that was asked for.
    """

    images: np.ndarray
    labels: np.ndarray
    name: str
    place: str
    is_sample: bool

    @property
    def source(self) -> str:
        """One line for people: which images these are and where they came from."""
        return f"{self.name}{'; ' if self.is_sample else ' from '}{self.place}"

    def digest(self) -> str:
        """sha256 of images and labels."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def head(self, n: int) -> "Split":
        """Returns the first `n` examples, or all of them if there are no more than `n`.

        Raises:
            InputError: `n` is not positive.
        """
        if n < 1:
            raise InputError(f"expected a positive number of examples, got {n}")
        if n >= len(self.images):
            return self
        name = f"first {n:,} of: {self.name}"
        return Split(self.images[:n], self.labels[:n], name, self.place, self.is_sample)


@dataclasses.dataclass(frozen=True)
class _Dataset:
    """What differs between the datasets; the keys of `sizes` and `digests` are TFDS's splits."""

    title: str
    tfds_name: str
    url: str
    image_shape: tuple[int, int, int]
    sizes: dict[str, int]
    digests: dict[str, tuple[str, str]]  # sha256 of the bytes of the uint8 images and labels
    folders: tuple[str, ...]
    file_names: dict[str, tuple[str, ...]]
    read_files: Callable
    sample: str


def load_mnist(split: str, *, data_dir: str | None = None, allow_sample: bool = False) -> Split:
    """Loads MNIST, split as TensorFlow's tutorial reader split it for the original challenge.

    Args:
        split: "train" (the last 55,000 training images), "validation" (the first 5,000), "test", or
            "sample" (the 1,000 images that come with the project).
        data_dir: the directory that holds the data, or that they are downloaded to; by default
            TFDS_DATA_DIR from the environment, or else ~/tensorflow_datasets.
        allow_sample: whether the shipped sample may stand in for "test" if the data cannot be had.

    Returns:
        A `Split`: uint8 images (n, 28, 28, 1), int32 labels (n,).

    Raises:
        InputError: the split is unknown, `data_dir` does not exist, the data cannot be had, or
            they are not the original ones; the message names the file or directory.
    """
    parts = {"train": slice(5000, None), "validation": slice(0, 5000), "test": slice(None)}
    _check_split(split, (*parts, "sample"))
    if split == "sample":
        return _from_sample(_MNIST, "part of the project")
    whole = _load(_MNIST, "test" if split == "test" else "train", split, data_dir, allow_sample)
    if split == "test":
        return whole
    name = "last 55,000" if split == "train" else "first 5,000"
    return Split(
        whole.images[parts[split]],
        whole.labels[parts[split]],
        f"{name} images of: {whole.name}",
        whole.place,
        is_sample=False,
    )


def load_cifar10(split: str, *, data_dir: str | None = None, allow_sample: bool = False) -> Split:
    """Loads CIFAR-10.

    Args:
        split: "train" (50,000 images), "test" (10,000), or "sample" (the 1,000 images that come
            with the project).
        data_dir: the directory that holds the data, or that they are downloaded to; by default
            TFDS_DATA_DIR from the environment, or else ~/tensorflow_datasets.
        allow_sample: whether the shipped sample may stand in for "test" if the data cannot be had.

    Returns:
        A `Split`: uint8 images (n, 32, 32, 3), int32 labels (n,).

    Raises:
        InputError: the split is unknown, `data_dir` does not exist, the data cannot be had, or
            they are not the original ones; the message names the file or directory.
    """
    _check_split(split, ("train", "test", "sample"))
    if split == "sample":
        return _from_sample(_CIFAR10, "part of the project")
    return _load(_CIFAR10, split, split, data_dir, allow_sample)


def mnist_pixels(images):
    """Maps uint8 pixels to float32 in [0, 1], bit for bit as the original's reader did.

    Args:
        images: uint8 array or tensor of any shape.

    Returns:
        float32 array or tensor of the same shape: the pixels times 1/255 rounded to float32.
    """
    # A division by 255 would round differently on some pixel values.
    return _float32(images) * np.float32(1.0 / 255.0)


def cifar10_pixels(images):
    """Maps uint8 pixels to float32 in [0, 255]; an array gives an array, a tensor a tensor."""
    return _float32(images)


def _float32(images):
    if isinstance(images, np.ndarray):
        return images.astype(np.float32)
    return tf.cast(images, tf.float32)


def _check_split(split, known):
    if split not in known:
        raise InputError(f"expected a split among {', '.join(known)}, got {split!r}")


def _load(dataset, part, split, data_dir, allow_sample):
    """Loads `part` ("train" or "test") from the first available source, or else the sample."""
    root = _root(data_dir)
    if data_dir and not (root and os.path.isdir(root)):
        raise InputError(
            f"expected data_dir to be an existing directory, got {str(data_dir)!r}; "
            f"create it to have {dataset.title} downloaded into it"
        )

    places = _working_directory() if root is None else [root, *_working_directory()]
    if root is not None and _is_there(root / dataset.tfds_name / "dataset_info.json"):
        return _from_tfds(dataset, part, root / dataset.tfds_name)
    for folder in [base / name for base in places for name in dataset.folders]:
        paths = [folder / name for name in dataset.file_names[part]]
        if all(map(_is_there, paths)):
            images, labels = dataset.read_files(paths, dataset, part)
            return _checked(dataset, part, images, labels, f"the original files in {folder}")

    if root is None:
        reason = f"no {dataset.title}, as the home directory is not known"
    else:
        reason = f"no {dataset.title} in {root}"
        if not _reachable(dataset.url):
            reason += " and no network"
        else:
            failure = _unwritable(root) or _download(dataset, root)
            if failure is None:
                return _from_tfds(dataset, part, root / dataset.tfds_name)
            reason += f" and the download failed ({failure})"

    if allow_sample and split == "test":
        return _from_sample(dataset, reason)
    raise InputError(
        f"{reason}: looked for {dataset.tfds_name} as TFDS prepares it and for "
        f"{dataset.file_names[part][0]} there and in the working directory; "
        "give the place with --data_dir or TFDS_DATA_DIR"
    )


def _root(data_dir):
    """The directory of the data; None if none is named and there is no home directory."""
    named = data_dir or os.environ.get("TFDS_DATA_DIR")
    if named:
        try:
            return pathlib.Path(expand_path(named))
        except InputError as error:
            raise InputError(f"{'--data_dir' if data_dir else 'TFDS_DATA_DIR'}: {error}") from None
    try:
        return pathlib.Path(expand_path("~/tensorflow_datasets"))
    except InputError:
        return None


def _working_directory():
    """The working directory in a list, which is empty if it was deleted."""
    try:
        return [pathlib.Path.cwd()]
    except OSError:
        return []


def _is_there(path):
    """Whether `path` exists; raises InputError if that cannot be determined."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason_of(error)}") from None
    return True


def _unwritable(root):
    """The reason why nothing can be downloaded into `root`, which need not exist, or None."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(bytes(1 << 16))
    except (OSError, ValueError) as error:
        return f"{root} cannot be written: {reason_of(error)}"
    return None


def _checked(dataset, part, images, labels, place):
    """Returns the whole part as a `Split`, after checking its bytes against the originals'."""
    images, labels = np.ascontiguousarray(images), labels.astype(np.uint8)
    for name, array, expected in zip(
        ("images", "labels"), (images, labels), dataset.digests[part], strict=True
    ):
        digest = hashlib.sha256(array).hexdigest()
        if digest != expected:
            raise InputError(
                f"{place}: the {part} {name} are not {dataset.title}'s: "
                f"expected sha256 {expected[:12]}..., got {digest[:12]}..."
            )
    name = "training" if part == "train" else "test"
    name = f"{dataset.title} {name} set ({len(images):,} images)"
    return Split(images, labels.astype(np.int32), name, place, is_sample=False)


def _from_tfds(dataset, part, prepared):
    place = f"TFDS directory {prepared}"
    _read_description(prepared / "dataset_info.json")
    _check_features(prepared / "features.json")
    import tensorflow_datasets as tfds  # here, since importing it is slow and rarely needed

    try:
        # By directory and not by name, since a name may be looked up on the network.
        builder = tfds.builder_from_directory(prepared)
        images, labels, ids = _read_records(builder.info.splits[part].filepaths)
        n = dataset.sizes[part]
        if images.shape != (n, *dataset.image_shape) or labels.shape != (n,):
            raise ValueError(
                f"expected {n:,} images {dataset.image_shape} and labels in its split {part}, "
                f"got {images.shape} and {labels.shape}"
            )
        if all(ids):
            order = np.argsort(ids)
        else:
            # TFDS sorts examples by the md5 of the split's name followed by their key, and MNIST's
            # key is the original position. Sorting all positions this way gives TFDS's order.
            digests = [hashlib.md5(f"{part}{i}".encode()).digest() for i in range(n)]
            order = np.argsort(np.argsort(digests))
        images, labels = images[order], labels[order]
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{place} cannot be read: {_one_line(error)}") from error
    return _checked(dataset, part, images, labels, place)


def _read_records(paths):
    """Reads TFDS's records in their order, in a third of the time that TFDS itself takes.

    Returns:
        uint8 images (n, height, width, channels), int64 labels (n,), and byte strings (n,), the
        examples' ids, which are empty if the data set has none.
    """
    features = {
        "image": tf.io.FixedLenFeature((), tf.string),
        "label": tf.io.FixedLenFeature((), tf.int64),
        "id": tf.io.FixedLenFeature((), tf.string, default_value=""),
    }
    decode = tf.function(
        lambda images: tf.map_fn(tf.io.decode_png, images, fn_output_signature=tf.uint8),
        autograph=False,
        reduce_retracing=True,
    )
    batches = []
    for records in tf.data.TFRecordDataset([str(path) for path in paths]).batch(1000):
        batch = tf.io.parse_example(records, features)
        batches.append([decode(batch["image"]), batch["label"], batch["id"]])
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _read_description(path):
    """Reads one of TFDS's descriptions as a dict; raises InputError if it is not one."""
    description = read_json(path)
    if not isinstance(description, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(description).__name__}")
    return description


def _check_features(path):
    """Raises InputError if TFDS would import a module outside TFDS to read these features."""
    values = [_read_description(path)]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for name in ("pythonClassName", "python_class_name", "type"):
                of_class = value.get(name)
                is_imported = isinstance(of_class, str) and "." in of_class
                if is_imported and not of_class.startswith(_FEATURES):
                    raise InputError(
                        f"{path}: expected {name} to begin with {_FEATURES}, got "
                        f"{one_line(of_class)}"
                    )
            values += value.values()
        elif isinstance(value, list):
            values += value


def _read_mnist_files(paths, dataset, part):
    n = dataset.sizes[part]
    images = _read_idx(paths[0], 2051, (n, 28, 28))
    return images[..., np.newaxis], _read_idx(paths[1], 2049, (n,))


def _read_idx(path, magic, shape):
    """Reads a gzipped IDX file of unsigned bytes; the header must say `magic` and `shape`."""
    header_size, size = 4 + 4 * len(shape), int(np.prod(shape))
    try:
        with gzip.open(path) as file:
            content = file.read(header_size + size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {_one_line(error)}") from error
    if len(content) < header_size:
        raise InputError(f"{path}: expected an IDX header of {header_size} bytes, got {content!r}")
    found = struct.unpack(f">{1 + len(shape)}I", content[:header_size])
    if found != (magic, *shape):
        raise InputError(f"{path}: expected IDX magic and counts {(magic, *shape)}, got {found}")
    if len(content) != header_size + size:
        came = f"{len(content) - header_size:,}" if len(content) < header_size + size else "more"
        raise InputError(f"{path}: expected {size:,} bytes after the IDX header, got {came}")
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _read_cifar10_files(paths, dataset, part):
    batches = [_read_cifar10_batch(path) for path in paths]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return images, labels


def _read_cifar10_batch(path):
    """Reads one pickle of the "python version"; its rows are the three colour planes in turn."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_BATCH + 1)
        if len(content) > _LARGEST_BATCH:
            raise pickle.UnpicklingError(f"it has more than {_LARGEST_BATCH:,} bytes")
        batch = plain_pickle.loads(content, path)
        if not isinstance(batch, dict):
            raise pickle.UnpicklingError("it is not a dict")
        # Python 2 wrote the names as bytes.
        batch = {name.encode() if isinstance(name, str) else name: batch[name] for name in batch}
        rows, labels = batch[b"data"], _labels(batch[b"labels"])
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {_one_line(error)}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"{path} is not a CIFAR-10 batch: {_one_line(error)}") from error
    is_array = isinstance(rows, np.ndarray)
    found = f"{rows.dtype} {rows.shape}" if is_array else type(rows).__name__
    if found != "uint8 (10000, 3072)" or labels.shape != (10000,):
        raise InputError(
            f"{path}: expected uint8 data (10000, 3072) and 10,000 labels, "
            f"got {found} and {labels.shape}"
        )
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _labels(values):
    """uint8 classes (n,) from a list of int or an array."""
    if isinstance(values, list) and all(type(value) is int for value in values):
        values = np.array(values)
    if not isinstance(values, np.ndarray) or values.ndim != 1:
        raise pickle.UnpicklingError("its labels are not a list of integers")
    if not np.all((values >= 0) & (values <= 9)):
        raise pickle.UnpicklingError("its labels are not all from 0 to 9")
    return values.astype(np.uint8)


def _reachable(url):
    """Whether the server of `url` answers within seconds; an HTTP error is an answer."""
    answers = []

    def ask():
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=_NETWORK_TIMEOUT).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except (OSError, ValueError):
            answers.append(False)

    # In a thread, since looking up the host's name has no time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NETWORK_TIMEOUT)
    return answers == [True]


def _download(dataset, root):
    """Downloads into `root` with TFDS's progress bar; returns None, or the reason of a failure."""
    import tensorflow_datasets as tfds

    name, version = dataset.tfds_name.split("/")
    try:
        builder = tfds.builder(f"{name}:{version}", data_dir=root, try_gcs=False)
        builder.download_and_prepare()
    except Exception as error:  # noqa: BLE001 (network, server and disk raise many kinds)
        return _one_line(error)
    return None


def _from_sample(dataset, reason):
    path = _SAMPLES / f"{dataset.tfds_name.split('/')[0]}.npz"
    try:
        with np.load(path, allow_pickle=False) as sample:
            images, labels = sample["images"], sample["labels"]
        images = images.reshape(-1, *dataset.image_shape)
        if (
            images.dtype != np.uint8
            or labels.shape != (len(images),)
            or labels.dtype.kind not in "iu"
        ):
            raise ValueError(
                f"expected uint8 images and as many integer labels, got {images.dtype} "
                f"{images.shape} and {labels.dtype} {labels.shape}"
            )
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"the sample {path} cannot be read: {_one_line(error)}") from error
    name = f"shipped sample: {dataset.sample}"
    return Split(images, labels.astype(np.int32), name, reason, is_sample=True)


def _one_line(error):
    return f"{type(error).__name__}: {one_line(error)[:200]}"


_MNIST = _Dataset(
    title="MNIST",
    tfds_name="mnist/3.0.1",
    url="https://storage.googleapis.com/cvdf-datasets/mnist/train-labels-idx1-ubyte.gz",
    image_shape=(28, 28, 1),
    sizes={"train": 60000, "test": 10000},
    digests={
        "train": (
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        ),
        "test": (
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        ),
    },
    folders=(".", "MNIST_data"),
    file_names={
        "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    },
    read_files=_read_mnist_files,
    sample="1,000 images of MNIST's first 5,000 training images, 100 a class (not the test set)",
)
_CIFAR10 = _Dataset(
    title="CIFAR-10",
    tfds_name="cifar10/3.0.2",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    image_shape=(32, 32, 3),
    sizes={"train": 50000, "test": 10000},
    digests={
        "train": (
            "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        ),
        "test": (
            "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        ),
    },
    folders=(".", "cifar10_data", "cifar-10-batches-py", "cifar10_data/cifar-10-batches-py"),
    file_names={
        "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test": ("test_batch",),
    },
    read_files=_read_cifar10_files,
    sample="1,000 images of CIFAR-10's test set, the first 100 of each class",
)
