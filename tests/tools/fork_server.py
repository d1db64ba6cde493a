"""`sr-run` without the seconds of its start-up: one process imports everything once and forks a child for each run.

What runs in the child is the real command, `sr_runner.commands.run.main`, from its first line to its exit status.
This process starts no thread and computes nothing itself, so that a child is what a fresh process would be. The
tracker's sender is forked as well (from a process that was forked before the run began, hence as fresh), unless
`real_sender`.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

Answer = TypeVar("Answer")

_PR_SET_CHILD_SUBREAPER = 36


def warm_up() -> None:
    """Import all that a run imports. Orphans of killed runs become children of this process, which can end them."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    import hydra  # noqa: F401
    import mlflow.store.artifact.http_artifact_repo
    import mlflow.store.tracking.rest_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import s3fs  # noqa: F401
    import torch._dynamo  # noqa: F401  (an optimizer imports it)

    import sr_runner.attempt.execute
    import sr_runner.commands.run
    import sr_runner.tracking.delivery
    import sr_runner.tracking.sender  # noqa: F401

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    threads = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    # The one of pyarrow's allocator, which minds forks.
    assert len(threads) - threads.count("jemalloc_bg_thd") == 1, f"threads would be missing in the children: {threads}"


@dataclass
class Child:
    """A forked run."""

    pid: int
    log: Path

    def wait(self, timeout: float | None = None, also: Mapping[int, Callable[[], object]] | None = None) -> int | None:
        """The exit status (minus the signal's number), or None after `timeout` seconds. `also`: descriptors to serve
        meanwhile."""
        until = None if timeout is None else time.monotonic() + timeout
        ended = os.pidfd_open(self.pid)
        try:
            poll = select.poll()
            for descriptor in (ended, *(also or {})):
                poll.register(descriptor, select.POLLIN)
            while True:
                left = None if until is None else max(0.0, until - time.monotonic()) * 1000
                ready = {descriptor for descriptor, _ in poll.poll(left)}
                if not ready:
                    return None
                for descriptor in ready - {ended}:
                    assert also is not None
                    if also[descriptor]() is None:
                        poll.unregister(descriptor)
                if ended in ready:
                    return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        finally:
            os.close(ended)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    arm: Callable[[], object] = lambda: None,
    real_sender: bool = False,
) -> Child:
    """`sr-run arguments` in a session of its own, its output in `log`; `arm` is called in it just before."""
    pid = os.fork()
    if pid == 0:
        be_child(log, log, partial(run, arguments, environment or {}, arm, real_sender))
    return Child(pid, log)


def ask(question: Callable[[], Answer], environment: Mapping[str, str] | None = None) -> Answer:
    """`question()`, answered by a forked child, so that this process keeps clear of threads and connections."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _settle(environment or {})
        try:
            answer: tuple[bool, Any] = True, question()
        except BaseException:
            answer = False, traceback.format_exc()
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    fine, result = pickle.loads(said)
    assert fine, result
    return result  # type: ignore[no-any-return]


def end_orphans(patience: float, spare: Collection[int] = ()) -> None:
    """Wait `patience` seconds for what killed runs have left (senders of the tracker), then kill it. `spare`: children
    of this process that are none."""
    until = time.monotonic() + patience
    while left := [pid for pid in _children() if pid not in spare and os.waitpid(pid, os.WNOHANG)[0] == 0]:
        if time.monotonic() >= until:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return
        time.sleep(0.05)


def kill_senders(run: int) -> int:
    """Kill the senders of the process `run`: of its descendants those with a session of their own. How many."""
    import psutil

    senders = [each.pid for each in psutil.Process(run).children(recursive=True) if os.getsid(each.pid) == each.pid]
    for sender in senders:
        os.kill(sender, signal.SIGKILL)
    return len(senders)


def _children() -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = process.read_text()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
            found.append(int(process.parent.name))
    return found


def be_child(stdout: Path, stderr: Path, work: Callable[[], int]) -> NoReturn:
    """All that is left of this process: a session, streams and an exit status of its own."""
    code = 1
    try:
        os.setsid()
        writing = os.O_CREAT | os.O_WRONLY | os.O_APPEND
        for target, (path, mode) in enumerate(((os.devnull, os.O_RDONLY), (stdout, writing), (stderr, writing))):
            descriptor = os.open(path, mode)
            os.dup2(descriptor, target)
            os.close(descriptor)
        code = work()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _settle(environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    tempfile.tempdir = None  # $TMPDIR counts


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    arm: Callable[[], object] = lambda: None,
    real_sender: bool = False,
) -> int:
    """What a child does. Its exit status."""
    from sr_runner.commands import run as cli
    from sr_runner.tracking import sender_process

    _settle(environment)
    if not real_sender:
        sender_process.subprocess = _Subprocess(_nursery())  # type: ignore[assignment]
    arm()
    sys.argv = ["sr-run", *arguments]
    code = cli.main(list(arguments))
    threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter waits for at its end
    return code


# -- forked senders ----------------------------------------------------------------------------------------------------


def _nursery() -> socket.socket:
    """A process that forks senders on demand, and ends with this one."""
    mine, its = socket.socketpair()
    if os.fork() == 0:
        mine.close()
        _nurse(its)
    its.close()
    return mine


def _nurse(orders: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        head, descriptors, _, _ = socket.recv_fds(orders, 4, 4)
        if not head:
            os._exit(0)
        (length,) = struct.unpack("<I", head)
        order = b""
        while len(order) < length:
            order += orders.recv(length - len(order))
        pid = os.fork()
        if pid == 0:
            orders.close()
            _send(pickle.loads(order), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        orders.sendall(struct.pack("<I", pid))


def _send(order: tuple[list[str], dict[str, str]], descriptors: list[int]) -> NoReturn:
    """Be the sender: `python -m sr_runner.tracking.sender`."""
    arguments, environment = order
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, status = descriptors
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
        os.close(descriptor)
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        from sr_runner.tracking import sender

        code = sender.main(arguments)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    os.write(status, bytes([code]))
    os._exit(code)


class _Subprocess:
    """What `sender_process` uses of `subprocess`."""

    PIPE = -1

    def __init__(self, nursery: socket.socket):
        import subprocess

        self._nursery = nursery
        self.TimeoutExpired = subprocess.TimeoutExpired

    def Popen(self, command: list[str], *, stderr: IO[bytes], env: Mapping[str, str], **_: object) -> Sender:
        module = command.index("-m")
        its_stdin, stdin = os.pipe()
        stdout, its_stdout = os.pipe()
        status, its_status = os.pipe()
        order = pickle.dumps((command[module + 2 :], dict(env)))
        given = [its_stdin, its_stdout, stderr.fileno(), its_status]
        socket.send_fds(self._nursery, [struct.pack("<I", len(order))], given)
        self._nursery.sendall(order)
        (pid,) = struct.unpack("<I", self._nursery.recv(4))
        for descriptor in (its_stdin, its_stdout, its_status):
            os.close(descriptor)
        return Sender(pid, os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb"), status)


class Sender:
    """What `sender_process` uses of `subprocess.Popen`."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes], status: int):
        self.pid, self.stdin, self.stdout, self._status = pid, stdin, stdout, status
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self._code is None and select.select([self._status], [], [], 0)[0]:
                said = os.read(self._status, 1)
                self._code = said[0] if said else -signal.SIGKILL
            return self._code

    def wait(self, timeout: float | None = None) -> int:
        import subprocess

        if self._code is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("sender", timeout or 0)
        while (code := self.poll()) is None:
            time.sleep(0.001)
        return code

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signum)
