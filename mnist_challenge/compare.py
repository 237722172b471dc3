"""The original leaderboard's numbers beside those of a MNIST model under the same attacks.

python mnist_challenge/compare.py [--model_dir=...] [--long] [--rows=...] [--output_json=...]
python mnist_challenge/compare.py --attack_file=attack.npy [--model_dir=...]
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

    from common.scripts import app
    from common.scripts import compare as comparison
    from mnist_challenge.challenge import MNIST

    app.run(comparison.compare, MNIST, comparison.define_flags, comparison.USES)
