"""What both challenges share: attacks, data, configuration, training, evaluation, checkpoints."""

import os
import sys

_keras = sys.modules.get("keras")
if _keras is not None and _keras.config.backend() != "tensorflow":
    raise ImportError(
        "common: expected Keras on TensorFlow, got a Keras that was imported before on "
        f"{_keras.config.backend()}; import common first, or set KERAS_BACKEND=tensorflow"
    )
# Keras runs on TensorFlow here, whatever backend the user has configured.
os.environ["KERAS_BACKEND"] = "tensorflow"
# TensorFlow warns of missing GPU libraries at every start; TF_CPP_MIN_LOG_LEVEL=0 shows it.
# `common.startup` holds back what TensorFlow prints in spite of this.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without a home directory Keras would make a folder named ~ where it is started, for its settings.
if os.path.expanduser("~") == "~":
    os.environ.setdefault("KERAS_HOME", os.devnull)
