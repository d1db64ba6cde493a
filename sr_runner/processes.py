"""Which of the processes of a run this is, by what `torchrun` tells it. Imports nothing heavy."""

from __future__ import annotations

import os


def several() -> bool:
    """Whether this is one of several processes of a run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Whether another process, the first, speaks for this one."""
    return several() and os.environ.get("RANK", "0") != "0"


def local_rank() -> int | None:
    """This process's number on this machine; None where it is alone."""
    return int(os.environ.get("LOCAL_RANK", os.environ["RANK"])) if several() else None
