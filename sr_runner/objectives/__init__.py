"""The train step: what is minimised, and by whom."""

from sr_runner.objectives.base import MicroBatches, Objective
from sr_runner.objectives.learner import Learner, Precision
from sr_runner.objectives.pixel import PixelObjective

__all__ = ["Learner", "MicroBatches", "Objective", "PixelObjective", "Precision"]
