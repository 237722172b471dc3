"""Several devices share each batch: `tf.distribute` around the two sides of the min-max.

A replica is a device with its own copy of the weights, a worker a process of a training over
several hosts. Replica r of R takes the images r, r + R, r + 2 R, ... of each batch, attacks them
(a random start depends on the image's position in the whole batch), and computes their gradient;
every replica applies the sum of the gradients. A step is therefore that of one device up to
rounding, with batch norm only if it takes the statistics of the whole batch (`synchronized`).

Checkpoints, validation and the SavedModel use plain variables, as on one device; `Replicas` copies
their values to the replicas and back.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import threading
import zlib

import numpy as np
import tensorflow as tf

from common.attack import is_misclassified, xent_loss
from common.errors import InputError, one_line
from common.messages import tell
from common.training import steps
from common.training.losses import make_loss
from common.training.optimizers import average_weights, copy_weights

SUM, MEAN = tf.distribute.ReduceOp.SUM, tf.distribute.ReduceOp.MEAN


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a training.

    Attributes:
        strategy: a `tf.distribute.Strategy`, or None for one device without one.
        num_workers: number of the processes that train together.
        worker: this one's number. Only worker 0, the chief, writes and prints.
    """

    strategy: tf.distribute.Strategy | None = None
    num_workers: int = 1
    worker: int = 0

    @property
    def num_replicas(self):
        """Number of devices on all hosts."""
        return 1 if self.strategy is None else self.strategy.num_replicas_in_sync

    @property
    def is_chief(self):
        """Whether this process writes and prints."""
        return self.worker == 0

    @property
    def first_replica(self):
        """The number of this worker's first replica."""
        return self.worker * (self.num_replicas // self.num_workers)

    def rows(self, batch_size):
        """The positions of this worker's images in a batch, by replica; None for all."""
        if self.strategy is None:
            return None
        count = self.num_replicas // self.num_workers
        here = range(self.first_replica, self.first_replica + count)
        return np.concatenate([np.arange(r, batch_size, self.num_replicas) for r in here])

    def total(self, number):
        """The sum of the workers' ints; returns once all have called it."""
        return number if self.num_workers == 1 else int(self.added_up(number))

    def added_up(self, number):
        """That sum as a tensor, which may not be computed yet."""
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                number if context.replica_id_in_sync_group == self.first_replica else 0, tf.int64
            )
        )
        return _added_up(self.strategy)(values)

    def check_same(self, number, message):
        """Raises InputError with `message` on every worker if they have different ints."""
        number %= 2**20  # so that int64 holds the squares
        total, squares = self.total(number), self.total(number * number)
        if squares * self.num_workers != total * total:  # the mean's square is the squares' mean
            raise InputError(message)


@functools.cache
def _added_up(strategy):
    return tf.function(lambda values: strategy.reduce(SUM, values, axis=None), autograph=False)


def devices_of(config):
    """The devices that a config asks for; the first call decides them for the whole process.

    It must precede TensorFlow's first op if it divides the processor or joins a cluster.

    Args:
        config: a `common.config.Config`.

    Raises:
        InputError: there are not so many; the batch cannot be split evenly; TF_CONFIG is wrong.
    """
    if config.distribute == "none":
        if config.num_devices != "auto":
            raise InputError(
                "--num_devices: expected auto without --distribute=mirrored or multi_worker, "
                f"got {config.num_devices}"
            )
        return Devices()
    is_cluster = config.distribute == "multi_worker"
    cluster = parse_tf_config(os.environ.get("TF_CONFIG")) if is_cluster else None
    asked = config.num_devices, cluster
    if not _STARTED:
        _STARTED[asked] = _start(*asked)
    if asked not in _STARTED:  # TensorFlow cannot change the size of a group of devices
        raise InputError("--num_devices: expected the devices that this process has begun with")
    devices = _STARTED[asked]
    count, batch_size = devices.num_replicas, config.training_batch_size
    if batch_size % count:
        raise InputError(
            f"--training_batch_size: expected a multiple of {count}, the number of devices that "
            f"share a batch, got {batch_size}"
        )
    attacked = batch_size - steps.num_natural(config)
    if attacked < count:
        raise InputError(
            f"--natural_share: expected an image to attack on each of {count} devices, "
            f"got {attacked} in a batch of {batch_size}"
        )
    return devices


_STARTED = {}  # this process's devices, by what was asked for


