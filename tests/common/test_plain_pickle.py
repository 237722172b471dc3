"""The reader of CIFAR-10's pickles, on the originals' form and on any other content."""

import codecs
import contextlib
import gzip
import io
import os
import pickle
import random
import re
import struct

import numpy as np
import pytest

from common import data, plain_pickle
from common.errors import InputError

ROWS = np.arange(24, dtype=np.uint8).reshape(2, 12) * 11  # bytes above 127, too
LABELS = [3, 8]


def python2_batch(rows, labels, dtype=b"u1", dtype_state=None, state=None):
    """A batch as Python 2's cPickle wrote the originals: protocol 2, strings of bytes."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    dtype_state = (
        dtype_state or b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    )
    count, width = rows.shape
    shape = b"M" + struct.pack("<H", count) + b"M" + struct.pack("<H", width) + b"\x86"
    of_dtype = b"cnumpy\ndtype\nq\x08" + text(dtype) + b"K\x00K\x01\x87Rq\x0a" + dtype_state + b"b"
    raw = b"T" + struct.pack("<i", rows.nbytes) + rows.tobytes()
    return (
        b"\x80\x02}q\x01("
        + (text(b"batch_label") + b"q\x02" + text(b"testing batch 1 of 1") + b"q\x03")
        + (text(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([n]) for n in labels) + b"e")
        + (text(b"data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07")
        + (b"cnumpy\nndarray\nq\x0bK\x00\x85" + text(b"b") + b"\x87Rq\x09")
        + (state or b"(K\x01" + shape + of_dtype + b"\x89" + raw + b"t")
        + (b"b" + text(b"filenames") + b"q\x0c](" + text(b"domestic_cat_s_000907.png") + b"eu.")
    )


def batch_of(protocol=2):
    return pickle.dumps({b"data": ROWS, b"labels": LABELS}, protocol)


def numpy1(content):
    """A pickle of NumPy 2 as NumPy 1 would have written it."""
    for name in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + name, b"numpy.core." + name
        content = content.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
        content = content.replace(new, old)
    return content


# What is read.


def test_the_originals_form_is_read_as_pickle_reads_it():
    content = python2_batch(ROWS, LABELS)
    expected = pickle.loads(content, encoding="bytes")
    found = plain_pickle.loads(content, "file")
    assert list(found) == list(expected) and found[b"labels"] == LABELS
    np.testing.assert_array_equal(found[b"data"], ROWS)
    assert found[b"data"].dtype == np.uint8
    assert found[b"filenames"] == [b"domestic_cat_s_000907.png"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("old", [False, True], ids=["numpy 2", "numpy 1"])
def test_python_3s_pickles_are_read(protocol, old):
    arrays = [ROWS, np.asfortranarray(ROWS), ROWS[:, 0], np.arange(5, dtype=">i4"), np.arange(3)]
    values = [
        *arrays,
        None,
        True,
        7,
        -1,
        1 << 70,
        2.5,
        b"\xff\x00",
        "caf\u00e9",
        [[1], {"a": b"b"}],
    ]
    content = pickle.dumps({"values": values}, protocol)
    found = plain_pickle.loads(numpy1(content) if old else content, "file")["values"]
    for array, its in zip(arrays, found[: len(arrays)], strict=True):
        np.testing.assert_array_equal(its, array)
        assert its.dtype == array.dtype
    assert found[len(arrays) :] == values[len(arrays) :]


def test_a_whole_batch_in_every_form_is_the_same(tmp_path):
    rng = np.random.default_rng(0)
    rows, labels = (
        rng.integers(256, size=(10000, 3072), dtype=np.uint8),
        rng.integers(10, size=10000),
    )
    forms = [
        python2_batch(rows, labels),
        pickle.dumps({b"data": rows, b"labels": labels.tolist()}, 2),
        pickle.dumps({"data": rows, "labels": labels}, 4),
        pickle.dumps({"data": np.asfortranarray(rows), "labels": labels.astype("u1")}, 5),
    ]
    for content in forms:
        (tmp_path / "test_batch").write_bytes(content)
        images, classes = data.read_cifar10_batch(tmp_path / "test_batch")
        assert images.shape == (10000, 32, 32, 3) and images.dtype == np.uint8
        np.testing.assert_array_equal(images[:, 1, 2, 0], rows[:, 34])
        np.testing.assert_array_equal(classes, labels)


# What is refused.


def refusal(content, path):
    """The message about a file with this content, which is one line that names the file."""
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        data.read_cifar10_batch(path)
    message = str(error.value)
    assert str(path) in message and len(message.splitlines()) == 1
    return message


class Call:
    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def with_dtype_state(middle):
    return python2_batch(ROWS, LABELS, dtype_state=b"(K\x03U\x01" + middle + b"t")


def with_width(instruction):
    """A batch of which an instruction tells the width, in place of the true 7."""
    return python2_batch(ROWS[:, :7], LABELS).replace(b"M\x07\x00", instruction)


MINUS_1 = b"J\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "content, expected",
    [
        # NumPy would take the bytes for the addresses of objects.
        (python2_batch(ROWS, LABELS, dtype=b"O8"), "expected an array of integers"),
        (python2_batch(ROWS, LABELS, dtype=b"|O"), "expected an array of integers"),
        (python2_batch(ROWS, LABELS, dtype=b"f4"), "expected an array of integers"),
        (python2_batch(ROWS, LABELS, dtype=b"u1,O"), "expected an array of integers"),
        (with_dtype_state(b"|N)}" + 2 * MINUS_1 + b"K\x3f"), "got one with parts"),
        (with_dtype_state(b"ONNN" + 2 * MINUS_1 + b"K\x00"), "byte order"),
        (python2_batch(ROWS, LABELS, state=b"(K\x01K\x02K\x63\x86NNNt"), "the bytes of an array"),
        (python2_batch(ROWS, LABELS, state=b"}"), "the state of an array"),
        (with_width(b"M\x08\x00"), "as many bytes"),
        (with_width(MINUS_1), "bytes fill"),
        (with_width(b"\x8a\x09" + b"\x7f" * 9), "bytes fill"),
        (pickle.dumps({b"data": np.array([{}, 1], dtype=object)}, 2), "array of integers"),
        (pickle.dumps({b"data": np.zeros(3, "u1,i4")}, 2), "array of integers"),
        (pickle.dumps({b"data": np.zeros(3, "V3")}, 2), "array of integers"),
        (pickle.dumps({b"data": np.zeros(3, "M8[s]")}, 2), "array of integers"),
        (pickle.dumps({b"data": np.ma.zeros(3)}, 2), "refused to load numpy"),
        (pickle.dumps({b"data": np.float64(1)}, 2), "refused to load numpy"),
        (pickle.dumps({b"data": Call(np.ndarray, (3,), "O")}, 2), "a call of something else"),
        (pickle.dumps({b"data": Call(bytes, 1 << 40)}, 2), "refused to load __builtin__.bytes"),
        (pickle.dumps({b"data": Call(os.system, "true")}, 4), "refused to load posix.system"),
        (b"cnumpy\nos.system\n.", "refused to load numpy.os.system"),
        (b"cnumpy\n\x1b[2J\nerror\n.", r"refused to load numpy.\\x1b\[2J"),
        (pickle.dumps({b"data": Call(codecs.encode, "a", "hex")}, 2), "bytes"),
        (b"Pid\n.", "the instruction PERSID"),
        (b"I1\nQ.", "the instruction BINPERSID"),
        (b"\x82\x01.", "the instruction EXT1"),
        (b"\x84\xff\xff\xff\x00.", "the instruction EXT4"),
        (b"cnumpy\nndarray\n)\x81.", "the instruction NEWOBJ"),
        (b"(inumpy\nndarray\n.", "the instruction INST"),
        (b"(cnumpy\nndarray\no.", "the instruction OBJ"),
        (b"\x8f.", "the instruction EMPTY_SET"),
        (b"\x97.", "the instruction NEXT_BUFFER"),
        (b"cnumpy\nndarray\n}U\x01aK\x01sb.", "the state of an array"),
        (b"B\xff\xff\xff\xff.", "cannot|expected 4294967295 bytes"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f.", "bytes"),
        (b"\x95" + b"\xff" * 8 + b".", "it is not a dict|the pickle|value"),
        (b"]r\xff\xff\xff\x7f.", "it is not a dict"),
        (b"h\x01.", "is not a CIFAR-10 batch"),
        (b"a.", "is not a CIFAR-10 batch"),
        (b"(((.", "is not a CIFAR-10 batch"),
        (b"(" * 100_000, "is not a CIFAR-10 batch"),
        (b"]" * 100_000 + b"a" * 99_999 + b".", "it is not a dict"),
        (b"}" + b")" + b"\x85" * 100_000 + b"Ns.", "text as the keys"),
        (b"]q\x00h\x00a.", "it is not a dict"),
        (b"}q\x00U\x04datah\x00sU\x06labels]q\x01h\x01as.", "its labels are not a list"),
        (b"}U\x04data]q\x00h\x00asU\x06labels]s.", "got list and"),
        (b"}U\x06labels]K\x0aasU\x04dataNs.", "its labels are not all from 0 to 9"),
        (b"}U\x06labels]\x8a\x09" + b"\x7f" * 9 + b"asU\x04dataNs.", "its labels are not"),
        (b"}U\x06labels]G" + bytes(8) + b"asU\x04dataNs.", "its labels are not a list"),
        (b"L" + b"9" * 5000 + b"L\n.", "is not a CIFAR-10 batch"),
        (b"K\x01.", "it is not a dict"),
    ],
)  # fmt: skip
def test_what_the_originals_do_not_hold_is_refused(content, expected, tmp_path):
    assert re.search(expected, refusal(content, tmp_path / "test_batch"))


def test_a_repeated_text_cannot_fill_the_memory(tmp_path):
    """A small file would fill the memory."""
    text = "\u00e9" * 100_000
    content = b"\x80\x04" + b"X" + struct.pack("<I", 200_000) + text.encode() + b"q\x00"
    encode = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    assert "no more bytes than the pickle has" in refusal(content + encode * 9, tmp_path / "file")


def test_a_file_far_larger_than_the_originals_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGEST_BATCH", 1000)
    assert "more than 1,000 bytes" in refusal(bytes(1001), tmp_path / "test_batch")


def test_a_directory_instead_of_a_batch_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} cannot be read: IsADirectoryError"):
        data.read_cifar10_batch(tmp_path)


# Whatever else a file may hold.

SEEDS = [python2_batch(ROWS, LABELS), *(batch_of(protocol) for protocol in (0, 2, 4, 5))]


def mutated(content, rng):
    """`content` with some bytes changed, left out, doubled, or put in from elsewhere."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del content[at : at + rng.randint(1, 8)]
        elif kind == 2:
            content[at:at] = content[at : at + rng.randint(1, 30)]
        elif kind == 3:
            other = rng.choice(SEEDS)
            start = rng.randrange(len(other))
            content[at:at] = other[start : start + rng.randint(1, 30)]
        elif kind == 4:
            content[at : at + 1] = rng.choice(b"().]}Rbaeust0123NJKMTUXBGcqrhjlp").to_bytes(
                1, "little"
            )
        else:
            content[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)))
    return bytes(content)


