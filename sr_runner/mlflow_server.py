"""The MLflow server or database: where it is, and the one way in which everything here connects to it and asks it.

MLflow is imported by the first request and not before: the training process never needs it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from sr_runner.errors import RequestError, nearest
from sr_runner.files import check_writable, file_lock
from sr_runner.masking import MASK, cause, masked_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

ATTEMPT_TAG = "sr_run.attempt"
"""On each run from its first moment, `<identity>/<attempt>`: so whoever does not know its id finds it."""
_DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("MySQLdb", "pymysql"), "mssql": ("pyodbc", "pymssql")}
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks")

EXPERIMENT = "sr-run"
ARTIFACTS = "artifacts"
"""In the folder of outputs: the files of runs whose tracking server is a database."""
"""What runs belong to where nobody says another; the same stands in conf/tracker/mlflow.yaml."""

_TRAINING_VIEW = "?workflowType=machine_learning"
"""Without it MLflow 3's UI opens in its view for LLM applications, in which training runs are hard to find."""
_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""The tag of an experiment by which MLflow's UI opens on training runs and their charts, not on LLM traces."""
_REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "MALFORMED_REQUEST", "RESOURCE_DOES_NOT_EXIST"}
"""Not RESOURCE_ALREADY_EXISTS: an experiment that another run has just made is there at the next try."""
_DENIALS = {"UNAUTHENTICATED": "401", "CUSTOMER_UNAUTHORIZED": "401", "PERMISSION_DENIED": "403"}
_DENIED = {
    "401": "it does not know this user (401): expected $MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD, or "
    "$MLFLOW_TRACKING_TOKEN",
    "403": "this user may not write there (403)",
}
RUN_ID = re.compile(r"[0-9a-f]{32}")
_PAGE = 200
_MEASURES = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


class Given(NamedTuple):
    """What the environment says of where to record, as `mlflow run` and other tools say it."""

    experiment_id: str | None
    run_id: str | None


def given_by_environment(experiment: str) -> Given:
    """`$MLFLOW_EXPERIMENT_ID` where nobody names an `experiment`, and `$MLFLOW_RUN_ID`."""
    is_default = experiment == EXPERIMENT and not os.environ.get("MLFLOW_EXPERIMENT_NAME")
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") if is_default else None
    return Given(experiment_id or None, os.environ.get("MLFLOW_RUN_ID") or None)


def measures_by_environment() -> bool:
    """Whether the load of the machine is to be recorded: what `$MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING` says; it is where
    that says nothing. Raises `RequestError` for other words than MLflow's."""
    said = os.environ.get(_MEASURES) or "true"
    if said.lower() not in ("true", "1", "false", "0"):
        raise RequestError(f"${_MEASURES}={said!r}: expected true or false")
    return said.lower() in ("true", "1")


def tracking_uri(uri: str | None, outputs: Path) -> str:
    """`uri`, or `$MLFLOW_TRACKING_URI`, or the SQLite file `mlflow.db` in the folder `outputs`; absolute in each case.

    Raises `RequestError` where MLflow has no store for it.
    """
    source = "tracker.uri"
    if uri is None and (uri := os.environ.get("MLFLOW_TRACKING_URI") or None):
        source = "$MLFLOW_TRACKING_URI"
    if uri is None:
        return f"sqlite:///{outputs.absolute() / 'mlflow.db'}"
    scheme = scheme_of(uri)
    if scheme == "sqlite":
        return _absolute_sqlite(uri, source)
    if scheme not in DATABASES + SERVERS and not _has_plugin(scheme):
        raise RequestError(
            f"{source}={masked_text(uri)!r} is not a tracking URI{nearest(scheme, DATABASES + SERVERS) or '.'} "
            "Give a server (http://host:5000) or a database (sqlite:////folder/mlflow.db, postgresql://...), "
            "or leave it out for outputs/mlflow.db."
        )
    _require_driver(uri, source)
    is_server = scheme in ("http", "https")
    parts = urlsplit(f"{scheme}://{uri.partition('://')[2].rpartition('@')[2]}")  # a password may have any character
    try:
        has_place = parts.port != 0 and bool(parts.hostname or not is_server)
    except ValueError:  # the port is no number, or none that there is
        has_place = False
    if not has_place:
        raise RequestError(f"{source}={masked_text(uri)!r}: expected a host and a port, such as http://host:5000")
    return uri


