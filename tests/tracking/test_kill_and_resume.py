"""A run that is killed at any moment and resumed is one run in MLflow, with one point per metric and step."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from processes import LONG, saved
from run_server import Run, RunServer
from support import wait_until
from tracking_servers import assert_one_point_a_step, launch, the_run, wait_for

from sr_runner.tracking.journal import JOURNAL, SENT, read_json


def _outputs(tmp_path: Path, empty_database: Path) -> tuple[Path, str]:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    shutil.copyfile(empty_database, outputs / "mlflow.db")
    return outputs, f"sqlite:///{outputs}/mlflow.db"


def _senders(run_dir: Path) -> list[int]:
    """The process ids of the senders of that run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"sr_runner.tracking.sender" in words and str(run_dir).encode() in words:
                found.append(int(entry.name))
    return found


def _kill(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    """Kills the run and waits until its sender has brought away what there was."""
    process.kill()
    process.wait()
    wait_for(lambda: not _senders(run_dir), what="the sender's end")


@pytest.mark.slow
def test_a_run_killed_thrice_and_resumed_is_one_run_with_one_point_a_step(tmp_path: Path, empty_database: Path) -> None:
    outputs, uri = _outputs(tmp_path, empty_database)
    run_dir = tmp_path / "run"
    for seconds in (0.6, 3.5, 1.5):
        process = launch(run_dir, outputs, "--steps", 10_000, "--pause", 0.005)
        time.sleep(seconds)
        process.kill()
        process.wait()
    steps = read_json(run_dir / "checkpoint.json")["step"] + 50
    assert launch(run_dir, outputs, "--steps", steps).wait(200) == 0
    run = the_run(uri)
    assert run.info.status == "FINISHED"
    assert run.data.tags["status"] == "finished"
    assert_one_point_a_step(uri, run.info.run_id, steps)


def test_a_killed_run_is_killed_in_mlflow_until_it_is_resumed(
    run_server: RunServer, tmp_path: Path, photographs: Path
) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    endless = (*LONG, "trainer.log_every=5", "data=folder", f"data.train={photographs}", "trainer.resume=true")

    def started() -> Run:
        return run_server.start(endless, tmp_path, tmp_path / "report", tmp_path / "said")

    def status() -> str:
        (found,) = client.search_runs(["1"])
        return str(found.info.status)

    run = started()
    wait_until(lambda: [each for each in tmp_path.glob(f"outputs/runs/*/*/{SENT}") if read_json(each).get("sent")])
    wait_until(lambda: saved(tmp_path / "outputs" / "checkpoints"), "a checkpoint")
    assert status() == "RUNNING"
    run.kill()
    wait_until(lambda: status() == "KILLED", "the sender's word")
    (killed,) = client.search_runs(["1"])
    assert killed.info.end_time is not None
    run = started()
    wait_until(lambda: status() == "RUNNING", "the run to be RUNNING again")
    run.kill()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_kills_of_the_run_and_of_its_sender_at_random_moments_lose_and_double_nothing(
    tmp_path: Path, empty_database: Path, seed: int
) -> None:
    outputs, uri = _outputs(tmp_path, empty_database)
    run_dir = tmp_path / "run"
    chance = random.Random(seed)
    for _ in range(6):
        process = launch(run_dir, outputs, "--steps", 10_000, "--pause", 0.003, "--system")
        time.sleep(chance.uniform(0.1, 5))
        if chance.random() < 0.7:
            for sender in _senders(run_dir):
                os.kill(sender, signal.SIGKILL)
            time.sleep(chance.choice([0, 0, 3]))
        process.kill()
        process.wait()
    checkpoint = read_json(run_dir / "checkpoint.json")
    steps = checkpoint.get("step", 0) + 20
    assert launch(run_dir, outputs, "--steps", steps).wait(200) == 0
    run = the_run(uri)
    assert run.info.status == "FINISHED"
    assert_one_point_a_step(uri, run.info.run_id, steps)


@pytest.mark.slow
def test_a_run_that_is_resumed_on_another_machine_loses_and_doubles_nothing(
    tmp_path: Path, empty_database: Path
) -> None:
    """Killed here after step 350, there before that step, and there again: the checkpoint is that of step 200."""
    outputs, uri = _outputs(tmp_path, empty_database)
    options = ("--checkpoint", tmp_path / "checkpoint.json", "--every", 200, "--steps", 450)
    here, there = tmp_path / "here", tmp_path / "there"
    first = launch(here, outputs, *options)
    wait_for(lambda: (here / JOURNAL).exists() and b'"step": 350' in (here / JOURNAL).read_bytes(), what="step 350")
    _kill(first, here)
    second = launch(there, outputs, *options, "--pause", 0.1)
    wait_for(lambda: read_json(there / SENT).get("sent"), what="points from there")
    _kill(second, there)
    assert b'"step": 350' not in (there / JOURNAL).read_bytes()
    assert launch(there, outputs, *options).wait(200) == 0
    assert_one_point_a_step(uri, the_run(uri).info.run_id, 450, every=200)


@pytest.mark.slow
def test_points_that_no_server_had_travel_in_the_checkpoint(tmp_path: Path, empty_database: Path) -> None:
    outputs, uri = _outputs(tmp_path, empty_database)
    checkpoint = tmp_path / "checkpoint.json"
    nobody = "http://127.0.0.1:9"
    lost = launch(tmp_path / "here", outputs, "--uri", nobody, "--steps", 60, "--checkpoint", checkpoint, "--wait", 0)
    assert lost.wait(200) == 3
    found = launch(tmp_path / "there", outputs, "--steps", 100, "--checkpoint", checkpoint)
    assert found.wait(200) == 0
    points = MlflowClient(uri).get_metric_history(the_run(uri).info.run_id, "train/loss")
    assert sorted(point.step for point in points) == list(range(1, 101))
