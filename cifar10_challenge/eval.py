"""Natural and adversarial accuracy of a CIFAR-10 model over every test image.

python cifar10_challenge/eval.py [--model_dir=...] [--preset=...] [--output_json=...] [--watch]
python cifar10_challenge/eval.py --suite=paper|leaderboard|standard [--each_alone]
python cifar10_challenge/eval.py --attack=NAME[,NAME...] [--norm=linf|l2] [--epsilon=...]
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

    from common.scripts import app, evaluate
    from cifar10_challenge.challenge import CIFAR10

    app.run(evaluate.evaluate, CIFAR10, evaluate.define_eval_flags, evaluate.USES)
