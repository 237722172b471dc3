"""What both challenges share: attacks, data, configuration, training, evaluation, checkpoints."""

import os

# Keras is TensorFlow's here, whatever the user has set for other work.
os.environ["KERAS_BACKEND"] = "tensorflow"
# TensorFlow warns of missing GPU libraries at every start; TF_CPP_MIN_LOG_LEVEL=0 shows it. What
# it prints all the same is kept back by `common.startup`.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without a home directory Keras would make a folder named ~ where it is started, for its settings.
if os.path.expanduser("~") == "~":
    os.environ.setdefault("KERAS_HOME", os.devnull)
