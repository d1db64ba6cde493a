"""What the training process does for its record: little, quickly, and without MLflow."""

from __future__ import annotations

import inspect
import json
import logging
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tracking_servers import wait_for

import sr_runner.tracking as tracking
from sr_runner.tracking import MlflowTracker, NoTracker, RunRecord, Tracker
from sr_runner.tracking.journal import IDS, JOURNAL, SENT, JournalWriter, metrics_event, read_lines, write_json

NOBODY = "http://127.0.0.1:9"
"""An address at which no tracking server answers."""

Start = Callable[..., MlflowTracker]


def _record(run_dir: Path, **changes: object) -> RunRecord:
    given = {"run_dir": run_dir, "attempt": "tiny/1", "run_name": "tiny", "params": {"a": "1"}}
    return RunRecord(**{**given, **changes})  # type: ignore[arg-type]


def _points(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    events = [line.event for line in read_lines(run_dir / JOURNAL)]
    return [(event["step"], event["values"]) for event in events if event and event["event"] == "metrics"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts trackers of a run in `tmp_path` whose server is away, and ends them after the test."""
    started: list[MlflowTracker] = []

    def make(uri: str = NOBODY, **changes: object) -> MlflowTracker:
        tracker = MlflowTracker(uri=uri, outputs=tmp_path, system_metrics=False)
        tracker.start(_record(tmp_path, **changes))
        started.append(tracker)
        return tracker

    yield make
    for tracker in started:
        tracker.finish("KILLED", wait=0)


def test_a_point_that_was_logged_before_the_kill_is_not_logged_again(tmp_path: Path, start: Start) -> None:
    first = start()
    for step in range(10):
        first.log(step, {"loss": float(step)})
    first.log(9, {"psnr": 30.0})
    second = start(resumed_at=5)
    for step in range(5, 12):
        second.log(step, {"loss": -1.0, "psnr": 31.0})
    points = _points(tmp_path)
    assert [(step, values["loss"]) for step, values in points if "loss" in values] == [
        *((step, float(step)) for step in range(10)),
        (10, -1.0),
        (11, -1.0),
    ]
    assert [step for step, values in points if "psnr" in values] == [9, 5, 6, 7, 8, 10, 11]


def test_the_points_of_step_zero_are_not_doubled_by_a_run_that_starts_over(tmp_path: Path, start: Start) -> None:
    for _ in range(2):
        start().log(0, {"psnr": 20.0})
    assert _points(tmp_path) == [(0, {"psnr": 20.0})]


def test_a_key_that_is_logged_twice_at_a_step_keeps_its_first_value(tmp_path: Path, start: Start) -> None:
    tracker = start()
    tracker.log(10, {"psnr": 20.0})
    tracker.log(10, {"psnr": 21.0, "ssim": 0.5})
    assert _points(tmp_path) == [(10, {"psnr": 20.0}), (10, {"ssim": 0.5})]


def test_a_picture_is_recorded_once_for_its_key_and_step(tmp_path: Path, start: Start) -> None:
    for _ in range(2):
        tracker = start()
        tracker.picture(10, "valid/a", tmp_path / "pictures" / "a.png")
        tracker.picture(10, "valid/b", Path("/elsewhere/b.png"))
    events = [line.event for line in read_lines(tmp_path / JOURNAL)]
    files = [event["file"] for event in events if event and event["event"] == "picture"]
    assert files == ["pictures/a.png", "/elsewhere/b.png"]


def test_what_the_server_has_not_confirmed_travels_in_the_state(tmp_path: Path, start: Start) -> None:
    tracker = start()
    for step in range(5):
        tracker.log(step, {"loss": float(step)})
    state = json.loads(json.dumps(tracker.state()))
    assert len(state["pending"]) == 5
    there = tmp_path / "there"
    other = MlflowTracker(uri=NOBODY, outputs=tmp_path, system_metrics=False)
    other.start(_record(there, resumed_at=4, state=state))
    other.log(4, {"loss": -1.0})
    other.log(5, {"loss": 5.0})
    other.finish("KILLED", wait=0)
    assert [(step, values["loss"]) for step, values in _points(there)] == [(step, float(step)) for step in range(6)]


def test_an_end_of_the_journal_that_a_crash_took_is_not_taken_for_sent(tmp_path: Path, start: Start) -> None:
    writer = JournalWriter(tmp_path / JOURNAL)
    writer.append(metrics_event(1, {"loss": 1.0}))
    notes = {"run_id": "r", "sent": writer.size + 500, "system": 0, "left_over": [], "unknown_from": None}
    write_json(tmp_path / SENT, notes)
    start(resumed_at=1)
    assert json.loads((tmp_path / SENT).read_text()) == {**notes, "sent": writer.size, "unknown_from": 1}


def test_a_full_disk_is_said_once_and_stops_nothing(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / JOURNAL).stat().st_size + 10, hard))
    try:
        for step in range(5):
            tracker.log(step, {"loss": float(step)})
        tracker.artifact(tmp_path / "run.log")
        tracker.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len([line for line in caplog.messages if "cannot be written" in line]) == 1
    tracker.log(5, {"loss": 5.0})
    assert [step for step, _ in _points(tmp_path)] == list(range(6))


def test_logging_costs_microseconds(tmp_path: Path, start: Start) -> None:
    tracker = start()
    values = {f"train/{number}": number / 3 for number in range(6)}
    costs = []
    for step in range(2000):
        before = time.perf_counter()
        tracker.log(step, values)
        costs.append(time.perf_counter() - before)
    assert statistics.median(costs) < 200e-6


def test_a_sender_that_dies_is_started_again(tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tracker = start()
    assert tracker._sender is not None
    assert tracker._sender._process is not None
    first = tracker._sender._process.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: tracker._sender._process.pid != first, what="another sender")  # type: ignore[union-attr]
    assert "the sender ended (exit status -9); it is started again" in caplog.text


def test_a_password_in_the_uri_is_written_nowhere(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    uri = "http://ann:s3cr3t@127.0.0.1:9"
    tracker = start(uri, params={"tracker.uri": uri}, tags={"server": uri}, dataset={"name": "d", "source": uri})
    wait_for(lambda: "cannot be reached" in caplog.text, what="the message")
    state = tracker.state()
    assert not tracker.finish("FINISHED", {"server": uri}, wait=0)
    written = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert "***@127.0.0.1" in "".join(written)
    for text in (*written, caplog.text, json.dumps(state), str(tracker.ui_hint())):
        assert "s3cr3t" not in text


def test_no_call_raises_and_none_waits_for_a_server_that_is_away(tmp_path: Path, start: Start) -> None:
    before = time.monotonic()
    tracker = start()
    tracker.log(1, {"loss": 1.0})
    tracker.picture(1, "a", tmp_path / "a.png")
    tracker.artifact(tmp_path / "run.log")
    tracker.sync()
    tracker.state()
    assert tracker.run_id is None
    assert time.monotonic() - before < 2


def test_the_id_of_an_earlier_life_is_known_before_the_server_answers(tmp_path: Path, start: Start) -> None:
    write_json(tmp_path / IDS, {"tracking_uri": NOBODY, "experiment_id": "3", "run_id": "abc"})
    assert start().run_id == "abc"
    assert start().ui_hint() == ("", f"{NOBODY}/#/experiments/3/runs/abc?workflowType=machine_learning")
    assert start("http://127.0.0.1:10").run_id is None


def test_no_tracker_takes_every_call_and_imports_nothing(tmp_path: Path) -> None:
    tracker: Tracker = NoTracker(uri="http://host", experiment="x", run_name="y", system_metrics=True)
    tracker.start(_record(tmp_path))
    tracker.log(1, {"loss": 1.0})
    assert tracker.state() == {}
    assert tracker.finish("FINISHED")
    assert tracker.run_id is None
    assert tracker.ui_hint() is None
    assert not list(tmp_path.iterdir())


def test_the_package_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, sr_runner.tracking; sys.exit(bool({'mlflow', 'torch', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(tracking.__file__).parents[2])


@pytest.mark.parametrize("name", ["mlflow", "none"])
def test_the_keys_of_a_config_are_those_of_its_tracker(name: str) -> None:
    file = Path(tracking.__file__).parents[2] / "conf" / "tracker" / f"{name}.yaml"
    config = yaml.safe_load(file.read_text())
    module, _, kind = config.pop("_target_").rpartition(".")
    assert module == "sr_runner.tracking"
    inspect.signature(getattr(tracking, kind)).bind(**config)
    if name == "mlflow":
        assert set(config) == set(inspect.signature(MlflowTracker).parameters)
