"""Attacks the shipped MNIST network with CleverHans (https://github.com/cleverhans-lab/cleverhans).

    pip install -e '.[peers]' && python examples/attack_with_cleverhans.py

The attack is CleverHans's own; from this project it takes only the SavedModel and the test images.
"""

import numpy as np
import tensorflow as tf
from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

from mnist_challenge.challenge import MNIST

network = tf.saved_model.load(MNIST.directory / "models" / "adv_trained")
serve = network.signatures["serving_default"]


def logits(x):
    """Pixels in [0, 1] to logits."""
    return serve(image=x)["logits"]


test = MNIST.load("test", allow_sample=True).head(500)
x_nat = tf.constant(MNIST.to_pixels(test.images))

accuracies = []
print(test.source)
for seed in range(5):
    tf.random.set_seed(seed)
    x_adv = projected_gradient_descent(
        logits,
        x_nat,
        eps=0.3,
        eps_iter=0.01,
        nb_iter=40,
        norm=np.inf,
        clip_min=0.0,
        clip_max=1.0,
        y=test.labels,  # else it would attack the predictions
        rand_init=True,
    )
    accuracies.append(100 * np.mean(np.argmax(logits(x_adv), axis=-1) == test.labels))
    print(f"random start {seed}: {accuracies[-1]:.2f}%", flush=True)

print(f"adversarial: {np.mean(accuracies):.2f}%")
