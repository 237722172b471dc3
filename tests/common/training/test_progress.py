import math

import tensorflow as tf

from common.training.progress import PlateauWarning


class Progress:
    def __init__(self):
        self.warnings = []

    def write(self, text, file):
        self.warnings.append(text)


def warnings_at(losses):
    progress, plateau = Progress(), PlateauWarning()
    for loss in losses:
        plateau.watch(tf.constant(loss), progress)
    return progress.warnings


def test_a_constant_loss_of_ln_10_is_warned_of():
    constant = math.log(10)
    (warning,) = warnings_at(500 * [constant])
    assert "the loss stays at 2.30 = ln 10, a constant prediction" in warning
    assert "--epsilon_warmup_steps" in warning
    assert len(warnings_at(250 * [constant - 0.1] + 750 * [constant])) == 1  # the second window
    for losses in (499 * [constant], 500 * [constant - 0.03], 500 * [constant + 0.03], 500 * [0.1]):
        assert warnings_at(losses) == []