def scheme_of(uri: str) -> str:
    """`postgresql` for `postgresql+psycopg2://...`; empty where there is none."""
    return urlsplit(uri).scheme.partition("+")[0] if ":" in uri else ""


def is_database(uri: str) -> bool:
    """Whether MLflow's client opens the store itself, without a server between."""
    return scheme_of(uri) in DATABASES


def sqlite_file(uri: str) -> Path | None:
    """The file behind a `sqlite:` URI; None for every other."""
    if scheme_of(uri) != "sqlite":
        return None
    return Path(uri.partition("://")[2].partition("?")[0][1:])


def ui_hint(uri: str, experiment_id: str | None = None, *run_ids: str | None) -> tuple[str, str]:
    """The command that opens MLflow's UI on `uri` (empty where a server shows it by itself) and the page of the run, or
    that which compares several.

    Without ids the page is the UI's first one.
    """
    path, ids = "/", [run_id for run_id in run_ids if run_id]
    if experiment_id and len(ids) == 1:
        path = f"/#/experiments/{experiment_id}/runs/{ids[0]}{_TRAINING_VIEW}"
    elif experiment_id and ids:
        lists = (quote(json.dumps(each, separators=(",", ":"))) for each in (ids, [experiment_id]))
        path = "/#/compare-runs?runs={}&experiments={}".format(*lists)
    if not is_database(uri):
        return "", masked_text(uri).replace(f"{MASK}@", "").rstrip("/") + path
    return f"mlflow ui --backend-store-uri {shlex.quote(masked_text(uri))}", f"http://127.0.0.1:5000{path}"


def _absolute_sqlite(uri: str, source: str) -> str:
    driver, _, rest = uri.partition("://")
    path, question, query = rest.partition("?")
    if not path.startswith("/") or path in ("/", "/:memory:"):
        raise RequestError(
            f"{source}={masked_text(uri)!r} names no file: expected sqlite:///mlflow.db or sqlite:////folder/mlflow.db."
        )
    file = Path(path[1:]).absolute()
    if not file.exists():
        check_writable(f"{source}={masked_text(uri)}", file.parent)
    elif not _may_be_sqlite(file):
        raise RequestError(f"{source}={masked_text(uri)!r}: {file} is no SQLite database.")
    return f"{driver}:///{file}{question}{query}"


def _may_be_sqlite(file: Path) -> bool:
    """Whether MLflow could open `file`: else not even a lock is made beside it."""
    if not file.is_file():
        return False
    try:
        with file.open("rb") as opened:
            return opened.read(16) in (b"", b"SQLite format 3\0")
    except OSError:  # MLflow says it
        return True


def _require_driver(uri: str, source: str) -> None:
    """MLflow reaches a database through a Python driver that it does not bring along."""
    named = urlsplit(uri).scheme.partition("+")[2]
    drivers = (named,) if named else _DRIVERS.get(scheme_of(uri), ())
    if is_database(uri) and not any(find_spec(driver) for driver in drivers):
        raise RequestError(
            f"{source}={masked_text(uri)!r}: expected the Python package {' or '.join(drivers)}, which is missing."
        )


def _has_plugin(scheme: str) -> bool:
    from importlib.metadata import entry_points  # slow to import, and hardly ever needed

    return bool(scheme) and scheme in {point.name for point in entry_points(group="mlflow.tracking_store")}


class Unreachable(Exception):
    """The server cannot take it now: down, hanging, busy, not letting us in. Worth another try later."""


class Denied(Unreachable):
    """The server does not let this user do it. Somebody may give the user the right: it is tried again."""


class Refused(Exception):
    """The server received the request and refused it. The same request will be refused again."""

    def __init__(self, reason: str, code: str) -> None:
        super().__init__(reason)
        self.code = code


