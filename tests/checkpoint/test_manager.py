from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_runner.checkpoint import CheckpointManager, LastN, LocalStore, SaveReport, TrainingState
from sr_runner.checkpoint.format import Blob
from sr_runner.errors import RunError

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"


def state(step: int, psnr: float = 30.0) -> TrainingState:
    weight = torch.full((4, 3), float(step))
    training = {"step": step, "optimizer": {"weight": {"exp_avg": weight / 2}}, "best": {"psnr": psnr}, "pair": (1, 2)}
    return TrainingState(step, {"weight": weight}, training, "a: 1\n", {"sr_run": "{}"}, {"valid/psnr": psnr})


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(LocalStore(tmp_path), ATTEMPT, keep=[LastN(3)], scratch=tmp_path / "scratch")


def folder(tmp_path: Path, step: int) -> Path:
    return tmp_path / ATTEMPT / f"step-{step:08d}"


def test_what_was_saved_is_restored(manager: CheckpointManager) -> None:
    manager.save(state(7), wait=True)
    restored = manager.restore()
    assert restored is not None and restored.step == 7 and restored.config == "a: 1\n"
    assert torch.equal(restored.model["weight"], state(7).model["weight"])
    assert torch.equal(restored.training["optimizer"]["weight"]["exp_avg"], torch.full((4, 3), 3.5))
    assert restored.training["pair"] == (1, 2) and restored.metadata["sr_run"] == "{}"


def test_a_snapshot_is_not_touched_by_the_training_that_goes_on(manager: CheckpointManager) -> None:
    moving = state(1)
    manager.save(moving)
    moving.model["weight"].add_(100)
    manager.wait()
    restored = manager.restore()
    assert restored is not None and restored.model["weight"][0, 0] == 1


def test_a_checkpoint_is_on_the_disk_before_its_commit_and_the_commit_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps what was flushed: the files, the folder with their names, and the folder that was renamed."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def flush(file: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{file}').readlink().name}")
        fsync(file)

    def move(source: Path, target: Path, **_: Any) -> None:
        done.append(f"rename {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", move)
    LocalStore(tmp_path).put(f"{ATTEMPT}/step-00000001", [Blob.of("a", b"1"), Blob.of("b", b"2")])
    commit = done.index("rename step-00000001")
    written = [each for each in done[:commit] if "writing" in each]
    assert {"sync a", "sync b"} < set(done[:commit]) and written and done.index(written[-1]) > done.index("sync b")
    assert f"sync {ATTEMPT.rpartition('/')[2]}" in done[commit:]


def test_nothing_saved_restores_to_none(manager: CheckpointManager) -> None:
    assert manager.restore() is None


