"""Trainings and evaluations on an accelerator whose machine has JAX and no TensorFlow."""

# What run.py writes in a job's folder: the whole training, its result's weights, what happened.
STATE, WEIGHTS, RECORD = "state.npz", "weights.npz", "record.json"
