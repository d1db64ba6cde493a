"""The tracking server as the store of checkpoints sees it: the runs of one experiment and their artifacts."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

ATTEMPT_TAG = "sr_run.attempt"
"""On each run of the tracker from its first moment."""

_PAGE = 200


class MlflowServer:
    """One experiment of the tracking server (or database) at `uri`. Raises whatever MLflow raises.

    `artifacts` is where the runs in a database keep their files, if the experiment has to be made.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path):
        self.uri = uri
        self._experiment = experiment
        self._artifacts = artifacts
        self._made: tuple[int, Any] | None = None
        self._repositories: dict[str, Any] = {}

    def runs(self, tag: str, *, whole: bool) -> dict[str, list[Any]]:
        """Attempt -> its runs, deleted ones too, the one to write to first. `tag` is an attempt if `whole`, else the
        identity that it begins with ("": any)."""
        if (file := _sqlite_file(self.uri)) is not None and not file.exists():
            return {}  # the tracker makes it
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            return {}
        # `make_run` may meet the tracker making the same run. Of two, both sides go on with the older, but what was
        # written to the other in the meantime has to be found, though it is deleted.
        from mlflow.entities import ViewType

        condition = f"= '{tag}'" if whole else f"LIKE '{tag}/%'" if tag else "LIKE '%'"
        wanted = f"tags.`{ATTEMPT_TAG}` {condition}"
        found: dict[str, list[Any]] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([experiment.experiment_id], wanted, ViewType.ALL, _PAGE, page_token=token)
            for run in page:
                found.setdefault(run.data.tags[ATTEMPT_TAG], []).append(run)
            token = page.token
            if not token:
                break
        return {
            attempt: sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
            for attempt, runs in found.items()
        }

    def make_run(self, attempt: str) -> Any:
        """The run of an attempt that no tracker has made: tracking is off, or the tracker has not come that far."""
        if not self.runs(attempt, whole=True):
            tags = {ATTEMPT_TAG: attempt}
            self._client.create_run(self._experiment_id(), int(time.time() * 1000), tags, attempt.partition("/")[0])
        return self.runs(attempt, whole=True)[attempt][0]

    def artifacts(self, run: Any) -> Any:
        """MLflow's repository of the run's artifacts."""
        place = run.info.artifact_uri
        if place not in self._repositories:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            self._repositories[place] = get_artifact_repository(place, tracking_uri=self.uri)
        return self._repositories[place]

    @property
    def _client(self) -> Any:
        if self._made is None or self._made[0] != os.getpid():  # connections do not survive a fork
            self._repositories = {}
            self._made = (os.getpid(), _connect(self.uri, self._artifacts))
        return self._made[1]

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            place = _file_uri(self._artifacts) if _is_database(self.uri) else None
            return str(self._client.create_experiment(self._experiment, artifact_location=place))
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def tracking_uri(uri: str | None, outputs: Path) -> str:
    """`uri`, or `$MLFLOW_TRACKING_URI`, or the SQLite file `mlflow.db` in `outputs`: what the tracker takes."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs / 'mlflow.db'}"
    if (file := _sqlite_file(uri)) is not None:
        driver, (_, question, query) = uri.partition("://")[0], uri.partition("?")
        return f"{driver}:///{file.absolute()}{question}{query}"
    return uri


def _connect(uri: str, artifacts: Path) -> Any:
    """A client, made under the lock that the tracker takes as well: two that make a database's tables break it."""
    # `Requests` repeats, and knows when to stop; MLflow by itself would block for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "300")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    if not _is_database(uri):
        return MlflowClient(uri)
    file = _sqlite_file(uri)
    lock = artifacts.parent / "mlflow.lock" if file is None else Path(f"{file}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        if file is not None and not file.exists():
            _make_database(file, artifacts)
        return MlflowClient(uri)


def _make_database(file: Path, artifacts: Path) -> None:
    """MLflow's SQLite file, whole or not at all: killed amid the migrations it would stay broken."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    draft = file.with_name(f".{file.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{draft}", _file_uri(artifacts)).engine.dispose()  # type: ignore[no-untyped-call]
    draft.rename(file)


def _is_database(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def _sqlite_file(uri: str) -> Path | None:
    """The file behind a `sqlite:` URI; None for every other."""
    if uri.partition(":")[0].partition("+")[0] != "sqlite":
        return None
    return Path(uri.partition("://")[2].partition("?")[0][1:])


def _file_uri(path: Path) -> str:
    return "file://" + quote(str(path.absolute()))
