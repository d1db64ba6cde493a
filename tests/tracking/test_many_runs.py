"""Many runs at once: parallel first runs, sweeps, and other databases than SQLite."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import postgres
from tracking_servers import assert_one_point_a_step, launch, the_run, wait_for

from sr_runner.mlflow_server import ui_hint


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_first_run_makes_the_database_and_a_run_whose_page_is_known(tmp_path: Path) -> None:
    assert launch(tmp_path / "run", tmp_path / "outputs", "--steps", 50, "--system").wait(200) == 0
    uri = f"sqlite:///{tmp_path}/outputs/mlflow.db"
    run = the_run(uri)
    assert_one_point_a_step(uri, run.info.run_id, 50)
    assert run.info.artifact_uri == f"{tmp_path.as_uri()}/outputs/artifacts/{run.info.run_id}/artifacts"
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == [
        "artifacts",
        "mlflow.db",
        "mlflow.db.lock",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_sixteen_first_runs_at_once_are_sixteen_whole_runs_below_that_of_their_sweep(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    outputs, sweep = tmp_path / "outputs", tmp_path / "sweep"
    uri = f"sqlite:///{outputs}/mlflow.db" if kind == "sqlite" else request.getfixturevalue("database")
    options = ("--steps", 30, "--sweep", sweep, "--wait", 900, "--uri", uri)
    jobs = [launch(tmp_path / str(n), outputs, *options, "--attempt", f"tiny/{n}") for n in range(16)]
    jobs.append(launch(sweep, outputs, *options, "--attempt", "sweep/1"))
    assert [job.wait(1000) for job in jobs] == [0] * 17
    runs = [the_run(uri, f"tiny/{n}") for n in range(16)]
    for run in runs:
        assert_one_point_a_step(uri, run.info.run_id, 30)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {the_run(uri, "sweep/1").info.run_id}


@pytest.mark.slow
def test_mlflow_ui_serves_the_run_its_picture_and_its_page(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    assert launch(tmp_path / "run", outputs, "--steps", 10).wait(200) == 0
    uri = f"sqlite:///{outputs}/mlflow.db"
    run = the_run(uri)
    command, page = ui_hint(uri, run.info.experiment_id, run.info.run_id)
    port = _free_port()
    words = [sys.executable, "-m", *command.split(), "--port", str(port)]
    ui = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        base = f"http://127.0.0.1:{port}"

        def get(path: str) -> bytes:
            with urllib.request.urlopen(base + path, timeout=20) as answer:
                return bytes(answer.read())

        def answers() -> bool:
            try:
                return bool(get("/health"))
            except OSError:
                return False

        wait_for(answers, 90, "mlflow ui")
        assert b"<html" in get(page.removeprefix("http://127.0.0.1:5000").partition("#")[0])
        name = next((outputs / "artifacts").rglob("*.png")).name.replace("+", "%2B")
        picture = get(f"/get-artifact?path=images/{name}&run_uuid={run.info.run_id}")
        assert picture.startswith(b"\x89PNG")
    finally:
        os.killpg(ui.pid, 9)
        ui.wait()


@pytest.fixture
def database() -> Iterator[str]:
    with postgres() as uri:
        yield uri


@pytest.mark.slow
def test_runs_on_postgresql_that_are_killed_and_resumed_are_whole(tmp_path: Path, database: str) -> None:
    attempts = [f"tiny/{n}" for n in range(3)]

    def all_of_them(*options: object) -> list[subprocess.Popen[bytes]]:
        outputs = tmp_path / "outputs"
        return [launch(tmp_path / a, outputs, "--uri", database, "--attempt", a, *options) for a in attempts]

    jobs = all_of_them("--steps", 10_000)
    time.sleep(12)
    for job in jobs:
        job.kill()
        job.wait()
    jobs = all_of_them("--steps", 2000, "--pause", 0.002, "--wait", 120)
    assert [job.wait(280) for job in jobs] == [0, 0, 0]
    for attempt in attempts:
        run = the_run(database, attempt)
        assert_one_point_a_step(database, run.info.run_id, 2000)
        assert run.info.artifact_uri.startswith(f"{tmp_path.as_uri()}/outputs/artifacts/")
    assert "s3cr3t" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))
