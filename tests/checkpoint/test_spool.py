"""A store that fails or hangs: what becomes of the checkpoints meanwhile."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from sr_runner.checkpoint import CheckpointManager, LastN, LocalStore, SaveReport, TrainingState
from sr_runner.checkpoint.format import Blob
from sr_runner.errors import RunError

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"


class Faulty(LocalStore):
    """A folder behind a connection that can be cut, or hang."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.is_away = False
        self.answers = threading.Event()
        self.answers.set()

    def put(self, name: str, files: Sequence[Blob]) -> None:
        self.answers.wait()
        if self.is_away:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        super().put(name, files)


def state(step: int) -> TrainingState:
    weight = torch.full((4, 3), float(step))
    return TrainingState(step, {"weight": weight}, {"step": step, "moment": weight / 2}, "a: 1\n")


@pytest.fixture
def store(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path / "store")


@pytest.fixture
def make(store: Faulty, tmp_path: Path) -> Callable[..., CheckpointManager]:
    def make(**options: object) -> CheckpointManager:
        spool = LocalStore(tmp_path / "spool")
        return CheckpointManager(
            store, ATTEMPT, keep=[LastN(9)], scratch=tmp_path / "s", spool=spool, **options  # type: ignore[arg-type]
        )  # fmt: skip

    return make


def spooled(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "spool").glob("*/*/step-*"))


def test_what_an_unreachable_store_cannot_take_is_kept_on_this_machine_until_it_can(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = make()
    manager.save(state(1), wait=True)
    store.is_away = True
    for step in (2, 3):
        manager.save(state(step), wait=True)
    assert spooled(tmp_path) == ["step-00000003"] and "Network is unreachable" in caplog.text
    store.is_away = False
    manager.save(state(4), wait=True)
    assert manager.steps() == [1, 4] and spooled(tmp_path) == []


def test_the_next_process_goes_on_from_the_spool_and_brings_it_home(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    before = make()
    before.save(state(1), wait=True)
    store.is_away = True
    before.save(state(2), wait=True)
    store.is_away = False
    after = make()
    restored = after.restore()
    assert (
        restored is not None and restored.step == 2 and torch.equal(restored.model["weight"], state(2).model["weight"])
    )
    after.prepare(state(2))
    after.wait()
    assert after.steps() == [1, 2] and spooled(tmp_path) == []
    elsewhere = CheckpointManager(store, ATTEMPT, keep=[], scratch=tmp_path / "s").restore()
    assert elsewhere is not None and elsewhere.step == 2


def test_a_spool_that_is_behind_the_store_is_left_alone(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    store.is_away = True
    make().save(state(2), wait=True)
    store.is_away = False
    elsewhere = CheckpointManager(store, ATTEMPT, keep=[], scratch=tmp_path / "s")
    elsewhere.save(state(5), wait=True)
    restored = make().restore()
    assert restored is not None and restored.step == 5


def test_what_reached_the_store_after_all_is_not_brought_home_again(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    make().save(state(2), wait=True)
    shutil.copytree(store.root, tmp_path / "spool")  # killed between the commit and the end of the spooled one
    manifest = next(store.root.glob("*/*/step-00000002/manifest.json"))
    before = manifest.stat()
    manager = make()
    manager.prepare(state(2))
    manager.wait()
    assert manifest.stat() == before and spooled(tmp_path) == []


def test_a_damaged_checkpoint_in_the_spool_is_passed_over(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = make()
    manager.save(state(1), wait=True)
    store.is_away = True
    manager.save(state(2), wait=True)
    (tmp_path / "spool" / ATTEMPT / "step-00000002" / "model.safetensors").write_bytes(b"")
    restored = make().restore()
    assert restored is not None and restored.step == 1 and "model.safetensors has 0 bytes" in caplog.text


def test_a_run_does_not_end_well_without_its_last_checkpoint(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    manager = make(max_failures=None)
    for step in range(1, 6):
        store.is_away = step > 1
        manager.save(state(step), wait=True)
    with pytest.raises(RunError, match=r"the last checkpoint could not be written: .*kept in .*step-00000005"):
        manager.finish()


def test_a_store_that_hangs_costs_a_process_that_has_to_go_neither_time_nor_work(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    manager = make(should_stop=lambda: True)
    manager.save(state(1), wait=True)
    store.answers.clear()
    manager.save(state(2))
    assert not manager.save(state(3)), "it waited for the store"
    deadline = time.monotonic() + 3
    manager.save_by(state(4), deadline)
    manager.close(deadline)
    assert not store.answers.is_set() and spooled(tmp_path) == ["step-00000004"]
    restored = make().restore()
    assert restored is not None and restored.step == 4
    store.answers.set()


def test_a_write_that_is_under_way_when_the_process_has_to_go_is_spooled_as_well(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    manager = make()
    store.answers.clear()
    manager.save(state(1))
    manager.save_by(state(1), time.monotonic() + 1.5, again=False)
    assert spooled(tmp_path) == ["step-00000001"]
    store.answers.set()


def test_a_newer_snapshot_replaces_one_that_still_waits(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    manager = make(when_busy="replace")
    store.answers.clear()
    manager.save(state(1))
    for step in (2, 3, 4):
        manager.save(state(step))  # none waits for the store, which does not answer until the next line
    store.answers.set()
    manager.wait()
    assert manager.steps() == [1, 4]
    restored = manager.restore()
    assert restored is not None and torch.equal(restored.model["weight"], state(4).model["weight"])
    assert len(manager._writer._free) == 2, "a third snapshot was allocated"


def test_a_snapshot_that_waits_for_what_was_spooled_to_come_home_is_written_after_it(
    store: Faulty, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    store.is_away = True
    make().save(state(1), wait=True)
    store.is_away = False
    manager = make(when_busy="replace")
    store.answers.clear()
    manager.prepare(state(1))
    manager.save(state(2))
    store.answers.set()
    manager.wait()
    assert manager.steps() == [1, 2] and spooled(tmp_path) == []


def test_with_the_policy_to_wait_the_step_waits_for_the_earlier_write_and_says_how_long(
    store: Faulty, make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, reports = [100.0], list[SaveReport]()
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def seven_seconds_later() -> bool:
        clock[0] = 107.0
        store.answers.set()
        return False

    manager = make(should_stop=seven_seconds_later)
    manager.prepare(state(0), on_saved=reports.append)
    store.answers.clear()
    manager.save(state(1))
    manager.save(state(2), wait=True)
    assert manager.steps() == [1, 2]
    assert [(report.stall_seconds, report.write_seconds) for report in reports] == [(0.0, 7.0), (7.0, 0.0)]
