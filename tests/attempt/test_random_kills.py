"""Runs that are killed and resumed end like runs that were not. `trials.py` says what is compared."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import kill_and_resume
import pytest
from support import environment
from variants import COMPILED, VARIANTS

TRIALS = Path(__file__).parents[1] / "tools" / "trials.py"


def trials(*arguments: object, timeout: float = 280) -> int:
    """Run the script; fails where it found anything. How many faults it brought about."""
    command = [sys.executable, str(TRIALS), *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    said = re.findall(
        r"(\d+) (?:kills|outages) \(.*\), \d+ senders killed, \d+ not reached, 0 lost runs, 0 with differing bytes, "
        r"0 unreadable newest checkpoints without fall-back, 0 other faults", done.stdout,
    )  # fmt: skip
    assert said, done.stdout
    return sum(map(int, said))


@pytest.mark.slow
def test_a_run_that_is_killed_at_operations_of_its_commits_ends_like_one_that_was_not() -> None:
    assert trials("--store", "local", "--trials", 1, "--no-plain") >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("store", "count"), [("local", 200), ("s3", 50), ("mlflow", 50)])
def test_hundreds_of_kills_at_all_phases_lose_nothing(store: str, count: int) -> None:
    assert trials("--store", store, "--trials", count, timeout=3500) >= count * 0.8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_goes_on_when_only_its_sender_is_killed_and_no_point_is_missing_or_there_twice() -> None:
    assert trials("--store", "local", "--trials", 22, "--fault", "sender", timeout=1700) >= 18


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("store", ["s3", "mlflow"])
def test_a_run_goes_on_when_the_stores_server_is_killed_and_started_again_amid_a_request(store: str) -> None:
    assert trials("--store", store, "--trials", 12, "--fault", "outage", timeout=1700) >= 8


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_processes_that_are_killed_at_random_instants_end_like_those_that_were_not(tmp_path: Path) -> None:
    tally = kill_and_resume.run(len(VARIANTS), seed=1, variants=list(VARIANTS), folder=tmp_path)
    assert not tally.faults and tally.kills >= 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="trainer.compile=true needs a C++ compiler")
def test_compiled_runs_that_are_killed_at_random_instants_end_like_those_that_were_not(tmp_path: Path) -> None:
    tally = kill_and_resume.run(4, seed=3, variants=list(COMPILED), folder=tmp_path)
    assert not tally.faults and tally.kills >= 2
