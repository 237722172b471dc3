import dataclasses
import hashlib
import pickle

import numpy as np
import pytest

from cifar10_challenge.challenge import CIFAR10
from common import checkpoints, config, submission
from common.errors import InputError
from common.scripts import attack_file
from mnist_challenge.challenge import MNIST
from tests.helpers import ROOT, run

BOTH = pytest.mark.parametrize(
    "challenge, epsilon", [(MNIST, 0.3), (CIFAR10, 8.0)], ids=["mnist", "cifar10"]
)


def grey(challenge, n=3):
    """Images halfway between black and white, and the same as an attack file holds them."""
    x_nat = np.full((n, *challenge.image_shape), np.mean(challenge.bounds), np.float32)
    return x_nat, x_nat.reshape(n, *challenge.submission_shape).copy()


# Files.


@BOTH
def test_save_and_load(tmp_path, challenge, epsilon):
    x_adv = np.random.default_rng(0).random((3, *challenge.image_shape))
    path = tmp_path / "attack.npy"
    submission.save(path, x_adv, challenge, {"model": "adv_trained", "seed": 1})
    loaded = submission.load(path)
    assert loaded.shape == (3, *challenge.submission_shape) and loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded.reshape(x_adv.shape), x_adv.astype(np.float32))
    np.testing.assert_array_equal(np.load(path), loaded)
    note = submission.load_note(path)
    assert note.pop("file_sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert note == {"model": "adv_trained", "seed": 1}
    np.save(path, x_adv)  # by someone else, so that the note is of another file
    assert submission.load_note(path) == {}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["attack.npy", "attack.npy.json"]


def test_a_link_to_an_attack_file_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    path = tmp_path / "attack.npy"
    path.symlink_to(tmp_path / "disk" / "attack.npy")
    submission.save(path, grey(MNIST)[0], MNIST, {"seed": 1})
    assert path.is_symlink() and submission.load_note(path)["seed"] == 1
    assert [file.name for file in (tmp_path / "disk").iterdir()] == ["attack.npy"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "attack.npy"
    submission.save(path, grey(MNIST)[0], MNIST, {"seed": 1})
    old = path.read_bytes()
    with pytest.raises(ValueError, match="reshape"):
        submission.save(path, np.ones((3, 5)), MNIST, {"seed": 2})
    assert path.read_bytes() == old and submission.load_note(path)["seed"] == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [None, "", "no json", "[1]"])
def test_a_missing_note_is_an_empty_dict(tmp_path, content):
    if content is not None:
        (tmp_path / "attack.npy.json").write_text(content)
    assert submission.load_note(tmp_path / "attack.npy") == {}


@pytest.mark.parametrize(
    "content",
    [b"", b'{"model": ', b"[1]", b"7", b"null", b"\xff\xfe", b"[" * 300_000, b'{"a": 1, "a": 2}'],
    ids=["empty", "half", "list", "number", "null", "not text", "deep", "twice"],
)
def test_a_damaged_note_is_reported_in_one_line_and_ignored(tmp_path, content, capsys):
    path = tmp_path / "attack.npy"
    submission.save(path, grey(MNIST)[0], MNIST, {"seed": 1})
    (tmp_path / "attack.npy.json").write_bytes(content)
    assert submission.load_note(path) == {}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"note: {path}.json cannot be read: ")
    assert (tmp_path / "attack.npy.json").read_bytes() == content


def test_a_note_that_is_a_directory_counts_as_none(tmp_path, capsys):
    (tmp_path / "attack.npy.json").mkdir()
    assert submission.load_note(tmp_path / "attack.npy") == {}
    assert "Is a directory" in capsys.readouterr().out


