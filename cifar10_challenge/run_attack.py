"""Checks an attack file by the CIFAR-10 challenge's rules and scores it against a model.

python cifar10_challenge/run_attack.py [--model_dir=...] [--store_adv_path=attack.npy]
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

    from common.scripts import app, attack_file
    from cifar10_challenge.challenge import CIFAR10

    app.run(attack_file.run_attack, CIFAR10, uses=attack_file.SCORING)
