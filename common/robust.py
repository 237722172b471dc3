"""Robustness of any Keras model: an evaluation as strong as AutoAttack's, and training by `fit`.

These lines evaluate and train a network of yours, for any number of classes, grey or colour images:

    from common.attack import PGD
    from common.robust import AdversarialModel, RobustAccuracy, evaluate
    import numpy as np, keras

    model = keras.models.load_model("mine.keras")  # logits or a softmax at its end
    x, y = np.load("images.npy"), np.load("labels.npy")  # (n, height, width, channels), (n,)
    print(evaluate(model, x, y, epsilon=8 / 255, bounds=(0, 1)))

    def attack(logits):
        return PGD(logits, epsilon=8 / 255, step_size=2 / 255, num_steps=10, bounds=(0, 1))

    trainer = AdversarialModel(model, attack)
    trainer.compile("adam", metrics=["accuracy"])
    trainer.fit(x, y, epochs=10, callbacks=[RobustAccuracy((x[:500], y[:500]), attack)])

An attack is a function from logits to a `common.attack.Attack`, as here. If the model ends in a
softmax, pass a function; otherwise an attack on the model works too. `RobustAccuracy` should get
held-out images; here it gets training images for brevity.
"""

import contextlib
import dataclasses
import logging

import keras
import numpy as np

from common.attack.gradient import as_logits, in_inference_mode
from common.attack.inputs import (
    pixel_range,
    to_images,
    to_labels,
    whole_number,
)
from common.attack.softmax import (
    NUM_PROBED,
    attack_on,
    check_attack,
    check_parts,
    logits_of,
    refuse_nan,
)
from common.errors import InputError, one_line
from common.evaluation import Evaluator, Result, Trial, html_report, pitfalls, suites
from common.evaluation.arrays import to_arrays
from common.evaluation.report import arithmetic, describe, left_alone, precisions, table_lines
from common.provenance import provenance
from common.training.adversarial_model import AdversarialModel

__all__ = ["evaluate", "Report", "AdversarialModel", "RobustAccuracy"]
_SUITES = f"expected {', '.join(suites.ANY_MODEL)}, an attack or a list of attacks"


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `evaluate`; its `str` is a table, warnings and the line to quote.

    Attributes:
        result: a `common.evaluation.Result`, which has the images that the attacks found.
        trials: the attacks, a tuple of `common.evaluation.Trial`.
        warnings: reasons to doubt the evaluation, a list of lines, see `pitfalls`.
        settings: dict of suite, epsilon, bounds, norm, seed, batch_size and precision, the
            arithmetic of the attacks' gradients and queries and the reason for it.
        shown: what `save_html` shows, a `common.evaluation.html_report.Evaluation`.
    """

    result: Result
    trials: tuple
    warnings: list
    settings: dict
    shown: html_report.Evaluation = dataclasses.field(repr=False, compare=False)

    @property
    def line(self):
        """The line to quote."""
        found, its = self.to_dict(), self.settings
        (low, high), bounds = found["confidence_interval"], its["bounds"]
        return (
            f"robust accuracy {found['adversarial_accuracy']:.2f}% (95% confidence interval "
            f"{low:.2f}% to {high:.2f}%), natural {found['natural_accuracy']:.2f}%: "
            f"{found['num_examples']:,} images, {its['norm']} epsilon {its['epsilon']:g} of pixels "
            f"in [{bounds[0]:g}, {bounds[1]:g}], attacks: {its['suite']}{left_alone(self.result)}"
        )

    def to_dict(self):
        """All numbers as a dict for JSON; accuracies in percent, see `report.describe`."""
        return {**self.settings, **describe(self.trials, self.result), "warnings": self.warnings}

    def save_html(self, path, class_names=None, title=None):
        """Writes a web page: accuracies, which class becomes which, losses and images.

        Args:
            path: the file, FILE.html, which needs no other file.
            class_names: list of text, the names of the classes; None for their numbers.
            title: text; None for the model's name.

        Raises:
            InputError: the file cannot be written.
        """
        names = None if class_names is None else tuple(class_names)
        shown = dataclasses.replace(self.shown, class_names=names)
        if title is not None:
            shown = dataclasses.replace(shown, title=title)
        html_report.write(path, shown)

    def __str__(self):
        warnings = [f"warning: {warning}" for warning in self.warnings]
        table = table_lines(self.trials, self.result)
        return "\n".join([*table, arithmetic(self.trials), *warnings, self.line])


@contextlib.contextmanager
def _without_warnings_of_traces():
    """Drops TensorFlow's warnings of retracing, which each attack and batch size needs."""

    def is_other(record):
        return "retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@_without_warnings_of_traces()