@pytest.mark.parametrize(
    "model", ["x\nAccuracy: 0.00%", "\x1b[2J\x1b[HAccuracy: 0.00%", {"a": [1]}, None, "x" * 10**6]
)
def test_a_notes_text_does_not_pass_for_the_programs(model, tmp_path, capsys):
    x = MNIST.to_pixels(MNIST.load("sample").images[:5])
    path = tmp_path / "attack.npy"
    submission.save(path, x, MNIST, {"model": model, "model_digest": ["of", "another"]})
    layer = {"model_dir": "adv_trained", "num_eval_examples": 5, "data_dir": None}
    settings = config.make_config(MNIST, ("test", layer))
    challenge = dataclasses.replace(
        MNIST, load=lambda split, data_dir, allow_sample: MNIST.load("sample")
    )
    attack_file.score(challenge, settings, path)
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("note: ")]
    assert "made on another model, " in line and line.endswith("that of a transfer attack")
    assert "\x1b" not in printed and "\nAccuracy" not in printed and len(line) < 3000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*attack\.npy: No such file"):
        submission.load(tmp_path / "attack.npy")


def npy(header):
    header = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        b"PK\x03\x04",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 784)}") + b"too short",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000,)}"),
        npy("{'descr': '<f4', 'fortran_order': "),
        npy("{[]: 1}"),
    ],
    ids=["empty", "text", "npz", "cut", "huge", "half a header", "no dict"],
)
def test_a_file_that_is_not_an_array_is_refused(tmp_path, content):
    path = tmp_path / "attack.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"expected a \.npy file with numbers in .*attack\.npy"):
        submission.load(path)


