"""Trainings and evaluations on an accelerator whose machine has JAX and no TensorFlow."""

# The files of run.py in a job's folder: the training's state, the result's weights, the record.
STATE, WEIGHTS, RECORD = "state.npz", "weights.npz", "record.json"
