"""What the training process does for its record: little, quickly, and without MLflow."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from tracking_servers import wait_for

import sr_runner.tracking as tracking
from sr_runner.errors import RequestError
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


def _metrics(run_dir: Path) -> list[dict[str, object]]:
    """All metrics entries, with their times and without the places where they stand, ordered by step."""
    events = [event for line in read_lines(run_dir / JOURNAL) if (event := line.event)]
    rest = [{key: event[key] for key in ("time", "step", "values")} for event in events if event["event"] == "metrics"]
    return sorted(rest, key=lambda event: event["step"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts trackers of a run in `tmp_path` whose server is away, and ends them after the test."""
    started: list[MlflowTracker] = []

    def make(uri: str = NOBODY, nested: bool = False, **changes: object) -> MlflowTracker:
        tracker = MlflowTracker(uri=uri, outputs=tmp_path, system_metrics=False, nested=nested)
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


def test_a_run_that_is_only_looked_at_again_has_ended_when_it_did(tmp_path: Path, start: Start) -> None:
    tracker = start()
    tracker.log(1, {"loss": 1.0})
    tracker.finish("FINISHED", wait=0)
    (first,) = _ends(tmp_path)
    start(resumed_at=1).finish("FINISHED", wait=0)
    assert _ends(tmp_path) == [first, first]
    longer = start(resumed_at=1)
    longer.log(2, {"loss": 1.0})
    longer.finish("FINISHED", wait=0)
    start(resumed_at=2).finish("KILLED", wait=0)
    assert first < _ends(tmp_path)[2] < _ends(tmp_path)[3]


def _ends(run_dir: Path) -> list[int]:
    events = (line.event for line in read_lines(run_dir / JOURNAL))
    return [event["time"] for event in events if event and event["event"] == "finish"]


def test_notes_that_the_journal_does_not_fit_are_dropped_with_a_warning(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    writer = JournalWriter(tmp_path / JOURNAL)
    writer.append(metrics_event(1, {"loss": 1.0}))
    write_json(tmp_path / SENT, {"run_id": "r", "sent": writer.size + 500})
    start(resumed_at=1)
    assert not (tmp_path / SENT).exists()
    assert [line for line in caplog.messages if "is not what it was when it was sent" in line]


@pytest.mark.parametrize("left", [0, 1, 4, 11])
def test_points_that_the_journal_lost_come_back_from_the_checkpoint_as_they_were(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    tracker = start()
    for step in range(10):
        tracker.log(step, {"loss": float(step), "nan": math.nan})
    state = json.loads(json.dumps(tracker.state()))
    tracker.finish("KILLED", wait=0)
    before = _metrics(tmp_path)
    path = tmp_path / JOURNAL
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:left]))
    start(resumed_at=9, state=state).log(9, {"loss": -1.0})
    assert _metrics(tmp_path) == before
    lacked = 20 - 2 * max(left - 1, 0)
    assert caplog.messages.count(
        f"tracking: the journal lacked {lacked} points that the checkpoint holds; they are added"
    ) == bool(lacked)


def test_a_line_that_ran_into_a_damaged_one_comes_back_from_the_checkpoint(tmp_path: Path, start: Start) -> None:
    tracker = start()
    for step in range(6):
        tracker.log(step, {"loss": float(step)})
    state = json.loads(json.dumps(tracker.state()))
    tracker.finish("KILLED", wait=0)
    path, lines = tmp_path / JOURNAL, (tmp_path / JOURNAL).read_bytes().splitlines()
    path.write_bytes(b"\n".join(lines[:3]) + b" " + b"\n".join(lines[3:]) + b"\n")  # each is where it was
    start(resumed_at=6, state=state)
    assert sorted(_points(tmp_path)) == [(step, {"loss": float(step)}) for step in range(6)]


def test_bytes_that_are_no_text_block_no_resume(tmp_path: Path, start: Start) -> None:
    tracker = start()
    for step in range(3):
        tracker.log(step, {"loss": float(step)})
    tracker.finish("KILLED", wait=0)
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes().replace(b'"step": 1', b'"ste\xff": 1').replace(b'"step": 2', b'"stup": 2'))
    again = start(resumed_at=1)
    again.log(1, {"loss": 1.0})
    assert [json.loads(raw)["step"] for raw in again.state()["pending"]] == [0, 1]


@pytest.mark.parametrize("pending", [7, None, [1, "x", "\ud800", "{}", '{"crc": "00000000", "at": 0}']])
def test_a_state_that_is_no_state_is_passed_over(tmp_path: Path, start: Start, pending: object) -> None:
    start(state={"pending": pending, "run_id": [], "tracking_uri": NOBODY})
    assert _points(tmp_path) == []


