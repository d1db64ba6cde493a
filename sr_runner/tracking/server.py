"""MLflow as the sender sees it: one client whose every call ends in an answer, in `Refused` or in `Unreachable`.

The only module of the package that imports MLflow when it is imported: for the sender's process alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

# One attempt a request and a short time-out: the sender repeats what fails in its own way, and a request that MLflow's
# client repeats by itself could make a second run. Set before MLflow reads them.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "120")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from sr_runner.locks import file_lock
from sr_runner.mlflow_server import file_uri, is_database, mask_credentials, sqlite_file

Answer = TypeVar("Answer")

_REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""The tag of an experiment by which MLflow's UI opens on training runs and their charts, not on LLM traces."""
_CAUSE = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")


class Unreachable(Exception):
    """The server cannot take it now: down, hanging, busy, not letting us in. Worth another try later."""


class Refused(Exception):
    """The server took the request and said no. The same request will be refused again."""

    def __init__(self, reason: str, code: str) -> None:
        super().__init__(reason)
        self.code = code


class Server:
    """The tracking server (or database) at `uri`; `artifacts` is where runs in a database keep their files."""

    def __init__(self, uri: str, artifacts: Path) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self._client: MlflowClient | None = None

    def ask(self, request: Callable[[MlflowClient], Answer]) -> Answer:
        """The answer to `request`; raises `Refused` or `Unreachable`, and nothing else that the server is to blame for.

        MLflow hands on whatever its layers raise (requests, urllib3, SQLAlchemy, cloud libraries), so everything
        that is not a refusal counts as unreachable.
        """
        try:
            if self._client is None:
                self._client = self._connect()
            return request(self._client)
        except MlflowException as error:
            if error.error_code in _REFUSALS:
                raise Refused(_short(error), error.error_code) from error
            raise Unreachable(_short(error)) from error
        except Exception as error:
            raise Unreachable(_short(error)) from error

    def run(self, run_id: str) -> Run | None:
        """The run `run_id`, deleted ones included; None where the server has none of that id."""
        try:
            return self.ask(lambda client: client.get_run(run_id))
        except Refused as refusal:
            if refusal.code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def experiment_id(self, name: str) -> str:
        """The id of the experiment `name`, which is made, or taken out of the bin, if need be."""
        found = self.ask(lambda client: client.get_experiment_by_name(name))
        if found is None:
            place = file_uri(self._artifacts) if is_database(self.uri) else None
            try:
                return str(self.ask(lambda client: client.create_experiment(name, place, _TRAINING)))
            except Refused as refusal:
                if refusal.code != "RESOURCE_ALREADY_EXISTS":
                    raise
                raise Unreachable(f"experiment {name!r} was made by another run just now") from refusal
        if found.lifecycle_stage != "active":
            self.ask(lambda client: client.restore_experiment(found.experiment_id))
        return str(found.experiment_id)

    def runs_tagged(self, experiment_id: str, tag: str, value: str) -> list[Run]:
        """The runs of the experiment whose `tag` is `value`, deleted ones too; the oldest first."""
        quoted = value.replace("'", "")
        runs = self.ask(
            lambda client: client.search_runs([experiment_id], f"tags.`{tag}` = '{quoted}'", ViewType.ALL, 50)
        )
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def tagged_run(
        self, experiment_id: str, tag: str, value: str, *, name: str, start_time: int, tags: dict[str, str]
    ) -> Run:
        """The one run whose `tag` is `value`: found, or made with that tag on it from its first moment."""
        if not self.runs_tagged(experiment_id, tag, value):
            every = {**tags, tag: value.replace("'", "")}
            self.ask(lambda client: client.create_run(experiment_id, start_time, every, name))
        run = self.runs_tagged(experiment_id, tag, value)[0]
        self.delete_doubles(experiment_id, tag, value, run.info.run_id)
        return run

    def delete_doubles(self, experiment_id: str, tag: str, value: str, keep: str) -> None:
        """Deletes the other runs of that tag: a request for a run that timed out may still be carried out later, by a
        server that hung, and leave an empty second one."""
        for run in self.runs_tagged(experiment_id, tag, value):
            if run.info.run_id != keep and run.info.lifecycle_stage == "active":
                self.ask(partial(MlflowClient.delete_run, run_id=run.info.run_id))

    def _connect(self) -> MlflowClient:
        """A client, made under a lock of ours: two that make a database's tables at the same time break it."""
        if not is_database(self.uri):
            return MlflowClient(self.uri)
        database = sqlite_file(self.uri)
        lock = self._artifacts.parent / "mlflow.lock" if database is None else Path(f"{database}.lock")
        with file_lock(lock):
            if database is not None and not database.exists():
                _make_database(database, self._artifacts)
            return MlflowClient(self.uri)


def _make_database(path: Path, artifacts: Path) -> None:
    """Makes MLflow's SQLite file at `path`, whole or not at all: killed amid the migrations it would stay broken."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left in path.parent.glob(f".{path.name}.*.new*"):
        left.unlink(missing_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    SqlAlchemyStore(f"sqlite:///{draft}", file_uri(artifacts)).engine.dispose()  # type: ignore[no-untyped-call]
    draft.rename(path)


def _short(error: BaseException) -> str:
    """The cause in a few words, without credentials: MLflow's own messages run over several lines."""
    text = mask_credentials(str(error))
    if cause := _CAUSE.search(text):
        return cause[1].strip()
    if "timed out" in text or "timeout" in text.lower():
        return "no answer within the time limit"
    line = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 300 else line[:299] + "…"
