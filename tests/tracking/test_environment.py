"""MLflow's variables of the environment: what each does here."""

from __future__ import annotations

import shutil
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support import TINY, SrRun
from tracking_servers import TrackingServer

from sr_runner.config.compose import composed
from sr_runner.mlflow_server import EXPERIMENT, given_by_environment
from sr_runner.tracking import MlflowTracker, RunRecord
from sr_runner.tracking.journal import IDS, read_json


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    (tmp_path / "outputs").mkdir()
    shutil.copyfile(empty_database, tmp_path / "outputs" / "mlflow.db")
    return f"sqlite:///{tmp_path}/outputs/mlflow.db"


def recorded(outputs: Path, name: str, sweep: Path | None = None, **options: str) -> dict[str, str]:
    """What a finished run of that name was given."""
    tracker = MlflowTracker(outputs=outputs, system_metrics=False, **options)  # type: ignore[arg-type]
    tracker.start(RunRecord(outputs / "runs" / name, f"{name}/a0001-cafe", name, {"a": "1"}, sweep=sweep))
    tracker.log(1, {"loss": 0.5})
    assert tracker.finish("FINISHED", wait=120)
    ids: dict[str, str] = read_json(outputs / "runs" / name / IDS)
    return ids


def test_an_id_of_an_experiment_or_of_a_run_is_heeded_once_for_whom_it_was_made(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, outputs = MlflowClient(uri), tmp_path / "outputs"
    other = client.create_experiment("other", (tmp_path / "artifacts").as_uri())
    made = client.create_run(other).info.run_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", other)
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    assert recorded(outputs, "first")["run_id"] == made
    run = client.get_run(made)
    assert run.data.params == {"a": "1"} and run.data.metrics == {"loss": 0.5} and run.info.status == "FINISHED"
    second = recorded(outputs, "second")  # the variable is still there: points of two runs are not mixed
    assert second["run_id"] != made and second["experiment_id"] == other
    assert f"run {made} is first/a0001-cafe; this one is recorded by itself" in caplog.text
    assert client.get_run(made).data.metrics == {"loss": 0.5}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    monkeypatch.delenv("MLFLOW_RUN_ID")
    lost = recorded(outputs, "fourth")
    assert client.get_experiment(lost["experiment_id"]).name == EXPERIMENT
    assert "MLflow has no experiment $MLFLOW_EXPERIMENT_ID=77: sr-run is taken" in caplog.text


def test_a_run_that_was_made_beforehand_is_not_given_to_every_job_of_a_sweep(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    made = MlflowClient(uri).create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    assert recorded(outputs, "job", sweep=outputs / "sweeps" / "a")["run_id"] != made
    assert recorded(outputs, "sweep", sweep=outputs / "runs" / "sweep")["run_id"] == made


def test_a_name_is_more_than_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "3")
    assert given_by_environment(EXPERIMENT) == ("3", None)
    assert given_by_environment("mine") == (None, None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert given_by_environment(EXPERIMENT) == (None, None)


def test_the_name_of_an_experiment_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    names = [composed(given)[0].tracker.experiment for given in ([], ["tracker.experiment=mine"])]
    assert names == ["theirs", "mine"]


@pytest.mark.slow
def test_a_server_that_asks_for_a_password_is_called_what_it_is_and_takes_the_points_once_it_has_it(
    sr_run: SrRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "a secret of tests")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "one of tests")
    monkeypatch.chdir(tmp_path)  # where its users are kept
    server = TrackingServer(tmp_path, "--app-name", "basic-auth")
    server.start()
    try:
        server.wait()
        done = sr_run(*TINY, f"tracker.uri={server.uri}")
        assert done.stderr.count("it does not know this user (401): expected $MLFLOW_TRACKING_USERNAME") >= 1
        assert "refuses: " in done.stderr and "cannot be reached" not in done.stderr
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "one of tests")
        sr_run(*TINY, f"tracker.uri={server.uri}", "trainer.resume=true")
        asked = urllib.request.Request(f"{server.uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=sr-run")
        asked.add_header("Authorization", f"Basic {b64encode(b'admin:one of tests').decode()}")
        assert b"experiment_id" in urllib.request.urlopen(asked, timeout=30).read()
    finally:
        server.kill()
