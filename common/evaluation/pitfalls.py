"""Warnings that an evaluation may find a model more robust than it is.

An attack fails on a robust model, but also if it is too weak or if the model masks its gradients.
Each function here checks for one sign of that, and returns a line of text, or None without it. The
signs are those of AutoAttack's documentation (https://github.com/fra31/auto-attack, flags_doc.md),
of Athalye et al. 2018 (Sec. 3.1) and of Carlini et al. 2019 (arXiv 1902.06705, Sec. 5), except
AutoAttack's check for models that optimise at inference, which must inspect the model's code.

Neither a warning nor its absence proves anything.
"""

import keras
import numpy as np
import tensorflow as tf

from common.attack import PGD, is_misclassified, xent_loss
from common.attack.ball import direction
from common.attack.gradient import (
    as_logits,
    gradient_of,
    in_inference_mode,
    keras_model_of,
    with_scaled_gradient,
    without_nan,
)
from common.attack.inputs import as_raised, pixel_range, to_labels, whole_number
from common.attack.softmax import are_probabilities

NUM_IMAGES = 200  # images that `before` checks, in little time
RANDOM_DIFFERENCE = 1e-4  # AutoAttack's: distance of two normalised vectors of logits
BLACK_BOX_SHARE = 0.002  # AutoAttack's, of all examples
ZERO_GRADIENT_SHARE = 0.01  # of all images; AutoAttack warns at the first, after the DLR loss
LARGE_EPSILON_ACCURACY = 5.0  # percent of the images that are classified correctly
LARGE_EPSILON_STEPS = 10  # enough for 0 on undefended networks


def softmax_outputs(logits):
    """Whether the outputs are probabilities: within 0 and 1, with sum 1.

    Where a probability saturates, the gradients of all losses vanish.

    Args:
        logits: float (n, classes), the model's outputs.
    """
    if are_probabilities(logits):
        return (
            "softmax outputs: the model's outputs are within 0 and 1 and add up to 1; attacks "
            "need the logits before the softmax"
        )
    return None


