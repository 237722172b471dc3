"""train.py, which trains, or exports the SavedModel of a training."""

import pathlib

from absl import flags

from common import checkpoints, config
from common.errors import one_line
from common.files import Lock
from common.scripts import app
from common.scripts.flags import TRAINING
from common.training import distribution


def run_script(train, challenge):
    """Runs a challenge's train.py: its flags, then `train(config)`, or --export alone."""

    def define_flags(challenge, flag_values):
        flags.DEFINE_bool(
            "export",
            False,
            "only write saved_model/ from the newest checkpoint",
            flag_values,
            module_name=TRAINING,
        )

    def main(challenge, config, flag_values):
        if flag_values.export:
            export_newest(config, challenge)
        else:
            with distribution.faults_as_lines(config):
                distribution.devices_of(config)  # before TensorFlow's first op
                train(config)

    app.run(main, challenge, define_flags, (config.TRAINING,))


def export_newest(config, challenge):
    """Writes `config.model_dir`/saved_model from the newest checkpoint.

    Raises:
        InputError: `model_dir` holds no training.
    """
    directory = pathlib.Path(config.model_dir)
    model, step = checkpoints.restore_training(challenge, directory)
    path = directory / "saved_model"
    print(one_line(f"exporting the SavedModel {path}"), flush=True)
    with Lock(directory, "--model_dir"):  # a training that starts would remove what is half-written
        checkpoints.export(model, path)
    print(one_line(f"step {step}; SavedModel in {path}"))
