"""What both challenges share: attacks, data, configuration, training, evaluation, checkpoints."""

import os

# TensorFlow reports its CPU features and missing GPU libraries at every start; a one-line answer
# should not drown in that. Set TF_CPP_MIN_LOG_LEVEL=0 to see it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
