"""Models as they come: under any of Keras's settings, of any dtype, size and batch."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar10_challenge.challenge import CIFAR10
from cifar10_challenge.model import build_model as build_cifar10
from common import checkpoints
from common.attack import PGD, FastModel
from common.config import make_config
from common.errors import InputError
from common.training import optimizers, steps
from mnist_challenge.challenge import MNIST
from mnist_challenge.model import build_model as build_mnist

CHALLENGES = pytest.mark.parametrize("challenge", [MNIST, CIFAR10], ids=lambda c: c.name)
SIZES = {"MNIST": {"scale": 1}, "CIFAR-10": {"width": "simple"}}


def images_of(challenge, count=4):
    """Float32 pixels of the sample, and their labels."""
    sample = challenge.load("sample").head(count)
    return tf.constant(challenge.to_pixels(sample.images)), sample.labels


# Keras's global settings. See https://github.com/keras-team/keras/issues/7176 , .../10964 and
# .../20414 : what a model is depends on keras.json and on settings made elsewhere in a program.

SETTINGS = {
    "float64, channels_first": lambda: (
        keras.config.set_floatx("float64"),
        keras.config.set_image_data_format("channels_first"),
    ),
    "mixed_float16": lambda: keras.config.set_dtype_policy("mixed_float16"),
    "mixed_bfloat16": lambda: keras.config.set_dtype_policy("mixed_bfloat16"),
    "float16": lambda: keras.config.set_floatx("float16"),
}


@contextlib.contextmanager
def keras_setting(name):
    """One of `SETTINGS` while it lasts."""
    before = keras.config.floatx(), keras.config.image_data_format(), keras.config.dtype_policy()
    try:
        SETTINGS[name]()
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_image_data_format(before[1])
        keras.config.set_dtype_policy(before[2])


def what_it_does(challenge, folder, **options):
    """Numbers of a new network: logits, a training step, and what its files give."""
    x, y = images_of(challenge)
    config = make_config(challenge, ("here", SIZES[challenge.name]))
    model = challenge.build_model(config)
    if options:
        model = build_cifar10("simple", seed=config.random_seed, **options)
    before = model(x, training=False).numpy()
    rate = optimizers.learning_rate(((0, 0.01),))
    if challenge is MNIST:
        optimizer = keras.optimizers.Adam(rate, epsilon=1e-8)
    else:
        optimizer = optimizers.Momentum(rate, momentum=0.9)
    update = steps.make_update(config, model, optimizer, tf.reduce_mean)
    numbers = [before, *(value.numpy() for _ in range(2) for value in update(x, x, y))]
    numbers += [weight.numpy() for weight in model.weights]
    numbers += [np.asarray(variable) for variable in optimizer.variables]
    if options:
        return numbers
    checkpoints.export(model, folder / "saved")
    model.save(folder / "model.keras")
    checkpoints.TrainingRun(folder, model, optimizer).save(3)
    (folder / "config.json").write_text(config.to_json())
    for path in (folder / "saved", folder / "model.keras", folder):
        loaded = checkpoints.load_model(challenge, path)
        assert isinstance(loaded.logits, FastModel)
        assert loaded.logits(x).dtype == tf.float32
        fast = tf.function(
            lambda x, logits=loaded.logits: logits.prepare("float32")(x), autograph=False
        )
        numbers += [loaded.logits(x).numpy(), fast(x).numpy()]
        numbers += [w.numpy() for w in checkpoints.load_keras_model(challenge, path).weights]
        digest = loaded.digest()
        assert digest == checkpoints.LoadedModel(model, model.weights, path).digest()
    return [*numbers, np.frombuffer(digest.encode(), np.uint8)]


@pytest.fixture(scope="module")
def as_ever(tmp_path_factory):
    """`what_it_does` by challenge and options, without a setting."""
    found = {}

    def get(challenge, **options):
        key = challenge.name, *options.items()
        if key not in found:
            folder = tmp_path_factory.mktemp("as_ever")
            found[key] = what_it_does(challenge, folder, **options), folder
        return found[key]

    return get


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for found, wanted in zip(actual, expected, strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "challenge, name",
    [
        *((MNIST, name) for name in list(SETTINGS)[:2]),  # a floatx and a policy
        *(pytest.param(MNIST, name, marks=pytest.mark.slow) for name in list(SETTINGS)[2:]),
        *(pytest.param(CIFAR10, name, marks=pytest.mark.slow) for name in list(SETTINGS)[:2]),
    ],
)
def test_keras_settings_change_nothing(challenge, name, as_ever, tmp_path):
    expected, folder = as_ever(challenge)
    with keras_setting(name):
        assert_same(what_it_does(challenge, tmp_path), expected)
        # Nor do they for what was written without them, and the other way round.
        for path in (folder / "saved", folder / "model.keras", folder):
            assert isinstance(checkpoints.load_model(challenge, path).logits, FastModel)
    for path in (tmp_path / "saved", tmp_path / "model.keras", tmp_path):
        assert isinstance(checkpoints.load_model(challenge, path).logits, FastModel)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float64, channels_first"])
def test_keras_settings_leave_the_precision_of_a_network_alone(name, as_ever, tmp_path):
    expected, _ = as_ever(CIFAR10, precision="mixed_bfloat16")
    with keras_setting(name):
        assert_same(what_it_does(CIFAR10, tmp_path, precision="mixed_bfloat16"), expected)


@pytest.mark.parametrize("name", ["float64, channels_first", "mixed_float16"])
@pytest.mark.parametrize("challenge, shipped", [(MNIST, "natural"), (CIFAR10, "simple_natural")])
def test_a_shipped_network_loads_under_keras_settings(challenge, shipped, name):
    with keras_setting(name):
        model = checkpoints.load_keras_model(challenge, shipped)
    assert {weight.dtype for weight in model.weights} == {"float32"}


# Models of other dtypes, sizes and batches.


def small(challenge, seed=1, **options):
    """A small convolutional keras.Model of images of any size."""
    keras.utils.set_random_seed(seed)
    shape = options.pop("shape", (None, None, challenge.image_shape[-1]))
    image = keras.Input(shape, **options)
    x = keras.layers.Rescaling(1 / challenge.bounds[1], dtype=image.dtype)(image)
    x = keras.layers.Conv2D(8, 5, strides=2, activation="relu")(x)
    x = keras.layers.GlobalMaxPooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10)(x))


def save(model, path, signature=None):
    """Writes a keras.Model as .keras, or as SavedModel with a signature of its own."""
    if path.suffix == ".keras":
        model.save(path)
        return path
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    spec = signature or tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    module.serve = tf.function(lambda x: model(x, training=False), input_signature=[spec])
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    return path


FORMS = pytest.mark.parametrize("form", ["m.keras", "saved"])


def logits_and_gradient(logits, x):
    """Of the sum of the third logits, within a tf.function, as attacks take it."""

    @tf.function(autograph=False)
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            values = logits(x)
            total = tf.reduce_sum(values[:, 3])
        return values, tape.gradient(total, x)

    return both(x)


def assert_attackable(loaded, challenge, compiled=(False, True)):
    x, y = images_of(challenge, 7)
    epsilon = (challenge.bounds[1] - challenge.bounds[0]) / 10
    options = {"epsilon": epsilon, "step_size": epsilon / 2, "bounds": challenge.bounds}
    for jit_compile in compiled:
        attack = PGD(loaded.logits, num_steps=3, jit_compile=jit_compile, **options)
        moved = np.abs(attack.perturb(x, y).numpy() - x.numpy())
        assert moved.max() == pytest.approx(epsilon, rel=1e-5)


@FORMS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@CHALLENGES
def test_models_of_other_dtypes_give_float32_logits(challenge, dtype, form, tmp_path):
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(f"mixed_{dtype}" if dtype != "float64" else dtype)
        model = small(challenge, dtype=dtype)
    finally:
        keras.config.set_dtype_policy(before)
    loaded = checkpoints.load_model(challenge, save(model, tmp_path / form))
    x, _ = images_of(challenge)
    logits, gradient = logits_and_gradient(loaded.logits, x)
    assert (logits.dtype, gradient.dtype) == (tf.float32, tf.float32)
    # One cast, of its own result.
    expected = tf.cast(model(tf.cast(x, dtype), training=False), tf.float32)
    np.testing.assert_allclose(logits, expected, rtol=1e-2 if dtype != "float64" else 1e-6)
    assert np.any(gradient) and len(loaded.digest()) == 64
    # XLA compiles the same for either challenge.
    assert_attackable(loaded, challenge, compiled=(False, True) if challenge is MNIST else (False,))


@pytest.mark.parametrize("policy", ["mixed_float16"])
def test_the_own_network_in_another_precision_is_another_function(policy, tmp_path):
    """Of float32 images: the .keras file of a training in mixed precision."""
    model = build_cifar10("simple", seed=1, precision=policy)
    model.save(tmp_path / "m.keras")
    loaded = checkpoints.load_model(CIFAR10, tmp_path / "m.keras")
    assert loaded.logits(images_of(CIFAR10)[0]).dtype == tf.float32
    assert_attackable(loaded, CIFAR10, compiled=[False])


@FORMS
@CHALLENGES
def test_networks_of_any_image_size_are_taken(challenge, form, tmp_path):
    model = small(challenge)
    assert model.input_shape[1:3] == (None, None)
    loaded = checkpoints.load_model(challenge, save(model, tmp_path / form))
    x, _ = images_of(challenge)
    np.testing.assert_allclose(loaded.logits(x), model(x), rtol=1e-5, atol=1e-6)
    assert_attackable(loaded, challenge)


@pytest.mark.parametrize("shape", [(None, None, None, None), None, (3, None, None, 1)])
def test_a_signature_may_leave_everything_open(shape, tmp_path):
    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(size=(784, 10)), dtype=tf.float32)

    def serve(x):
        logits = tf.reshape(x, (-1, 784)) @ module.kernel
        size = tf.shape(logits)
        return {"scores": tf.reshape(logits, size[size > 0])}  # of unknown rank

    serve = tf.function(serve, input_signature=[tf.TensorSpec(shape, tf.float32, name="x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": serve})
    loaded = checkpoints.load_model(MNIST, tmp_path)
    x, _ = images_of(MNIST)
    expected = tf.reshape(x, (-1, 784)) @ module.kernel
    np.testing.assert_allclose(loaded.logits(x), expected, rtol=1e-4, atol=1e-4)
    assert_attackable(loaded, MNIST, compiled=[False])  # XLA knows no such shapes


@FORMS
@CHALLENGES
def test_a_fixed_batch_takes_any_number_of_images(challenge, form, tmp_path):
    model, size = small(challenge), 5
    fixed = small(challenge, shape=challenge.image_shape, batch_size=size)
    fixed.set_weights(model.get_weights())
    spec = tf.TensorSpec((size, *challenge.image_shape), tf.float32)
    loaded = checkpoints.load_model(challenge, save(fixed, tmp_path / form, spec))
    images, _ = images_of(challenge, 13)
    assert loaded.logits(images[:0]).shape == (0, 10)
    all_expected = logits_and_gradient(model, images)
    for count in (1, 4, 5, 6, 10, 13):
        x = images[:count]
        assert loaded.logits(x).shape == (count, 10)
        for found, wanted in zip(logits_and_gradient(loaded.logits, x), all_expected, strict=True):
            np.testing.assert_allclose(found, wanted[:count], rtol=1e-4, atol=1e-6)
    # Their number is known only as it runs.
    unknown = tf.function(
        lambda x: logits_and_gradient(loaded.logits, x),
        input_signature=[tf.TensorSpec((None, *challenge.image_shape))],
    )
    for count in (1, 5, 13):
        for found, wanted in zip(unknown(images[:count]), all_expected, strict=True):
            np.testing.assert_allclose(found, wanted[:count], rtol=1e-4, atol=1e-6)
    assert_attackable(loaded, challenge)


def test_the_own_network_of_a_fixed_batch_has_its_fast_form(tmp_path):
    model = build_mnist(scale=1, seed=1)
    spec = tf.TensorSpec((50, 28, 28, 1), tf.float32)
    loaded = checkpoints.load_model(MNIST, save(model, tmp_path / "saved", spec))
    assert isinstance(loaded.logits, FastModel)
    x, _ = images_of(MNIST)
    np.testing.assert_allclose(loaded.logits(x), model(x), rtol=1e-5, atol=1e-5)
    model = keras.Model(x := keras.Input((28, 28, 1), batch_size=50), model(x))
    loaded = checkpoints.load_model(MNIST, save(model, tmp_path / "m.keras"))
    assert isinstance(loaded.logits, FastModel)


def test_another_network_with_many_filters_is_not_taken_for_the_challenges_own(tmp_path):
    """Nor is one of that size built to find out."""
    image = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(1200, 3, strides=9)(image)
    model = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    loaded = checkpoints.load_model(MNIST, save(model, tmp_path / "m.keras"))
    assert loaded.model is None


@keras.saving.register_keras_serializable("tests")
class OwnClass(keras.Model):
    """A network that tells its shapes only when it is called."""

    def __init__(self, num_classes=10, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.dense = keras.layers.Dense(num_classes)

    def call(self, x):
        return {"logits": self.dense(keras.ops.reshape(x, (-1, 784)))}

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


def test_a_subclassed_keras_model_is_loaded(tmp_path):
    model = OwnClass()
    x, _ = images_of(MNIST)
    expected = model(x)["logits"]
    model.save(tmp_path / "m.keras")
    loaded = checkpoints.load_model(MNIST, tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.logits(x), expected, rtol=1e-5)
    assert_attackable(loaded, MNIST)


def test_a_model_loads_without_the_loss_that_it_was_compiled_with(tmp_path):
    model = small(MNIST)
    model.compile(loss=lambda y, z: z)  # Keras cannot read that again
    model.save(tmp_path / "m.keras")
    assert checkpoints.load_model(MNIST, tmp_path / "m.keras").weights


# Misfits.


def refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        checkpoints.load_model(MNIST, path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 3000
    return str(error.value)


@FORMS
def test_a_misfit_is_one_line(form, tmp_path):
    def dense(count, shape=(28, 28, 1), **options):
        image = keras.Input(shape, **options)
        return keras.Model(image, keras.layers.Dense(count)(keras.layers.Flatten()(image)))

    path = save(dense(11), tmp_path / "many" / form if form == "saved" else tmp_path / form)
    refused(path, r"got one of \(None, 28, 28, 1\) to \(None, 11\) in ")
    path = tmp_path / f"other-{form}"
    save(dense(10, (784,)), path)
    refused(path, r"got one of \(None, 784\) to ")
    path = tmp_path / f"flat-{form}"
    image = keras.Input((None, None, 1))
    save(keras.Model(image, keras.layers.Conv2D(10, 3)(image)), path)
    refused(path, r"got one of \(None, None, None, 1\) to \(None, None, None, 10\)")
    path = tmp_path / f"batch-{form}"
    save(dense(10, (32, 32, 1), batch_size=50), path, tf.TensorSpec((50, 32, 32, 1)))
    refused(path, r"got one of \(50, 32, 32, 1\) to ")
    path = tmp_path / f"int-{form}"
    image = keras.Input((28, 28, 1), dtype="int32")
    x = keras.layers.Flatten()(keras.ops.cast(image, "float32"))
    save(keras.Model(image, keras.layers.Dense(10)(x)), path)
    refused(path, "expected a model of float images, got one of int32 images")


def test_a_misfit_that_only_a_call_shows_is_one_line(tmp_path):
    image = keras.Input((None, None, 1))  # too deep for 28 x 28 pixels
    x = keras.layers.Conv2D(4, 30)(image)
    model = keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalMaxPooling2D()(x)))
    refused(save(model, tmp_path / "m.keras"), "cannot load ")
    model = OwnClass(7)
    model(images_of(MNIST)[0])
    model.save(tmp_path / "seven.keras")
    refused(tmp_path / "seven.keras", r"got one of unknown shape to \(4, 7\) in ")


def test_several_inputs_or_outputs_are_one_line(tmp_path):
    first, second = keras.Input((28, 28, 1), name="a"), keras.Input((28, 28, 1), name="b")
    flat = keras.layers.Flatten()
    logits = keras.layers.Dense(10, name="c")(flat(first)), keras.layers.Dense(9)(flat(second))
    keras.Model([first, second], logits[0] + logits[1][:, :1]).save(tmp_path / "two.keras")
    refused(tmp_path / "two.keras", "expected one input and one output of the model .*got a, b and")
    keras.Model([first, second], list(logits)).save(tmp_path / "four.keras")
    refused(tmp_path / "four.keras", "expected one input and one output of the model ")


def test_what_needs_other_code_is_one_line(tmp_path):
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), Unregistered(10)])
    model.save(tmp_path / "m.keras")
    refused(tmp_path / "m.keras", "cannot load .*Unregistered")


class Unregistered(keras.layers.Dense):
    """A layer that Keras does not know by name."""


def test_keras_safe_mode_is_on(tmp_path):
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Lambda(lambda x: x[:, 0, :10, 0])]
    )
    model.save(tmp_path / "m.keras")
    refused(tmp_path / "m.keras", "cannot load .*[Ll]ambda")
