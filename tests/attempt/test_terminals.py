"""A run whose terminal is closed, or whose standard streams are closed, full or not read."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from run_server import RunServer
from support import TINY, SrRun, command, environment, wait_until

RUN = (*TINY, "trainer.steps=1000000", "trainer.eval_every=1000000", "checkpoint.every=20", "trainer.log_every=1000")


class Terminal:
    """`sr-run arguments` as the foreground of a terminal of its own."""

    def __init__(self, arguments: tuple[str, ...], folder: Path):
        self.shown = b""
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(sys.executable, command(*arguments), environment())
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def close(self) -> None:
        self._closing.set()  # it is open for as long as somebody reads it
        self._reader.join()
        os.close(self._end)

    def wait(self) -> int:
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            wait_until(lambda: os.waitid(os.P_PID, self.pid, ended), "its end")
        except AssertionError:
            os.kill(self.pid, signal.SIGKILL)
            raise
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> None:
        while not self._closing.is_set():
            if select.select([self._end], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self._end, 65536)
                except OSError:  # it has ended
                    return


def committed(folder: Path) -> int:
    """The newest step that has a checkpoint; 0: none has."""
    return max((int(p.parent.name[5:]) for p in folder.glob("outputs/checkpoints/*/*/step-*/manifest.json")), default=0)


@pytest.mark.parametrize(
    ("end", "signum"),
    [
        (Terminal.close, signal.SIGHUP),
        pytest.param(lambda run: run.type(b"\x1c"), signal.SIGQUIT, marks=pytest.mark.slow),
    ],
)
def test_a_terminal_that_is_closed_or_quits_stops_the_run_after_a_checkpoint_and_everything_in_mlflow(
    end: Callable[[Terminal], None], signum: int, tmp_path: Path, image_cache: Path
) -> None:
    """Both go to all processes of the terminal: to the one that brings the points to MLflow as well."""
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    run = Terminal((*RUN, f"data.cache_dir={image_cache}", "trainer.resume=true"), tmp_path)
    wait_until(lambda: committed(tmp_path) >= 20, "a checkpoint")
    end(run)
    assert run.wait() == 128 + signum, run.shown.decode()
    (log,) = tmp_path.glob("outputs/runs/*/*/run.log")
    assert f"stopping on signal {signum} at step {committed(tmp_path)}" in log.read_text()
    (found,) = client.search_runs(["1"])
    assert (found.info.status, found.data.tags["sr_run.status"]) == ("KILLED", "stopped")
    assert b"Traceback" not in run.shown


@pytest.mark.slow
def test_a_run_that_was_started_without_streams_is_one_like_any_other(tmp_path: Path, image_cache: Path) -> None:
    arguments = [*command(*TINY, "tracker=none", f"data.cache_dir={image_cache}")]
    shell = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *arguments]
    assert subprocess.run(shell, cwd=tmp_path, env=environment(), timeout=240, check=False).returncode == 0
    assert committed(tmp_path) == 6


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_a_report_that_nobody_can_be_given_is_said_and_the_run_has_finished(
    json: tuple[str, ...], tmp_path: Path, image_cache: Path, run_server: RunServer
) -> None:
    arguments = (*TINY, *json, "tracker=none", f"data.cache_dir={image_cache}")
    said = tmp_path / "said"
    assert run_server.start(arguments, tmp_path, Path("/dev/full"), said).wait() == 0, said.read_text()
    (result,) = tmp_path.glob("outputs/runs/*/*/result.json")
    last = said.read_text().splitlines()[-1]
    assert "WARNING: the run has finished, but its report could not be printed" in last and last.endswith(str(result))


def test_messages_that_nobody_can_be_given_are_no_failure(
    sr_run: SrRun, tmp_path: Path, image_cache: Path, run_server: RunServer
) -> None:
    arguments = (*TINY, f"data.cache_dir={image_cache}")
    assert run_server.start(arguments, tmp_path, tmp_path / "report", Path("/dev/full")).wait() == 0
    assert "Step 6 of 6" in (tmp_path / "report").read_text()
    (found,) = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db").search_runs(["1"])
    assert found.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("arguments", "streams", "status"),
    [
        (("--help",), ">/dev/full", 1),
        (("--help",), ">&-", 0),
        (("--cfg", "job"), ">/dev/full", 1),
        (("--help",), ">/dev/full 2>/dev/full", 1),
        (("no_such=1",), "2>/dev/full", 2),
        (("no_such=1",), "2>&-", 2),
    ],
)
def test_what_was_asked_for_and_cannot_be_printed_is_a_failure_and_a_message_is_none(
    arguments: tuple[str, ...], streams: str, status: int, tmp_path: Path
) -> None:
    shell = ["sh", "-c", f'"$@" {streams}', "sh", *command(*arguments)]
    done = subprocess.run(shell, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    said = "sr-run: standard output cannot be written to (No space left on device)\n"
    assert done.stderr == (said if streams == ">/dev/full" else "")
