"""The servers that stores talk to, one of each kind for all tests of a worker, and places on them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from media import MEDIA, SERVED, Medium
from store_servers import MlflowArtifactServer, S3Server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        server.make_bucket()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowArtifactServer]:
    server = MlflowArtifactServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def database_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def medium_of(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Medium]:
    def make(kind: str) -> Medium:
        place = f"x{uuid.uuid4().hex[:10]}"
        if kind == "local":
            return Medium(kind, {"root": str(tmp_path / place)}, folder=tmp_path / place)
        if kind == "memory":
            return Medium(kind, {"root": f"memory://{place}/checkpoints"})
        if kind == "file":
            return Medium(kind, {"root": f"file://{tmp_path}/{place}"})
        if kind == "s3":
            server: S3Server = request.getfixturevalue("s3_server")
            for key, value in server.environment().items():
                monkeypatch.setenv(key, value)
            return Medium(kind, {"root": f"s3://bucket/{place}/checkpoints", "retry_seconds": 120}, server)
        arguments = {"experiment": place, "retry_seconds": 120, "wait_for_run": 0}
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if kind == "mlflow":
            tracking: MlflowArtifactServer = request.getfixturevalue("mlflow_server")
            return Medium(kind, {"uri": tracking.uri, "outputs": str(tmp_path), **arguments}, tracking)
        outputs: Path = request.getfixturevalue("database_folder")
        return Medium(kind, {"uri": f"sqlite:///{outputs}/mlflow.db", "outputs": str(outputs), **arguments})

    return make


@pytest.fixture(params=MEDIA)
def medium(request: pytest.FixtureRequest, medium_of: Callable[[str], Medium]) -> Medium:
    return medium_of(request.param)


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest, medium_of: Callable[[str], Medium]) -> Medium:
    return medium_of(request.param)
