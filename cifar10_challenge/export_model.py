"""Exports a CIFAR-10 training as a model with a card, or adds rows to a model's card.

python cifar10_challenge/export_model.py --model_dir=TRAINING --output_dir=NAME [--sources=...]
python cifar10_challenge/export_model.py --model_dir=NAME [--rows=...] [--sources=...]
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

    from common.scripts import app, export_model
    from cifar10_challenge.challenge import CIFAR10

    app.run(export_model.export_model, CIFAR10, export_model.define_flags, export_model.USES)
