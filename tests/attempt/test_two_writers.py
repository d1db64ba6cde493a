"""Two processes on one run, on one machine."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
from processes import LONG, RUN, Start, saved, wait_for
from support import SrRun


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_process_is_refused_by_name_and_a_killed_holder_blocks_nobody(
    start: Start, sr_run: SrRun, tmp_path: Path
) -> None:
    root, log = tmp_path / "store", tmp_path / "log"
    where = ("tracker=none", f"checkpoint.root={root}", "trainer.resume=true")
    first = start(*LONG, *where, log=log)
    wait_for(lambda: saved(root), first, log)
    # From the same folder of outputs, where a lock stands; and from another one, where only the store knows.
    for outputs in ("outputs", "elsewhere"):
        refused = sr_run(*RUN, *where, f"outputs={outputs}", code=2)
        said = re.search(r"is in use by process (\d+) on (\S+): two processes cannot train one run", refused.stderr)
        assert said is not None, refused.stderr
        assert (int(said[1]), said[2]) == (first.pid, platform.node())
    assert first.poll() is None, "the one that was there first goes on"
    first.kill()
    first.wait()

    newest = max(saved(root))
    second = start(*LONG, *where, "outputs=elsewhere", log=log)
    wait_for(lambda: max(saved(root)) > newest, second, log)
    said = re.search(r"resumed at step (\d+) ", log.read_text())
    assert said is not None and int(said[1]) == newest
    assert len(list(root.glob("*/*"))) == 1, "it went on with another attempt"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_job_of_a_sweep_waits_for_whoever_trains_its_run_and_goes_on_where_that_ended(
    start: Start, tmp_path: Path
) -> None:
    root, logs = tmp_path / "outputs" / "checkpoints", [tmp_path / "log", tmp_path / "swept"]
    run = (*RUN, "trainer.steps=100000", "tracker=none", "trainer.resume=true")
    first = start(*run, log=logs[0])
    wait_for(lambda: saved(root), first, logs[0])
    sweep = start("-m", *run, "seed=0", log=logs[1])
    wait_for(lambda: "This job waits" in logs[1].read_text(), sweep, logs[1])
    assert f"is in use by process {first.pid} on {platform.node()}" in logs[1].read_text()
    assert first.poll() is None, "the one that was there first goes on"
    first.kill()
    first.wait()
    newest = max(saved(root))
    wait_for(lambda: max(saved(root)) > newest, sweep, logs[1])
    (job_log,) = tmp_path.glob("outputs/sweeps/*/*/job.log")
    assert f"resumed at step {newest} of" in job_log.read_text()
    assert len(list(root.glob("*/*"))) == 1, "it went on with another attempt"
