"""Results of `sr-eval` in MLflow: in the run that a checkpoint belongs to, or in a run of their own."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sr_runner.commands.evaluate.models import Model
from sr_runner.commands.evaluate.report import Result, as_csv
from sr_runner.errors import RunError
from sr_runner.masking import MASK, masked_text
from sr_runner.mlflow_server import ARTIFACTS, Refused, Server, Unreachable, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NOT_IN_KEYS = re.compile(r"[^\w.\- ]+")


@dataclass(frozen=True)
class Record:
    """Where results go. `uri` None: that of the run, else `$MLFLOW_TRACKING_URI`, else `outputs/mlflow.db`."""

    uri: str | None
    experiment: str
    outputs: Path

    def add(self, model: Model, results: Sequence[Result], pictures: Sequence[Path]) -> str:
        """Log the means as metrics (`eval/Set5/psnr_y`), the tables and pictures as artifacts; returns where.

        Raises as `uri_for`, and `RunError` where the server does not answer.
        """
        uri, known = self.uri_for(model), model.source.tracker if model.source is not None else {}
        server = Server(uri, self.outputs.absolute() / ARTIFACTS)
        try:
            run_id = self._run(server, model, known.get("run_id"))
            server.ask(partial(_log, run_id=run_id, model=model, results=results, pictures=pictures))
        except (Unreachable, Refused) as error:
            raise RunError(f"tracker.uri={masked_text(uri)}: {error}. The results are not in MLflow.") from error
        return f"run {run_id} at {masked_text(uri)}"

    def uri_for(self, model: Model) -> str:
        """Where results of `model` go. Raises `RequestError` for a URI that MLflow has no store for."""
        remembered = model.source.tracker.get("tracking_uri") if model.source is not None else None
        if remembered and MASK in remembered:  # its password is not in the checkpoint
            remembered = None
        return tracking_uri(self.uri or remembered, self.outputs)

    def _run(self, server: Server, model: Model, known: str | None) -> str:
        if known is not None:
            run = server.run(known)
            if run is not None and run.info.lifecycle_stage == "active":
                return known
        experiment = server.experiment_id(self.experiment)
        location = "bicubic" if model.source is None else model.source.location
        tags = {"sr_run.kind": "evaluation", "sr_run.model": location}
        run = server.ask(lambda client: client.create_run(experiment, tags=tags, run_name=model.label))
        run_id = str(run.info.run_id)
        server.ask(lambda client: client.set_terminated(run_id, "FINISHED"))
        return run_id


def _log(
    client: MlflowClient, *, run_id: str, model: Model, results: Sequence[Result], pictures: Sequence[Path]
) -> None:
    from mlflow.entities import Metric

    now, step = int(time.time() * 1000), model.source.step if model.source is not None else 0
    numbers = [(result, result.evaluation.mean | (result.cost.by_name() if result.cost else {})) for result in results]
    metrics = [
        Metric(f"eval/{_key(result.benchmark)}/{name}", value, now, step)
        for result, values in numbers
        for name, value in values.items()
    ]
    client.log_batch(run_id, metrics=metrics)
    for result in results:
        client.log_text(run_id, as_csv([result]), f"eval/{_key(result.benchmark)}.csv")
    for picture in pictures:
        client.log_artifact(run_id, str(picture), "eval")


def _key(name: str) -> str:
    """`name` in the characters that MLflow allows in the name of a metric."""
    return _NOT_IN_KEYS.sub("_", name)
