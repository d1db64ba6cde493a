"""How several processes of a run end: with one exit status, which the leader says, and one sentence.

torchrun kills all processes as soon as one of them ends badly. So whoever fails leaves its reason in the store that
torchrun keeps for the processes, and waits; the leader, whose connections break with that, closes the run's record,
says the reason, and ends first.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_OTHERS, _LEADER = 5.0, 60.0
"""Seconds to wait for the reason of another process, and for the leader."""


class Ended(SystemExit):
    """The leader has ended, and said why; or it is gone, and torchrun says so."""


@cache
def store() -> Store:
    """The key-value store that all processes of this start see."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    found, _, _ = next(iter(rendezvous("env://", timeout=timedelta(minutes=30))))
    # torchrun keeps it when it starts all of them once more: what the others left in it is not for these.
    return PrefixStore(f"sr-run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)


def end(status: int, said: str) -> int:
    """Say `said` and return the exit status, where this process alone would end with `status`."""
    leads = os.environ.get("RANK") == "0"
    if leads:
        sys.stderr.write(said)
    if status and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, to all that are left once one has ended
    if leads or not status:
        with contextlib.suppress(RuntimeError):
            if status:
                store().set("ended", str(status))
        return status
    with contextlib.suppress(RuntimeError):
        reason = json.dumps({"status": status, "message": said.removeprefix("sr-run: ").strip()})
        store().compare_set("failed", "", reason)
        _leave()
        leaders = ended(_LEADER)
        if leaders is not None:
            return leaders
    sys.stderr.write(said)
    return status


def ended(seconds: float, unless: Callable[[], bool] = lambda: False) -> int | None:
    """The leader's exit status, which may come within `seconds`; None where it does not, or `unless` is so first."""
    found = _wait("ended", seconds, unless)
    return int(found) if found is not None else None


def failed() -> tuple[int, str] | None:
    """Exit status and message of the first other process that failed, if it could still say so."""
    found = _wait("failed", _OTHERS)
    if found is None:
        return None
    reason = json.loads(found)
    return int(reason["status"]), str(reason["message"])


def _wait(key: str, seconds: float, unless: Callable[[], bool] = lambda: False) -> bytes | None:
    until = time.monotonic() + seconds
    with contextlib.suppress(RuntimeError):  # the store is gone, and so is everybody
        while not store().check([key]):
            if time.monotonic() > until or unless():
                return None
            time.sleep(0.02)
        return bytes(store().get(key))
    return None


def _leave() -> None:
    """Break the connections, so that nobody waits for this process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
