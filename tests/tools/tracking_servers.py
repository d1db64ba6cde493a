"""Real tracking servers, and what they have to hold in the end."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from sr_runner.tracking.sender_process import sender_environment

SCRIPT = Path(__file__).with_name("tracked_run.py")


class TrackingServer:
    """`mlflow server` on loopback with a database of its own; may be started late, killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "served")]
        command += self.options
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment, start_new_session=True
            )

    def wait(self, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, number)


def launch(run_dir: Path, outputs: Path, *options: object) -> subprocess.Popen[bytes]:
    """Starts `tracked_run.py`; what it logs goes to `<run_dir>.log`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(run_dir), str(outputs), *map(str, options)]
    environment = {**sender_environment(""), "PYTHONPATH": str(SCRIPT.parents[2])}
    environment["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = "0.3"
    environment.pop("MLFLOW_TRACKING_URI")
    with Path(f"{run_dir}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def wait_for(condition: Any, seconds: float = 120, what: str = "") -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s in vain: {what}"
        time.sleep(0.05)


def the_run(uri: str, attempt: str = "tiny-x2-0123456789ab/1") -> Any:
    """The only run of that attempt."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name("tests")
    assert found is not None
    runs = client.search_runs([found.experiment_id], f"tags.`sr_run.attempt` = '{attempt}'")
    assert len(runs) == 1, [run.data.tags for run in runs]
    return runs[0]


def assert_one_point_a_step(uri: str, run_id: str, steps: int, every: int = 10) -> None:
    """Every metric of `tracked_run.py` once at every step it belongs to, with the value it has there; the same for
    its pictures."""
    from mlflow import MlflowClient
    from tracked_run import loss

    client = MlflowClient(uri)
    expected = {"train/loss": range(1, steps + 1), "train/images_per_second": range(1, steps + 1)}
    expected["valid/psnr"] = range(every, steps + 1, every)
    for key, where in expected.items():
        points = client.get_metric_history(run_id, key)
        assert sorted(point.step for point in points) == list(where), key
        for point in points:
            if key == "train/loss":
                wanted = loss(point.step)
                assert point.value == wanted or (math.isnan(point.value) and math.isnan(wanted))
            if key == "valid/psnr":
                assert point.value == 20 + point.step / 100
    for key in client.get_run(run_id).data.metrics:
        if key.startswith("system/"):
            numbers = sorted(point.step for point in client.get_metric_history(run_id, key))
            assert numbers == list(range(len(numbers))), key
    pictures = [entry.path for entry in client.list_artifacts(run_id, "images")]
    shown = sorted(int(path.split("+step+")[1].split("+")[0]) for path in pictures if path.endswith(".png"))
    assert shown == list(range(every, steps + 1, every))
    assert len(pictures) == 2 * len(shown)
