"""Batches drawn ahead by background threads, in order, for a consumer that must not wait."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""LR and HR pictures of the same samples."""

_AHEAD = 4
"""Batches that are drawn ahead for each worker."""

_THREAD = "sr-run data"


class Loader:
    """An endless iterator over batches 0, 1, 2, ..., each `finish(draw(number))`, drawn ahead of its turn.

    `draw` runs in `workers` threads; with none, batches are drawn in the caller. `finish` always runs in the caller.
    What goes wrong in a thread is raised by the `next` that would have given its batch.

    Close it, or use it as a context manager: closing ends the threads and never waits for more than one batch.
    """

    def __init__(
        self, draw: Callable[[int], Any], *, workers: int, finish: Callable[[Any], Batch] | None = None
    ) -> None:
        self.wait_seconds = 0.0
        """Seconds that the consumer has spent in `next` so far."""
        self._draw = draw
        self._finish = finish
        self._numbers = itertools.count()
        self._closed = False
        self._ahead: deque[Future[Any]] = deque()
        self._pool = ThreadPoolExecutor(workers, _THREAD) if workers else None
        if self._pool is not None:
            # The threads do not know the loader, so one that is dropped unclosed is collected, and they end.
            self._stop = weakref.finalize(self, _stop, self._pool)
            for _ in range(_AHEAD * workers):
                self._draw_ahead(self._pool)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        started = time.perf_counter()
        try:
            if self._pool is None:
                drawn = self._draw(next(self._numbers))
            else:
                drawn = self._ahead.popleft().result()
                self._draw_ahead(self._pool)
            batch: Batch = self._finish(drawn) if self._finish is not None else drawn
        except Exception:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - started
        return batch

    def close(self) -> None:
        """End the threads; further `next`s raise `StopIteration`."""
        self._closed = True
        if self._pool is not None:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _draw_ahead(self, pool: ThreadPoolExecutor) -> None:
        self._ahead.append(pool.submit(self._draw, next(self._numbers)))


def _stop(pool: ThreadPoolExecutor) -> None:
    # The garbage collector may call this in one of the threads, which cannot wait for itself.
    pool.shutdown(wait=not threading.current_thread().name.startswith(_THREAD), cancel_futures=True)
