"""Batches drawn ahead by background threads, in order, for a consumer that must not wait."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""LR and HR pictures of the same samples."""

_AHEAD = 4
"""Batches drawn ahead, for each worker."""


class Loader:
    """An endless iterator over batches 0, 1, 2, ..., each `finish(draw(number))`, drawn ahead of its turn.

    `draw` runs in `workers` threads, or with none in the caller; `finish` always runs in the caller. What goes wrong in
    a thread is raised by the `next` that would have given its batch.

    Close it, or use it as a context manager: closing ends the threads and never waits for more than one batch. The
    threads of a loader that is dropped unclosed end as well.
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
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sr-run data") if workers else None
        self._ahead: deque[Future[Any]] = deque()
        if self._pool is not None:
            self._ahead.extend(self._pool.submit(draw, next(self._numbers)) for _ in range(_AHEAD * workers))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        started = time.perf_counter()
        try:
            drawn = self._next_drawn()
            batch: Batch = self._finish(drawn) if self._finish is not None else drawn
        except Exception:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - started
        return batch

    def _next_drawn(self) -> Any:
        if self._pool is None:
            return self._draw(next(self._numbers))
        drawn = self._ahead.popleft().result()
        self._ahead.append(self._pool.submit(self._draw, next(self._numbers)))
        return drawn

    def close(self) -> None:
        """End the threads; further `next`s raise `StopIteration`."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
