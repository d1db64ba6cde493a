from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import wait_until

from sr_runner.checkpoint import CheckpointManager, LastN, Lease, LocalStore, RemoteStore, Store, TrainingState
from sr_runner.checkpoint import lease as lease_module
from sr_runner.checkpoint.lease import Holder
from sr_runner.errors import RequestError, RunError

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"


@pytest.fixture(params=["local", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(tmp_path) if request.param == "local" else RemoteStore(f"file://{tmp_path}")


class Clock:
    """The lease's clock: a sleep takes no time, and moves it. `at`: what happens once it has come to those seconds."""

    def __init__(self) -> None:
        self.now, self.at = 0.0, dict[float, Callable[[], object]]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in [moment for moment in self.at if moment <= self.now]:
            self.at.pop(moment)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lease_module, "time", SimpleNamespace(monotonic=lambda: made.now, sleep=made.sleep))
    return made


def elsewhere(seconds: float = 1.0) -> Holder:
    """A process on another machine."""
    return dataclasses.replace(Holder.me(seconds), machine="another kernel 1", host="node-7", pid=4242)


@pytest.fixture
def dead() -> Iterator[Holder]:
    """A process of this machine that has ended, and whose number may be somebody else's by now."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    yield dataclasses.replace(Holder.me(60), pid=child.pid, started="1")


def test_a_second_process_is_refused_with_the_holders_host_and_process(store: Store) -> None:
    with Lease(store, ATTEMPT, 60, fresh=True):
        wait_until(lambda: store.read_lease(ATTEMPT))
        me = Holder.me(60)
        with pytest.raises(RequestError, match=rf"in use by process {me.pid} on {me.host}"), Lease(store, ATTEMPT, 60):
            pass


def test_a_lease_that_was_given_up_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with Lease(store, ATTEMPT, 60):
        assert store.read_lease(ATTEMPT) is not None
    assert store.read_lease(ATTEMPT) is None
    with Lease(store, ATTEMPT, 60):
        pass


def test_a_holder_of_this_machine_that_died_is_not_waited_for(store: Store, dead: Holder, clock: Clock) -> None:
    store.write_lease(ATTEMPT, dead.record(7))
    with Lease(store, ATTEMPT, 60) as lease:
        lease.confirm()
    assert clock.now == 0


def test_a_holder_of_another_machine_that_fell_silent_is_taken_over_from_once_its_promise_is_broken(
    store: Store, clock: Clock
) -> None:
    store.write_lease(ATTEMPT, elsewhere(seconds=40).record(7))
    with Lease(store, ATTEMPT, 60) as lease:
        assert 40 <= clock.now < 45
        lease.confirm()
        assert (record := store.read_lease(ATTEMPT)) is not None and b"node-7" not in record  # it may be half written


def test_a_holder_of_another_machine_that_gives_a_sign_of_life_is_respected(store: Store, clock: Clock) -> None:
    holder = elsewhere(seconds=20)
    store.write_lease(ATTEMPT, holder.record(7))
    clock.at[19.5] = lambda: store.write_lease(ATTEMPT, holder.record(8))
    with pytest.raises(RequestError, match="in use by process 4242 on node-7"), Lease(store, ATTEMPT, 60):
        pass
    record = store.read_lease(ATTEMPT)
    assert record is not None and Holder.parse(record) == holder


def test_a_record_that_is_no_record_blocks_nobody_for_ever(store: Store, clock: Clock) -> None:
    store.write_lease(ATTEMPT, b'{"token": ')
    with Lease(store, ATTEMPT, 60) as lease:
        lease.confirm()


def test_who_was_taken_over_from_commits_nothing_more(store: Store, tmp_path: Path) -> None:
    with Lease(store, ATTEMPT, 60) as lease:
        manager = CheckpointManager(store, ATTEMPT, keep=[LastN(3)], scratch=tmp_path / "s", confirm=lease.confirm)
        weight = {"weight": torch.ones(3)}
        manager.save(TrainingState(1, weight, {}, ""), wait=True)
        store.write_lease(ATTEMPT, elsewhere().record(1))
        with pytest.raises(RunError, match="taken over by process 4242 on node-7"):
            manager.save(TrainingState(2, weight, {}, ""), wait=True)
        assert manager.steps() == [1]
    record = store.read_lease(ATTEMPT)
    assert record is not None and json.loads(record)["host"] == "node-7"  # at its end it leaves the other's alone


def test_who_was_taken_over_from_does_not_renew_the_record(store: Store) -> None:
    looked: list[bytes | None] = []

    class Over(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            looked.append(store.read_lease(ATTEMPT))
            if len(looked) == 2:
                store.write_lease(ATTEMPT, elsewhere().record(1))
            return super().wait(0)

    lease = Lease(store, ATTEMPT, 60)
    lease._over = Over()
    with lease:
        lease._thread.join(20)
        assert not lease._thread.is_alive(), "it goes on renewing"
    record = store.read_lease(ATTEMPT)
    assert len(looked) == 2 and record is not None and Holder.parse(record) != lease._me
    assert json.loads(record)["host"] == "node-7"


def test_the_record_is_renewed_well_before_it_expires(store: Store) -> None:
    pauses: list[float] = []

    class Over(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            pauses.append(timeout)
            return super().wait(timeout if len(pauses) > 3 else 0)

    def beats() -> int:
        record = store.read_lease(ATTEMPT)
        return json.loads(record)["beat"] if record and Holder.parse(record) else 0  # it may be half written

    lease = Lease(store, ATTEMPT, 60)
    lease._over = Over()
    with lease:
        wait_until(lambda: beats() >= 4)
    assert all(pause <= 60 / 3 for pause in pauses)


class Away(LocalStore):
    """A store that does not answer for a while."""

    error: OSError | None = None

    def read_lease(self, attempt: str) -> bytes | None:
        if self.error is not None:
            raise self.error
        return super().read_lease(attempt)

    def write_lease(self, attempt: str, record: bytes) -> None:
        if self.error is not None:
            raise self.error
        super().write_lease(attempt, record)


@pytest.fixture
def away(tmp_path: Path) -> Away:
    return Away(tmp_path)


def test_a_store_that_does_not_answer_is_no_place_to_start_from(away: Away) -> None:
    away.error = OSError("no route")
    with pytest.raises(RunError, match=r"cannot be used: no route\. Nothing was started"), Lease(away, ATTEMPT, 60):
        pass


def test_where_nothing_of_the_attempt_is_in_the_store_yet_the_lease_is_written_once_it_can_be(away: Away) -> None:
    class NotYet(Away):
        writes = 0

        def write_lease(self, attempt: str, record: bytes) -> None:
            self.writes += 1
            if self.writes == 1:
                raise FileNotFoundError(attempt)
            super().write_lease(attempt, record)

    store = NotYet(away.root)
    with Lease(store, ATTEMPT, 60) as lease:
        wait_until(lambda: store.read_lease(ATTEMPT))
        lease.confirm()


def test_of_two_that_take_over_at_once_the_one_whose_record_stays_has_the_attempt(store: Store, clock: Clock) -> None:
    clock.at[lease_module._SETTLE] = lambda: store.write_lease(ATTEMPT, elsewhere().record(1))
    with pytest.raises(RequestError, match="in use by process 4242 on node-7"), Lease(store, ATTEMPT, 60):
        pass


def test_a_holder_that_gives_up_while_it_is_watched_is_waited_for_no_longer(store: Store, clock: Clock) -> None:
    store.write_lease(ATTEMPT, elsewhere(seconds=40).record(7))
    clock.at[3] = lambda: store.drop_lease(ATTEMPT)
    with Lease(store, ATTEMPT, 60) as lease:
        assert clock.now < 5
        lease.confirm()


def test_a_lease_that_cannot_be_renewed_is_said_once_and_stops_nothing(
    away: Away, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Over(threading.Event):
        """Each pause takes its seconds, on the clock; the store is away from the second on."""

        pauses = 0

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            self.pauses += 1
            away.error = OSError("no route") if self.pauses < 12 else None
            clock.now += timeout
            return super().wait(timeout if self.pauses > 14 else 0)

    lease = Lease(away, ATTEMPT, 40)
    lease._over = over = Over()
    with lease:
        wait_until(lambda: over.pauses > 14)
        lease.confirm()
    assert caplog.text.count("could not be renewed for 40 s: no route") == 1
    assert away.read_lease(ATTEMPT) is None


def test_a_store_that_is_away_at_the_end_is_no_reason_to_fail(away: Away) -> None:
    with Lease(away, ATTEMPT, 60):
        away.error = OSError("no route")


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    me = Holder.me(60)
    assert me.is_here and me.lives
    assert not dataclasses.replace(me, started="1").lives and not dataclasses.replace(me, started="").lives
    assert not dataclasses.replace(me, machine="").is_here and not dataclasses.replace(me, pid=2**22 + 1).lives
    assert Holder.parse(me.record(3)) == me and json.loads(me.record(3))["beat"] == 3
