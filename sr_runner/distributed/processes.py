"""Which of the processes of a run this is, by the environment that `torchrun` gives it. Imports nothing heavy."""

from __future__ import annotations

import os


def is_distributed() -> bool:
    """Whether this is one of several processes of a run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this is the process that logs, evaluates and writes for all: rank 0, or the only one."""
    return not is_distributed() or os.environ.get("RANK", "0") == "0"


def local_rank() -> int | None:
    """This process's number on this machine; None in a run of one process."""
    return int(os.environ.get("LOCAL_RANK", os.environ["RANK"])) if is_distributed() else None
