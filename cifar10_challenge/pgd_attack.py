"""Writes adversarial examples for the CIFAR-10 test images to an attack file.

python cifar10_challenge/pgd_attack.py [--model_dir=...] [--store_adv_path=...] [--attack=NAME]
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

    app.run(attack_file.pgd_attack, CIFAR10, attack_file.define_attack_file_flags, attack_file.USES)
