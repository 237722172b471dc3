"""Evaluation: natural accuracy, and accuracy in the worst case over attacks and restarts."""

from common.evaluation.evaluator import Evaluator
from common.evaluation.results import Result, Trial, TrialResult, wilson_interval
from common.evaluation.state import State

__all__ = ["Evaluator", "Result", "State", "Trial", "TrialResult", "wilson_interval"]
