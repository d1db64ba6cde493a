"""The thread that writes snapshots of the training state into the store."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sr_runner.checkpoint import codec, format, tensors
from sr_runner.checkpoint.format import Blob
from sr_runner.checkpoint.snapshot import HostSnapshot
from sr_runner.checkpoint.state import TrainingState
from sr_runner.checkpoint.stores import Store

log = logging.getLogger(__name__)


@dataclass
class Write:
    """A checkpoint on its way into the store."""

    state: TrainingState
    snapshot: HostSnapshot
    tensors: Mapping[str, torch.Tensor]
    """The snapshot's, under unique names: `model:` or `training:` first."""
    rest: dict[str, Any]
    """The plain data of `state.training`."""
    stall: float = 0.0
    """Seconds that the train step waited."""

    @classmethod
    def of(cls, state: TrainingState, snapshot: HostSnapshot) -> Write:
        """Copy the tensors of `state` into `snapshot`."""
        training, rest = codec.flatten(state.training)
        flat = {f"model:{name}": tensor for name, tensor in state.model.items()}
        flat |= {f"training:{name}": tensor for name, tensor in training.items()}
        return cls(state, snapshot, snapshot.take(flat), rest)

    def put(self, store: Store, name: str, before_commit: Callable[[], None] = lambda: None) -> None:
        """Write the checkpoint into `store`; `before_commit` is called when only the manifest is missing."""
        files = self._files()
        # Hashing runs beside writing: both release the interpreter's lock, and the manifest needs both.
        with ThreadPoolExecutor(1, thread_name_prefix="checkpoint-hash") as hasher:
            hashing = hasher.submit(format.digest, files)

            def digests() -> Mapping[str, tuple[int, str]]:
                result = hashing.result()
                before_commit()
                return result

            store.put(name, [*files, format.seal(self.state.step, self.state.metrics, digests)])

    def _files(self) -> list[Blob]:
        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): tensor for n, tensor in self.tensors.items() if n.startswith(prefix)}

        model = tensors.TensorFile.of(part("model:"), {"format": "pt"} | dict(self.state.metadata))
        training = tensors.TensorFile.of(part("training:"))
        return [
            Blob(format.MODEL, model.chunks),
            Blob(format.TRAINING, training.chunks),
            Blob.of(format.STATE, json.dumps(self.rest, indent=1).encode() + b"\n"),
            Blob.of(format.CONFIG, self.state.config.encode()),
        ]


class Writer:
    """Takes snapshots and hands them to a background thread, one at a time; one more may wait, the newest.

    The snapshots' memory is allocated once and reused: one buffer for the write under way, and one for a write that
    waits.
    """

    def __init__(self, write: Callable[[Write], None]):
        """`write` does the work in the background and raises nothing."""
        self._write = write
        self._free = [HostSnapshot()]
        self._thread: threading.Thread | None = None
        self._waiting: Write | None = None
        self._lock = threading.Lock()

    def allocate(self, state: TrainingState) -> None:
        """Allocate a snapshot's memory, so that the first save costs what the others do."""
        Write.of(state, self._free[0])

    def submit(self, state: TrainingState, started: float) -> Write:
        """Snapshot `state` and have it written, after the write under way; a write that waits already is replaced.

        `started`: when (of `time.perf_counter`) the train step began to wait.
        """
        with self._lock:
            replaced, self._waiting = self._waiting, None
            if replaced is not None:
                log.info("step %d was not written: step %d replaces it", replaced.state.step, state.step)
                snapshot = replaced.snapshot
            else:
                snapshot = self._free.pop() if self._free else HostSnapshot()
        write = Write.of(state, snapshot)
        write.stall = time.perf_counter() - started
        with self._lock:
            if self._thread is not None:
                self._waiting = write
            else:
                self._start(partial(self._write_one, write))
        return write

    def run(self, job: Callable[[], None]) -> None:
        """Have `job`, which raises nothing, done in the background before anything is written."""
        with self._lock:
            self._start(job)

    def drop_waiting(self) -> None:
        """Forget the write that waits, if there is one."""
        with self._lock:
            self._waiting = None

    def idle_by(self, deadline: float | None) -> bool:
        """Wait until nothing is being written, at most until `deadline` (of `time.monotonic`); whether that is so."""
        while (thread := self._thread) is not None:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False
            with self._lock:
                if self._thread is thread:
                    self._thread = None
        return True

    def _start(self, job: Callable[[], None]) -> None:
        # A daemon: a store that hangs must not keep a process that has to stop.
        self._thread = threading.Thread(target=self._work, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    def _work(self, first: Callable[[], None]) -> None:
        """`first`, and then whatever has come to wait meanwhile."""
        job: Callable[[], None] | None = first
        while job is not None:
            job()
            with self._lock:
                waiting, self._waiting = self._waiting, None
                job = partial(self._write_one, waiting) if waiting is not None else None
                if job is None:
                    self._thread = None

    def _write_one(self, write: Write) -> None:
        self._write(write)
        with self._lock:
            self._free.append(write.snapshot)
