"""Jobs of a sweep that have finished before are known again, and done again where anything has changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import TINY, SrRun

from sr_runner.commands.finished_jobs import determining, finished_before, sources_digest
from sr_runner.commands.sweep_board import Board, Job, write_job
from sr_runner.config.compose import Application


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(noise.integers(0, 255, (96, 96, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_finished_jobs_are_answered_from_their_records_unless_something_has_changed(
    sr_run: SrRun, tmp_path: Path, photographs: Path
) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    recipe = tmp_path / "conf" / "experiment" / "mine.yaml"
    recipe.write_text("# @package _global_\noptimizer: {lr: 1e-3}\n")
    grid = (
        "--config-dir", str(tmp_path / "conf"), "-m", *TINY, "experiment=mine", "data=folder",
        f"data.train={photographs}", "trainer.steps=4", "trainer.eval_every=4", "checkpoint.every=4", "seed=0,1",
        "trainer.resume=true",
    )  # fmt: skip

    def started(*more: str) -> dict[str, int]:
        """Per job how often it was really started: its log grows then."""
        done = sr_run(*grid, *more)
        assert "2 of 2 jobs finished" in done.stdout and done.stderr.count(": finished, PSNR") == 2, done.stderr
        (sweep,) = tmp_path.glob("outputs/sweeps/*")
        return {path.parent.name: path.stat().st_size for path in sweep.glob("*/job.log")}

    once = started()
    assert len(list(tmp_path.glob("outputs/runs/*/*"))) == 2 and all(once.values())
    (result,) = (path for path in tmp_path.glob("outputs/runs/*/*/result.json") if _seed(path) == 1)
    result.unlink()
    again = started()
    assert again["seed=0"] == once["seed=0"] and again["seed=1"] > once["seed=1"]  # nothing was built for the other
    without_mlflow = "defaults: [{override /tracker: none}]"  # from here on: it has nothing to do with what follows
    recipe.write_text(f"# @package _global_\n{without_mlflow}\noptimizer: {{lr: 2e-3}}\n")
    other = started()
    assert all(other[name] > again[name] for name in other)
    assert len(list(tmp_path.glob("outputs/runs/*/*"))) == 4
    Image.new("RGB", (96, 96), (9, 8, 7)).save(photographs / "1.png")
    assert all(size > other[name] for name, size in started().items())
    assert len(list(tmp_path.glob("outputs/runs/*/*"))) == 6
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    assert (sweep / "sender.log").exists() and not list(tmp_path.glob("outputs/runs/*/*/sender.log"))  # one for all


def _seed(result: Path) -> int:
    seed: int = json.loads((result.parent / "run.json").read_text())["facts"]["seed"]
    return seed


def test_a_record_holds_for_the_same_overrides_and_sources(tmp_path: Path) -> None:
    job = Job(
        0, "seed=0", {"seed": "0"}, ["a=1", "seed=0", "trainer.resume=true"], "finished", "a/a0001-00", sources="s"
    )
    (tmp_path / "seed=0").mkdir()
    write_job(tmp_path / "seed=0", job)
    board = Board(tmp_path, ["seed"], "sr-run -m")
    assert finished_before(board, "s") == {determining(["seed=0", "a=1"]): job}
    assert finished_before(board, "another") == {}


def test_the_sources_are_the_config_tree_and_the_environment_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("a: ${oc.env:MINE,nothing}\n")
    loader = Application(extra_dir=str(tmp_path)).config_loader

    def digest(*overrides: str) -> str:
        return sources_digest(loader, overrides, tmp_path / "outputs")

    first = digest()
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "config.yaml").write_text("a: 1\n")
    monkeypatch.setenv("OTHER", "1")
    assert digest() == first == digest("seed=0")
    assert digest("seed=${oc.env:OTHER}") != first
    monkeypatch.setenv("MINE", "1")
    assert digest() != first
    monkeypatch.delenv("MINE")
    (tmp_path / "mine.yaml").write_text("a: 2\n")
    assert digest() != first
