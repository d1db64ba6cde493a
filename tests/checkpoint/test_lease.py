from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sr_runner.checkpoint import CheckpointManager, LastN, Lease, LocalStore, RemoteStore, Store, TrainingState
from sr_runner.checkpoint.lease import Holder
from sr_runner.errors import RequestError, RunError

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"


@pytest.fixture(params=["local", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(tmp_path) if request.param == "local" else RemoteStore(f"file://{tmp_path}")


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
        until = time.monotonic() + 5
        while store.read_lease(ATTEMPT) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        me = Holder.me(60)
        with pytest.raises(RequestError, match=rf"in use by process {me.pid} on {me.host}"), Lease(store, ATTEMPT, 60):
            pass


def test_a_lease_that_was_given_up_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with Lease(store, ATTEMPT, 60):
        assert store.read_lease(ATTEMPT) is not None
    assert store.read_lease(ATTEMPT) is None
    with Lease(store, ATTEMPT, 60):
        pass


def test_a_holder_of_this_machine_that_died_is_not_waited_for(store: Store, dead: Holder) -> None:
    store.write_lease(ATTEMPT, dead.record(7))
    began = time.monotonic()
    with Lease(store, ATTEMPT, 60) as lease:
        lease.confirm()
    assert time.monotonic() - began < 5


def test_a_holder_of_another_machine_that_fell_silent_is_taken_over_from(store: Store) -> None:
    store.write_lease(ATTEMPT, elsewhere(seconds=1).record(7))
    began = time.monotonic()
    with Lease(store, ATTEMPT, 60) as lease:
        assert time.monotonic() - began >= 1
        lease.confirm()
        assert (record := store.read_lease(ATTEMPT)) is not None and b"node-7" not in record  # it may be half written


def test_a_holder_of_another_machine_that_gives_a_sign_of_life_is_respected(store: Store) -> None:
    holder = elsewhere(seconds=20)
    store.write_lease(ATTEMPT, holder.record(7))
    threading.Timer(0.5, lambda: store.write_lease(ATTEMPT, holder.record(8))).start()
    with pytest.raises(RequestError, match="in use by process 4242 on node-7"), Lease(store, ATTEMPT, 60):
        pass
    record = store.read_lease(ATTEMPT)
    assert record is not None and Holder.parse(record) == holder


def test_a_record_that_is_no_record_blocks_nobody_for_ever(store: Store) -> None:
    store.write_lease(ATTEMPT, b'{"token": ')
    with Lease(store, ATTEMPT, 1) as lease:
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


def test_the_record_is_renewed_well_before_it_expires(store: Store) -> None:
    with Lease(store, ATTEMPT, 1):
        beats = set()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            record = store.read_lease(ATTEMPT)
            beats.add(json.loads(record)["beat"] if record and Holder.parse(record) else None)
            time.sleep(0.05)
    assert len(beats - {None}) >= 3
