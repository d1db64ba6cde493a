"""Several processes that are one run, without the seconds of their start: forks of the test, with the environment and
the store that torchrun would give them."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch._dynamo  # noqa: F401  (an optimizer imports it: once, here, and not in every fork)
import torch.distributed as dist

import sr_runner.attempt.execute  # noqa: F401


@dataclass
class Ranks:
    pids: list[int]
    store: dist.TCPStore
    """Has to live as long as they do, as torchrun's has."""

    def alive(self) -> bool:
        """Whether all of them still run."""
        return all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in self.pids)

    def wait(self) -> list[int]:
        """Their exit statuses."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]


def start(work: Callable[[int], int | None], folder: Path, number: int = 2) -> Ranks:
    """`work(rank)`, which gives the exit status (None: 0), in `number` processes in `folder`; what they say goes into
    `said-<rank>` there."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pids = []
    for rank in range(number):
        pid = os.fork()
        if pid == 0:
            _be(rank, number, store.port, work, folder)
        pids.append(pid)
    return Ranks(pids, store)


def said(folder: Path, number: int = 2) -> str:
    return "".join((folder / f"said-{rank}").read_text() for rank in range(number))


def _be(rank: int, number: int, port: int, work: Callable[[int], int | None], folder: Path) -> None:
    code = 70
    try:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(signum, signal.SIG_DFL)
        os.chdir(folder)
        descriptor = os.open(f"said-{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        code = work(rank) or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
