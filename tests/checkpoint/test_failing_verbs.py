"""A store one of whose verbs fails: what is said, what goes on, and what does not."""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_runner.checkpoint import CheckpointManager, LastN, LocalStore, TrainingState
from sr_runner.checkpoint.format import Blob
from sr_runner.checkpoint.reader import Reader
from sr_runner.checkpoint.state import Origin
from sr_runner.errors import RunError

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"


class Failing(LocalStore):
    """A folder where the verbs named in `errors` fail with them."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.errors: dict[str, Exception] = {}

    def __getattribute__(self, name: str) -> Any:
        errors = object.__getattribute__(self, "__dict__").get("errors", {})
        if name in errors:

            def fail(*_: object, **__: object) -> None:
                raise errors[name]

            return fail
        return super().__getattribute__(name)


def state(step: int, psnr: float = 30.0) -> TrainingState:
    return TrainingState(step, {"weight": torch.full((3,), float(step))}, {"step": step}, "a: 1\n", {}, {"psnr": psnr})


@pytest.fixture
def store(tmp_path: Path) -> Failing:
    return Failing(tmp_path / "store")


@pytest.fixture
def make(store: Failing, tmp_path: Path) -> Callable[..., CheckpointManager]:
    def make(**options: Any) -> CheckpointManager:
        return CheckpointManager(store, ATTEMPT, **{"keep": [LastN(2)], "scratch": tmp_path / "s", **options})

    return make


AWAY = OSError(errno.ENETUNREACH, "Network is unreachable")


def test_what_cannot_be_deleted_is_said_and_tried_again_after_the_next_commit(
    store: Failing, make: Callable[..., CheckpointManager], caplog: pytest.LogCaptureFixture
) -> None:
    manager = make()
    store.errors["delete"] = AWAY
    for step in (1, 2, 3):
        manager.save(state(step), wait=True)
    assert manager.steps() == [1, 2, 3] and "step-00000001 could not be deleted: " in caplog.text
    store.errors.clear()
    manager.save(state(4), wait=True)
    assert manager.steps() == [3, 4]


def test_where_the_store_cannot_be_listed_after_a_commit_what_is_known_counts(
    store: Failing, make: Callable[..., CheckpointManager], caplog: pytest.LogCaptureFixture
) -> None:
    manager = make()
    for step in (1, 2):
        manager.save(state(step), wait=True)
    store.errors["list"] = AWAY
    manager.save(state(3), wait=True)
    store.errors.clear()
    assert manager.steps() == [2, 3] and not caplog.records


def test_an_older_checkpoint_whose_manifest_is_damaged_is_thinned_out_like_others(
    store: Failing, make: Callable[..., CheckpointManager]
) -> None:
    make(keep=[LastN(9)]).save(state(1), wait=True)
    next(store.root.glob("*/*/step-00000001/manifest.json")).write_text("{")
    manager = make(keep=[LastN(1)])
    manager.save(state(2), wait=True)
    assert manager.steps() == [2]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise AWAY

    with pytest.raises(OSError, match="unreachable"):
        LocalStore(tmp_path).put(f"{ATTEMPT}/step-00000001", [Blob("a", chunks)])
    assert list((tmp_path / ATTEMPT).iterdir()) == []


def test_leftovers_that_cannot_be_removed_stop_nothing(
    store: Failing, make: Callable[..., CheckpointManager], caplog: pytest.LogCaptureFixture
) -> None:
    store.errors["clean"] = AWAY
    manager = make()
    manager.prepare(state(0))
    manager.save(state(1), wait=True)
    assert manager.steps() == [1] and "could not be removed" in caplog.text


def test_what_is_no_fault_of_the_store_ends_writing_for_good(
    store: Failing, make: Callable[..., CheckpointManager], caplog: pytest.LogCaptureFixture
) -> None:
    manager = make()
    store.errors["put"] = ValueError("a fault of the code")
    manager.save(state(1))
    with pytest.raises(ValueError, match="a fault of the code"):
        manager.wait()
    store.errors.clear()
    for verb in (lambda: manager.save(state(2)), manager.check, manager.finish):
        with pytest.raises(ValueError, match="a fault of the code"):
            verb()
    assert "ValueError('a fault of the code')" in caplog.text and manager.steps() == []


def test_what_was_spooled_stays_there_where_another_process_has_taken_over(
    store: Failing, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    spool = LocalStore(tmp_path / "spool")
    store.errors["put"] = AWAY
    make(spool=spool).save(state(1), wait=True)
    store.errors.clear()

    def taken() -> None:
        raise RunError("taken over")

    manager = make(spool=spool, confirm=taken)
    manager.prepare(state(1))
    with pytest.raises(RunError, match="taken over"):
        manager.wait()
    assert manager.steps() == [] and len(spool.list()) == 1


def test_a_spool_that_fails_as_well_is_said(
    store: Failing, make: Callable[..., CheckpointManager], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Failing(tmp_path / "spool")
    store.errors["put"] = spool.errors["put"] = AWAY
    manager = make(spool=spool)
    manager.save(state(1), wait=True)
    assert "could not be spooled either" in caplog.text and "kept" not in caplog.text
    with pytest.raises(RunError, match=r"could not be written: .*unreachable\. The same command"):
        manager.finish()
    spool.errors.clear()
    manager.save(state(2), wait=True)
    store.errors.clear()
    store.errors["list"] = AWAY
    caplog.clear()
    again = make(spool=spool)
    again.prepare(state(2))
    again.wait()
    assert "could not be brought to" in caplog.text and len(spool.list()) == 1


def test_a_process_that_has_to_go_saves_once_and_only_what_is_not_being_written_already(
    store: Failing, make: Callable[..., CheckpointManager], tmp_path: Path
) -> None:
    for number, options in enumerate(({}, {"spool": LocalStore(tmp_path / "spool")}), 1):
        manager = make(keep=[LastN(9)], **options)
        for deadline in (None, time.monotonic() + 60):
            manager.save_by(state(2 * number), deadline, again=False)
            assert 2 * number not in manager.steps()
        manager.save_by(state(2 * number), time.monotonic() + 60)
        assert 2 * number in manager.steps()
        manager.save_by(state(2 * number + 1), None)
        assert 2 * number + 1 in manager.steps() and manager.finish()
    assert LocalStore(tmp_path / "spool").list() == []


def test_a_store_that_cannot_be_read_is_no_reason_to_start_from_scratch(
    store: Failing, make: Callable[..., CheckpointManager]
) -> None:
    make().save(state(1), wait=True)
    for verb in ("list", "get"):
        store.errors = {verb: AWAY}
        with pytest.raises(RunError, match=r"cannot be read: .*unreachable\. Nothing was started"):
            make().restore()


def test_what_another_run_has_just_deleted_is_passed_over_and_of_ones_own_is_an_error(
    store: Failing, tmp_path: Path, make: Callable[..., CheckpointManager], caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        make().save(state(step), wait=True)
    get = store.get

    class Deleted(Failing):
        def get(self, name: str, *arguments: Any, **options: Any) -> Path:
            if name.endswith("2"):
                raise FileNotFoundError(name)
            return get(name, *arguments, **options)

    reader = Reader(Deleted(store.root), ATTEMPT, tmp_path / "s")
    found = reader.restore(own=False)
    assert found is not None and found.step == 1 and "just been deleted by its own run" in caplog.text
    with pytest.raises(RunError, match="cannot be read"):
        reader.restore()


def test_the_newest_in_the_spool_is_said_to_be_there(
    store: Failing, tmp_path: Path, make: Callable[..., CheckpointManager], caplog: pytest.LogCaptureFixture
) -> None:
    spool = LocalStore(tmp_path / "spool")
    make().save(state(1), wait=True)
    with caplog.at_level(logging.WARNING):
        make(spool=spool).restore()
        assert "still in the spool" not in caplog.text
        store.errors["put"] = AWAY
        make(spool=spool).save(state(2), wait=True)
        store.errors.clear()
        found = make(spool=spool).restore()
        assert found is not None and found.step == 2 and "still in the spool" in caplog.text
        found = make(spool=spool).restore(1)
        assert found is not None and found.step == 1


@pytest.mark.parametrize("content", [None, "{", "[]", '{"attempt": 1}', '{"facts": "x"}', "[" * 100_000])
def test_an_origin_that_cannot_be_read_is_an_empty_one(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    assert Origin.read(tmp_path) == Origin()


def test_an_origin_is_what_was_written(tmp_path: Path) -> None:
    for origin in (
        Origin(facts={"a": 1}, attempt=ATTEMPT, request={"overrides": ["a=1"]}, tracker={"run_id": "r"}),
        Origin(job="slurm 7"),
    ):
        (tmp_path / "state.json").write_text(json.dumps({**origin.tree(), "step": 3}))
        assert Origin.read(tmp_path) == origin
        assert ("job" in origin.tree()) == (origin.job is not None)
