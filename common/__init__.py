"""What both challenges share: attacks, data, configuration, training, evaluation, checkpoints."""

import os

# Keras runs on TensorFlow here, whatever backend the user has configured.
os.environ["KERAS_BACKEND"] = "tensorflow"
# TensorFlow warns of missing GPU libraries at every start; TF_CPP_MIN_LOG_LEVEL=0 shows it.
# `common.startup` holds back what TensorFlow prints in spite of this.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without a home directory Keras would make a folder named ~ where it is started, for its settings.
if os.path.expanduser("~") == "~":
    os.environ.setdefault("KERAS_HOME", os.devnull)