def _start(num_devices, cluster):
    if cluster is None:
        return Devices(tf.distribute.MirroredStrategy(_local_devices(num_devices)))
    addresses, worker = cluster
    _restrict_gpus(num_devices)
    others = ", ".join(addresses[:worker] + addresses[worker + 1 :])
    told = f": waiting for {others}" if others else ""
    tell(f"worker {worker} of {len(addresses)}, {addresses[worker]}{told}")
    try:
        with _signals_end_at_once():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:  # ops ran before
        raise InputError(f"--distribute=multi_worker: {one_line(error)}") from None
    except tf.errors.OpError as error:
        raise InputError(f"TF_CONFIG: cannot join the cluster: {one_line(error.message)}") from None
    return Devices(strategy, len(addresses), worker)


def _local_devices(num_devices):
    """The names of the devices to use on this host: GPUs, or parts of the processor."""
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    if num_gpus:
        count = _count_of(num_devices, num_gpus)
        return [f"GPU:{number}" for number in range(count)]
    count = 1 if num_devices == "auto" else num_devices
    (processor, *_) = tf.config.list_physical_devices("CPU")
    there = tf.config.get_logical_device_configuration(processor) or [None]
    if len(there) < count:
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        try:
            tf.config.set_logical_device_configuration(processor, parts)
        except RuntimeError:
            raise InputError(
                f"--num_devices: expected at most {len(there)}, the parts of the processor that "
                f"this process has begun with, got {count}"
            ) from None
    return [f"CPU:{number}" for number in range(count)]


def _restrict_gpus(num_devices):
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[: _count_of(num_devices, len(gpus))], "GPU")
    elif num_devices not in ("auto", 1):
        raise InputError(
            "--num_devices: expected auto or 1 with --distribute=multi_worker on a host without a "
            f"GPU, whose processor is one device, got {num_devices}"
        )


def _count_of(num_devices, num_gpus):
    if num_devices != "auto" and num_devices > num_gpus:
        raise InputError(
            f"--num_devices: expected 1 to {num_gpus}, the GPUs of this host, got {num_devices}"
        )
    return num_gpus if num_devices == "auto" else num_devices


@contextlib.contextmanager
def _signals_end_at_once():
    """Within it Ctrl-C ends the process: Python cannot handle it while TensorFlow waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def parse_tf_config(text):
    """Reads TF_CONFIG, by which every worker knows the others and itself.

        {"cluster": {"worker": ["host1:2222", "host2:2222"]},
         "task": {"type": "worker", "index": 0}}

    The cluster may have a "chief", too, which is then worker 0.

    Args:
        text: its text, or None.

    Returns:
        The workers' addresses as a tuple of str, and the number of this worker among them.

    Raises:
        InputError: it is anything else; the message says what was expected.
    """
    expected = 'TF_CONFIG: expected {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": '
    expected += '"worker", "index": N}}'
    if not text:
        raise InputError(f"{expected} in the environment for --distribute=multi_worker, got none")
    try:
        values = json.loads(text)
        cluster, task = dict(values["cluster"]), dict(values["task"])
        kind, index = task["type"], task["index"]
        addresses = [address for name in ("chief", "worker") for address in cluster.get(name, [])]
        is_known = set(cluster) <= {"chief", "worker"} and len(cluster.get("chief", [])) <= 1
        is_known &= all(re.fullmatch(r"[^\s:/]+:\d{1,5}", address) for address in addresses)
    except (KeyError, TypeError, ValueError, AttributeError):
        is_known = False
    if not is_known:
        raise InputError(f"{expected}, got {one_line(text)}")
    if len(set(addresses)) < len(addresses):
        raise InputError(f"TF_CONFIG: expected an address once, got {', '.join(addresses)}")
    here = cluster.get(kind, []) if isinstance(kind, str) else []
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(here):
        raise InputError(
            f"TF_CONFIG: expected a task of the cluster, got type {kind!r} and index {index!r}"
        )
    return tuple(addresses), addresses.index(here[index])


@contextlib.contextmanager
def faults_as_lines(config):
    """Turns TensorFlow's errors after another worker's end into an `InputError`."""
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
        tf.errors.InternalError,
    ) as error:
        if config.distribute != "multi_worker":
            raise
        raise InputError(
            "another worker has ended; the same command on every host resumes at the newest "
            f"checkpoint ({one_line(error.message)[:200]})"
        ) from None


class OneDevice:
    """A network in training on one device, without `tf.distribute`.

    Args:
        config: the challenge's config.
        challenge: a `common.challenge.Challenge`.
        model: keras.Model in training.
        result: keras.Model that is evaluated, see `steps.make_update`.
        optimizer: keras optimizer.
        reduce_loss: tf.reduce_sum or tf.reduce_mean, from the losses of the examples.
        batch_statistics: see `PGD`.

    Attributes:
        perturb: the inner maximisation, function (x_nat, y, step) to x_adv.
        update: the outer minimisation, function (x_nat, x_adv, y) to cross-entropy and accuracy.
        natural_accuracy: function (x_nat, y), in inference mode.
        optimizer: the optimizer, which knows the learning rate.
    """

    def __init__(self, config, challenge, model, result, optimizer, reduce_loss, batch_statistics):
        self.optimizer = optimizer
        self.perturb = steps.make_adversary(config, challenge, model, batch_statistics)
        self.update = steps.make_update(config, model, optimizer, reduce_loss, result)
        self.natural_accuracy = tf.function(
            lambda x, y: steps.accuracy_of(model(x, training=False), y), reduce_retracing=True
        )

    def split(self, batches):
        """The batches as `perturb` and `update` take them."""
        return batches

    def begin(self):
        """Copies the weights and the optimizer's state of a checkpoint to the devices."""

    def collect(self):
        """Copies weights and optimizer's state back, for a checkpoint."""

    def images(self, x):
        """Some images of a batch, float32 (count, height, width, channels)."""
        return x

    def agree_to_stop(self, is_asked):
        """Whether to stop after this step, on all workers alike."""
        return is_asked


