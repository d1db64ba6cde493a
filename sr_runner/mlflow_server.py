"""Where the tracking server is, said safely: its URI made absolute, credentials masked, the page of a run."""

from __future__ import annotations

import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

from sr_runner.errors import RequestError, nearest

_DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("MySQLdb", "pymysql"), "mssql": ("pyodbc", "pymssql")}
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks")

_TRAINING_VIEW = "?workflowType=machine_learning"
"""Without it MLflow 3's UI opens in its view for LLM applications, in which training runs are hard to find."""
_USER_INFO = re.compile(r"(?<=://)[^/?#\s'\"]*@")
_SECRET_QUERY = re.compile(r"(?i)([?&][^=&\s]*(?:password|passwd|secret|token)[^=&\s]*=)[^&\s'\"]+")


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
            f"{source}={mask_credentials(uri)!r} is no tracking URI{nearest(scheme, DATABASES + SERVERS) or '.'} "
            "Give a server (http://host:5000) or a database (sqlite:////folder/mlflow.db, postgresql://...), "
            "or leave it out for outputs/mlflow.db."
        )
    _require_driver(uri, source)
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


def mask_credentials(text: str) -> str:
    """`text` with `user:password@` of every URL in it, and secrets in queries, replaced by `***`."""
    return _SECRET_QUERY.sub(r"\1***", _USER_INFO.sub("***@", text))


def ui_hint(uri: str, experiment_id: str | None = None, run_id: str | None = None) -> tuple[str, str]:
    """The command that opens MLflow's UI on `uri` (empty where a server shows it by itself) and the page of the run.

    Without ids the page is the UI's first one.
    """
    path = f"/#/experiments/{experiment_id}/runs/{run_id}{_TRAINING_VIEW}" if experiment_id and run_id else "/"
    if not is_database(uri):
        return "", mask_credentials(uri).replace("***@", "").rstrip("/") + path
    return f"mlflow ui --backend-store-uri {shlex.quote(mask_credentials(uri))}", f"http://127.0.0.1:5000{path}"


def _absolute_sqlite(uri: str, source: str) -> str:
    driver, _, rest = uri.partition("://")
    path, question, query = rest.partition("?")
    if not path.startswith("/") or path in ("/", "/:memory:"):
        raise RequestError(
            f"{source}={uri!r} names no file: expected sqlite:///mlflow.db or sqlite:////folder/mlflow.db."
        )
    return f"{driver}:///{Path(path[1:]).absolute()}{question}{query}"


def _require_driver(uri: str, source: str) -> None:
    """MLflow reaches a database through a Python driver that it does not bring along."""
    named = urlsplit(uri).scheme.partition("+")[2]
    drivers = (named,) if named else _DRIVERS.get(scheme_of(uri), ())
    if is_database(uri) and not any(find_spec(driver) for driver in drivers):
        raise RequestError(
            f"{source}={mask_credentials(uri)!r} needs the Python package {' or '.join(drivers)}, which is missing."
        )


def _has_plugin(scheme: str) -> bool:
    from importlib.metadata import entry_points  # slow to import, and hardly ever needed

    return bool(scheme) and scheme in {point.name for point in entry_points(group="mlflow.tracking_store")}


def file_uri(path: Path) -> str:
    """`file:///abs/path`, quoted as URLs are."""
    return "file://" + quote(str(path.absolute()))
