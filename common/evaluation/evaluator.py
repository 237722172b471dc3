"""Natural and adversarial accuracy over every image: the worst case over attacks and restarts."""

import contextlib
import math
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from common.attack import is_misclassified, margin, round_to_8_bits, xent_loss
from common.attack.ball import select
from common.attack.gradient import as_logits, graph_model
from common.attack.inputs import as_raised, to_labels, whole_number
from common.attack.precision import without_tf32
from common.errors import InputError
from common.evaluation.results import Result, TrialResult
from common.evaluation.state import Found
from common.interruption import Interrupted, Interruption


class Evaluator:
    """Evaluates one model under attacks, compiled once and used for any number of checkpoints.

    An example's random numbers do not depend on `batch_size`. The rounding of float32 may: it can
    flip the sign of a tiny gradient, and thereby change single pixels of single images. All batches
    have one size, so that an example's result does not depend on the others in its batch. Only
    attacks that drop broken examples have shrinking batches, unless `fixed_batches` is set.

    Args:
        model: callable from float32 images to logits of any floating dtype.
        trials: list of `Trial`, run in turn; an empty list gives natural accuracy alone.
        to_pixels: function from a batch of the images, such as uint8, to float32 pixels.
        batch_size: images at a time; the last batch may be smaller.
        seed: int within int32, which decides the random numbers.
        spare_misclassified: an example whose natural image is misclassified counts as broken and
            is not attacked. Otherwise it is attacked, as in the original code, and counts as
            correct if all attacks happen to correct it.
        each_alone: give every attack also the examples that others broke. This changes only the
            time and `TrialResult.accuracy_alone`.
        fixed_batches: keep the batches of every attack in one size. It takes longer; an example's
            result is then the same, bit for bit, in any part of the examples.
        show_progress: show a bar with the remaining time on stderr.

    Raises:
        InputError: batch_size or seed is not a whole number in its range; a trial takes a share of
            the examples, and `each_alone` is set or `spare_misclassified` is not.
    """

    def __init__(
        self,
        model,
        trials,
        *,
        to_pixels,
        batch_size,
        seed=0,
        spare_misclassified=False,
        each_alone=False,
        fixed_batches=False,
        show_progress=True,
    ):
        self.trials = list(trials)
        self.to_pixels = to_pixels
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.seed = whole_number("seed", seed, -(2**31))
        self.spare_misclassified = spare_misclassified
        self.each_alone = each_alone
        partial = [trial.name for trial in self.trials if trial.share < 1]
        if partial and (each_alone or not spare_misclassified):
            what = "--each_alone" if each_alone else "spare_misclassified=False"
            raise InputError(
                f"{what}: expected attacks that are given every example, got "
                f"{partial[0]}, which takes the closest alone"
            )
        self.fixed_batches = fixed_batches
        self.show_progress = show_progress
        model = graph_model(model)

        @tf.function(autograph=False, reduce_retracing=True)
        def classify(x, y):
            logits = as_logits(model(x), x)
            num_classes = tf.shape(logits)[1]
            # The caller checks the labels once this has returned the number of classes.
            y = tf.minimum(y, num_classes - 1)
            correct = ~is_misclassified(logits, y)
            return correct, xent_loss(logits, y), margin(logits, y), num_classes

        self._classifier = classify
        self._num_classes = None

    @without_tf32()
    def run(self, images, labels, state=None, report=None, examples=None):
        """Evaluates images (n, height, width, channels).

        A broken example is not attacked again. Batches stay full as long as enough examples remain:
        a batch may hold the end of one restart and the beginning of the next. This changes only the
        time, since an example's random start depends only on its number and its restart's number.

        With a `state`, Ctrl-C and SIGTERM end the evaluation after the current batch, and the next
        call resumes there; the result is that of an uninterrupted call.

        Args:
            images: the examples.
            labels: their labels, as `common.attack.Attack.perturb` takes them.
            state: a `State`, or None to start anew and keep nothing.
            report: function that is called with each attack's `TrialResult` when it is done; a
                resumed call begins with the earlier ones.
            examples: slice of the examples to evaluate, which keep their numbers; None for all.

        Returns:
            A `Result`.

        Raises:
            InputError: labels are not classes of the model, one for each image; the model does not
                return logits; `state` is damaged, or another evaluation's; or as the attacks.
            Interrupted: the evaluation was ended; `state` is up to date.
        """
        given, whole = labels, len(images)
        labels = to_labels(given, whole, self._num_classes, "labels")
        first = 0 if examples is None else examples.start
        if examples is not None:
            images, labels = images[examples], labels[examples]
        count, self._size = len(images), min(self.batch_size, whole)
        found = Found.nothing(images, len(self.trials))
        if state is not None:
            state.read(found)
        begin = time.perf_counter() - found.seconds
        cpu_begin = time.process_time() - found.cpu_seconds
        results = []
        with contextlib.nullcontext() if state is None else Interruption() as interruption:

            def keep():
                """Updates the state after a batch; ends the evaluation if a signal has come."""
                found.seconds = time.perf_counter() - begin
                found.cpu_seconds = time.process_time() - cpu_begin
                if state is not None:
                    state.keep(found, at_once=interruption.requested)
                    if interruption.requested:
                        raise Interrupted(interruption.requested)

            with self._progress("natural", initial=found.num_natural, total=count) as progress:
                for batch in self._batches(np.arange(found.num_natural, count)):
                    x = tf.convert_to_tensor(self.to_pixels(images[batch]))
                    correct, losses, margins = self._classify(x, labels[batch])
                    to_labels(given, whole, self._num_classes, "labels")
                    spares = self.spare_misclassified
                    found.add_natural(batch, x, correct.numpy(), losses, margins, spares)
                    progress.update(len(batch))
                    keep()
            for number in range(len(self.trials)):
                if number > found.trial:
                    found.trial, found.turn = number, 0
                if number == found.trial:
                    self._attack(images, labels, found, keep, first)
                results.append(self._trial_result(found, number))
                if report is not None:
                    report(results[-1])
        return self._result(found, results)

    def join(self, parts, report=None):
        """Joins the parts of an evaluation, each of which `run` has finished.

        Args:
            parts: list of what their states hold, in the examples' order, see `State.read`.
            report: see `run`.

        Returns:
            The `Result` of a single `run`; its seconds are the sum of the parts'.
        """
        found = Found.joined(parts)
        results = [self._trial_result(found, number) for number in range(len(self.trials))]
        for done in results if report is not None else ():
            report(done)
        return self._result(found, results)

    def _result(self, found, results):
        found.leave_alone()
        return Result(
            found.natural_correct,
            found.adversarial_correct,
            found.natural_losses,
            found.adversarial_losses,
            found.x_adv,
            found.withstood,
            tuple(results),
            found.seconds,
            found.cpu_seconds,
        )

    def _attack(self, images, labels, found, keep, first):
        """Runs the attack `found.trial`, from `found.turn` on; calls `keep()` after each batch."""
        number, count = found.trial, len(images)
        trial, attack = self.trials[number], self.trials[number].attack
        if not found.turn:  # later the attack itself has changed which examples remain
            found.given[number] = self._closest(found, number)
        standing = found.given[number] & found.withstood[number]
        before = time.perf_counter() - found.trial_seconds[number]
        name = trial.name if len(self.trials) > 1 else "attack"
        initial = int(found.num_attacks[number])
        with self._progress(name, initial=initial) as progress, self._in_one_size(attack):
            for batch, restarts in self._attack_batches(standing, trial.num_restarts, found.turn):
                x_nat = tf.convert_to_tensor(self.to_pixels(images[batch]))
                y = tf.constant(labels[batch])
                seeds = np.stack([np.full_like(restarts, self.seed), restarts], axis=1)
                x = tf.cast(attack.perturb(x_nat, y, seed=seeds, index=first + batch), tf.float32)
                is_finite = tf.reduce_all(tf.math.is_finite(x), axis=list(range(1, x.shape.rank)))
                x = select(is_finite, x, x_nat)
                if trial.eight_bits:
                    x = round_to_8_bits(x, x_nat, attack.epsilon, attack.bounds)
                correct, losses, margins = (part.numpy() for part in self._classify(x, y))
                found.add_attacked(batch, x.numpy(), correct, losses, margins)
                if hasattr(attack, "passes"):
                    found.passes[number] += attack.passes(len(batch))
                found.num_undefined[number] += getattr(attack, "num_undefined", 0)
                standing[batch] = correct
                found.turn = int(restarts[-1] * count + batch[-1] + 1)
                found.trial_seconds[number] = time.perf_counter() - before
                left = np.count_nonzero(standing) * (trial.num_restarts - 1 - restarts[-1])
                left += np.count_nonzero(standing[batch[-1] + 1 :])
                progress.total = found.num_attacks[number] + left
                progress.update(len(batch))
                accuracy = 100 * np.mean(found.adversarial_correct)
                progress.set_postfix_str(f"{accuracy:.2f}% of all images still correct")
                keep()
            progress.total = found.num_attacks[number]

    @contextlib.contextmanager
    def _in_one_size(self, attack):
        """Within its context the attack's batches have one size, unless they are to shrink."""
        fixes = hasattr(attack, "fix_batch_size")
        fixes = fixes and (self.fixed_batches or not attack.leaves_early)
        if fixes:
            attack.fix_batch_size(self._size)
        try:
            yield
        finally:
            if fixes:
                attack.fix_batch_size(0)

    def _closest(self, found, number):
        """Returns which examples a trial is given, bool (n,): its share of those that remain."""
        standing = np.flatnonzero(self._standing_before(found, number))
        count = math.ceil(self.trials[number].share * len(standing))
        order = np.argsort(found.margins[standing], kind="stable")
        given = np.zeros_like(found.natural_correct)
        given[standing[order[:count]]] = True
        return given

    def _standing_before(self, found, number):
        """Returns the examples that remain before a trial, bool (n,)."""
        given = np.ones_like(found.natural_correct)
        if self.spare_misclassified:
            given &= found.natural_correct
        if not self.each_alone:
            given &= found.withstood[:number].all(axis=0)
        return given

    def _trial_result(self, found, number):
        withstood, given = found.withstood[: number + 1], found.given[number]
        left_alone = self._standing_before(found, number) & ~given
        to_break = found.natural_correct if self.spare_misclassified else np.ones_like(given)
        is_alone = self.trials[number].share == 1 and (number == 0 or self.each_alone)
        return TrialResult(
            name=self.trials[number].name,
            num_given=int(np.count_nonzero(given)),
            num_broken=int(np.count_nonzero(given & ~withstood[-1])),
            accuracy=100 * float(np.mean(to_break & withstood.all(axis=0))),
            accuracy_alone=100 * float(np.mean(to_break & withstood[-1])) if is_alone else None,
            num_attacks=int(found.num_attacks[number]),
            num_gradients=int(found.passes[number, 0]),
            num_queries=int(found.passes[number, 1]),
            seconds=float(found.trial_seconds[number]),
            num_undefined=int(found.num_undefined[number]),
            num_left_alone=int(np.count_nonzero(left_alone)),
        )

    def _progress(self, what, **options):
        return tqdm(desc=what, unit="image", disable=not self.show_progress, **options)

    def _batches(self, numbers):
        return [numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)]

    def _attack_batches(self, standing, num_restarts, first_turn=0):
        """Yields batches as (examples, each one's restart), as long as examples remain.

        The turns are the examples of the first restart, then those of the second, and so on.
        """
        batch = {}  # example to restart
        for turn in range(first_turn, num_restarts * len(standing)):
            restart, example = divmod(turn, len(standing))
            if example == 0 and not standing.any():
                break
            if len(batch) == self.batch_size or example in batch:
                yield np.array(list(batch)), np.array(list(batch.values()))
                batch = {}
            if standing[example]:
                batch[example] = restart
        if batch:
            yield np.array(list(batch)), np.array(list(batch.values()))

    def _classify(self, x, y):
        """Whether images are classified correctly, their cross-entropy and their margin."""
        count = len(x)
        if count < self._size:
            rows = np.minimum(np.arange(self._size), count - 1)
            x, y = tf.gather(x, rows), tf.gather(y, rows)
        with as_raised():
            *found, num_classes = self._classifier(x, tf.convert_to_tensor(y))
        self._num_classes = int(num_classes)
        return [values[:count] for values in found]
