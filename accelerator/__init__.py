"""Trainings and evaluations on an accelerator whose machine has JAX and no TensorFlow."""
