"""The project's training steps and attacks as XLA programs, which any XLA runtime runs.

A program is a function of arrays and of variables, which it updates. `common.training.steps` and
`common.attack` make it, so that its steps are those of train.py and eval.py, up to the rounding of
another compiler: the same batches, augmentation, random starts, schedules and averages.
"""

import contextlib
import dataclasses
import gzip
import json
import re

import tensorflow as tf

from common import checkpoints
from common.attack import is_misclassified, make_attack
from common.attack.precision import without_tf32
from common.errors import InputError
from common.files import write_atomically
from common.training import steps
from common.training.batches import seeds_of

RESULT, TRAINED, OPTIMIZER = "result", "trained", "optimizer"


def variables_of(result, trained=None, optimizer=None):
    """The variables of a training by name, a dict of tf.Variables.

    Args:
        result: keras.Model that is evaluated.
        trained: keras.Model that the optimizer updates, which may be `result`; None for none.
        optimizer: keras optimizer, built.
    """
    parts = {RESULT: result.weights}
    if trained is not None and trained is not result:
        parts[TRAINED] = trained.weights
    if optimizer is not None:
        parts[OPTIMIZER] = optimizer.variables

    def name(part, variable):
        # Keras numbers the optimizers of a process, and begins their variables' paths with that.
        path = variable.path.partition("/")[2] if part == OPTIMIZER else variable.path
        return f"{part}/{path}"

    return {
        name(part, variable): variable.value
        for part, variables in parts.items()
        for variable in variables
    }


def training(config, challenge, networks, experiment, num_images, steps_per_call):
    """Several steps of a training as one function.

    Args:
        config: the challenge's config; `jit_compile` counts as yes. It has one attack for all
            steps, see `phases`.
        challenge: a `common.challenge.Challenge`.
        networks: (result, trained), see `common.training.loop.build_networks`.
        experiment: result of `experiment` in the challenge's train.py.
        num_images: number of training images.
        steps_per_call: the largest number of steps in a call.

    Returns:
        The function, and its arguments' tf.TensorSpecs:

            images: uint8 (num_images, height, width, channels), and labels, int32 (num_images,).
            indices: int32 (steps_per_call, batch), the images of each step.
            first_step, count: int32, the number of the first step, and how many are taken.
            seed: int32, which decides augmentation and random starts.

        It returns cross-entropy and accuracy of each step, float32 (steps_per_call,), as `update`
        of `common.training.steps` does.
    """
    config = dataclasses.replace(config, jit_compile=True)
    result, trained = networks
    augment, batch = experiment.get("augment"), config.training_batch_size
    perturb = steps.make_adversary(
        config, challenge, trained, experiment.get("batch_statistics", False)
    )
    update = steps.make_update(
        config, trained, experiment["optimizer"], experiment["reduce_loss"], result
    )

    def run(images, labels, indices, first_step, count, seed):
        def take(i, metrics):
            step = first_step + i
            x, y = tf.gather(images, indices[i]), tf.gather(labels, indices[i])
            if augment is not None:
                positions = tf.cast(step, tf.int64) * batch + tf.range(batch, dtype=tf.int64)
                x = augment(x, seeds_of(seed, positions))
            x_nat = challenge.to_pixels(x)
            x_adv = perturb(x_nat, y, step, seed)
            values = update(x_nat, x_adv, y)
            return i + 1, tuple(m.write(i, v) for m, v in zip(metrics, values, strict=True))

        metrics = tuple(tf.TensorArray(tf.float32, steps_per_call) for _ in range(2))
        _, metrics = tf.while_loop(lambda i, _: i < count, take, (0, metrics))
        return tuple(m.stack() for m in metrics)

    number = tf.TensorSpec((), tf.int32)
    return run, (
        tf.TensorSpec((num_images, *challenge.image_shape), tf.uint8),
        tf.TensorSpec((num_images,), tf.int32),
        tf.TensorSpec((steps_per_call, batch), tf.int32),
        number,
        number,
        number,
    )


def phases(config):
    """The configs of a training's parts with one attack each: (first step, config) pairs."""
    if config.adversary == "none" or not config.attack_schedule:
        return [(0, dataclasses.replace(config, attack_schedule=None))]
    return [
        (
            first,
            dataclasses.replace(
                config, attack_schedule=None, num_steps=num_steps, step_size=step_size
            ),
        )
        for first, num_steps, step_size in config.attack_schedule
    ]


