"""State -> files -> store, and back."""

from sr_runner.checkpoint.format import DamagedError, Manifest, Name
from sr_runner.checkpoint.lease import Lease
from sr_runner.checkpoint.manager import CheckpointManager, SaveReport
from sr_runner.checkpoint.retention import BestN, EveryMinutes, EverySteps, LastN, Policy
from sr_runner.checkpoint.state import Origin, RunState, TrainingState
from sr_runner.checkpoint.stores import LocalStore, MlflowStore, RemoteStore, Store

__all__ = [
    "BestN",
    "CheckpointManager",
    "DamagedError",
    "EveryMinutes",
    "EverySteps",
    "LastN",
    "Lease",
    "LocalStore",
    "Manifest",
    "MlflowStore",
    "Name",
    "Origin",
    "Policy",
    "RemoteStore",
    "RunState",
    "SaveReport",
    "Store",
    "TrainingState",
]
