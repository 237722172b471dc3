"""The MNIST challenge: pixels in [0, 1], epsilon 0.3."""

import dataclasses
import pathlib

from common import config, data
from common.challenge import Challenge
from mnist_challenge import fast_model, model, model_b

FGSM = {"epsilon": 0.3, "num_steps": 1, "step_size": 0.3, "random_start": False}
PGD = {
    "epsilon": 0.3,
    "step_size": 0.01,
    "random_start": True,
    "loss_func": "xent",
    "num_restarts": 1,
}

# The network of scale 16, by training: Table 1; for FGSM training, and for PGD on the natural
# network, Sec. 4 and numbers read off Figure 4.
PAPER = {
    "pgd": {
        ("natural", None): 98.8,
        ("paper_fgsm", None): 95.6,
        ("paper_pgd_40", None): 93.2,
        ("paper_pgd_100", None): 91.8,
        ("paper_pgd_40x20", None): 90.4,
        ("paper_pgd_100x20", None): 89.3,
        ("paper_cw", None): 94.0,
        ("paper_cw_plus", None): 93.9,
        ("paper_fgsm", "pgd"): 96.8,
        ("paper_pgd_40", "pgd"): 96.0,
        ("paper_cw_plus", "pgd"): 96.4,
    },
    "fgsm": {
        ("natural", None): 93.7,
        ("paper_fgsm", None): 99.6,
        ("paper_pgd_40", None): 0.0,
    },
    "none": {
        ("natural", None): 99.2,
        ("paper_fgsm", None): 6.4,
        ("paper_pgd_40", None): 0.0,
    },
}

# Smaller networks by training and scale, read off Figure 4: natural, FGSM, PGD of 40 steps.
SMALLER = {
    "pgd": {
        1: (11.4, 11.4, 11.4),
        2: (11.4, 11.4, 11.4),
        4: (97.6, 89.6, 87.7),
        8: (98, 93.9, 91.5),
    },
    "fgsm": {
        1: (68.9, 94.8, 0.0),
        2: (33.4, 99.5, 0.0),
        4: (79.2, 99.8, 0.0),
        8: (88.8, 99.3, 0.0),
    },
    "none": {1: (98.3, 0.6, 0.0), 2: (98.9, 2.3, 0.0), 4: (99.1, 4.0, 0.0), 8: (99.2, 3.6, 0.0)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """The common settings, and which network and how large."""

    network: str = config.key(
        "the paper's network; very_large, with twice as many filters (Figure 8); b, model B of "
        "Tramèr et al., a source of transfer",
        config.one_of("paper", "very_large", "b"),
    )
    # Networks of a scale above 410 have 2**31 weights or more.
    scale: int = config.key(
        "capacity of the network: 1, 2, 4, 8 or 16; b has one size alone", config.integer(1, 411)
    )


def build_model(settings, precision=None):
    """The network that the settings ask for; see `Challenge.build_model`."""
    options = {"seed": settings.random_seed, "precision": precision}
    if settings.network == "b":
        return model_b.build_model(**options)
    return model.build_model(settings.scale, very_large=settings.network == "very_large", **options)


def fast_logits(network, precision="float32"):
    """The logits of a keras.Model of `build_model`; see `Challenge.fast_logits`."""
    fast = model_b if network.name == model_b.NAME else fast_model
    return fast.fast_logits(network, precision)


def network_of(settings):
    """The network and scale of a training; settings from before there was a choice lack them."""
    return settings.get("network", "paper"), settings.get("scale", 16)


def described(settings):
    """A network's name in words; see `Challenge.described`."""
    network, scale = network_of(settings)
    if network == "b":
        return "Model B of Tramèr et al. for MNIST"
    size = "very large " if network == "very_large" else ""
    return f"The paper's {size}MNIST network" + (f" at scale {scale}" if scale != 16 else "")


def paper_accuracies(settings):
    """The paper's numbers for a training; see `Challenge.paper`."""
    network, scale = network_of(settings)
    if network != "paper":
        return {}
    if scale == 16:
        return PAPER[settings["adversary"]]
    rows = ("natural", None), ("paper_fgsm", None), ("paper_pgd_40", None)
    numbers = SMALLER[settings["adversary"]].get(scale)
    return dict(zip(rows, numbers, strict=True)) if numbers else {}


MNIST = Challenge(
    name="MNIST",
    directory=pathlib.Path(__file__).resolve().parent,
    config_class=Config,
    bounds=(0.0, 1.0),
    image_shape=(28, 28, 1),
    class_names=tuple("0123456789"),
    submission_shape=(784,),
    load=data.load_mnist,
    to_pixels=data.mnist_pixels,
    build_model=build_model,
    size_of=lambda shapes: model_b.size_of(shapes) or model.size_of(shapes),
    original_names=model.original_names,
    fast_logits=fast_logits,
    shipped="adv_trained",
    # White-box rows of the paper's Table 1 and of the challenge's leaderboard. The paper does not
    # state the step of its 100-step rows; 0.01 is the leaderboard's.
    presets={
        "paper_fgsm": {**FGSM, "loss_func": "xent"},
        "paper_pgd_40": {**PGD, "num_steps": 40},
        "paper_pgd_100": {**PGD, "num_steps": 100},
        "paper_pgd_40x20": {**PGD, "num_steps": 40, "num_restarts": 20},
        "paper_pgd_100x20": {**PGD, "num_steps": 100, "num_restarts": 20},
        "paper_cw": {**PGD, "num_steps": 40, "loss_func": "cw", "kappa": 0},
        "paper_cw_plus": {**PGD, "num_steps": 40, "loss_func": "cw", "kappa": 50},
        "leaderboard_fgsm_xent": {**FGSM, "loss_func": "xent"},
        "leaderboard_fgsm_cw": {**FGSM, "loss_func": "cw", "kappa": 50},
        "leaderboard_pgd_100_xent": {**PGD, "num_steps": 100},
        "leaderboard_pgd_100_cw": {**PGD, "num_steps": 100, "loss_func": "cw", "kappa": 50},
        "leaderboard_pgd_100x50_xent": {**PGD, "num_steps": 100, "num_restarts": 50},
        "leaderboard_pgd_100x50_cw": {
            **PGD,
            "num_steps": 100,
            "num_restarts": 50,
            "loss_func": "cw",
            "kappa": 50,
        },
    },
    validation_preset="paper_pgd_40",
    card_rows=(
        "natural",
        "paper_fgsm",
        "paper_pgd_40",
        "paper_pgd_100",
        "paper_pgd_100x20",
        "paper_cw",
        "paper_cw_plus",
    ),
    transfer_rows=("paper_fgsm", "paper_pgd_40", "paper_cw_plus"),
    described=described,
    paper=paper_accuracies,
    published={
        "natural": 98.53,
        "leaderboard_fgsm_xent": 96.36,
        "leaderboard_fgsm_cw": 96.40,
        "leaderboard_pgd_100_xent": 92.52,
        "leaderboard_pgd_100_cw": 93.04,
        "leaderboard_pgd_100x50_xent": 89.62,
        "leaderboard_pgd_100x50_cw": 89.71,
    },
)
