"""`sr-run` for tests, without the seconds of its start-up: a process beside pytest forks each run (`fork_server`), and
what makes MLflow's database there copies one. Runs in fresh processes, of which there are tests too, make their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import databases
import fork_server
from support import environment


class RunServer:
    """The process that forks. Close it, and what still runs is killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )

    def start(
        self, arguments: Sequence[str], cwd: Path, output: Path, errors: Path, *, real_sender: bool = False
    ) -> Run:
        """`sr-run arguments` in `cwd`, with the environment of this moment."""
        order = {"arguments": arguments, "cwd": str(cwd), "output": str(output), "errors": str(errors)}
        return Run(self, self.ask("start", environment=environment(), real_sender=real_sender, **order))

    def ask(self, what: str, **order: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **order}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Run:
    server: RunServer
    pid: int

    def wait(self, timeout: float = 240) -> int | None:
        """The exit status (minus the signal's number); after `timeout` seconds None, and the run is killed."""
        status: int | None = self.server.ask("wait", pid=self.pid, timeout=timeout)
        return status

    def kill(self) -> int | None:
        """The exit status: that of the kill, unless the run had ended before."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


class _Server:
    def __init__(self, folder: Path) -> None:
        self._environment = frozenset(os.environ)
        fork_server.warm_up()
        databases.copy_from_template(folder)
        self._running: dict[int, fork_server.Child] = {}

    def start(
        self,
        arguments: list[str],
        cwd: str,
        output: str,
        errors: str,
        environment: Mapping[str, str],
        real_sender: bool,
    ) -> int:
        def work() -> int:
            os.chdir(cwd)
            for name in self._environment - environment.keys():
                os.environ.pop(name, None)
            return fork_server.run(arguments, environment, real_sender=real_sender)

        pid = os.fork()
        if pid == 0:
            fork_server.be_child(Path(output), Path(errors), work)
        self._running[pid] = fork_server.Child(pid, Path(errors))
        return pid

    def wait(self, pid: int, timeout: float) -> int | None:
        status = self._running[pid].wait(timeout)
        if status is None:
            self._running[pid].kill()
        del self._running[pid]
        return status

    def serve(self) -> None:
        orders = os.fdopen(os.dup(0))
        answers = os.fdopen(os.dup(1), "w")
        for line in orders:
            order = json.loads(line)
            answers.write(f"{json.dumps(getattr(self, order.pop('what'))(**order))}\n")
            answers.flush()
        for child in self._running.values():
            child.kill()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        _Server(Path(folder)).serve()
