"""A clock that is hours off costs nothing: checkpoints are in order by step."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from processes import LONG, RUN, Start, saved, wait_for
from support import SrRun, environment

from sr_runner.checkpoint import BestN, CheckpointManager, LastN, LocalStore, TrainingState
from sr_runner.checkpoint.format import Manifest

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"
HOURS = 2 * 3600.0
CLOCK = """
import os, time
off = float(os.environ.get("CLOCK_OFF", 0))
def shifted(name, unit):
    true = getattr(time, name)
    setattr(time, name, lambda: true() + int(off * unit))
shifted("time", 1)
shifted("time_ns", 10**9)
"""


def state(step: int) -> TrainingState:
    return TrainingState(
        step, {"w": torch.full((4,), float(step))}, {"step": step}, "a: 1\n", {}, {"valid/psnr": -step}
    )


def test_the_newest_checkpoint_is_that_of_the_highest_step_whatever_the_clock_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = time.time

    def manager() -> CheckpointManager:
        return CheckpointManager(LocalStore(tmp_path), ATTEMPT, keep=[LastN(2), BestN(1)], scratch=tmp_path / "s")

    for steps, off in (((1, 2, 3), HOURS), ((4, 5, 6), -HOURS), ((7, 8), 0.0)):
        monkeypatch.setattr(time, "time", lambda off=off: true() + off)
        mine = manager()
        restored = mine.restore()
        assert (restored.step if restored else 0) == steps[0] - 1
        mine.prepare(state(0))
        for step in steps:
            mine.save(state(step), wait=True)
        assert mine.steps() == [1, steps[-1] - 1, steps[-1]], "the best one and the two newest"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_was_saved_two_hours_ahead_is_resumed_two_hours_behind(
    start: Start, sr_run: SrRun, tmp_path: Path
) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    root, log = tmp_path / "outputs" / "checkpoints", tmp_path / "log"

    def clock(off: float) -> Mapping[str, str]:
        return {"CLOCK_OFF": str(off), "PYTHONPATH": f"{tmp_path / 'clock'}:{environment()['PYTHONPATH']}"}

    def made(step: int) -> float:
        (folder,) = root.glob(f"*/*/step-{step:08d}")
        return Manifest.read(folder).created - time.time()

    policy = ("checkpoint.keep_last=2", "checkpoint.keep_minutes=30", "trainer.resume=true")
    ahead = start(*LONG, *policy, log=log, also=clock(HOURS))
    wait_for(lambda: len(saved(root)) >= 3, ahead, log)
    ahead.kill()  # its lease stays, from the future
    ahead.wait()
    before = saved(root)
    assert made(before[-1]) > HOURS / 2, "the clock was not ahead"

    behind = start(*LONG, *policy, log=log, also=clock(-HOURS))
    wait_for(lambda: saved(root)[-1] > before[-1] + 20, behind, log)
    behind.kill()
    behind.wait()
    said = re.search(r"resumed at step (\d+) ", log.read_text())
    assert said is not None and int(said[1]) == before[-1]
    after = saved(root)
    assert made(after[-1]) < -HOURS / 2, "the clock was not behind"
    # The two newest, and the first of every half hour: of the one ahead and of the one behind.
    assert len(after) <= 5 and before[0] in after, f"{before} became {after}"

    last = after[-1] + 5
    done = sr_run(*RUN, *policy, f"trainer.steps={last}")
    assert f"resumed at step {after[-1]} of {last}" in done.stderr
    sr_run(*RUN, f"trainer.steps={last}", "outputs=unbroken", "tracker=none")
    (unbroken,) = (tmp_path / "unbroken" / "checkpoints").glob(f"*/*/step-{last:08d}")
    (mine,) = root.glob(f"*/*/step-{last:08d}")
    for name in ("model.safetensors", "training.safetensors"):
        assert (mine / name).read_bytes() == (unbroken / name).read_bytes()
