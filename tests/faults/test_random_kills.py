from __future__ import annotations

from pathlib import Path

import kill_and_resume
import pytest


@pytest.mark.timeout(900)
def test_a_run_that_is_killed_at_random_instants_ends_like_one_that_was_not(tmp_path: Path) -> None:
    tally = kill_and_resume.run(2, seed=0, networks=("wdsr_b", "srresnet"), folder=tmp_path)
    assert not tally.faults


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_runs_that_are_killed_at_random_instants_end_like_those_that_were_not(tmp_path: Path) -> None:
    tally = kill_and_resume.run(20, seed=1, networks=tuple(kill_and_resume.NETWORKS), folder=tmp_path)
    assert not tally.faults and tally.kills >= 10
