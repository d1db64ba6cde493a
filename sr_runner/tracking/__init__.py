"""What a run reports: to MLflow, or to nobody.

The training process never imports MLflow and never waits for it. It appends to a journal in the run's folder, and a
process of its own (`sr_runner.tracking.sender`) brings the journal to the tracking server, now or at the next resume.
"""

from __future__ import annotations

from sr_runner.tracking.journal import is_delivered, points
from sr_runner.tracking.mlflow_tracker import MlflowTracker, settle
from sr_runner.tracking.tracker import SWEEP_TAG, NoTracker, RunRecord, Status, Tracker

__all__ = [
    "SWEEP_TAG",
    "MlflowTracker",
    "NoTracker",
    "RunRecord",
    "Status",
    "Tracker",
    "is_delivered",
    "points",
    "settle",
]
