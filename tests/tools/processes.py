"""What the tests of long runs share: they are watched from outside, by their logs and their checkpoints."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from support import TINY

RUN = (*TINY, "scheduler=constant", "trainer.eval_every=100000", "checkpoint.every=5", "trainer.log_every=50")
LONG = (*RUN, "trainer.steps=1000000")
"""Until somebody ends it."""

Start = Callable[..., "subprocess.Popen[bytes]"]


def saved(root: Path) -> list[int]:
    """The steps of the committed checkpoints below `root`, ascending."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in root.glob("*/*/step-*/manifest.json"))


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.02)
