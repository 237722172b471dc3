"""Exports a MNIST training as a model with a card, or adds rows to a model's card.

python mnist_challenge/export_model.py --model_dir=TRAINING --output_dir=NAME [--sources=...]
python mnist_challenge/export_model.py --model_dir=NAME [--rows=...] [--sources=...]
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

    from common.scripts import app, export_model
    from mnist_challenge.challenge import MNIST

    app.run(export_model.export_model, MNIST, export_model.define_flags, export_model.USES)
