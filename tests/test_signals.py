"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import environment

from sr_runner.signals import StopSignal


def test_a_signal_begins_the_grace_and_the_end_of_the_work_ends_it() -> None:
    stop = StopSignal()
    stop.grace_seconds = 60
    stop.defer()
    stop.note(signal.SIGTERM)
    timer = stop._timer
    assert timer is not None and stop.deadline is not None and 0 < stop.within(100) <= 60
    stop.finish()
    timer.join(10)
    assert not timer.is_alive() and stop.deadline is None


def test_a_signal_after_the_end_of_the_work_is_noted_and_ends_nothing() -> None:
    stop = StopSignal()
    stop.grace_seconds = 60
    stop.finish()
    stop._receive(signal.SIGTERM, None)
    assert stop.requested and stop._timer is None and stop.within(100) == 100


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_amid_an_import_that_swallows_it_ends_the_process_behind_that(
    signum: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "swallows.py").write_text(
        "import os, sys\n"
        "try:\n"
        "    os.kill(os.getpid(), int(sys.argv[1]))\n"
        "    sum(range(1000))\n"
        "except BaseException:\n"
        "    pass\n"
        "print('imported', flush=True)\n"
    )
    program = "import time, sr_runner.signals as s; s.StopSignal().install(); import swallows; time.sleep(60)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(int(signum))], cwd=tmp_path, env=environment(), text=True,
        capture_output=True, timeout=50,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "imported\n", "")