def fuzz_pickles(count, seed=0):
    """Reads mutations of small batches; they may be damaged, or refused, and no more."""
    rng = random.Random(seed)
    for _ in range(count):
        with contextlib.suppress(InputError, pickle.UnpicklingError):
            plain_pickle.loads(mutated(rng.choice(SEEDS), rng), "file")


def test_mutations_of_batches_are_refused():
    fuzz_pickles(5000)


def test_mutations_of_idx_files_are_refused(tmp_path):
    rng = random.Random(2)
    path, images = tmp_path / "images.gz", ROWS.reshape(2, 3, 4)
    content = struct.pack(">4I", 2051, *images.shape) + images.tobytes()
    packed, num_read = gzip.compress(content, mtime=0), 0
    for _ in range(1000):
        changed = (
            mutated(packed, rng) if rng.random() < 0.5 else gzip.compress(mutated(content, rng))
        )
        path.write_bytes(changed)
        try:
            assert data.read_idx(path, 2051, images.shape).shape == images.shape
            num_read += 1
        except InputError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
    assert 0 < num_read < 500


def test_mutations_of_a_sample_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SAMPLES", tmp_path)
    rng = random.Random(3)
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((2, 784), np.uint8), labels=np.arange(2, dtype=np.uint8))
    for _ in range(300):
        (tmp_path / "mnist.npz").write_bytes(mutated(buffer.getvalue(), rng))
        try:
            assert data.load_mnist("sample").images.shape == (2, 28, 28, 1)
        except InputError as error:
            assert "mnist.npz cannot be read" in str(error)
