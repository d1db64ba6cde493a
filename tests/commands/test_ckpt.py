from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sr_runner.checkpoint import CheckpointManager, LocalStore, TrainingState
from sr_runner.commands.ckpt import main

IDENTITY = "edsr-x2-0123456789ab"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two attempts of one run; four checkpoints in the first, best at step 20."""
    store = LocalStore(tmp_path / "store")
    for attempt, steps in (("a0001-00aa", (10, 20, 30, 40)), ("a0002-00bb", (10,))):
        manager = CheckpointManager(store, f"{IDENTITY}/{attempt}", keep=[_All()], scratch=tmp_path)
        for step in steps:
            facts = {"facts": {"optimizer.lr": 1e-3 if attempt == "a0001-00aa" else 1e-4}}
            weights = {"weight": torch.full((3,), float(step))}
            manager.save(TrainingState(step, weights, facts, "", {}, {"valid/psnr": 30 - abs(step - 20)}), wait=True)
    return tmp_path / "store"


class _All:
    def keeps(self, checkpoints: object) -> set[int]:
        return {info.step for info in checkpoints}  # type: ignore[attr-defined]


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 or captured.out else captured.err


def test_ls_tells_runs_attempts_steps_metric_size_and_age(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "ls", "--root", str(root))
    assert f"{IDENTITY}/a0001-00aa" in text and "step        20  PSNR  30.00" in text
    rows = json.loads(run(capsys, "ls", "--root", str(root), "--json", f"{IDENTITY}/a0001-00aa"))
    assert [row["step"] for row in rows] == [10, 20, 30, 40] and rows[0]["bytes"] > 0


def test_verify_finds_the_damaged_one_and_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", "--root", str(root)).count("ok ") == 5
    broken = root / IDENTITY / "a0001-00aa" / "step-00000030" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    before = sorted(path for path in root.rglob("*"))
    text = run(capsys, "verify", "--root", str(root), code=1)
    assert "DAMAGED" in text and "step-00000030  model.safetensors has" in text
    assert sorted(path for path in root.rglob("*")) == before


def test_diff_names_config_keys_and_tensors(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "diff", "--root", str(root), f"{IDENTITY}/a0001-00aa/step-20", f"{IDENTITY}/a0002-00bb")
    assert "optimizer.lr: 0.001 | 0.0001" in text and "weight: differs by up to 10" in text


def test_export_writes_a_file_that_other_readers_read(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "export", "--root", str(root), f"{IDENTITY}/a0001-00aa", str(tmp_path / "w.safetensors"))
    assert safetensors.torch.load_file(tmp_path / "w.safetensors")["weight"].tolist() == [40, 40, 40]
    again = run(
        capsys, "export", "--root", str(root), f"{IDENTITY}/a0001-00aa", str(tmp_path / "w.safetensors"), code=2
    )
    assert "exists already" in again


def test_prune_only_says_what_would_go_until_it_is_told_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("prune", "--root", str(root), f"{IDENTITY}/a0001-00aa", "--keep-last", "1")
    steps = root / IDENTITY / "a0001-00aa"
    assert run(capsys, *arguments).count("would delete") == 2 and len(list(steps.iterdir())) == 4
    run(capsys, *arguments, "--yes")
    assert sorted(path.name for path in steps.iterdir()) == ["step-00000020", "step-00000040"]


def test_cp_copies_whole_checkpoints_and_refuses_damaged_ones(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "cp", "--root", str(root), f"{IDENTITY}/a0001-00aa", str(tmp_path / "copy"))
    assert run(capsys, "verify", "--root", str(tmp_path / "copy")).count("ok ") == 4
    broken = root / IDENTITY / "a0001-00aa" / "step-00000030" / "state.json"
    broken.write_text("{}")
    assert "state.json" in run(
        capsys, "cp", "--root", str(root), f"{IDENTITY}/a0001-00aa", str(tmp_path / "other"), code=1
    )


def test_a_name_that_is_not_there_gets_one_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "edsr-x9: no such run" in run(capsys, "verify", "--root", str(root), "edsr-x9", code=2)
