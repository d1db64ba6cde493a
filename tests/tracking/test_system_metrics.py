from __future__ import annotations

from pathlib import Path

import pytest
from support import wait_until

from sr_runner.tracking.journal import SYSTEM, read_lines
from sr_runner.tracking.system_metrics import SystemMetrics


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    return tmp_path / SYSTEM


def steps(path: Path) -> list[int | None]:
    return [line.step for line in read_lines(path)]


def test_samples_of_cpu_disk_and_network_have_a_step_each_and_go_on_where_the_last_ones_ended(path: Path) -> None:
    for first in (7, 0, 100):
        before = steps(path)
        metrics = SystemMetrics(path, first)
        wait_until(lambda before=before: len(steps(path)) >= len(before) + 2)  # type: ignore[misc]
        metrics.stop()
        assert not metrics._thread.is_alive()
        begins = max([first, *(step + 1 for step in before if step is not None)])
        new = steps(path)[len(before) :]
        assert new == list(range(begins, begins + len(new)))
    for line in read_lines(path):
        assert line.event is not None and all(key.startswith("system/") for key in line.event["values"])
        named = {key.split("/")[1].split("_")[0] for key in line.event["values"]}
        assert {"cpu", "disk", "network"} <= named


def test_what_is_under_way_when_it_is_stopped_is_not_recorded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "3600")
    SystemMetrics(path).stop()
    assert steps(path) == []


def test_a_sample_is_taken_every_ten_seconds_unless_mlflows_own_variable_says_otherwise(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, seconds in (("0.5", 0.5), ("", 10)):
        monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", value)
        metrics = SystemMetrics(path)
        assert metrics._interval == seconds
        metrics.stop()
