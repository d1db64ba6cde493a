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
