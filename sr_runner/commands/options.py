"""Options that the small tools share, in the words of `sr-run`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sr_runner.commands.arguments import option
from sr_runner.config.settings import RunSettings, check_device
from sr_runner.errors import RequestError
from sr_runner.inference import OVERLAP, TILE


@dataclass(kw_only=True)
class Places:
    """Where runs and their checkpoints are."""

    outputs: str = RunSettings.outputs
    """Folder of the runs."""
    checkpoint: Literal["local", "s3", "mlflow"] = "local"
    """What keeps their checkpoints: a folder, object storage, or the runs of an MLflow experiment."""
    checkpoint_root: str | None = option(None, key="checkpoint.root")
    """Folder or URL (s3://bucket/prefix) of the checkpoints; null: where the run's folder says, else
    OUTPUTS/checkpoints."""
    tracker_uri: str | None = option(None, key="tracker.uri")
    """The MLflow server or database; null: $MLFLOW_TRACKING_URI, or the SQLite file OUTPUTS/mlflow.db."""
    tracker_experiment: str | None = option(None, key="tracker.experiment")
    """The MLflow experiment; null: sr-run."""

    @property
    def store(self) -> str | None:
        """The folder or URL of the checkpoints, in words that `store_at` understands; None where nothing names one."""
        root = self.checkpoint_root
        if self.checkpoint == "mlflow":
            from sr_runner.mlflow_server import tracking_uri

            if root is not None:
                raise RequestError(
                    f"checkpoint.root={root}: checkpoint=mlflow keeps checkpoints where tracker.uri and "
                    "tracker.experiment say; expected no checkpoint.root."
                )
            return f"mlflow:{tracking_uri(self.tracker_uri, Path(self.outputs))}#{self.tracker_experiment or ''}"
        if self.checkpoint == "s3" and "://" not in (root or ""):
            raise RequestError(
                f"checkpoint=s3: expected a URL, checkpoint.root=s3://bucket/prefix, not {root or 'null'}."
            )
        return root


@dataclass(kw_only=True)
class Inference(Places):
    """How networks are made and run."""

    self_ensemble: bool = False
    """Mean over the eight flips and rotations: better, and eight times as slow."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """fp16 needs a GPU; auto is bf16 where the device is fast at it, else fp32."""
    tile: int = option(TILE, least=1)
    """LR pixels per tile: bounds the memory."""
    overlap: int = option(OVERLAP, least=0)
    """LR pixels of context around a tile."""
    network: str | None = None
    """package.module.Class of a network of your own; its arguments come from the run's config and from model.KEY."""
    model: dict[str, Any] = field(default_factory=dict)
    """What a weights file does not state, such as model.res_block_scaling=0.1."""

    def __post_init__(self) -> None:
        check_device("device", self.device)
