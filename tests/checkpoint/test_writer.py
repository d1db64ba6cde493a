from __future__ import annotations

import threading
import time

import torch
from support import wait_until

from sr_runner.checkpoint import TrainingState
from sr_runner.checkpoint.snapshot import HostSnapshot
from sr_runner.checkpoint.writer import Write, Writer


def state(step: int) -> TrainingState:
    return TrainingState(step, {"weight": torch.full((3,), float(step))}, {"step": step}, "a: 1\n")


def test_memory_is_taken_a_second_time_only_while_a_write_is_under_way_and_is_kept_for_the_next() -> None:
    written: list[tuple[int, HostSnapshot]] = []
    goes_on = threading.Event()

    def write(given: Write) -> None:
        assert goes_on.wait(60)
        written.append((given.state.step, given.snapshot))

    writer = Writer(write)
    (first,) = writer._free
    writer.allocate(state(0))
    assert first._buffers, "the first save would have to allocate"
    for step in (1, 2, 3):  # 3 replaces 2, which waits for 1
        submitted = writer.submit(state(step), time.perf_counter())
        assert submitted.state.step == step and 0 <= submitted.stall < 60
    assert writer.idle_by(time.monotonic()) is False
    assert writer._thread is not None and writer._thread.daemon, "a store that hangs would keep a process that stops"
    goes_on.set()
    assert writer.idle_by(None)
    (_, mine), (_, second) = written
    assert [step for step, _ in written] == [1, 3] and mine is first and second is not first
    for step in (4, 5, 6):
        writer.submit(state(step), 0.0)
        assert writer.idle_by(None)
    assert {id(snapshot) for _, snapshot in written} == {id(first), id(second)} and len(writer._free) == 2


def test_what_has_to_be_done_first_is_done_before_anything_is_written_and_the_thread_ends_by_itself() -> None:
    done: list[object] = []
    goes_on = threading.Event()
    writer = Writer(lambda write: done.append((write.state.step, writer._thread is not None)))
    writer.run(lambda: done.append(goes_on.wait(60)))
    writer.submit(state(1), 0.0)
    assert done == []
    goes_on.set()
    wait_until(lambda: writer._thread is None)
    assert done == [True, (1, True)]
