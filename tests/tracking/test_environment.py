"""MLflow's variables of the environment: what each does here."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support import ROOT, TINY, SrRun, environment
from tracking_servers import TrackingServer

from sr_runner.attempt.build import build
from sr_runner.config.compose import composed
from sr_runner.errors import RequestError
from sr_runner.mlflow_server import EXPERIMENT, given_by_environment, measures_by_environment
from sr_runner.tracking.journal import IDS, read_json


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    (tmp_path / "outputs").mkdir()
    shutil.copyfile(empty_database, tmp_path / "outputs" / "mlflow.db")
    return f"sqlite:///{tmp_path}/outputs/mlflow.db"


@pytest.fixture
def one_step(photographs: Path) -> tuple[str, ...]:
    steps = ("trainer.steps=1", "trainer.log_every=1", "trainer.eval_every=1", "trainer.pictures=0")
    return (*TINY, "data=folder", f"data.train={photographs}", *steps)


def recorded(outputs: Path, identity: str = "*") -> dict[str, str]:
    """The ids of the newest run."""
    newest = max(outputs.glob(f"runs/{identity}/*/{IDS}"), key=lambda path: path.stat().st_mtime_ns)
    ids: dict[str, str] = read_json(newest)
    return ids


def test_an_id_of_an_experiment_or_of_a_run_is_heeded_once_for_whom_it_was_made(
    sr_run: SrRun, one_step: tuple[str, ...], tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, outputs = MlflowClient(uri), tmp_path / "outputs"
    other = client.create_experiment("other", (tmp_path / "artifacts").as_uri())
    made = client.create_run(other).info.run_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", other)
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    sr_run(*one_step)
    assert recorded(outputs)["run_id"] == made
    run = client.get_run(made)
    assert run.data.params["seed"] == "0" and run.data.metrics["train/loss"] > 0 and run.info.status == "FINISHED"
    first = run.data.tags["sr_run.attempt"]
    said = sr_run(*one_step, "seed=1").stderr
    second = recorded(outputs)  # the variable is still there: points of two runs are not mixed
    assert second["run_id"] != made and second["experiment_id"] == other
    assert f"run {made} is {first}; this one is recorded by itself" in said
    assert client.get_run(made).data.metrics == run.data.metrics
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    monkeypatch.delenv("MLFLOW_RUN_ID")
    said = sr_run(*one_step, "seed=2").stderr
    assert client.get_experiment(recorded(outputs)["experiment_id"]).name == EXPERIMENT
    assert "MLflow has no experiment $MLFLOW_EXPERIMENT_ID=77: sr-run is taken" in said


def test_a_run_that_was_made_beforehand_is_that_of_a_sweep_and_not_given_to_its_jobs(
    sr_run: SrRun, one_step: tuple[str, ...], tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(uri)
    made = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    sr_run("-m", *one_step, "seed=0")
    job = recorded(tmp_path / "outputs", "*-x2-*")["run_id"]
    assert job != made and client.get_run(job).data.metrics["train/loss"] > 0
    swept = client.get_run(made)
    assert swept.data.metrics["jobs/finished"] == 1 and "train/loss" not in swept.data.metrics


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


@pytest.mark.parametrize(("said", "key", "measures"), [
    ("true", "null", True), ("0", "null", False), ("False", "true", True), ("1", "false", False), ("", "null", True),
])  # fmt: skip
def test_the_load_of_the_machine_is_recorded_as_mlflow_is_told_unless_the_key_says_it(
    said: str, key: str, measures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", said)
    tracker = build(composed([f"tracker.system_metrics={key}"])[0].tracker, "tracker")
    assert tracker._system_metrics is measures


def test_a_word_that_mlflow_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "on")
    with pytest.raises(RequestError, match="LOGGING='on': expected true or false"):
        measures_by_environment()


@pytest.mark.slow
def test_mlflow_run_trains_in_the_run_that_it_made(tmp_path: Path, image_cache: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("mine", (tmp_path / "artifacts").as_uri())
    scripts = str(Path(sys.executable).parent)
    variables = environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    variables["PATH"] = os.pathsep.join([scripts, variables["PATH"]])
    command = [f"{scripts}/mlflow", "run", str(ROOT), "--env-manager=local", "--experiment-name=mine", "-P"]

    def ended(*overrides: str) -> int:
        words = shlex.join([*TINY, f"data.cache_dir={image_cache}", f"outputs={tmp_path}/outputs", *overrides])
        return subprocess.run([*command, f"overrides={words}"], env=variables, cwd=tmp_path).returncode

    assert ended("trainer.parameters={*.bias: {weight_decay: 0}}") == 0
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED" and run.data.params["model"] == "edsr" and run.data.metrics["valid/psnr"] > 0
    assert recorded(tmp_path / "outputs")["run_id"] == run.info.run_id
    assert ended("no.such=key") != 0
    assert {run.info.status for run in client.search_runs([experiment])} == {"FINISHED", "FAILED"}


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