class Server:
    """The tracking server (or database) at `uri`; `artifacts` is where runs in a database keep their files.

    Every method ends in an answer, in `Refused` or in `Unreachable`, whose `__cause__` is what MLflow raised.
    """

    def __init__(self, uri: str, artifacts: Path) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self._connected: tuple[object, MlflowClient] | None = None
        self._repositories: dict[str, Any] = {}
        self.restored: list[str] = []
        """What was taken out of MLflow's bin and nobody was told of yet."""

    @property
    def is_made(self) -> bool:
        """Whether there is anything to ask: connecting to an SQLite file that is not there makes it."""
        file = sqlite_file(self.uri)
        return file is None or file.exists()

    def ask(self, request: Callable[[MlflowClient], Answer]) -> Answer:
        """The answer to `request`.

        MLflow hands on whatever its layers raise (requests, urllib3, SQLAlchemy, cloud libraries), so everything
        that is not a refusal counts as unreachable.
        """
        set_limits()
        from mlflow.exceptions import MlflowException

        try:
            return request(self._client())
        except MlflowException as error:
            if error.error_code in _REFUSALS:
                raise Refused(cause(error), error.error_code) from error
            if denied := re.search(r"error code (401|403)\b", str(error)):
                raise Denied(_DENIED[denied[1]]) from error
            if error.error_code in _DENIALS:
                raise Denied(_DENIED[_DENIALS[error.error_code]]) from error
            raise Unreachable(cause(error)) from error
        except Exception as error:
            raise Unreachable(cause(error)) from error

    def run(self, run_id: str) -> Run | None:
        """The run `run_id`, deleted ones included; None where the server has none of that id."""
        try:
            return self.ask(lambda client: client.get_run(run_id))
        except Refused as refusal:
            if refusal.code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def has_experiment(self, experiment_id: str) -> bool:
        """Whether there is one of that id; it is taken out of the bin if need be."""
        try:
            self._restore_experiment(self.ask(lambda client: client.get_experiment(experiment_id)))
        except Refused as refusal:
            if refusal.code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise
        return True

    def mark(self, run_id: str, tag: str, value: str) -> None:
        """Sets a tag of the run."""
        self.ask(lambda client: client.set_tag(run_id, tag, value))

    def experiment_id(self, name: str) -> str:
        """The id of the experiment `name`, which is made, or taken out of the bin, if need be."""
        found = self.ask(lambda client: client.get_experiment_by_name(name))
        if found is None:
            place = self._artifacts.absolute().as_uri() if is_database(self.uri) else None
            return str(self.ask(lambda client: client.create_experiment(name, place, _TRAINING)))
        self._restore_experiment(found)
        return str(found.experiment_id)

    def restore(self, run: Run) -> None:
        """Takes the run, and the experiment that it is in, out of the bin."""
        self._restore_experiment(self.ask(lambda client: client.get_experiment(run.info.experiment_id)))
        if run.info.lifecycle_stage == "active":
            return
        now = self.run(run.info.run_id)  # an experiment takes its runs along
        if now is not None and now.info.lifecycle_stage != "active":
            self.ask(lambda client: client.restore_run(run.info.run_id))
            self.restored.append(f"run {run.info.run_id}")

    def runs(self, experiment_id: str, tag: str, value: str, *, prefix: bool = False) -> list[Run]:
        """The runs of the experiment whose `tag` is `value` (or begins with it), deleted ones too; the oldest first."""
        from mlflow.entities import ViewType

        quoted = value.replace("'", "")
        wanted = f"tags.`{tag}` {'LIKE' if prefix else '='} '{quoted}{'%' if prefix else ''}'"

        def search(client: MlflowClient) -> list[Run]:
            found: list[Run] = []
            token = None
            while True:
                page = client.search_runs([experiment_id], wanted, ViewType.ALL, _PAGE, page_token=token)
                found += page
                if not (token := page.token):
                    return found

        return sorted(self.ask(search), key=lambda run: (run.info.start_time, run.info.run_id))

    def tagged_run(
        self, experiment_id: str, tag: str, value: str, *, name: str, start_time: int, tags: Mapping[str, str] = {}
    ) -> Run:
        """The one run whose `tag` is `value`: found, or made with that tag on it from its first moment."""
        if not self.runs(experiment_id, tag, value):
            every = {**tags, tag: value.replace("'", "")}
            self.ask(lambda client: client.create_run(experiment_id, start_time, every, name))
        run = self.runs(experiment_id, tag, value)[0]
        self.delete_doubles(experiment_id, tag, value, run.info.run_id)
        return run

    def delete_doubles(self, experiment_id: str, tag: str, value: str, keep: str) -> None:
        """Deletes the other runs of that tag: a request for a run that timed out may still be carried out later, by a
        server that hung, and leave an empty second one."""
        runs = self.runs(experiment_id, tag, value)
        doubles = [r.info.run_id for r in runs if r.info.run_id != keep and r.info.lifecycle_stage == "active"]

        def delete(client: MlflowClient) -> None:
            for run_id in doubles:
                client.delete_run(run_id)

        self.ask(delete)

    def artifacts(self, run: Run) -> Any:
        """MLflow's repository of the run's artifacts, which raises whatever its storage raises."""
        set_limits()
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._client()
        place = run.info.artifact_uri
        if place not in self._repositories:
            self._repositories[place] = get_artifact_repository(place, tracking_uri=self.uri)
        return self._repositories[place]

    def _restore_experiment(self, experiment: Any) -> None:
        if experiment.lifecycle_stage != "active":
            self.ask(lambda client: client.restore_experiment(experiment.experiment_id))
            self.restored.append(f"experiment {experiment.name!r} with its runs")

    def _client(self) -> MlflowClient:
        """A client of this process, since connections do not survive a fork, and of the SQLite file that is there now,
        since one that was deleted can still be read; made under a lock of ours, since two that make a database's tables
        at the same time break it."""
        place = self._place()
        if place is not None and self._connected is not None and self._connected[0] == place:
            return self._connected[1]
        from mlflow import MlflowClient

        self._repositories = {}
        database = sqlite_file(self.uri)
        lock = self._artifacts.parent / "mlflow.lock" if database is None else Path(f"{database}.lock")
        with file_lock(lock) if is_database(self.uri) else nullcontext():
            if database is not None and not (database.exists() and database.stat().st_size):
                make_database(database, self._artifacts)
            client = MlflowClient(self.uri)
            if database is not None and self._connected is not None:  # MLflow keeps them for the next client
                client._tracking_client.store.engine.dispose(close=False)
        self._connected = self._place(), client
        return client

    def _place(self) -> object:
        """None where the file is not there: whoever connected just before it was deleted has to connect again."""
        database = sqlite_file(self.uri)
        if database is None:
            return os.getpid(), None
        try:
            return os.getpid(), database.stat().st_ino
        except OSError:
            return None


