"""Batches drawn ahead by background threads, in order, for a consumer that must not wait."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""LR and HR pictures of the same samples."""

_AHEAD = 4
"""Batches that each worker draws ahead."""


class Loader:
    """An endless iterator over batches 0, 1, 2, ..., each `finish(draw(number))`, drawn ahead of its turn.

    With `workers` threads, thread w draws batches w, w + workers, ... into a queue of its own, so that the order needs
    no sorting; with none, batches are drawn in the caller. `finish` always runs in the caller. What goes wrong in a
    thread is raised by the `next` that would have given its batch.

    Close it, or use it as a context manager: closing ends the threads and never waits for more than one batch.
    """

    def __init__(
        self, draw: Callable[[int], Any], *, workers: int, finish: Callable[[Any], Batch] | None = None
    ) -> None:
        self.wait_seconds = 0.0
        """Seconds that the consumer has spent in `next` so far."""
        self._draw = draw
        self._finish = finish
        self._batch = 0
        self._workers = [_Worker(draw, start, workers) for start in range(workers)]
        self._closed = False
        # The threads do not know the loader, so one that is dropped unclosed is collected, and they end.
        self._stop = weakref.finalize(self, _stop, self._workers)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        started = time.perf_counter()
        try:
            drawn = self._workers[self._batch % len(self._workers)].take() if self._workers else self._draw(self._batch)
            batch: Batch = self._finish(drawn) if self._finish is not None else drawn
        except Exception:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - started
        self._batch += 1
        return batch

    def close(self) -> None:
        """End the threads; further `next`s raise `StopIteration`."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One thread with its queue of finished batches; `_room` holds a token for each batch that it may still draw."""

    def __init__(self, draw: Callable[[int], Any], start: int, step: int) -> None:
        self._finished: SimpleQueue[Any] = SimpleQueue()
        self._room: SimpleQueue[bool] = SimpleQueue()
        for _ in range(_AHEAD):
            self._room.put(True)
        arguments = (draw, start, step, self._finished, self._room)
        self._thread = threading.Thread(target=_draw_ahead, args=arguments, name=f"sr-run data {start}", daemon=True)
        self._thread.start()

    def take(self) -> Any:
        result = self._finished.get()
        if isinstance(result, Exception):
            raise result
        self._room.put(True)
        return result

    def stop(self) -> None:
        """Take all the tokens away and leave one that says stop."""
        try:
            while True:
                self._room.get_nowait()
        except Empty:
            self._room.put(False)

    def join(self) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join()


def _draw_ahead(
    draw: Callable[[int], Any], batch: int, step: int, finished: SimpleQueue[Any], room: SimpleQueue[bool]
) -> None:
    while room.get():
        try:
            finished.put(draw(batch))
        except Exception as error:
            finished.put(error)
            return
        batch += step


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.join()
