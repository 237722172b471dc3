import common  # noqa: F401  first, since it decides on Keras's backend