def attempt_of(run_id: str, server: Server) -> str | None:
    """`<identity>/<attempt>` of the run with MLflow's id `run_id`.

    None where there is no such run, or where the server cannot be asked, which is logged.
    """
    if not RUN_ID.fullmatch(run_id) or not server.is_made:
        return None
    try:
        run = server.run(run_id)
    except (Refused, Unreachable) as fault:
        log.warning("%s could not be asked for run %s: %s", masked_text(server.uri), run_id, fault)
        return None
    return None if run is None else run.data.tags.get(ATTEMPT_TAG)


def set_limits() -> None:
    """What MLflow may take its time for; to be called before it is imported.

    One attempt a request and a short time-out, since everybody here repeats what fails in a way of their own, and a
    request that MLflow's client repeats by itself could make a second run. Uploads and downloads get their time.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "300")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def make_database(path: Path, artifacts: Path) -> None:
    """Makes MLflow's SQLite file at `path`, whole or not at all: killed amid the migrations it would stay broken.

    An empty file there, as any client of SQLite leaves one that only looks, gives way."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left in path.parent.glob(f".{path.name}.*.new*"):
        left.unlink(missing_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    SqlAlchemyStore(f"sqlite:///{draft}", artifacts.absolute().as_uri()).engine.dispose()  # type: ignore[no-untyped-call]
    draft.rename(path)
