"""Small Keras models, images that they can learn, and an attack, for several tests."""

import functools

import keras
import numpy as np
import tensorflow as tf

from common.attack import PGD

OPTIONS = {"epsilon": 0.1, "bounds": (0, 1)}
ATTACK = functools.partial(PGD, step_size=0.04, num_steps=3, **OPTIONS)
L = keras.layers


def network(*, seed=0, classes=4, shape=(6, 5, 1), activation=None, last=(), **options):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(shape),
            L.Conv2D(3, 3, activation="relu", kernel_regularizer=keras.regularizers.L2(1e-2)),
            L.Flatten(),
            L.Dense(6, activation="relu", **options),
            L.Dense(classes, activation=activation, **options),
            *last,
        ]
    )


def examples(count=12, classes=4, shape=(6, 5, 1), seed=0):
    """Images whose class is the band of rows that is bright, with noise."""
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=count).astype("i4")
    x = random.uniform(0, 0.5, (count, *shape)).astype("f4")
    for image, label in zip(x, y, strict=True):
        image[label] += 0.5
    return x, y


def colour_network(*first, activation=None, size=(8, 7, 3), policy="float32", classes=5):
    """A network with batch norm, in one of Keras's dtype policies, behind some first layers."""
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(3, 3), L.BatchNormalization(), L.ReLU(), L.GlobalAveragePooling2D()]
    layers = [
        layer.__class__.from_config({**layer.get_config(), "dtype": policy}) for layer in layers
    ]
    last = L.Dense(classes, activation=activation, dtype=policy)
    return keras.Sequential([keras.Input(size), *first, *layers, last])


class Subclassed(keras.Model):
    """A network of five classes that Keras knows no graph of, with dropout and a softmax."""

    def __init__(self):
        super().__init__()
        self.features = [L.Conv2D(3, 3, activation="relu"), L.Flatten(), L.Dropout(0.5)]
        self.head = L.Dense(5, activation="softmax")

    def call(self, x, training=None):
        for layer in self.features:
            x = layer(x, training=training) if isinstance(layer, L.Dropout) else layer(x)
        return self.head(x)


@functools.cache
def trained_network():
    """A network that classifies well, without a softmax."""
    x, y = examples(200)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss)
    model.fit(x, y, epochs=30, verbose=0)
    assert np.mean(model.predict(x, verbose=0).argmax(1) == y) > 0.9
    return model


def with_softmax(model, form):
    """A model of the same weights that ends in a softmax."""
    if form == "activation":
        copy = keras.models.clone_model(model)
        copy.layers[-1].activation = keras.activations.softmax
        copy.set_weights(model.get_weights())
        return copy
    if form == "layer":
        return keras.Sequential([model, L.Softmax()])
    if form == "activation layer":
        return keras.Sequential([*model.layers, L.Activation("softmax")])
    if form == "op":
        return keras.Model(model.inputs, keras.ops.softmax(model.outputs[0]))
    if form == "nested":
        images = keras.Input(model.input_shape[1:])
        return keras.Model(images, with_softmax(model, "activation")(images))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.body, self.head = model, L.Softmax()

        def call(self, x):
            return self.head(self.body(x)) if form == "subclassed" else tf.nn.softmax(self.body(x))

    return Subclassed()


FORMS = ("activation", "layer", "activation layer", "op", "nested", "subclassed")
