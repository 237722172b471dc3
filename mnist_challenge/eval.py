"""Natural and adversarial accuracy of a MNIST model over every test image.

python mnist_challenge/eval.py [--model_dir=...] [--preset=...] [--output_json=...] [--watch]
python mnist_challenge/eval.py --suite=paper|leaderboard|standard [--each_alone]
python mnist_challenge/eval.py --attack=NAME[,NAME...] [--norm=linf|l2] [--epsilon=...]
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

    from common.scripts import app, evaluate
    from mnist_challenge.challenge import MNIST

    app.run(evaluate.evaluate, MNIST, evaluate.define_eval_flags, evaluate.USES)
