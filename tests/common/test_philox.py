import numpy as np
import pytest
import tensorflow as tf

from common import philox
from common.attack import draws
from common.attack.ball import draw

SEEDS = [(0, 0), (451760341, 77), (-4, 2**31 - 1), (2**40 + 3, -(2**50))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shuffle_is_tensorflows(seed):
    tensors = tf.constant(seed, tf.int64)
    for count in (1, 2, 7, 300):
        expected = tf.random.experimental.stateless_shuffle(tf.range(count), tensors, alg="philox")
        np.testing.assert_array_equal(philox.shuffled(count, seed), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_those_of_tensorflows_whole_numbers(seed):
    expected = tf.random.stateless_uniform(
        [9], tf.constant(seed, tf.int64), None, None, tf.int32, alg="philox"
    )
    np.testing.assert_array_equal(philox.words(seed, 9).ravel()[:9].astype("i4"), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_draws_for_many_seeds_at_once_are_tensorflows_for_each_seed_bit_for_bit(jit_compile):
    seeds = tf.constant([[3, 5], [-1, 2**31 - 1], [0, 0]])
    uniform = tf.function(lambda seeds: draws.uniform(seeds, 6), jit_compile=jit_compile)
    expected = [tf.random.stateless_uniform([6], seed, alg="philox") for seed in seeds]
    np.testing.assert_array_equal(uniform(seeds), expected)

    index = tf.constant([4, -9, 2**31 - 1])
    folded = tf.function(draws.fold_in, jit_compile=jit_compile)(seeds, index)
    pairs = zip(seeds, index, strict=True)
    expected = [tf.random.fold_in(seed, i, alg="philox") for seed, i in pairs]
    np.testing.assert_array_equal(folded, expected)

    for stream in (None, 2):
        side_by_side = tf.function(
            lambda seed, index, stream=stream: draw([2, 3], seed, index, stream, side_by_side=True),
            jit_compile=jit_compile,
        )
        expected = draw([2, 3], [7, 1], index, stream)
        np.testing.assert_array_equal(side_by_side(tf.constant([7, 1]), index), expected)
