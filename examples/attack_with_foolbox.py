"""Attacks the shipped MNIST network with Foolbox (https://github.com/bethgelab/foolbox).

    pip install -e '.[peers]' && python examples/attack_with_foolbox.py

The attack is Foolbox's own; from this project it takes only the SavedModel and the test images.
"""

import foolbox
import numpy as np
import tensorflow as tf

from mnist_challenge.challenge import MNIST

network = tf.saved_model.load(MNIST.directory / "models" / "adv_trained")
logits = network.signatures["serving_default"]
model = foolbox.TensorFlowModel(lambda x: logits(image=x)["logits"], bounds=(0, 1))

test = MNIST.load("test", allow_sample=True).head(500)
x_nat = tf.constant(MNIST.to_pixels(test.images))
# int64 like argmax: if types differ, Foolbox 3.3 calls a function that NumPy 2 does not have.
y = tf.constant(test.labels, tf.int64)

attack = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=40, random_start=True)
accuracies = []
print(test.source)
for seed in range(5):
    tf.random.set_seed(seed)
    _, _, is_broken = attack(model, x_nat, y, epsilons=0.3)
    accuracies.append(100 - 100 * np.mean(is_broken))
    print(f"random start {seed}: {accuracies[-1]:.2f}%", flush=True)

print(f"adversarial: {np.mean(accuracies):.2f}%")