def test_only_what_the_policies_keep_is_left(manager: CheckpointManager, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        manager.save(state(step), wait=True)
    assert manager.steps() == [3, 4, 5]
    assert sorted(entry.name for entry in (tmp_path / ATTEMPT).iterdir()) == [f"step-{n:08d}" for n in (3, 4, 5)]


def test_a_checkpoint_of_the_same_step_is_replaced(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(state(4, 30.0), wait=True)
    manager.save(state(4, 31.0), wait=True)
    restored = manager.restore()
    assert restored is not None and restored.training["best"] == {"psnr": 31.0}
    assert [entry.name for entry in (tmp_path / ATTEMPT).iterdir()] == ["step-00000004"]


def test_a_replacement_killed_between_its_two_renames_loses_nothing(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(state(4), wait=True)
    folder(tmp_path, 4).rename(tmp_path / ATTEMPT / ".replaced-step-00000004-0123456789ab")
    restored = manager.restore()
    assert restored is not None and restored.step == 4
    manager.prepare(state(4))
    assert folder(tmp_path, 4).is_dir()


def test_the_leftovers_of_killed_writes_are_no_checkpoints_and_go_at_the_next_start(
    manager: CheckpointManager, tmp_path: Path
) -> None:
    manager.save(state(4), wait=True)
    shutil.copytree(folder(tmp_path, 4), tmp_path / ATTEMPT / ".writing-step-00000005-0123456789ab")
    assert manager.steps() == [4]
    manager.prepare(state(4))
    assert [entry.name for entry in (tmp_path / ATTEMPT).iterdir()] == ["step-00000004"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def future(path: Path) -> None:
    body = json.loads((path.parent / "manifest.json").read_bytes())
    (path.parent / "manifest.json").write_text(json.dumps(body | {"version": 99}))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a flipped bit": ("training.safetensors", flip, "training.safetensors does not match its checksum"),
    "a cut": ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1]), "model.safetensors has"),
    "a missing file": ("state.json", lambda p: p.unlink(), "state.json is missing"),
    "an extra file": ("extra", lambda p: p.write_text("x"), "extra is not in manifest.json"),
    "an empty manifest": ("manifest.json", lambda p: p.write_text(""), "manifest.json is empty"),
    "a flip in the manifest": ("manifest.json", flip, "manifest.json"),
    "a future version": ("manifest.json", future, "version 99"),
    "a link": ("config.yaml", lambda p: (p.unlink(), p.symlink_to("/etc/hostname")), "config.yaml is a link"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_kept_aside_and_passed_over(
    damage: str, manager: CheckpointManager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, harm, reason = DAMAGES[damage]
    manager.save(state(1), wait=True)
    manager.save(state(2), wait=True)
    harm(folder(tmp_path, 2) / file)
    restored = manager.restore()
    assert restored is not None and restored.step == 1
    assert reason in caplog.text and "step-00000002" in caplog.text
    (aside,) = (tmp_path / ATTEMPT).glob("damaged-step-00000002-*")
    assert aside.is_dir() and manager.steps() == [1]


def test_a_forged_reason_is_kept_and_stops_nothing(manager: CheckpointManager, tmp_path: Path) -> None:
    for step in (1, 2):
        manager.save(state(step), wait=True)
    (folder(tmp_path, 2) / "why.json").mkdir()
    found = manager.restore()
    assert found is not None and found.step == 1
    (aside,) = (tmp_path / ATTEMPT).glob("damaged-*")
    assert "why.json" in json.loads((aside / "why.json").read_text())["reason"]
    assert len(list(aside.glob("found-*-why.json"))) == 1


def test_where_no_checkpoint_is_good_nothing_starts_from_scratch(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(state(1), wait=True)
    flip(folder(tmp_path, 1) / "model.safetensors")
    with pytest.raises(RunError, match="none of the 1 checkpoints"):
        manager.restore()


class FullDisk(LocalStore):
    """A local store whose disk is full for a while: the real one, under an error that a test cannot wait for."""

    full = False

    def put(self, name: str, files: Sequence[Blob]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().put(name, files)


def test_a_failed_write_costs_that_checkpoint_alone_until_there_are_too_many_in_a_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FullDisk(tmp_path)
    failures: list[tuple[int, int]] = []
    manager = CheckpointManager(
        store, ATTEMPT, keep=[LastN(3)], scratch=tmp_path / "s", max_failures=2
    )  # fmt: skip
    manager.prepare(state(0), on_failure=lambda step, in_a_row: failures.append((step, in_a_row)))
    manager.save(state(1), wait=True)
    store.full = True
    manager.save(state(2), wait=True)
    assert manager.steps() == [1] and "No space left on device" in caplog.text
    store.full = False
    manager.save(state(3), wait=True)
    assert manager.steps() == [1, 3]
    store.full = True
    manager.save(state(4), wait=True)
    manager.save(state(5))
    with pytest.raises(RunError, match="2 checkpoints in a row"):
        manager.wait()
    assert failures == [(2, 1), (4, 1), (5, 2)] and manager.steps() == [1, 3]


def test_what_a_save_cost_is_reported_before_its_commit(tmp_path: Path) -> None:
    seen: list[tuple[SaveReport, list[int]]] = []
    manager = CheckpointManager(LocalStore(tmp_path), ATTEMPT, keep=[LastN(1)], scratch=tmp_path / "s")
    manager.prepare(state(0), on_saved=lambda report: seen.append((report, manager.steps())))
    manager.save(state(1), wait=True)
    ((report, committed),) = seen
    assert report.step == 1 and report.write_seconds > 0 and report.stall_seconds >= 0 and committed == []


@pytest.mark.parametrize(
    "name", ["../x/step-00000001", "a/b/../../etc", "/etc/passwd", "a/b/step-1", "a/b/step-00000001/c"]
)
def test_names_from_elsewhere_are_never_paths(name: str, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for verb in (store.delete, lambda n: store.get(n, tmp_path), lambda n: store.quarantine(n, "")):
        with pytest.raises(ValueError, match="is not the name of a checkpoint"):
            verb(name)


def test_old_checkpoints_that_somebody_else_deleted_are_no_reason_for_a_warning_and_the_newest_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = LocalStore(tmp_path)
    manager = CheckpointManager(store, ATTEMPT, keep=[LastN(2)], scratch=tmp_path / "s")
    for step in range(1, 7):
        manager.save(state(step), wait=True)
        for gone in manager.steps()[:-1]:
            store.delete(f"{ATTEMPT}/step-{gone:08d}")
    assert not caplog.records and set(manager._known or {}) == {5, 6}
    store.delete(f"{ATTEMPT}/step-00000006")
    manager.save(state(7), wait=True)
    assert caplog.messages == [
        f"somebody else has deleted the newest checkpoint of {ATTEMPT}, that of step 6; that of step 7 is there now"
    ]