def test_lines_that_wait_for_the_disk_are_in_the_state(tmp_path: Path, start: Start) -> None:
    tracker = start()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / JOURNAL).stat().st_size, hard))
    try:
        tracker.log(1, {"loss": 1.0})
        assert [json.loads(raw)["step"] for raw in tracker.state()["pending"]] == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_stays_full_to_the_end_is_no_delivery(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / JOURNAL).stat().st_size, hard))
    try:
        tracker.log(1, {"loss": 1.0})
        assert not tracker.finish("FINISHED", wait=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "2 entries are lost" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "link", "read-only"])
def test_a_journal_that_cannot_be_written_from_the_start_is_a_wrong_request(
    tmp_path: Path, start: Start, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / JOURNAL
    (tmp_path / "theirs").write_text("mine\n")
    match kind:
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "theirs")
        case "read-only":  # root, as whom tests may run, can write everything
            monkeypatch.setattr(os, "open", Mock(side_effect=PermissionError(13, "Permission denied", str(path))))
    with pytest.raises(RequestError, match=r"journal\.jsonl cannot be written .*expected a file that can be written"):
        start()
    assert (tmp_path / "theirs").read_text() == "mine\n"


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
    tracker = start(
        uri, params={"tracker.uri": uri}, tags={"server": uri}, dataset={"name": "d", "source": uri, "digest": "5"}
    )
    wait_for(lambda: "cannot be reached" in caplog.text, what="the message")
    state = tracker.state()
    assert not tracker.finish("FINISHED", {"server": uri}, wait=0)
    written = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert "***@127.0.0.1" in "".join(written)
    for text in (*written, caplog.text, json.dumps(state), str(tracker.ui_hint())):
        assert "s3cr3t" not in text


def test_no_call_raises_where_the_server_is_away(tmp_path: Path, start: Start) -> None:
    tracker = start()
    tracker.log(1, {"loss": 1.0})
    tracker.picture(1, "a", tmp_path / "a.png")
    tracker.artifact(tmp_path / "run.log")
    tracker.sync()
    tracker.state()
    assert tracker.run_id is None


def test_the_id_of_an_earlier_life_is_known_before_the_server_answers(tmp_path: Path, start: Start) -> None:
    write_json(tmp_path / IDS, {"tracking_uri": NOBODY, "experiment_id": "3", "run_id": "abc"})
    assert start().run_id == "abc"
    assert start().ui_hint() == ("", f"{NOBODY}/#/experiments/3/runs/abc?workflowType=machine_learning")
    assert start("http://127.0.0.1:10").run_id is None


def test_what_comes_after_the_end_or_before_the_start_is_not_recorded(tmp_path: Path, start: Start) -> None:
    with pytest.raises(RuntimeError, match=r"start\(\) has not been called"):
        MlflowTracker(uri=NOBODY, outputs=tmp_path).log(1, {"loss": 1.0})
    tracker = start()
    assert not tracker.finish("FINISHED", wait=0)
    before = (tmp_path / JOURNAL).read_bytes()
    tracker.log(1, {"loss": 1.0})
    tracker.sync()
    assert tracker.finish("FAILED", wait=0) is False and (tmp_path / JOURNAL).read_bytes() == before


def test_what_a_run_is_stands_in_the_first_line(tmp_path: Path, start: Start) -> None:
    dataset = {"name": "d", "digest": "5"}
    for given, expected in (
        ({"dataset": dataset, "sweep": tmp_path / "sweep"}, (dataset, None)),
        ({"sweep": tmp_path / "sweep", "nested": True}, (None, str(tmp_path / "sweep"))),
        ({}, (None, None)),
    ):
        start(tags={"a": "b"}, resumed_at=7, **given).log(8, {"loss": 1.0})
        event = [line.event for line in read_lines(tmp_path / JOURNAL) if line.kind == "start"][-1]
        assert event is not None and (event.get("dataset"), event.get("below")) == expected
        assert (event["run_name"], event["resumed_at"], event["params"]) == ("tiny", 7, {"a": "1"})
        assert event["tags"]["a"] == "b" and event["artifacts"] == str(tmp_path / "artifacts")


def test_a_half_written_end_is_said_to_be_cut_off(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / JOURNAL).write_bytes(b"half a line")
    start()
    assert "the half written end of" in caplog.text and "11 bytes" in caplog.text


@pytest.mark.parametrize("experiment", ["", "  "])
def test_an_experiment_needs_a_name(experiment: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"tracker\.experiment=.* is empty"):
        MlflowTracker(uri=NOBODY, outputs=tmp_path, experiment=experiment)


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
