"""Classes of one's own: what is recorded of their files, and what a resume says where they changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from support import TINY, SrRun

from sr_runner.attempt.own_code import digests
from sr_runner.config.compose import composed
from sr_runner.runs import folder as files

MINE = """
import torch

class Net(torch.nn.Sequential):
    def __init__(self, scale):
        super().__init__(torch.nn.Conv2d(3, 3 * scale**2, 3, padding=1), torch.nn.PixelShuffle(scale))

def loss(sr, hr):
    return (sr - hr).abs().mean()
"""
OWN = (
    *[each for each in TINY if not each.startswith("model.")], "model._target_=mine.Net", "tracker=none",
    "objective.losses.pixel._target_=mine.loss", "+objective.losses.pixel._partial_=true", "scheduler=constant",
)  # fmt: skip


def starts(outputs: Path) -> list[dict[str, Any]]:
    (attempt,) = outputs.glob("runs/*/*")
    return files.starts(attempt)


def test_a_resume_says_that_a_file_of_ones_own_changed_and_goes_on(sr_run: SrRun, tmp_path: Path) -> None:
    file, outputs = tmp_path / "mine.py", tmp_path / "outputs"
    file.write_text(MINE)
    assert "changed since" not in sr_run(*OWN).stderr
    assert "changed since" not in sr_run(*OWN, "trainer.resume=true").stderr
    file.write_text(f"{MINE}# another version\n")
    done = sr_run(*OWN, "trainer.resume=true").stderr
    (warning,) = (line for line in done.splitlines() if "changed since" in line)
    assert f"WARNING: mine.Net ({file}), mine.loss ({file}) have changed since" in warning
    assert done.index("changed since") < done.index("complete already")
    before, _, after = (each["code"] for each in starts(outputs))
    assert after == dict.fromkeys(("mine.Net", "mine.loss"), hashlib.sha256(file.read_bytes()).hexdigest()[:12])
    assert before.keys() == after.keys() and before != after


def test_of_parts_that_are_not_ones_own_nothing_is_recorded() -> None:
    assert digests(composed([])[0]) == {}
