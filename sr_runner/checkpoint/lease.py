"""One process per attempt, on whatever machine it runs.

The holder keeps a record beside the attempt's checkpoints and changes it every few seconds. No clocks are compared:
who wants the attempt watches the record, and takes over once it has stayed the same for as long as its holder promised
to renew it, by the watcher's own monotonic clock. Where holder and watcher are on one machine, whether the holder's
process lives is simply looked up. Stores have no compare-and-swap that works everywhere, so two that take over in the
same instant both write, and the one whose record stays has the attempt; the other finds out before it can commit.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sr_runner.checkpoint.stores import Store
from sr_runner.errors import RequestError, RunError

log = logging.getLogger(__name__)

_SETTLE = 0.2
"""Seconds after which a record that others may have written as well is read again: the one that stays has it."""


@dataclass(frozen=True)
class Holder:
    """Who writes to an attempt, as the record says it."""

    token: str
    host: str
    pid: int
    machine: str
    """One kernel and one space of process numbers: only within it do `pid` and `started` mean anything."""
    started: str
    seconds: float
    """The record changes at least this often, or its holder is gone."""

    @classmethod
    def me(cls, seconds: float) -> Holder:
        pid = os.getpid()
        return cls(uuid.uuid4().hex, platform.node(), pid, _machine(), _started(pid), seconds)

    @classmethod
    def parse(cls, record: bytes) -> Holder | None:
        """None for a record that is half written, or is none."""
        try:
            body = json.loads(record)
            token, host, machine, started = (str(body[key]) for key in ("token", "host", "machine", "started"))
            return cls(token, host, int(body["pid"]), machine, started, float(body["seconds"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def record(self, beat: int) -> bytes:
        return json.dumps(self.__dict__ | {"beat": beat}).encode()

    @property
    def is_here(self) -> bool:
        return bool(self.machine) and self.machine == _machine()

    @property
    def lives(self) -> bool:
        """Of a holder on this machine."""
        return bool(self.started) and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to write to one attempt. A context manager: acquired and renewed within, given up at its end.

    A record that cannot be renewed for a while is no reason to stop: whoever takes over meanwhile is found out by
    `confirm`, which the Checkpoint Manager calls before every commit.
    """

    def __init__(
        self,
        store: Store,
        attempt: str,
        seconds: float,
        *,
        fresh: bool = False,
        patience: Callable[[], float] = lambda: 5.0,
    ):
        """`attempt` is `<identity>/<attempt>`; with `fresh` nobody else can know of it yet, and no time is spent on
        finding that out. `patience`: for how many seconds a store that hangs is waited for at the end."""
        self._store, self._attempt, self._fresh = store, attempt, fresh
        self._me = Holder.me(seconds)
        self._patience = patience
        self._beat = 0
        self._over = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Raises `InUse` that names the holder where there is one that lives, `RunError` for a store that is
        silent."""
        if not self._fresh:
            try:
                self._acquire()
            except OSError as error:
                raise RunError(f"{self._store.url} cannot be used: {error}. Nothing was started") from error
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Give it up, if the store answers: at the end nobody waits for one that does not."""
        self._over.set()
        giving_up = threading.Thread(target=self._give_up, name="lease-end", daemon=True)
        giving_up.start()
        giving_up.join(timeout=self._patience())

    def confirm(self) -> None:
        """Raises `RunError` where another process has taken over, `OSError` where that cannot be found out."""
        if self._lost is None and self._beat:
            self._look()
        if self._lost is not None:
            raise RunError(
                f"{self._attempt} was taken over by {self._lost}, since this process did not renew its lease for "
                f"{self._me.seconds:.0f} s (checkpoint.lease_seconds). This process stops writing"
            )

    def _acquire(self) -> None:
        found = self._store.read_lease(self._attempt)
        holder = Holder.parse(found) if found is not None else None
        if holder is not None and holder.is_here:
            if holder.lives:
                raise in_use(self._attempt, holder)
            self._write()
            return
        if found is not None:
            self._wait_until_free(found, holder)
        try:
            self._write()
        except FileNotFoundError:
            return  # nothing of the attempt is in the store yet, so nobody else can know of it; `_renew` tries again
        time.sleep(_SETTLE)
        self._look()
        if self._lost is not None:
            raise in_use(self._attempt, self._lost)

    def _wait_until_free(self, found: bytes, holder: Holder | None) -> None:
        """Return once the holder is known to be gone. Raises `InUse` as soon as it is known to live."""
        promised = holder.seconds if holder is not None else self._me.seconds
        log.warning(
            "%s was last written by %s, which may still run: waiting up to %.0f s for a sign of life",
            self._attempt, holder or "an unknown process", promised,
        )  # fmt: skip
        until = time.monotonic() + promised
        while time.monotonic() < until:
            time.sleep(min(1.0, promised / 10))
            now = self._store.read_lease(self._attempt)
            if now is None:
                return
            if now != found:
                raise in_use(self._attempt, Holder.parse(now) or holder or "another process")
        log.warning("no sign of life: this process takes over")

    def _renew(self) -> None:
        last, warned = time.monotonic(), False
        while True:
            try:
                if self._beat:
                    self._look()
                if self._lost is not None:
                    return
                self._write()
                last, warned = time.monotonic(), False
            except OSError as error:
                log.debug("the lease of %s could not be renewed: %s", self._attempt, error)
                if time.monotonic() - last > self._me.seconds and self._beat and not warned:
                    warned = True
                    log.warning(
                        "the lease of %s could not be renewed for %.0f s: %s", self._attempt, self._me.seconds, error
                    )
            if self._over.wait(self._me.seconds / 4):
                return

    def _write(self) -> None:
        self._store.write_lease(self._attempt, self._me.record(self._beat + 1))
        self._beat += 1

    def _look(self) -> None:
        """Whose record it is."""
        record = self._store.read_lease(self._attempt)
        holder = Holder.parse(record) if record is not None else None
        if holder is not None and holder.token != self._me.token:
            self._lost = str(holder)

    def _give_up(self) -> None:
        self._thread.join()
        try:
            self._look()
            if self._lost is None:
                self._store.drop_lease(self._attempt)
        except OSError as error:
            log.debug("the lease of %s could not be given up: %s", self._attempt, error)


class InUse(RequestError):
    """Another process works on the attempt."""


def in_use(attempt: str, holder: object) -> InUse:
    """The refusal where `holder` works on the attempt."""
    return InUse(
        f"run {attempt} is in use by {holder}: two processes cannot train one run. Wait for it or stop it; "
        "trainer.resume=false starts an attempt of its own"
    )


def _machine() -> str:
    """What is equal for two processes only if they see each other's process numbers; "" where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, in ticks since the machine was; "" where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
