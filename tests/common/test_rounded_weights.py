import numpy as np
import pytest
import tensorflow as tf

from common import rounded_weights
from common.errors import InputError


def weights():
    generator = np.random.default_rng(0)
    return [
        generator.normal(size=(3, 3, 4, 5)).astype("f4"),
        generator.normal(size=5).astype("f4"),
        np.array([[1.0, 1 + 2**-8, 1 + 3 * 2**-8, -0.0, 1e-30]], "f4"),
        np.array(2.5, "f4"),
    ]


def test_kernels_become_the_nearest_bfloat16_and_the_rest_stays(tmp_path):
    rounded_weights.save(tmp_path, weights())
    loaded = rounded_weights.load(tmp_path)
    for array, original in zip(loaded, weights(), strict=True):
        assert array.dtype == np.float32 and array.shape == original.shape
        expected = original
        if original.ndim > 1:
            expected = tf.cast(tf.cast(original, tf.bfloat16), tf.float32).numpy()
        np.testing.assert_array_equal(array, expected)
    for array, expected in zip(rounded_weights.rounded(weights()), loaded, strict=True):
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(loaded[2][0, :3], [1.0, 1.0, 1 + 2**-6])  # ties to even


def test_parts_stay_small_and_all_are_needed_and_of_one_network(tmp_path, monkeypatch):
    monkeypatch.setattr(rounded_weights, "MOST_BYTES", 60)
    rounded_weights.save(tmp_path, weights())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["weights-1-of-2.npz", "weights-2-of-2.npz"]
    assert rounded_weights.are_in(tmp_path)

    other = tmp_path / "other"
    other.mkdir()
    rounded_weights.save(other, [w + 1 for w in weights()])
    second = tmp_path / names[1]
    whole = second.read_bytes()
    for damaged in ((other / names[1]).read_bytes(), whole[:-40], b""):
        second.write_bytes(damaged)
        with pytest.raises(InputError, match="weights"):
            rounded_weights.load(tmp_path)
    second.unlink()
    with pytest.raises(InputError, match="expected all files weights-1-of-N.npz"):
        rounded_weights.load(tmp_path)
    second.write_bytes(whole)
    assert len(rounded_weights.load(tmp_path)) == 4
