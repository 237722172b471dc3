"""Fetches a network that the original CIFAR-10 challenge published, as a SavedModel.

python cifar10_challenge/fetch_model.py natural|adv_trained|secret ... [--all] [--models_dir=...]
python cifar10_challenge/fetch_model.py --from_file=adv_trained.zip

It is written to cifar10_challenge/models/published/NAME, and evaluated by
python cifar10_challenge/eval.py --model_dir=published/NAME
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
from cifar10_challenge.challenge import CIFAR10

_SHARE = "https://www.dropbox.com/s"
_MAX_BYTES = 4_000_000_000  # a checkpoint with momentum has 370 million

PUBLISHED = {
    "natural": fetching.Source(
        url=f"{_SHARE}/cgzd5odqoojvxzk/natural.zip?dl=1", max_bytes=_MAX_BYTES
    ),
    "adv_trained": fetching.Source(
        url=f"{_SHARE}/g4b6ntrp8zrudbz/adv_trained.zip?dl=1", max_bytes=_MAX_BYTES
    ),
    "secret": fetching.Source(
        url=f"{_SHARE}/ywc0hg8lr5ba8zd/secret.zip?dl=1",
        sha256="555be6e892372599380c9da5d5f9802f9cbd098be8a47d24d96937a002305fd4",
        max_bytes=_MAX_BYTES,
    ),
}

if __name__ == "__main__":
    fetch_model.run_script(CIFAR10, PUBLISHED)
