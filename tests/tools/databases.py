"""MLflow's SQLite files without the two seconds of their migrations: made once, then copied."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import fork_server


def copy_from_template(folder: Path) -> None:
    """From now on this process and its forks make databases as copies of one, which `folder` gets."""
    from sr_runner import mlflow_server

    template = folder / "template.db"
    fork_server.ask(partial(mlflow_server.make_database, template, folder / "artifacts"))
    mlflow_server.make_database = partial(_copy, template)  # type: ignore[assignment]


def _copy(template: Path, path: Path, artifacts: Path) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    shutil.copy(template, draft)
    with closing(sqlite3.connect(draft)) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ?", (f"{artifacts.absolute().as_uri()}/0",))
    draft.rename(path)
