"""A file system without `flock`, as some network file systems are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from processes import LONG, saved, wait_for
from support import TINY, command, environment

NO_FLOCK = """
import errno, fcntl, os
def flock(file, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""


@pytest.mark.slow
def test_without_locks_a_run_is_trained_and_resumed_and_the_lease_keeps_a_second_process_out(tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(NO_FLOCK)
    without = environment()
    without["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "without"), without["PYTHONPATH"]])
    logs = [tmp_path / "first.log", tmp_path / "second.log"]

    def start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(command(*arguments), cwd=tmp_path, env=without, stdout=file, stderr=file)

    # Together, on an empty folder: both decode the images.
    together = [start(log, *TINY, "tracker=none", f"trainer.steps={6 + n}") for n, log in enumerate(logs)]
    assert [process.wait(240) for process in together] == [0, 0], [log.read_text() for log in logs]
    for log in logs:
        said = log.read_text()
        assert "Traceback" not in said and said.count("No locks on this file system") == 1, said

    first = start(logs[0], *LONG, "trainer.resume=true")
    root = tmp_path / "outputs" / "checkpoints"
    before = set(saved(root))
    wait_for(lambda: set(saved(root)) - before, first, logs[0])
    second = start(logs[1], *LONG, "trainer.resume=true")
    assert second.wait(240) == 2 and f"is in use by process {first.pid} on " in logs[1].read_text()
    first.terminate()
    assert first.wait(240) == 143, logs[0].read_text()
    assert "stopping on signal 15" in logs[0].read_text() and "Traceback" not in logs[0].read_text()
