"""Signals that ask a run to stop."""

from __future__ import annotations

import signal

from sr_runner.signals import StopSignal


def test_a_signal_begins_the_grace_and_the_end_of_the_work_ends_it() -> None:
    stop = StopSignal()
    stop.grace_seconds = 60
    stop.defer()
    stop.note(signal.SIGTERM)
    timer = stop._timer
    assert timer is not None and stop.deadline is not None and 0 < stop.within(100) <= 60
    stop.finish()
    timer.join(10)
    assert not timer.is_alive() and stop.deadline is None


def test_a_signal_after_the_end_of_the_work_is_noted_and_ends_nothing() -> None:
    stop = StopSignal()
    stop.grace_seconds = 60
    stop.finish()
    stop._receive(signal.SIGTERM, None)
    assert stop.requested and stop._timer is None and stop.within(100) == 100
