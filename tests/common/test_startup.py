import importlib

import keras
import pytest

import common
from common import startup

LOG = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795667642.335669   12195 port.cc:153] oneDNN custom operations are on.
E0000 00:00:1795667109.492181    6963 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA
a further line
W0000 00:00:1795667109.492181    6963 gpu_device.cc:1] Cannot dlopen some GPU libraries.
E0000 00:00:1795667109.492181    6963 env.cc:1] out of memory
and what to do
"""


def test_only_errors_of_tensorflow_are_shown():
    (*_, first, second, _, third, fourth) = LOG.splitlines(keepends=True)
    assert startup.errors_in(LOG, has_nvidia_device=True) == first + second + third + fourth
    assert startup.errors_in(LOG, has_nvidia_device=False) == third + fourth
    assert startup.errors_in("Fatal Python error\n", False) == "Fatal Python error\n"


def test_a_keras_of_another_backend_is_one_line(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="expected Keras on TensorFlow, .* on jax; import common"):
        importlib.reload(common)