def evaluate(
    model,
    x,
    y=None,
    *,
    epsilon,
    bounds,
    norm="linf",
    suite="standard",
    batch_size=100,
    seed=0,
    precision="auto",
    jit_compile="auto",
    show_progress=True,
):
    """Evaluates any model: natural accuracy, and accuracy in the worst case over attacks.

    An image that is misclassified unattacked counts as broken. eval.py gives the same numbers for
    the same suite; with a single attack eval.py attacks misclassified images, too.

    Args:
        model: keras.Model, which may end in a softmax, or a function from float32 images to logits.
        x: images (n, height, width, channels) of any real dtype, pixels in `bounds`; or a
            tf.data.Dataset or keras PyDataset of (x, y), in batches or, if a Dataset, one by one.
        y: labels: classes (n,) or (n, 1), or one-hot (n, classes); None beside a data set.
        epsilon: radius of the ball, in the units of `bounds`.
        bounds: (lowest, highest) pixel value that the model is given: (0, 1) or (0, 255), say.
        norm: "linf" or "l2".
        suite: "standard", AutoAttack's four attacks; "fast" or "strong", see
            `common.evaluation.suites`; or an attack as in `RobustAccuracy`, or a list of them, of
            the same epsilon, bounds and norm. The targeted DLR loss needs four classes: for three
            the plain DLR loss replaces it, and for two nothing does.
        batch_size: images at a time.
        seed: int, which decides the random numbers.
        precision, jit_compile: see `common.attack.Attack`.
        show_progress: whether to show bars on stderr.

    Returns:
        A `Report`.

    Raises:
        InputError: pixels are outside `bounds` or not finite; labels are not classes of the model;
            its outputs are not numbers, are not logits, or have no gradient for the images; a
            setting is out of range. The message is one line.
    """
    x, y = to_arrays(x, y)
    bounds = pixel_range(bounds)
    few = to_images(x[: pitfalls.NUM_IMAGES], bounds, "x")
    to_labels(y, len(x))
    inner = _inner(model)
    logits = logits_of(inner, few)
    to_labels(y, len(x), _num_classes(logits, few))
    options = {"epsilon": epsilon, "bounds": bounds, "norm": norm}
    name, trials = _trials(
        suite, inner, logits, few, {**options, "precision": precision, "jit_compile": jit_compile}
    )
    evaluator = _evaluator(logits, [], bounds, batch_size, seed)
    # This run finds wrong images, labels and logits before the first attack.
    refuse_nan(np.isnan(evaluator.run(x, y).natural_losses))
    evaluator.trials, evaluator.show_progress = trials, show_progress
    warnings = pitfalls.steps_that_are_short(trials) + pitfalls.channels_first(inner)
    warnings += pitfalls.check_model(
        logits,
        few,
        y[: len(few)],
        batch_size=evaluator.batch_size,
        seed=evaluator.seed,
        jit_compile=jit_compile,
        **options,
    )
    result = evaluator.run(x, y)
    warnings += pitfalls.check_result(result, trials) + pitfalls.undefined_gradients_in(result)
    settings = {"suite": name, **options, "bounds": list(bounds), "epsilon": float(epsilon)}
    settings |= {"seed": evaluator.seed, "batch_size": evaluator.batch_size}
    settings["precision"] = precisions(trials)
    shown = _shown(inner, logits, x, y, result, warnings, settings)
    return Report(result, tuple(trials), warnings, settings, shown)


def _shown(model, logits, x, y, result, warnings, settings):
    """What the page of an evaluation shows, an `html_report.Evaluation`."""
    labels, bounds = to_labels(y, len(x)), settings["bounds"]

    def to_pixels(images):
        return to_images(images, bounds, "x").numpy()

    natural, adversarial = html_report.outputs_of(
        logits, labels, settings["batch_size"], (x, to_pixels), (result.x_adv, to_pixels)
    )
    return html_report.Evaluation(
        title=str(getattr(model, "name", None) or getattr(model, "__name__", "model")),
        facts={
            "images": f"{len(x):,}, pixels in [{bounds[0]:g}, {bounds[1]:g}]",
            "ball": f"{settings['norm']}, epsilon {settings['epsilon']:g}",
            "attacks": ", ".join(trial.name for trial in result.trials),
        },
        origin=html_report.origin_of({**provenance(), "seed": settings["seed"]}),
        result=result,
        natural=natural,
        adversarial=adversarial,
        images=x,
        to_pixels=to_pixels,
        labels=labels,
        bounds=tuple(bounds),
        warnings=warnings,
    )


