"""A kill at every single step of a commit: each write, flush, rename, folder and deletion, found by interposing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_runner.checkpoint import BestN, CheckpointManager, LastN, LocalStore, TrainingState
from sr_runner.checkpoint.format import Blob

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"
INTERPOSED = ("fsync", "rename", "mkdir", "unlink", "rmdir")


def state(step: int) -> TrainingState:
    weight = torch.full((64, 3), float(step))
    return TrainingState(
        step, {"weight": weight}, {"moment": weight * 2, "step": step}, "a: 1\n", {}, {"valid/psnr": 30.0 - step}
    )


def manager(root: Path) -> CheckpointManager:
    return CheckpointManager(LocalStore(root), ATTEMPT, keep=[LastN(2), BestN(1)], scratch=root / "scratch")


class Killer:
    """Counts operations in this process and kills it at one of them, before or after it is carried out."""

    def __init__(self, at: int, after: bool):
        self.count, self.at, self.after = 0, at, after

    def strike(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        mine = self.count == self.at
        if mine and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return operation(*args, **kwargs)
        finally:  # some are expected to raise, such as making a folder that is there
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        for name in INTERPOSED:
            original = getattr(os, name)
            setattr(os, name, lambda *a, _o=original, **k: self.strike(_o, *a, **k))
        plain = Blob.__getattribute__

        def watched(blob: Blob, name: str) -> Any:
            value = plain(blob, name)
            return (lambda: self._chunks(value())) if name == "chunks" else value

        Blob.__getattribute__ = watched  # type: ignore[method-assign]

    def _chunks(self, chunks: Iterator[Any]) -> Iterator[Any]:
        for chunk in chunks:
            half = len(chunk) // 2
            yield chunk[:half]  # so that a file can be torn in the middle
            self.strike(lambda: None)
            yield chunk[half:]


def work(root: Path, killer: Killer) -> None:
    """What a training process does: restore, save twice (one step again, as after a signal), retention included."""
    mine = manager(root)
    restored = mine.restore()
    step = restored.step if restored else 0
    mine.prepare(state(step + 1))
    killer.arm()
    mine.save(state(step + 1), wait=True)
    mine.save(state(step + 1), wait=True)
    mine.save(state(step + 2), wait=True)
    mine.close()


def in_child(root: Path, killer: Killer) -> int:
    """Run `work` in a process of its own; its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(root, killer)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(root: Path, least: int) -> int:
    """The newest state is whole and not older than `least`; its step."""
    restored = manager(root).restore()
    assert restored is not None and restored.step >= least
    assert torch.equal(restored.model["weight"], torch.full((64, 3), float(restored.step)))
    assert torch.equal(restored.training["moment"], torch.full((64, 3), 2.0 * restored.step))
    assert not list((root / ATTEMPT).glob("damaged-*")), "a killed write was taken for a checkpoint"
    return restored.step


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["before", "after"])
def test_a_kill_at_any_operation_of_a_commit_loses_no_committed_state(tmp_path: Path, after: bool) -> None:
    root = tmp_path / "store"
    for step in (1, 2, 3):
        manager(root).save(state(step), wait=True)
    newest, kills = 3, 0
    for at in range(1, 1000):
        code = in_child(root, Killer(at, after))
        assert code in (0, -signal.SIGKILL)
        newest = check(root, newest)
        if code == 0:
            break
        kills += 1
    assert kills > 40, "the operations of a commit were not found"
    assert all(not entry.name.startswith(".") for entry in (root / ATTEMPT).iterdir()), "leftovers were not cleared"