def randomised(first, second):
    """Whether two calls of the model on the same images differ.

    Attacks that follow one draw's gradient overestimate such a model's robustness; they need the
    expected gradient.

    Args:
        first, second: float (n, classes), the two calls' outputs.
    """
    # A logit that is -inf in both calls does not differ.
    first, second = (
        np.nan_to_num(np.asarray(logits, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        for logits in (first, second)
    )
    unit = [x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in (first, second)]
    distance = np.linalg.norm(unit[0] - unit[1], axis=-1).max()
    changed = np.count_nonzero(first.argmax(axis=-1) != second.argmax(axis=-1))
    if distance > RANDOM_DIFFERENCE or changed:
        return (
            f"randomised: two calls on the same {len(first)} images differ by up to "
            f"{distance:.2g} in the normalised logits, and in {changed} classes"
        )
    return None


def zero_gradients(gradients):
    """Whether the loss has no gradient at more than 1 % of the images.

    Args:
        gradients: float (n, height, width, channels), each image's gradient of its cross-entropy.
    """
    gradients = np.asarray(gradients)
    is_zero = ~gradients.reshape(len(gradients), -1).any(axis=1)
    if is_zero.mean() > ZERO_GRADIENT_SHARE:
        return (
            f"zero gradients: the cross-entropy has none at {is_zero.sum()} of {len(gradients)} "
            "images, so that attacks by gradients stay where they start"
        )
    return None


def undefined_gradients(trial):
    """Whether a gradient was not a number somewhere, such as a norm's gradient at zero.

    An attack takes no step along such a gradient.

    Args:
        trial: a `common.evaluation.TrialResult`.
    """
    if trial.num_undefined:
        return (
            f"undefined gradients: {trial.name}: at {trial.num_undefined:,} of "
            f"{trial.num_attacks:,} attacked images a gradient was not a number, so that the "
            "attack took no step there and may have missed what it could break"
        )
    return None


def pixel_units(x_nat, epsilon, bounds):
    """Whether images and epsilon are in other units than `bounds`.

    Args:
        x_nat: float32 images, as the attack gets them.
        epsilon: the attack's radius.
        bounds: (lowest, highest) pixel value, as stated.
    """
    low, high = bounds
    least, most = float(np.min(x_nat)), float(np.max(x_nat))
    level = (high - low) / 255
    stated = f"pixels are stated to be in [{low:g}, {high:g}]"
    if least < low - 1e-4 or most > high + 1e-4:
        return f"pixel units: {stated}, and go from {least:g} to {most:g}"
    if most - least < (high - low) / 100:
        return f"pixel units: {stated}, and go from {least:g} to {most:g} only"
    if high - low <= 1 and np.array_equal(x_nat, np.rint(x_nat)):
        return f"pixel units: {stated}, and are whole numbers only"
    if 0 < epsilon < level:
        return f"pixel units: {stated}, and epsilon {epsilon:g} is below one of their 256 levels"
    return None


def short_steps(name, settings):
    """Whether an attack's steps, all together, are shorter than epsilon.

    Args:
        name: the attack's name.
        settings: its `Attack.settings()`. Attacks without fixed steps get no warning, nor does
            Output Diversified Initialisation, whose own steps are as long as epsilon.
    """
    if "step_size" not in settings or settings.get("odi_steps"):
        return None
    epsilon, step_size, count = (settings[key] for key in ("epsilon", "step_size", "num_steps"))
    if count * step_size < epsilon * (1 - 1e-6):
        return (
            f"short steps: {name}: {count} steps of {step_size:g} do not lead from an image to the "
            f"edge of its ball of radius {epsilon:g}; a step_size of 2.5 epsilon / num_steps would"
        )
    return None


def above_natural(natural_accuracy, adversarial_accuracy):
    """Whether attacked images are classified better than the images themselves.

    An attack that raises the loss cannot do that. A network trained on one-step attacks can read
    the class from them (label leaking, Kurakin et al. 2017).

    Args:
        natural_accuracy, adversarial_accuracy: accuracies on the same images, in percent.
    """
    if adversarial_accuracy > natural_accuracy:
        return (
            f"above natural: accuracy under attack, {adversarial_accuracy:.2f}%, is above the "
            f"natural one, {natural_accuracy:.2f}%; the attack may leak the label"
        )
    return None


def large_epsilon(accuracy):
    """Whether more than 5 % withstand PGD although any image is allowed.

    Args:
        accuracy: accuracy under PGD with the whole pixel range as epsilon, in percent of the images
            that are classified correctly.
    """
    if accuracy > LARGE_EPSILON_ACCURACY:
        return (
            f"large epsilon: with the whole pixel range as epsilon PGD leaves {accuracy:.1f}% of "
            "the correct images, where it should leave none; gradients may be masked"
        )
    return None


def steps_that_are_short(trials):
    """Returns `short_steps` of each `Trial`, as a list of lines."""
    return _given(short_steps(trial.name, trial.settings()) for trial in trials)


def undefined_gradients_in(result):
    """Returns `undefined_gradients` of each attack of a `Result`, as a list of lines."""
    return _given(undefined_gradients(done) for done in result.trials)


def black_box_stronger(name, num_broken, num_examples):
    """Whether an attack without gradients broke over 0.2 % that withstood those with gradients.

    Args:
        name: the attack's name.
        num_broken: number of examples that it broke and that withstood attacks with gradients.
        num_examples: number of examples in the evaluation.
    """
    if num_broken > BLACK_BOX_SHARE * num_examples:
        return (
            f"black box stronger: {name}, which sees no gradient, broke {num_broken} of "
            f"{num_examples} examples that the attacks by gradients had left; these may be masked"
        )
    return None


def channels_first(model):
    """Warns if a model seems to take its channels before height and width.

    The attacks take images (batch, height, width, channels): Square would then draw its stripes and
    squares across channels.

    Args:
        model: keras.Model, or any other function, of which nothing is known.

    Returns:
        List of one warning, or of none.
    """
    layers = list(model.layers) if isinstance(model, keras.Model) else []
    for layer in layers:
        layers += layer.layers if isinstance(layer, keras.Model) else []
    names = [
        layer.name for layer in layers if getattr(layer, "data_format", None) == "channels_first"
    ]
    if not names or any(isinstance(layer, keras.layers.Permute) for layer in layers):
        return []
    return [
        f"channels first: layer {names[0]} takes images (channels, height, width), on which Square "
        "is weak; give images (height, width, channels) to keras.Sequential([keras.Input((height, "
        "width, channels)), keras.layers.Permute((3, 1, 2)), model])"
    ]


def check_model(
    model,
    x_nat,
    y,
    *,
    epsilon,
    bounds,
    batch_size,
    norm="linf",
    seed=0,
    large=True,
    jit_compile="auto",
):
    """Returns warnings about the evaluation of a model, before any attack.

    Args:
        model: callable from float32 images to logits of any floating dtype.
        x_nat: float32 images (n, height, width, channels), the first of those to evaluate.
        y: labels, as `common.attack.Attack.perturb` takes them.
        epsilon: the attacks' radius, in the units of `bounds`.
        bounds: (lowest, highest) pixel value.
        batch_size: images at a time.
        norm: the attacks' norm, "linf" or "l2".
        seed: the seed of PGD's random start.
        large: whether to run PGD with the whole pixel range as epsilon, for `large_epsilon`.
        jit_compile: see `common.attack.Attack`.

    Returns:
        List of warnings, each a line.

    Raises:
        InputError: labels are not classes of the model, one for each image; the model does not
            return logits; another argument is out of range.
    """
    x_nat, given = np.asarray(x_nat, np.float32), y
    y, bounds = to_labels(given, len(x_nat)), pixel_range(bounds)
    batch_size = whole_number("batch_size", batch_size, 1)
    batches = [slice(i, i + batch_size) for i in range(0, len(x_nat), batch_size)]

    in_inference = with_scaled_gradient(in_inference_mode(model), keras_model_of(model))

    def logits_of(x):
        with as_raised():
            return as_logits(in_inference(x), x)

    def correct(x, y):
        return ~is_misclassified(logits_of(tf.convert_to_tensor(x)), y).numpy()

    parts = []
    for batch in batches:
        x, labels = tf.constant(x_nat[batch]), tf.constant(y[batch], tf.int32)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = logits_of(x)
            to_labels(given, len(x_nat), logits.shape[1])
            loss = tf.reduce_sum(xent_loss(logits, labels))
        # TensorFlow gives no gradient of rounding, for example.
        gradient = gradient_of(tape, loss, x, unconnected_gradients="zero")
        step = epsilon * direction(without_nan(gradient)[0], norm)
        x_fgsm = tf.clip_by_value(x + step, *bounds)
        parts.append((logits, logits_of(x), gradient, correct(x_fgsm, y[batch])))
    logits, again, gradients, fgsm_correct = map(np.concatenate, zip(*parts, strict=True))

    is_correct = ~is_misclassified(logits, y).numpy()
    warnings = [
        pixel_units(x_nat, epsilon, bounds),
        softmax_outputs(logits),
        randomised(logits, again),
        zero_gradients(gradients),
        above_natural(100 * np.mean(is_correct), 100 * np.mean(fgsm_correct)),
    ]
    if large and gradients.any() and is_correct.any():
        width = bounds[1] - bounds[0]
        pgd = PGD(
            model,
            epsilon=width,
            step_size=2.5 * width / LARGE_EPSILON_STEPS,
            num_steps=LARGE_EPSILON_STEPS,
            bounds=bounds,
            precision="float32",
            jit_compile=jit_compile,
        )
        stand = 0
        for batch in batches:
            x_adv = pgd.perturb(np.clip(x_nat[batch], *bounds), y[batch], seed=seed)
            stand += np.count_nonzero(correct(x_adv, y[batch]) & is_correct[batch])
        warnings.append(large_epsilon(100 * stand / np.count_nonzero(is_correct)))
    return _given(warnings)


def before(challenge, config, images, trials, attacked, large=False):
    """Returns warnings about an evaluation before it begins, as a list of lines.

    Args:
        challenge: a `common.challenge.Challenge`.
        config: its config.
        images: the `common.data.Split` to evaluate on; its first 200 images are used.
        trials: list of `Trial`, one or more.
        attacked: the `LoadedModel` that these attack.
        large: see `check_model`.
    """
    few = images.head(NUM_IMAGES)
    return steps_that_are_short(trials) + check_model(
        attacked.logits,
        challenge.to_pixels(few.images),
        few.labels,
        epsilon=trials[0].attack.epsilon,
        bounds=challenge.bounds,
        batch_size=config.eval_batch_size,
        norm=trials[0].attack.norm,
        seed=config.random_seed,
        large=large,
        jit_compile=config.jit_compile,
    )


def after(result):
    """Returns warnings about the `Result` of one attack, as a list of lines."""
    summary = result.summary()
    above = above_natural(summary["natural_accuracy"], summary["adversarial_accuracy"])
    return _given([above]) + undefined_gradients_in(result)


def check_result(result, trials):
    """Returns warnings about an evaluation, after its attacks.

    Args:
        result: a `common.evaluation.Result`.
        trials: its list of `common.evaluation.Trial`.

    Returns:
        List of warnings, each a line.
    """
    warnings = []
    is_white_box = np.array([trial.attack.num_gradients > 0 for trial in trials], bool)
    for number, trial in enumerate(trials):
        # Only earlier ones: later attacks may not have been given what it broke.
        before = result.withstood[:number][is_white_box[:number]]
        if not is_white_box[number] and len(before):
            left = before.all(axis=0) & result.natural_correct
            broken = int(np.count_nonzero(left & ~result.withstood[number]))
            warnings.append(black_box_stronger(trial.name, broken, len(left)))
    return _given(warnings)


def _given(warnings):
    """Returns the warnings that are not None, as a list."""
    return [warning for warning in warnings if warning is not None]
