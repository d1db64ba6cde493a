"""How the processes of a run exit: with one exit status, that of the main process, and one message.

torchrun kills all processes as soon as one of them fails. So a process that fails writes its reason into the key-value
store that torchrun keeps for them, and waits; the main process, whose connections break, closes the run's record,
prints the reason and exits first.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from sr_runner.signals import ignore

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_PEER_SECONDS, _MAIN_SECONDS = 5.0, 60.0
"""Seconds to wait for the reason of a peer, and for the exit status of the main process."""


class MainProcessExited(SystemExit):
    """The main process has exited and printed why; or it is gone, and torchrun reports it."""


@cache
def rendezvous_store() -> Store:
    """The key-value store that all processes of this start see."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    found, _, _ = next(iter(rendezvous("env://", timeout=timedelta(minutes=30))))
    # torchrun keeps it when it starts all of them once more: what the others left in it is not for these.
    return PrefixStore(f"sr-run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)


def exit_with_peers(status: int, message: str) -> int:
    """Print `message` once for all processes; returns the exit status of this one, which by itself has `status`."""
    is_main = os.environ.get("RANK") == "0"
    if is_main:
        sys.stderr.write(message)
    ignore()  # torchrun's, to all that are left once one has ended
    if is_main or not status:
        with contextlib.suppress(RuntimeError):
            if status:
                rendezvous_store().set("ended", str(status))
        return status
    import torch.distributed as dist

    with contextlib.suppress(RuntimeError):
        reason = json.dumps({"status": status, "message": message.removeprefix("sr-run: ").strip()})
        rendezvous_store().compare_set("failed", "", reason)
        if dist.is_initialized():
            dist.destroy_process_group()  # breaks the connections, so that nobody waits for this process
        main_status = main_exit_status(_MAIN_SECONDS)
        if main_status is not None:
            return main_status
    sys.stderr.write(message)
    return status


def main_exit_status(seconds: float, unless: Callable[[], bool] = lambda: False) -> int | None:
    """The main process' exit status; None where it does not come within `seconds`, or `unless` is so first."""
    found = _wait("ended", seconds, unless)
    return int(found) if found is not None else None


def peer_failure() -> tuple[int, str] | None:
    """Exit status and message of the first other process that failed, if it could still say so."""
    found = _wait("failed", _PEER_SECONDS)
    if found is None:
        return None
    reason = json.loads(found)
    return int(reason["status"]), str(reason["message"])


def _wait(key: str, seconds: float, unless: Callable[[], bool] = lambda: False) -> bytes | None:
    until = time.monotonic() + seconds
    with contextlib.suppress(RuntimeError):  # the store is gone, and so is everybody
        while not rendezvous_store().check([key]):
            if time.monotonic() > until or unless():
                return None
            time.sleep(0.02)
        return bytes(rendezvous_store().get(key))
    return None
