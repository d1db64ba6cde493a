"""The training never notices the tracking server: late, killed, frozen, gone; what it missed gets there later."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracking_servers import TrackingServer, assert_one_point_a_step, launch, the_run, wait_for

from sr_runner.tracking.journal import SENT, read_json
from sr_runner.tracking.sender_process import sender_environment


@pytest.fixture
def running(server: TrackingServer) -> Iterator[TrackingServer]:
    if server.process is None:
        server.start()
    server.wait()
    yield server
    server.thaw()


def _log(run_dir: Path) -> str:
    return Path(f"{run_dir}.log").read_text()


@pytest.mark.slow
def test_a_server_that_starts_late_gets_everything_and_is_missed_once(server: TrackingServer, tmp_path: Path) -> None:
    server.kill()
    run_dir = tmp_path / "late"
    process = launch(run_dir, tmp_path, "--uri", server.uri, "--attempt", "late/1", "--steps", 400, "--pause", 0.02)
    wait_for(lambda: "cannot be reached" in _log(run_dir), what="the message")
    server.start()
    assert process.wait(200) == 0
    assert _log(run_dir).count("cannot be reached (Connection refused); training goes on") == 1
    assert _log(run_dir).count("takes points again") == 1
    run = the_run(server.uri, "late/1")
    assert_one_point_a_step(server.uri, run.info.run_id, 400)


@pytest.mark.slow
def test_a_server_killed_amid_the_run_gets_everything_when_it_is_back(running: TrackingServer, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    options = ("--uri", running.uri, "--attempt", "killed/1", "--steps", 1200, "--pause", 0.02)
    process = launch(run_dir, tmp_path, *options)
    for _ in range(2):
        before = read_json(run_dir / SENT).get("sent", 0)
        wait_for(lambda before=before: read_json(run_dir / SENT).get("sent", 0) > before, what="points")
        running.kill()
        time.sleep(2)
        running.start()
        running.wait()
    assert process.wait(200) == 0
    assert_one_point_a_step(running.uri, the_run(running.uri, "killed/1").info.run_id, 1200)


@pytest.mark.slow
def test_a_server_that_hangs_gets_everything_when_it_answers_again(running: TrackingServer, tmp_path: Path) -> None:
    run_dir = tmp_path / "hung"
    running.freeze()
    options = ("--uri", running.uri, "--attempt", "hung/1", "--steps", 100, "--pause", 0.005)
    process = launch(run_dir, tmp_path, *options, "--wait", 100)
    wait_for(lambda: "no answer within the time limit" in _log(run_dir), what="the message")
    running.thaw()
    assert process.wait(200) == 0
    assert_one_point_a_step(running.uri, the_run(running.uri, "hung/1").info.run_id, 100)


@pytest.mark.slow
def test_a_run_that_ends_without_its_server_says_so_and_is_delivered_at_the_next_resume(
    running: TrackingServer, tmp_path: Path
) -> None:
    run_dir = tmp_path / "gone"
    options = ("--uri", running.uri, "--attempt", "gone/1", "--pause", 0.03)
    process = launch(run_dir, tmp_path, *options, "--steps", 400, "--wait", 3)
    wait_for(lambda: read_json(run_dir / SENT).get("sent"), what="the first points")
    running.kill()
    assert process.wait(200) == 3
    assert "entries are not in MLflow yet (Connection refused)" in _log(run_dir)
    running.start()
    running.wait()
    assert the_run(running.uri, "gone/1").info.status == "RUNNING"
    assert launch(run_dir, tmp_path, *options, "--steps", 420).wait(200) == 0
    run = the_run(running.uri, "gone/1")
    assert run.info.status == "FINISHED"
    assert_one_point_a_step(running.uri, run.info.run_id, 420)
    assert run.data.params["trainer.steps"] == "400"
    assert _log(run_dir).count("params cannot be changed in MLflow and stay what they were: trainer.steps") == 1


@pytest.mark.slow
def test_what_an_ended_run_owes_can_be_delivered_by_hand(running: TrackingServer, tmp_path: Path) -> None:
    run_dir = tmp_path / "owing"
    running.kill()
    process = launch(run_dir, tmp_path, "--uri", running.uri, "--attempt", "owing/1", "--wait", 0)
    assert process.wait(200) == 3
    running.start()
    running.wait()
    command = [sys.executable, "-m", "sr_runner.tracking.sender", "--deliver", str(run_dir)]
    subprocess.run(command, env=sender_environment(running.uri), check=True, timeout=90)
    run = the_run(running.uri, "owing/1")
    assert run.info.status == "FINISHED"
    assert_one_point_a_step(running.uri, run.info.run_id, 100)


@pytest.mark.slow
def test_a_run_that_is_deleted_for_good_is_recorded_anew_from_its_start(
    running: TrackingServer, tmp_path: Path
) -> None:
    """As it is when the server's database is replaced while runs are training."""
    run_dir = tmp_path / "lost"
    options = ("--uri", running.uri, "--attempt", "lost/1", "--steps", 2000, "--pause", 0.02)
    process = launch(run_dir, tmp_path, *options)
    wait_for(lambda: read_json(run_dir / SENT).get("sent"), what="the first points")
    running.kill()
    (running.folder / "server.db").unlink()
    running.start()
    running.wait()
    assert process.wait(200) == 0
    assert_one_point_a_step(running.uri, the_run(running.uri, "lost/1").info.run_id, 2000)
