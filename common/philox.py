"""Philox, the random numbers of TensorFlow's stateless ops with alg="philox" (Salmon et al. 2011).

Plain arithmetic gives the same numbers, bit for bit: for many seeds at once (TensorFlow's ops take
one), within XLA (whose Philox gives other numbers), and without TensorFlow. A word is 32 bits in an
int64 of NumPy or TensorFlow.
"""

import numpy as np

_WORD = 2**32 - 1
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_SEED_KEY = 0x3EC8F720, 0x02461E29  # TensorFlow's, with which it hashes a seed


def generator(seed):
    """The key and the upper half of the counter that TensorFlow derives from a seed.

    Args:
        seed: pair of int64 arrays or tensors, which broadcast.

    Returns:
        Two pairs of words.
    """
    counter = [word for part in seed for word in (part & _WORD, (part // 2**32) & _WORD)]
    first, second, third, fourth = block(_SEED_KEY, counter)
    return (first, second), (third, fourth)


def block(key, counter):
    """Four random words: Philox's ten rounds.

    Args:
        key: two words.
        counter: four words; key and counter broadcast.
    """
    (a, b, c, d), (left, right) = counter, key
    for _ in range(_ROUNDS):
        # Products of two words wrap round in an int64, to the right bits.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = ((second // 2**32) & _WORD) ^ b ^ left, second & _WORD
        c, d = ((first // 2**32) & _WORD) ^ d ^ right, first & _WORD
        left, right = (left + _INCREMENTS[0]) & _WORD, (right + _INCREMENTS[1]) & _WORD
    return a, b, c, d


def words(seed, count):
    """The words that TensorFlow's stateless ops use, in their order.

    Args:
        seed: two ints of 64 bits.
        count: int, how many words at least.

    Returns:
        int64 NumPy array (n, 4), the least n that suffices.
    """
    key, (third, fourth) = generator([np.array([part], np.int64) for part in seed])
    numbers = np.arange(-(-count // 4))
    return np.stack(block(key, (numbers, np.zeros_like(numbers), third, fourth)), axis=1)


def shuffled(count, seed):
    """The numbers 0 to `count` - 1 as tf.random.experimental.stateless_shuffle orders them.

    Args:
        count: int, below 2**32.
        seed: two ints of 64 bits.

    Returns:
        int64 NumPy array (count,).
    """
    order = list(range(count))
    for i, word in enumerate(words(seed, count).ravel()[: max(count - 1, 0)].tolist()):
        j = i + word % (count - i)
        order[i], order[j] = order[j], order[i]
    return np.array(order, np.int64)