class RobustAccuracy(keras.callbacks.Callback):
    """Logs val_robust_accuracy: the share of some images that withstands an attack.

    List it before the callbacks that read it, and give these mode="max":

        callbacks=[
            RobustAccuracy(data, attack),
            keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=5),
        ]

    It takes any keras.Model. With validation_data an `AdversarialModel` logs val_robust_accuracy
    under its own attack; this callback's value replaces it, and the epochs between have none.

    Args:
        data: images (n, height, width, channels), pixels in the attack's bounds, and labels, (x,
            y); or a data set of them, see `evaluate`.
        attack: a `common.attack.Attack` on the model, or a function from logits to one.
        every: number of epochs from one evaluation to the next; the epochs between log nothing.
        batch_size: images at a time.
        seed: int, which decides the random numbers.

    Raises:
        InputError: data or a setting is none of these; `fit` raises it before its first batch, or
            after it if the model is not built, for data that do not fit the model or the attack.
    """

    def __init__(self, data, attack, every=1, *, batch_size=100, seed=0):
        super().__init__()
        is_pair = isinstance(data, (tuple, list))
        self._x, self._y = to_arrays(*data[:2]) if is_pair else to_arrays(data)
        check_attack(attack)
        self._attack, self.every = attack, whole_number("every", every, 1)
        self._options = {"batch_size": batch_size, "seed": seed}
        self._evaluator = self._of = None

    def on_train_begin(self, logs=None):
        """Checks the data, if the model is built."""
        if self.model.built:
            self._prepare()

    def on_train_batch_end(self, batch, logs=None):
        """Checks the data after the first batch, if the model was not built before it."""
        self._prepare()

    @_without_warnings_of_traces()
    def on_epoch_end(self, epoch, logs=None):
        """Adds val_robust_accuracy to `logs`, or removes it in the epochs between."""
        logs = {} if logs is None else logs
        if (epoch + 1) % self.every:
            logs.pop("val_robust_accuracy", None)
            return
        self._prepare()
        result = self._evaluator.run(self._x, self._y)
        logs["val_robust_accuracy"] = float(np.mean(result.adversarial_correct))

    def _prepare(self):
        """Makes the evaluator for a new model, and checks the data."""
        if self._of is self.model:
            return
        model, x = _inner(self.model), self._x
        few = np.asarray(x[:NUM_PROBED], np.float32)
        logits = logits_of(model, few)
        attack = attack_on(self._attack, model, logits)
        check_parts(attack)
        to_labels(self._y, len(x), _num_classes(logits, few))
        for first in range(0, len(x), 1000):
            to_images(x[first : first + 1000], attack.bounds, "x")
        self._evaluator = _evaluator(logits, [Trial(attack)], attack.bounds, **self._options)
        self._of = self.model


def _inner(model):
    """The model that an `AdversarialModel` trains; any other model itself."""
    return model.model if isinstance(model, AdversarialModel) else model


def _num_classes(logits, few):
    return as_logits(in_inference_mode(logits)(few[:1])).shape[1]


def _evaluator(logits, trials, bounds, batch_size, seed):
    return Evaluator(
        logits,
        trials,
        to_pixels=lambda images: to_images(images, bounds, "x"),
        batch_size=batch_size,
        seed=seed,
        spare_misclassified=True,
        show_progress=False,
    )


def _trials(suite, model, logits, few, options):
    """The name and the list of a suite's attacks, each a `Trial`."""
    if hasattr(suite, "perturb") or callable(suite):
        suite = [suite]
    if not isinstance(suite, (str, list, tuple)):
        raise InputError(f"suite: {_SUITES}, got {one_line(repr(suite))}")
    if not isinstance(suite, str):
        attacks = [attack_on(attack, model, logits) for attack in suite]
        if not attacks:
            raise InputError("suite: expected one attack or more, got none")
        for attack in attacks:
            check_parts(attack)
            for name in ("epsilon", "bounds", "norm"):
                its, asked = getattr(attack, name, options[name]), options[name]
                if its != asked:
                    raise InputError(
                        f"suite: expected attacks of {name} {asked}, got {attack.name} of {its}"
                    )
        trials = [Trial(attack, name=attack.name) for attack in attacks]
        return ", ".join(trial.name for trial in trials), trials
    if suite not in suites.ANY_MODEL:
        raise InputError(f"suite: {_SUITES}, got {suite!r}")
    num_classes = _num_classes(logits, few)
    trials = suites.trials_of(suite, logits, num_classes=num_classes, **options)
    name = suite if num_classes >= 4 else ", ".join(trial.attack.name for trial in trials)
    return name, trials