@pytest.mark.parametrize("wrapped", [True, False], ids=["npy", "bare pickle"])
def test_a_pickle_is_refused_unread(tmp_path, wrapped):
    trace = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return open, (str(trace), "w")

    path = tmp_path / "attack.npy"
    if wrapped:
        np.save(path, np.array([Malicious()], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(InputError, match=r"expected a \.npy file with numbers"):
        submission.load(path)
    assert not trace.exists()
    with path.open("rb") as file:  # it would have run
        np.load(file, allow_pickle=True)
    assert trace.exists()


# Rules.


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_attack_file_on_the_edge_of_ball_and_box_passes(challenge, epsilon, dtype):
    x_nat, x_adv = grey(challenge)
    x_nat[0], x_nat[1] = challenge.bounds
    x_adv[:2] = x_nat[:2].reshape(x_adv[:2].shape)
    x_adv = x_adv.astype(dtype)
    x_adv[0] += epsilon
    x_adv[1] -= epsilon
    x_adv[2].flat[::2] += epsilon
    submission.check(x_adv, x_nat, challenge, epsilon)


def test_whole_numbers_pass():
    x_nat = np.full((2, 32, 32, 3), 100, np.float32)
    submission.check(np.full((2, 32, 32, 3), 108, np.uint8), x_nat, CIFAR10, 8.0)


@BOTH
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("edge_of", ["ball", "box"])
def test_the_tolerance_is_the_originals(challenge, epsilon, sign, edge_of):
    x_nat, x_adv = grey(challenge)
    x_adv = x_adv.astype(np.float64)
    if edge_of == "ball":
        edge = x_nat[0, 0, 0, 0] + sign * epsilon
        expected = r"Invalid perturbation: expected at most .* from the test image, found [\d.]+"
    else:
        edge = x_nat[...] = x_adv[...] = challenge.bounds[sign == 1]
        expected = r"Invalid pixel range: expected \[.*\], found \[.*\]"
    x_adv[2].flat[7] = edge + sign * 0.99e-4
    submission.check(x_adv, x_nat, challenge, epsilon)
    x_adv[2].flat[7] = edge + sign * 2e-4
    with pytest.raises(InputError, match=expected + r" \(image 2,"):
        submission.check(x_adv, x_nat, challenge, epsilon)


@BOTH
@pytest.mark.parametrize(
    "value, expected",
    [
        (np.nan, r"Invalid pixels: expected numbers, found NaN \(image 1, counted from 0\)$"),
        (np.inf, r"Invalid pixel range: expected \[0, \d+\], found \[[\d.]+, inf\] \(image 1,"),
        (-999, r"Invalid pixel range: expected \[0, \d+\], found \[-999, [\d.]+\] \(image 1,"),
    ],
)
def test_the_first_bad_image_is_named(challenge, epsilon, value, expected):
    x_nat, x_adv = grey(challenge)
    x_adv[1:].flat[5] = value
    x_adv[2:].flat[9] = value
    with pytest.raises(InputError, match=expected):
        submission.check(x_adv, x_nat, challenge, epsilon)


def test_images_are_counted_through_a_long_file():
    x_nat, x_adv = grey(MNIST, 502)
    x_adv[501, 3] = 0.9
    expected = r"Invalid perturbation: .* at most 0.3 .*, found 0.4 \(image 501, counted from 0\)$"
    with pytest.raises(InputError, match=expected):
        submission.check(x_adv, x_nat, MNIST, 0.3)


@pytest.mark.parametrize(
    "x_adv, expected",
    [
        (np.zeros((2, 784)), r"Invalid shape: expected \(3, 784\), found \(2, 784\)"),
        (np.zeros((3, 28, 1, 28)), r"Invalid shape: expected \(3, 784\), found \(3, 28, 1, 28\)"),
        (np.zeros((0, 784)), r"Invalid shape: expected \(3, 784\), found \(0, 784\)$"),
        (np.zeros((5, 784)), r"Invalid shape: expected \(3, 784\), found \(5, 784\)$"),
        (
            np.zeros((2, 28, 28)),
            r"found \(2, 28, 28\); --num_eval_examples=2 takes the first 2 test images$",
        ),
        (np.float32(0), r"Invalid shape: expected \(3, 784\), found \(\)"),
        (np.zeros((3, 784), complex), "Invalid dtype: expected real numbers, found complex128"),
        (np.zeros((3, 784), bool), "Invalid dtype: expected real numbers, found bool"),
        (np.zeros((3, 784), "S4"), "Invalid dtype: expected real numbers, found .S4"),
        (np.zeros((3, 784), "f4, f4"), "Invalid dtype: expected real numbers, found .*f0"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(x_adv, expected):
    with pytest.raises(InputError, match=expected):
        submission.check(x_adv, grey(MNIST)[0], MNIST, 0.3)


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 28, 28, 1)])
def test_mnist_images_in_rows_and_columns_are_taken(shape):
    x_nat, x_adv = grey(MNIST)
    x_adv[1, 30] += 0.2  # row 1, column 2
    submission.check(x_adv.reshape(shape), x_nat, MNIST, 0.3)
    x_adv[1, 30] += 0.2
    with pytest.raises(InputError, match=r"found 0.4 \(image 1, counted from 0\)$"):
        submission.check(x_adv.reshape(shape), x_nat, MNIST, 0.3)


def test_cifar10_images_as_rows_are_refused_as_their_order_is_not_known():
    with pytest.raises(InputError, match=r"Invalid shape: expected .*, found \(3, 3072\)$"):
        submission.check(np.zeros((3, 3072)), grey(CIFAR10)[0], CIFAR10, 8.0)


@BOTH
def test_pixels_in_other_units_get_a_hint(challenge, epsilon):
    x_nat, x_adv = grey(challenge)
    high = challenge.bounds[1]
    if challenge is MNIST:
        x_adv, hint = x_adv * 255, r"; pixels are in \[0, 1\]: divide pixels in \[0, 255\] by 255$"
    else:
        x_adv, hint = (
            x_adv / 255,
            r"; pixels are in \[0, 255\]: multiply pixels in \[0, 1\] by 255$",
        )
    with pytest.raises(InputError, match=r"\(image 0, counted from 0\)" + hint):
        submission.check(x_adv, x_nat, challenge, epsilon)
    # A single pixel, or dark images, do not mean other units.
    x_nat, x_adv = grey(challenge)
    x_adv[0].flat[0] = high * 1.5
    with pytest.raises(InputError, match=r"counted from 0\)$"):
        submission.check(x_adv, x_nat, challenge, epsilon)


# The originals' own check, in NumPy.


def originals_accept(path, x_nat, challenge, epsilon):
    """Whether the original run_attack.py takes a file: shape, range, MNIST's NaN, distance."""
    x_adv = np.load(path)
    low, high = challenge.bounds
    x_nat = x_nat.reshape(-1, *challenge.submission_shape)
    if x_adv.shape != x_nat.shape or np.amin(x_adv) < low - 1e-4 or np.amax(x_adv) > high + 1e-4:
        return False
    if challenge is MNIST and np.isnan(np.amax(x_adv)):
        return False
    distance = max(
        np.amax(np.abs(x_nat[i : i + 64] - x_adv[i : i + 64])) for i in range(0, len(x_nat), 64)
    )
    return bool(distance <= epsilon + 1e-4)


@BOTH
def test_the_originals_accept_what_pgd_attack_writes(challenge, epsilon, tmp_path):
    size = {"scale": 1} if challenge is MNIST else {"width": "simple"}
    model = challenge.build_model(config.make_config(challenge, ("test", size)))
    checkpoints.export(model, tmp_path / "model")
    few = ("--model_dir=model", "--num_eval_examples=70")
    steps = ("--num_steps=3", f"--step_size={epsilon / 2}")
    made = run(challenge.directory / "pgd_attack.py", *few, *steps, cwd=tmp_path)
    path = tmp_path / "attack.npy"
    sample = np.load(ROOT / "common" / "samples" / f"{challenge.name.lower().replace('-', '')}.npz")
    x_nat = challenge.to_pixels(sample["images"][:70].reshape(70, *challenge.image_shape))
    x_adv = submission.load(path)
    assert path.read_bytes()[6:8] == b"\x01\x00"  # the format that NumPy always knew
    assert x_adv.dtype == np.float32 and x_adv.flags.c_contiguous
    distance = np.abs(x_adv.reshape(x_nat.shape) - x_nat).max()
    assert distance == pytest.approx(epsilon, abs=1e-4)  # the ball is used to its edge
    assert originals_accept(path, x_nat, challenge, epsilon)
    assert not originals_accept(path, x_nat, challenge, epsilon / 2)
    submission.check(x_adv, x_nat, challenge, epsilon)
    scored = run(challenge.directory / "run_attack.py", *few, cwd=tmp_path)
    assert made.split("Accuracy under attack: ")[1].splitlines()[0] in scored


@BOTH
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_the_originals_accept_passes(challenge, epsilon, dtype, order, tmp_path):
    rng = np.random.default_rng(0)
    low, high = challenge.bounds
    x_nat = challenge.to_pixels(rng.integers(256, size=(70, *challenge.image_shape)).astype("u1"))
    x_adv = x_nat + rng.uniform(-epsilon, epsilon, x_nat.shape) + 0.5e-4
    x_adv = np.clip(x_adv, low - 0.5e-4, high + 0.5e-4).reshape(70, *challenge.submission_shape)
    path = tmp_path / "attack.npy"
    np.save(path, np.asarray(x_adv.astype(dtype), order=order))
    assert originals_accept(path, x_nat, challenge, epsilon)
    loaded = submission.load(path)
    np.testing.assert_array_equal(loaded, np.load(path))
    submission.check(loaded, x_nat, challenge, epsilon)


@BOTH
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_the_originals_refuse_does_not_pass(challenge, epsilon, order, tmp_path):
    x_nat, x_adv = grey(challenge)
    path = tmp_path / "attack.npy"
    low, high = challenge.bounds
    spoilt = [x_adv[:2]]
    for value in (low - 1e-3, high + 1e-3, np.mean(challenge.bounds) + epsilon + 1e-3, np.nan):
        spoilt.append(x_adv.copy())
        spoilt[-1].flat[-1] = value
    for array in spoilt:
        np.save(path, np.asarray(array, order=order))
        # The original CIFAR-10 challenge does not look for NaN.
        if challenge is MNIST or not np.isnan(array).any():
            assert not originals_accept(path, x_nat, challenge, epsilon)
        with pytest.raises(InputError, match="Invalid"):
            submission.check(submission.load(path), x_nat, challenge, epsilon)