def evaluation(config, challenge, model, preset, num_images, batch_size):
    """One batch of an evaluation under a preset's attack, without restarts, as one function.

    The network decides in float32 what is classified correctly; `config.precision` is the
    arithmetic of the attack's gradients.

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        model: keras.Model.
        preset: name of one of the challenge's presets.
        num_images: how many images the test set has.
        batch_size: images of a batch.

    Returns:
        The function, and its arguments' tf.TensorSpecs:

            images: uint8 (num_images, height, width, channels), and labels, int32 (num_images,).
            indices: int32 (batch,), the numbers of the batch's images.
            seed: int32, which decides the random starts.

        It returns bool (batch,) twice: whether the images, and the adversarial images, are
        classified correctly.
    """
    settings = challenge.presets[preset]
    config = dataclasses.replace(config, jit_compile=True, **settings)
    logits = checkpoints.fast_model(model, challenge)
    attack = make_attack("pgd", logits, config, challenge.bounds)

    def run(images, labels, indices, seed):
        x_nat = challenge.to_pixels(tf.gather(images, indices))
        y = tf.gather(labels, indices)
        x_adv = attack.perturb(x_nat, y, seed=(seed, 0), index=indices)
        return tuple(~is_misclassified(logits(x), y) for x in (x_nat, x_adv))

    return run, (
        tf.TensorSpec((num_images, *challenge.image_shape), tf.uint8),
        tf.TensorSpec((num_images,), tf.int32),
        tf.TensorSpec((batch_size,), tf.int32),
        tf.TensorSpec((), tf.int32),
    )


def export(function, specs, variables, path, exact=False):
    """Writes a program: JSON in gzip.

    It holds the StableHLO text "module", which takes the arguments and then "variables", their
    names; "updates", pairs of an output and a variable whose value it becomes; and "arguments",
    (shape, dtype) of each. The other outputs are the function's results.

    Args:
        function: maps tensors to tensors; it reads and assigns variables.
        specs: the tf.TensorSpecs of its arguments, all of fixed shape.
        variables: dict of names to the tf.Variables that it may use.
        path: the file's path.
        exact: whether float32 products are computed without TF32 on a GPU.

    Raises:
        InputError: the file cannot be written.
    """
    with without_tf32() if exact else contextlib.nullcontext():
        compiled = tf.function(function, jit_compile=True, autograph=False)
        concrete = compiled.get_concrete_function(*specs)
        ir = compiled.experimental_get_compiler_ir(*specs)(stage="stablehlo")
    of_handle = {variable.handle._id: name for name, variable in variables.items()}
    unknown = [handle for handle in concrete.captured_inputs if handle._id not in of_handle]
    if unknown:
        raise InputError(f"program: expected the training's variables alone, got {unknown[0]}")
    names = [of_handle[handle._id] for handle in concrete.captured_inputs]
    module = plain(ir)
    program = {
        "module": module,
        "variables": names,
        "updates": _updates(module, len(specs), names),
        "arguments": [(list(spec.shape), spec.dtype.name) for spec in specs],
    }
    write_atomically(path, gzip.compress(json.dumps(program).encode(), mtime=0))


def plain(module):
    """A module's text without what an XLA runtime refuses, or what differs between exports."""
    module = re.sub(r"^#loc.*\n", "", module, flags=re.MULTILINE)
    module = re.sub(r" loc\((?:[^()\"]|\"[^\"]*\"|\([^()]*\))*\)", "", module)
    # TensorFlow numbers the functions of a process, XLA those of a module.
    module = re.sub(r"(@\w+)__(\.\d+)", lambda name: re.sub(r"_\d+", "", name[1]) + name[2], module)
    # A copy in TensorFlow's dialect, which JAX's parser does not know.
    copy = r"mhlo\.copy (%\S+)(?: \{[^}]*\})? : (tensor<[^>]*>)"
    return re.sub(copy, r"stablehlo.reshape \1 : (\2) -> \2", module)


def _updates(module, num_arguments, names):
    """(output, variable's name) pairs, from the module's table of buffers that may be shared."""
    alias = r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>"
    return [
        (int(output), names[int(parameter) - num_arguments])
        for parameter, output in re.findall(alias, module.partition("\n")[0])
    ]
