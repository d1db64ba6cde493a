from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable

import pytest
import torch
from support import wait_until
from torch import Tensor

from sr_runner.data.loader import Batch, Loader

Fill = Callable[[int, int, Tensor, Tensor], None]

WORKERS = pytest.mark.parametrize("workers", [0, 1, 4])


def count_up(first: int, count: int, lr: Tensor, hr: Tensor) -> None:
    """Each sample holds its own number."""
    numbers = torch.arange(first, first + count) % 256
    lr[:] = numbers.view(-1, 1, 1, 1)
    hr[:] = lr[:, :1, :1]


def loader(workers: int, *, first: int = 0, count: int = 3, fill: Fill = count_up) -> Loader:
    def draw(batch: int) -> Batch:
        lr, hr = torch.empty((count, 2, 2, 3), dtype=torch.uint8), torch.empty((count, 4, 4, 3), dtype=torch.uint8)
        fill(first + batch * count, count, lr, hr)
        return lr, hr

    return Loader(draw, workers=workers)


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sr-run data")]


@WORKERS
def test_batches_come_in_order_and_have_the_shapes_asked_for(workers: int) -> None:
    with loader(workers, first=5) as batches:
        for batch in range(40):
            lr, hr = next(batches)
            assert (lr.shape, hr.shape) == ((3, 2, 2, 3), (3, 4, 4, 3))
            start = 5 + 3 * batch
            assert lr[:, 0, 0, 0].tolist() == [n % 256 for n in range(start, start + 3)]
            assert (hr == lr[:, :1, :1]).all()


@WORKERS
def test_a_batch_is_never_written_over_while_someone_holds_it(workers: int) -> None:
    with loader(workers) as batches:
        held = [next(batches) for _ in range(50)]
    assert [int(lr[0, 0, 0, 0]) for lr, _ in held] == [3 * batch for batch in range(50)]


@WORKERS
def test_an_error_is_raised_where_its_batch_would_have_come(workers: int) -> None:
    def failing(first: int, count: int, lr: Tensor, hr: Tensor) -> None:
        if first >= 15:
            raise OSError("the disk is gone")
        count_up(first, count, lr, hr)

    with loader(workers, fill=failing) as batches:
        for _ in range(5):
            next(batches)
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)
    assert not data_threads()


@WORKERS
def test_closing_ends_the_threads_at_any_time(workers: int) -> None:
    for taken in range(8):
        batches = loader(workers)
        for _ in range(taken):
            next(batches)
        batches.close()
        batches.close()
        assert not data_threads()
        with pytest.raises(StopIteration):
            next(batches)


def test_a_loader_that_is_dropped_unclosed_leaves_no_threads() -> None:
    batches = loader(2)
    next(batches)
    reference = weakref.ref(batches)
    del batches
    gc.collect()
    assert reference() is None
    assert not data_threads()


def test_workers_draw_ahead_but_not_without_bound() -> None:
    drawn: list[int] = []

    def noting(first: int, count: int, lr: Tensor, hr: Tensor) -> None:
        drawn.append(first)

    with loader(2, fill=noting):
        wait_until(lambda: len(drawn) >= 8)
        time.sleep(0.05)
        assert len(drawn) == 8


def test_the_time_spent_waiting_is_measured_and_that_between_batches_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def slow(first: int, count: int, lr: Tensor, hr: Tensor) -> None:
        clock[0] += 2

    with loader(0, fill=slow) as batches:
        for _ in range(5):
            next(batches)
            clock[0] += 100
        assert batches.wait_seconds == 10
