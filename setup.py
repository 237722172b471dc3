"""Packaging; the settings of ruff and pytest are in pyproject.toml."""

import pathlib

import setuptools

# Every shipped model, and nothing of a training or a fetched network that lies beside them.
MODELS = [
    f"models/*/{name}"
    for name in (
        "saved_model.pb",
        "fingerprint.pb",
        "variables/*",
        "weights-*.npz",
        "card.json",
        "leaderboard.csv",
        "README.md",
    )
]

setuptools.setup(
    name="madry-challenges",
    version="0.9.0",
    description=(
        "Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al.) and its "
        "MNIST and CIFAR-10 challenges, in TensorFlow 2 / Keras 3"
    ),
    long_description=(pathlib.Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Security",
        "Private :: Do Not Upload",  # a checkout, not a distribution
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    python_requires=">=3.10,<3.14",
    packages=setuptools.find_packages(
        include=["common", "common.*", "mnist_challenge", "cifar10_challenge"]
    ),
    package_data={
        "common": ["samples/*"],
        "mnist_challenge": ["*.json", "*.csv", *MODELS],
        "cifar10_challenge": ["*.json", "*.csv", *MODELS],
    },
    install_requires=[
        "tensorflow>=2.20,<2.22",
        "keras>=3.10,<3.16",
        "tensorflow-datasets>=4.9.9,<4.10",
        # tensorflow-datasets imports it, through etils, and does not ask for it.
        "importlib_resources>=6",
        "tensorboard>=2.20,<2.22",
        "numpy>=2,<3",
        "absl-py>=2.1,<3",
        "matplotlib>=3.9,<4",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22"],
        "peers": [
            "foolbox>=3.3.4,<4",
            "cleverhans>=4,<5",
            "adversarial-robustness-toolbox>=1.20,<2",
        ],
        "docs": ["pdoc>=15,<17"],
        "test": ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "foolbox>=3.3.4,<4"],
        "dev": ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "ruff>=0.15,<0.18"],
    },
)
