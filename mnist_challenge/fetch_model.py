"""Fetches a network that the original MNIST challenge published, as a SavedModel.

python mnist_challenge/fetch_model.py natural|adv_trained|secret ... [--all] [--models_dir=...]
python mnist_challenge/fetch_model.py --from_file=adv_trained.zip

It is written to mnist_challenge/models/published/NAME, and evaluated by
python mnist_challenge/eval.py --model_dir=published/NAME
"""

import pathlib
import sys

if not __package__:  # run as a file, from any directory
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from common import startup

if __name__ == "__main__":
    startup.begin()  # before TensorFlow is imported, which takes seconds

from common import fetching
from common.scripts import fetch_model
from mnist_challenge.challenge import MNIST

_REPOSITORY = "https://github.com/MadryLab/mnist_challenge_models/raw/master"
_MAX_BYTES = 500_000_000  # a checkpoint with Adam's state has 39 million

PUBLISHED = {
    "natural": fetching.Source(url=f"{_REPOSITORY}/natural.zip", max_bytes=_MAX_BYTES),
    "adv_trained": fetching.Source(url=f"{_REPOSITORY}/adv_trained.zip", max_bytes=_MAX_BYTES),
    "secret": fetching.Source(
        url=f"{_REPOSITORY}/secret.zip",
        sha256="14eea09c72092db5c2eb5e34cd105974f42569281d2f34826316e356d057f96d",
        max_bytes=_MAX_BYTES,
    ),
}

if __name__ == "__main__":
    fetch_model.run_script(MNIST, PUBLISHED)
