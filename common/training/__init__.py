"""Adversarial training: the two sides of the min-max, and all that surrounds them."""

from common.training.loop import train

__all__ = ["train"]
