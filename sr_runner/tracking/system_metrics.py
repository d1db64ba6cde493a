"""The load of the machine, sampled in the sender's process into a journal of its own.

MLflow's `SystemMetricsMonitor` takes the samples but also sends them itself: it ends for good when the server does not
answer once, starts again at step 0 if that happens while it starts, and stamps points when it sends them. Here its
monitors only measure; the points go the way of all others.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from sr_runner.tracking.journal import JournalWriter, metrics_event, read_lines


class SystemMetrics:
    """Appends the means over an interval (10 s, or `$MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`) until `stop`.

    The steps go on after the last one in the journal, or at `first_step` where that is more. Raises ImportError where
    psutil is missing.
    """

    def __init__(self, path: Path, first_step: int = 0) -> None:
        self._monitors = _monitors()
        self._journal = JournalWriter(path)
        last = [line.step for line in read_lines(path) if line.step is not None]
        self._step = max(first_step, last[-1] + 1) if last else first_step
        self._interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 10)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the sampling; the interval that is under way is not recorded."""
        self._stopped.set()
        self._thread.join(5)
        if not self._thread.is_alive():
            self._journal.close()

    def _sample(self) -> None:
        while not self._stopped.is_set():
            for monitor in self._monitors:
                monitor.collect_metrics()
            if self._stopped.wait(self._interval):
                return
            values: dict[str, float] = {}
            for monitor in self._monitors:
                values.update({f"system/{key}": value for key, value in monitor.aggregate_metrics().items()})
                monitor.clear_metrics()
            with suppress(OSError):  # the disk is full: the line waits in the writer's memory
                self._journal.append(metrics_event(self._step, values))
            self._step += 1


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    monitors: list[Any] = [kind() for kind in (CPUMonitor, DiskMonitor, NetworkMonitor)]
    for gpu in (GPUMonitor, ROCMMonitor):
        try:
            return [*monitors, gpu()]
        except Exception:  # each kind of missing driver raises something else
            continue
    return monitors
