"""The train step: what is minimised, and by whom."""

from sr_runner.objectives.base import MODEL, MicroBatches, Objective, TrainedBy
from sr_runner.objectives.distances import CharbonnierLoss, FrequencyLoss
from sr_runner.objectives.gan import GanObjective
from sr_runner.objectives.learner import Learner, Precision
from sr_runner.objectives.losses import Losses, Term
from sr_runner.objectives.perceptual import PerceptualLoss
from sr_runner.objectives.pixel import PixelObjective

__all__ = [
    "MODEL",
    "CharbonnierLoss",
    "FrequencyLoss",
    "GanObjective",
    "Learner",
    "Losses",
    "MicroBatches",
    "Objective",
    "PerceptualLoss",
    "PixelObjective",
    "Precision",
    "Term",
    "TrainedBy",
]
