"""What a run reports: to MLflow, or to nobody.

The training process never imports MLflow and never waits for it. It appends to a journal in the run's folder, and a
process of its own (`sr_runner.tracking.sender`) brings the journal to the tracking server, now or at the next resume.
"""

from __future__ import annotations

from sr_runner.tracking.mlflow_tracker import MlflowTracker
from sr_runner.tracking.tracker import NoTracker, RunRecord, Status, SweepParent, Tracker

__all__ = ["MlflowTracker", "NoTracker", "RunRecord", "Status", "SweepParent", "Tracker"]