class Replicas:
    """A network in training on several devices; methods and attributes as in `OneDevice`.

    A batch is a `tf.distribute.DistributedValues` of float32 images and int32 labels.

    Args:
        devices: `Devices` with a strategy.
        build: function without arguments that makes another model like `model`.
        config, challenge, model, result, optimizer, reduce_loss, batch_statistics: see `OneDevice`;
            `model` and `optimizer` are up to date for checkpoints, `result` after every step.

    Raises:
        InputError: the network has random layers.
    """

    def __init__(
        self,
        devices,
        build,
        config,
        challenge,
        model,
        result,
        optimizer,
        reduce_loss,
        batch_statistics,
    ):
        if len(model.variables) > len(model.weights):
            raise InputError(
                f"--distribute={config.distribute}: expected a network without random layers, such "
                "as dropout, whose draws would depend on the number of devices"
            )
        self._devices, self._config, self._result = devices, config, result
        self._strategy = devices.strategy
        self._plain = [*model.weights, *_built(optimizer, model).variables]
        with self._strategy.scope():
            self._model = build()
            its_own = type(optimizer).from_config(optimizer.get_config())
            self.optimizer = _built(its_own, self._model)
        self._own = [*self._model.weights, *self.optimizer.variables]
        self._natural = steps.num_natural(config)
        self._reduce_loss = reduce_loss
        self._loss_of = make_loss(config.loss, config.natural_weight, config.trades_beta)
        self._is_in_step = batch_statistics and _is_synchronised(model)
        self._perturbs = {}
        if config.adversary != "none":
            self._attack_at = steps.make_attacks(config, challenge, self._model, batch_statistics)
        self._asked = 0  # how many workers asked to stop, one step ago
        self.update = tf.function(self._update, autograph=False)
        self.natural_accuracy = tf.function(self._natural_accuracy, autograph=False)

    def split(self, batches):
        """The batches as `perturb` and `update` take them."""
        count = self._devices.num_replicas // self._devices.num_workers
        first = self._devices.first_replica
        for batch in batches:
            parts = list(zip(*(tf.split(tensor, count) for tensor in batch), strict=True))
            yield self._strategy.experimental_distribute_values_from_function(
                lambda context: parts[context.replica_id_in_sync_group - first]
            )

    def begin(self):
        """Copies the weights and the optimizer's state of a checkpoint to the devices."""
        for own, plain in zip(self._own, self._plain, strict=True):
            own.assign(plain)

    def collect(self):
        """Copies weights and optimizer's state back, for a checkpoint."""
        for own, plain in zip(self._own, self._plain, strict=True):
            plain.assign(self._strategy.experimental_local_results(own.value)[0])

    def images(self, x):
        """Some images of a batch, float32 (count, height, width, channels)."""
        return self._strategy.experimental_local_results(x)[0]

    def agree_to_stop(self, is_asked):
        """Whether to stop after this step, on all workers alike."""
        if self._devices.num_workers == 1:
            return is_asked
        # The answer of the step before, so that no device has to wait.
        before, self._asked = self._asked, self._devices.added_up(int(is_asked))
        return int(before) > 0

    def perturb(self, x_nat, y, step):
        """The inner maximisation: x_adv."""
        if self._config.adversary == "none":
            return x_nat
        attack = self._attack_at(step)
        if attack not in self._perturbs:  # compiled once for each attack of a schedule
            make = self._perturb_in_step if self._is_in_step else self._perturb_apart
            self._perturbs[attack] = tf.function(functools.partial(make, attack), autograph=False)
        return self._perturbs[attack](x_nat, y, tf.constant(step, tf.int32))

    def _perturb_apart(self, attack, x_nat, y, step):
        """Every replica runs the whole attack on its images."""

        def perturb(x_nat, y, step):
            natural, index = self._natural_here(x_nat.shape[0])
            seed, warmup = self._config.random_seed, self._config.epsilon_warmup_steps
            x_adv = steps.ascend(attack, x_nat[natural:], y[natural:], step, seed, warmup, index)
            return tf.concat([x_nat[:natural], x_adv], axis=0)

        return self._strategy.run(perturb, (x_nat, y, step))

    def _perturb_in_step(self, attack, x_nat, y, step):
        """The replicas take each step of the attack together, as batch norm connects their images.

        `tf.distribute` cannot communicate within a replica's loop, so that the loop is outside.
        """
        warmup = self._config.epsilon_warmup_steps
        scale = steps.warmup_scale(step, warmup) if warmup else 1.0

        def start(x_nat, y):
            natural, index = self._natural_here(x_nat.shape[0])
            seed = self._config.random_seed, step
            return attack.start(x_nat[natural:], y[natural:], seed, index, scale)

        def climb(_, state):
            return self._strategy.run(attack.ascend, (state, scale))

        def join(x_nat, state):
            natural, _ = self._natural_here(x_nat.shape[0])
            return tf.concat([x_nat[:natural], state.x], axis=0)

        state = self._strategy.run(start, (x_nat, y))
        _, state = tf.while_loop(
            lambda number, _: number < attack.num_steps,
            lambda number, state: (number + 1, climb(number, state)),
            (tf.constant(0), state),
            parallel_iterations=1,
        )
        return self._strategy.run(join, (x_nat, state))

    def _update(self, x_nat, x_adv, y):
        """The outer minimisation: cross-entropy and accuracy of the whole batch."""
        sums = self._strategy.run(self._descend, (x_nat, x_adv, y))
        if self._config.average_decay:
            decay, count = self._config.average_decay, self.optimizer.iterations
            average_weights(self._result, self._model, decay, count)
        else:
            copy_weights(self._result, self._model)
        return [self._strategy.reduce(SUM, number, axis=None) for number in sums]

    def _descend(self, x_nat, x_adv, y):
        _, logits = steps.descend(
            self._loss_of, self._estimate, self._model, self.optimizer, x_nat, x_adv, y
        )
        # Batch norm's averages are of this replica's images alone.
        averages = [w for w in self._model.non_trainable_weights if w.dtype.startswith("float")]
        if averages:
            means = tf.distribute.get_replica_context().all_reduce(
                MEAN, [tf.identity(average) for average in averages]
            )
            for average, mean in zip(averages, means, strict=True):
                average.assign(mean)
        natural, _ = self._natural_here(y.shape[0])
        count = self._config.training_batch_size - self._natural
        xent = xent_loss(logits, y)[natural:]
        correct = tf.cast(~is_misclassified(logits, y)[natural:], tf.float32)
        return tf.reduce_sum(xent) / count, tf.reduce_sum(correct) / count

    def _estimate(self, losses):
        """A replica's estimate of the batch's loss; the mean of all replicas' is that loss."""
        loss = self._reduce_loss(losses)
        return loss * self._devices.num_replicas if self._reduce_loss is tf.reduce_sum else loss

    def _natural_accuracy(self, x_nat, y):
        def accuracy(x_nat, y):
            return steps.accuracy_of(self._model(x_nat, training=False), y)

        return self._strategy.reduce(MEAN, self._strategy.run(accuracy, (x_nat, y)), axis=None)

    def _natural_here(self, count):
        """How many of a replica's images are not attacked, and the positions of the others."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        first, among = int(tf.get_static_value(replica)), self._devices.num_replicas
        rows = np.arange(first, count * among, among, dtype=np.int32)
        natural = int(np.count_nonzero(rows < self._natural))
        return natural, rows[natural:] - self._natural


def settings_digest(config):
    """A checksum of the settings that all workers must share, an int."""
    values = dataclasses.asdict(config)
    for name in ("model_dir", "data_dir"):  # hosts may mount a directory elsewhere
        del values[name]
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _built(optimizer, model):
    optimizer.build(model.trainable_variables)
    return optimizer


def _is_synchronised(model):
    return any(layer.get_config().get("synchronized") for layer in model.layers)
