"""PGD of other libraries on the same network; none of them is required."""

import importlib.util
import os

import numpy as np
import tensorflow as tf

from common.errors import InputError

# Name to the packages that it needs.
PEERS = {
    "CleverHans tf2": ("cleverhans",),
    "Foolbox TensorFlow": ("foolbox",),
    "ART TensorFlow": ("adversarial-robustness-toolbox",),
    "torch channels_last": ("torch",),
    "torch channels_last in bfloat16": ("torch",),
    "Foolbox torch": ("foolbox", "torch"),
    "torchattacks": ("torchattacks", "torch"),
}
_MODULES = {"adversarial-robustness-toolbox": "art"}


def importable():
    """The names of the peers whose packages are installed."""
    return [
        name
        for name, packages in PEERS.items()
        if all(importlib.util.find_spec(_MODULES.get(package, package)) for package in packages)
    ]


def require(*packages):
    """Raises InputError if one of `packages` is not installed."""
    for package in packages:
        if importlib.util.find_spec(_MODULES.get(package, package)) is None:
            raise InputError(f"expected {package}, which is not installed: pip install {package}")


def make(name, keras_model, x_nat, y, *, epsilon, step_size, num_steps, bounds):
    """Makes a peer's PGD without a random start, on these images.

    Args:
        name: one of `PEERS`.
        keras_model: plain keras.Model from images to logits.
        x_nat: float32 NumPy images (batch, height, width, channels).
        y: int64 NumPy labels.
        epsilon, step_size, num_steps, bounds: see `common.attack.PGD`.

    Returns:
        A function without arguments to the adversarial images, in the peer's own array type and
        layout; `to_images` gives them in ours.
    """
    settings = {
        "epsilon": epsilon,
        "step_size": step_size,
        "num_steps": num_steps,
        "bounds": bounds,
    }
    if "torch" in PEERS[name]:
        return _torch(name, keras_model, x_nat, y, **settings)
    return _tensorflow(name, keras_model, x_nat, y, **settings)


def to_images(x):
    """Converts what a peer returned to float32 NumPy images (batch, height, width, channels)."""
    if isinstance(x, np.ndarray) or tf.is_tensor(x):
        return np.asarray(x)
    return x.detach().permute(0, 2, 3, 1).numpy()


def _tensorflow(name, model, x_nat, y, *, epsilon, step_size, num_steps, bounds):
    if name == "CleverHans tf2":
        from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

        x, labels = tf.constant(x_nat), tf.constant(y)
        return lambda: projected_gradient_descent(
            model,
            x,
            epsilon,
            step_size,
            num_steps,
            np.inf,
            clip_min=bounds[0],
            clip_max=bounds[1],
            y=labels,
            rand_init=False,
            sanity_checks=False,
        )
    if name == "Foolbox TensorFlow":
        import foolbox

        attacked = foolbox.TensorFlowModel(model, bounds=bounds)
        attack = foolbox.attacks.LinfPGD(
            abs_stepsize=step_size, steps=num_steps, random_start=False
        )
        x, labels = tf.constant(x_nat), tf.constant(y)
        return lambda: attack(attacked, x, labels, epsilons=epsilon)[1]

    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model,
        nb_classes=10,
        input_shape=x_nat.shape[1:],
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=bounds,
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=epsilon,
        eps_step=step_size,
        max_iter=num_steps,
        batch_size=len(x_nat),
        verbose=False,
    )
    return lambda: attack.generate(x_nat, y)


def _torch(name, keras_model, x_nat, y, *, epsilon, step_size, num_steps, bounds):
    import torch

    channels_last = name.startswith("torch channels_last")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = _torch_network(keras_model).to(memory_format=layout)
    x = torch.tensor(x_nat.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    labels = torch.tensor(y)
    if channels_last:
        if "bfloat16" in name:
            model = _autocast(model)
        return lambda: torch_pgd(model, x, labels, epsilon, step_size, num_steps, bounds)
    if name == "Foolbox torch":
        import foolbox

        attacked = foolbox.PyTorchModel(model, bounds=bounds)
        attack = foolbox.attacks.LinfPGD(
            abs_stepsize=step_size, steps=num_steps, random_start=False
        )
        return lambda: attack(attacked, x, labels, epsilons=epsilon)[1]

    import torchattacks

    width = bounds[1] - bounds[0]  # it wants pixels in [0, 1]
    attack = torchattacks.PGD(
        _scaled(model, width),
        eps=epsilon / width,
        alpha=step_size / width,
        steps=num_steps,
        random_start=False,
    )
    x = x / width
    return lambda: attack(x, labels) * width


def _autocast(model):
    """The logits of a torch.nn.Module as float32, computed in what autocast takes for bfloat16."""
    import torch

    def logits(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    return logits


def torch_pgd(model, x_nat, y, epsilon, step_size, num_steps, bounds):
    """PGD in plain torch, without a random start; arguments as in `make`."""
    import torch

    x = x_nat
    for _ in range(num_steps):
        x = x.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() + step_size * gradient.sign()
        x = torch.clamp(torch.min(torch.max(x, x_nat - epsilon), x_nat + epsilon), *bounds)
    return x


def training_step(
    keras_model,
    x_nat,
    y,
    *,
    epsilon,
    step_size,
    num_steps,
    bounds,
    batch_statistics,
    is_summed,
    rate,
    momentum,
    weight_decay,
):
    """A step of adversarial training in torch, channels last, under autocast for bfloat16.

    Args:
        keras_model, x_nat, y, epsilon, step_size, num_steps, bounds: see `make`.
        batch_statistics: whether the attack runs the network in training mode.
        is_summed: whether the loss is the sum over the batch and not its mean.
        rate: the optimizer's learning rate.
        momentum: SGD's, or None for Adam.
        weight_decay: factor of half the squared kernels in the loss.

    Returns:
        A function without arguments that takes the step and returns the loss as a float.
    """
    import torch

    model = _torch_network(keras_model).requires_grad_(True)
    model = model.to(memory_format=torch.channels_last)
    logits = _autocast(model)
    kernels = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others}]
    if momentum is None:
        optimizer = torch.optim.Adam(groups, lr=rate)
    else:
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum)
    x = torch.tensor(x_nat.transpose(0, 3, 1, 2).copy()).to(memory_format=torch.channels_last)
    labels = torch.tensor(y)

    def step():
        model.train(batch_statistics)
        x_adv = torch_pgd(logits, x, labels, epsilon, step_size, num_steps, bounds)
        model.train()
        reduction = "sum" if is_summed else "mean"
        loss = torch.nn.functional.cross_entropy(logits(x_adv), labels, reduction=reduction)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def scaled_torch_network(keras_model, width):
    """The same network in torch, with the same weights, for pixels in [0, 1].

    Args:
        keras_model: plain keras.Model from images to logits, pixels in [0, width].
        width: the highest pixel value of `keras_model`.

    Returns:
        A torch.nn.Module from float32 images (batch, channels, height, width) to logits, without
        gradients for the weights.
    """
    return _scaled(_torch_network(keras_model), width)


def _torch_network(keras_model):
    """The same network in torch, with the same weights, without their gradients, on all cores."""
    import torch

    from benchmarks import torch_networks

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if keras_model.input_shape[-1] == 1:
        network = torch_networks.Mnist(keras_model.get_weights())
    else:
        network = torch_networks.Cifar10({w.path: w.numpy() for w in keras_model.weights})
    return network.eval().requires_grad_(False)


def _scaled(network, width):
    import torch

    class Scale(torch.nn.Module):
        def forward(self, x):
            return x * width

    return torch.nn.Sequential(Scale(), network)
