"""The paper's networks in PyTorch, with the weights of a Keras network, only for comparisons."""

import torch
from torch import nn
from torch.nn import functional


def _conv(kernel, bias=None, stride=1):
    size, _, channels, filters = kernel.shape
    conv = nn.Conv2d(channels, filters, size, stride, size // 2, bias=bias is not None)
    conv.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
    if bias is not None:
        conv.bias.data = torch.tensor(bias)
    return conv


def _dense(kernel, bias):
    dense = nn.Linear(*kernel.shape)
    dense.weight.data = torch.tensor(kernel.T.copy())
    dense.bias.data = torch.tensor(bias)
    return dense


class Mnist(nn.Sequential):
    """The MNIST network, from the list of Keras's weights."""

    def __init__(self, weights):
        kernel1, bias1, kernel2, bias2, kernel3, bias3, kernel4, bias4 = weights
        channels = kernel2.shape[-1]
        # Keras flattens with the channels last, torch with the channels first.
        kernel3 = kernel3.reshape(7, 7, channels, -1).transpose(2, 0, 1, 3)
        super().__init__(
            _conv(kernel1, bias1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            _conv(kernel2, bias2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            _dense(kernel3.reshape(49 * channels, -1), bias3),
            nn.ReLU(),
            _dense(kernel4, bias4),
        )


class Cifar10(nn.Module):
    """The CIFAR-10 network, from Keras's weights by their path."""

    def __init__(self, weights):
        super().__init__()
        self.stem = _conv(weights["stem/kernel"])
        names = [path.removesuffix("_conv1/kernel") for path in weights if "_conv1/" in path]
        self.units = nn.Sequential(*(_Unit(weights, name) for name in names))
        self.norm = _norm(weights, "last")
        self.dense = _dense(weights["logits/kernel"], weights["logits/bias"])

    def forward(self, image):
        """Logits of float32 images (batch, 3, 32, 32), pixels in [0, 255]."""
        deviation, mean = torch.std_mean(image, (1, 2, 3), correction=0, keepdim=True)
        x = (image - mean) / deviation.clamp(min=image[0].numel() ** -0.5)
        x = self.units(self.stem(x))
        return self.dense(functional.leaky_relu(self.norm(x), 0.1).mean((2, 3)))


class _Unit(nn.Module):
    def __init__(self, weights, name):
        super().__init__()
        kernel = weights[f"{name}_conv1/kernel"]
        self.stride = 2 if name in ("unit2_0", "unit3_0") else 1
        self.activates_before_shortcut = name == "unit1_0"
        missing = kernel.shape[3] - kernel.shape[2]
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)
        self.norm1, self.norm2 = _norm(weights, f"{name}_pre"), _norm(weights, f"{name}_mid")
        self.conv1 = _conv(kernel, stride=self.stride)
        if self.stride > 1:  # TensorFlow pads an even size at its end only
            self.conv1.padding = (0, 0)
        self.conv2 = _conv(weights[f"{name}_conv2/kernel"])

    def forward(self, x):
        y = functional.leaky_relu(self.norm1(x), 0.1)
        z = functional.pad(y, (0, 1, 0, 1)) if self.stride > 1 else y
        shortcut = y if self.activates_before_shortcut else x
        if self.stride > 1:
            shortcut = functional.avg_pool2d(shortcut, self.stride)
        if any(self.padding):
            shortcut = functional.pad(shortcut, self.padding)
        return shortcut + self.conv2(functional.leaky_relu(self.norm2(self.conv1(z)), 0.1))


def _norm(weights, name):
    gamma, beta, mean, variance = (
        torch.tensor(weights[f"{name}_norm/{part}"])
        for part in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    norm = nn.BatchNorm2d(len(gamma), eps=1e-3)
    norm.weight.data, norm.bias.data = gamma, beta
    norm.running_mean, norm.running_var = mean, variance
    return norm
