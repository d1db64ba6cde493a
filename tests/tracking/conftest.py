from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracking_servers import TrackingServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[TrackingServer]:
    """A tracking server that has not been started."""
    made = TrackingServer(tmp_path_factory.mktemp("server"))
    shutil.copyfile(empty_database, made.folder / "server.db")
    yield made
    made.thaw()
    made.kill()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's SQLite file with its tables and nothing in them: making one takes seconds."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    SqlAlchemyStore(f"sqlite:///{path}", str(path.parent / "artifacts")).engine.dispose()
    return path
