"""The CIFAR-10 challenge: pixels in [0, 255], epsilon 8."""

import dataclasses
import pathlib

from common import config, data
from common.challenge import Challenge
from cifar10_challenge.fast_model import fast_logits
from cifar10_challenge.model import WIDTHS, build_model, original_names, size_of, width_of

FGSM = {"epsilon": 8, "num_steps": 1, "step_size": 8, "random_start": False}
PGD = {"epsilon": 8, "random_start": True, "loss_func": "xent", "num_restarts": 1}
FGSM_RANDOM_START = {**PGD, "num_steps": 1, "step_size": 8}
CW_PLUS = {"loss_func": "cw", "kappa": 50}

# By width and training. White-box rows are of Table 5, the wide robust network's CW of Table 2;
# transfer from networks of the same width is of Tables 3 and 4, by the source's training. The paper
# does not state the size of the random perturbation before FGSM.
PAPER = {
    (WIDTHS["simple"], "none"): {
        ("natural", None): 92.7,
        ("paper_fgsm", None): 27.5,
        ("fgsm_random_start", None): 19.6,
        ("paper_pgd_7", None): 1.2,
        ("paper_pgd_20", None): 0.8,
    },
    (WIDTHS["simple"], "fgsm"): {
        ("natural", None): 87.4,
        ("paper_fgsm", None): 90.9,
        ("fgsm_random_start", None): 90.4,
        ("paper_pgd_7", None): 0.0,
        ("paper_pgd_20", None): 0.0,
    },
    (WIDTHS["simple"], "pgd"): {
        ("natural", None): 79.4,
        ("paper_fgsm", None): 51.7,
        ("fgsm_random_start", None): 55.9,
        ("paper_pgd_7", None): 47.1,
        ("paper_pgd_20", None): 43.7,
        ("paper_fgsm", "none"): 77.1,
        ("paper_pgd_7", "none"): 78.1,
        ("paper_fgsm", "fgsm"): 78.1,
        ("paper_pgd_7", "fgsm"): 78.2,
        ("paper_fgsm", "pgd"): 60.2,
        ("paper_pgd_7", "pgd"): 57.7,
    },
    (WIDTHS["wide"], "none"): {
        ("natural", None): 95.2,
        ("paper_fgsm", None): 32.7,
        ("fgsm_random_start", None): 25.1,
        ("paper_pgd_7", None): 4.1,
        ("paper_pgd_20", None): 3.5,
    },
    (WIDTHS["wide"], "fgsm"): {
        ("natural", None): 90.3,
        ("paper_fgsm", None): 95.1,
        ("fgsm_random_start", None): 95.0,
        ("paper_pgd_7", None): 0.0,
        ("paper_pgd_20", None): 0.0,
    },
    (WIDTHS["wide"], "pgd"): {
        ("natural", None): 87.3,
        ("paper_fgsm", None): 56.1,
        ("fgsm_random_start", None): 60.3,
        ("paper_pgd_7", None): 50.0,
        ("paper_pgd_20", None): 45.8,
        ("paper_cw_30", None): 46.8,
        ("paper_fgsm", "none"): 85.6,
        ("paper_pgd_7", "none"): 86.0,
        ("paper_fgsm", "fgsm"): 86.2,
        ("paper_pgd_7", "fgsm"): 86.3,
        ("paper_fgsm", "pgd"): 67.0,
        ("paper_pgd_7", "pgd"): 64.2,
    },
}


def parse_width(value, pixel_range):
    """Parses the setting `width`; see `common.config`."""
    return width_of(value)


parse_width.form = "simple|wide|N"


def described(settings):
    """A network's name in words; see `Challenge.described`."""
    width = width_of(settings["width"])
    names = {number: name for name, number in WIDTHS.items()}
    if width in names:
        return f"The paper's {names[width]} CIFAR-10 network"
    return f"The paper's CIFAR-10 network, {width} times as wide as the simple one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """The common settings, and those of the residual networks and their optimizer."""

    width: int = config.key(
        "how many times as wide the network is as the paper's simple one: "
        + ", ".join(f"{name} is {width}" for name, width in WIDTHS.items()),
        parse_width,
    )
    weight_decay: float = config.key(
        "factor of half the squared kernels in the loss", config.number(0)
    )
    momentum: float = config.key("momentum of the optimizer", config.number(0, 1))
    batch_statistics: bool = config.key(
        "training: attack the network in training mode, as the original does", config.boolean
    )
    batch_norm: str = config.key(
        "training with --distribute: batch norm by the statistics of the whole batch, as on one "
        "device and in the paper, or of each device's part",
        config.one_of("synchronized", "per_replica"),
    )


CIFAR10 = Challenge(
    name="CIFAR-10",
    directory=pathlib.Path(__file__).resolve().parent,
    config_class=Config,
    bounds=(0.0, 255.0),
    image_shape=(32, 32, 3),
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    submission_shape=(32, 32, 3),
    load=data.load_cifar10,
    to_pixels=data.cifar10_pixels,
    build_model=lambda settings, precision=None: build_model(
        settings.width,
        settings.weight_decay,
        seed=settings.random_seed,
        precision=precision,
        synchronized=settings.batch_norm == "synchronized",
    ),
    size_of=size_of,
    original_names=original_names,
    fast_logits=fast_logits,
    shipped="simple_adv_trained",
    # White-box rows of the paper's Tables 2 and 5 and of the challenge's leaderboard. The paper's
    # PGD takes steps of 2, the leaderboard's of 1; the step of the paper's CW row is not stated.
    presets={
        "paper_fgsm": {**FGSM, "loss_func": "xent"},
        "fgsm_random_start": FGSM_RANDOM_START,
        "paper_pgd_7": {**PGD, "num_steps": 7, "step_size": 2},
        "paper_pgd_20": {**PGD, "num_steps": 20, "step_size": 2},
        "paper_cw_30": {**PGD, "num_steps": 30, "step_size": 2, "loss_func": "cw", "kappa": 0},
        "leaderboard_fgsm_xent": {**FGSM, "loss_func": "xent"},
        "leaderboard_fgsm_cw": {**FGSM, **CW_PLUS},
        "leaderboard_pgd_20_xent": {**PGD, "num_steps": 20, "step_size": 1},
        "leaderboard_pgd_20_cw": {**PGD, "num_steps": 20, "step_size": 1, **CW_PLUS},
        "leaderboard_pgd_20x10_xent": {
            **PGD,
            "num_steps": 20,
            "step_size": 1,
            "num_restarts": 10,
        },
    },
    validation_preset="paper_pgd_20",
    card_rows=(
        "natural",
        "paper_fgsm",
        "fgsm_random_start",
        "paper_pgd_7",
        "paper_pgd_20",
        "paper_cw_30",
        "leaderboard_pgd_20_xent",
        "leaderboard_pgd_20_cw",
    ),
    transfer_rows=("paper_fgsm", "paper_pgd_7"),
    described=described,
    paper=lambda settings: PAPER[width_of(settings["width"]), settings["adversary"]],
    published={
        "natural": 87.14,
        "leaderboard_fgsm_xent": 55.55,
        "leaderboard_fgsm_cw": 54.92,
        "leaderboard_pgd_20_xent": 47.04,
        "leaderboard_pgd_20_cw": 47.76,
        "leaderboard_pgd_20x10_xent": 45.21,
    },
)
