"""Attacks the shipped MNIST network with ART, the Adversarial Robustness Toolbox
(https://github.com/Trusted-AI/adversarial-robustness-toolbox).

    pip install -e '.[peers]' && python examples/attack_with_art.py

The attack is ART's own; from this project it takes only the SavedModel and the test images.
"""

import numpy as np
import tensorflow as tf
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import TensorFlowV2Classifier

from mnist_challenge.challenge import MNIST

network = tf.saved_model.load(MNIST.directory / "models" / "adv_trained")
logits = network.signatures["serving_default"]
# ART's KerasClassifier is for older Keras; this takes any function, and calls it with `training`.
classifier = TensorFlowV2Classifier(
    lambda x, training: logits(image=x)["logits"],
    nb_classes=10,
    input_shape=(28, 28, 1),
    loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    clip_values=(0, 1),
)

test = MNIST.load("test", allow_sample=True).head(500)
x_nat = MNIST.to_pixels(test.images)

attack = ProjectedGradientDescent(
    classifier,
    eps=0.3,
    eps_step=0.01,
    max_iter=40,
    num_random_init=1,
    batch_size=100,
    verbose=False,
)
accuracies = []
print(test.source)
for seed in range(5):
    np.random.seed(seed)
    predictions = np.argmax(classifier.predict(attack.generate(x_nat, test.labels)), axis=-1)
    accuracies.append(100 * np.mean(predictions == test.labels))
    print(f"random start {seed}: {accuracies[-1]:.2f}%", flush=True)

print(f"adversarial: {np.mean(accuracies):.2f}%")
