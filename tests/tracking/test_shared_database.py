"""Folders of outputs that share one database of MLflow, and a journal that cannot be written."""

from __future__ import annotations

import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from support import TINY, SrRun, command, environment

from sr_runner.mlflow_server import Server

SAME = ("scheduler=constant", *TINY, "trainer.resume=true")


def points(database: Path) -> dict[str, list[tuple[str, int]]]:
    """Of each run by its attempt: metric and step of every point that is there."""
    with sqlite3.connect(database) as opened:
        attempts = dict(opened.execute("select run_uuid, value from tags where key = 'sr_run.attempt'").fetchall())
        rows = opened.execute("select run_uuid, key, step from metrics order by key, step").fetchall()
    assert {run for run, _, _ in rows} == set(attempts)
    return {attempt: [(key, step) for run, key, step in rows if run == ident] for ident, attempt in attempts.items()}


def attempt_in(outputs: Path) -> str:
    (folder,) = (outputs / "runs").glob("*/*")
    return f"{folder.parent.name}/{folder.name}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_folders_of_outputs_on_one_database_keep_their_runs_apart(tmp_path: Path, image_cache: Path) -> None:
    database = tmp_path / "one.db"

    def run(name: str, steps: int) -> subprocess.CompletedProcess[str]:
        words = [
            *SAME,
            "data=sample",
            f"trainer.steps={steps}",
            f"outputs={tmp_path / name}",
            f"data.cache_dir={image_cache}",
        ]
        return subprocess.run(
            command(*words, f"tracker.uri=sqlite:///{database}"), cwd=tmp_path, env=environment(),
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip

    for steps in (4, 6):
        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(run, ("left", "right"), (steps, steps)))
        assert [each.returncode for each in ended] == [0, 0], ended
    left, right = (attempt_in(tmp_path / name) for name in ("left", "right"))
    found = points(database)
    assert left != right and set(found) == {left, right}
    assert found[left] == found[right] and len(set(found[left])) == len(found[left])
    assert ("train/loss", 6) in found[left] and ("train/loss", 2) in found[left]


@pytest.mark.parametrize("harm", ["a folder in its place", pytest.param("read-only", marks=pytest.mark.slow)])
def test_a_journal_that_cannot_be_written_is_one_sentence_and_costs_nothing(
    harm: str, tmp_path: Path, photographs: Path, sr_run: SrRun
) -> None:
    words = (*SAME, "data=folder", f"data.train={photographs}", f"data.valid={photographs}")
    sr_run(*words, "trainer.steps=4")
    (journal,) = (tmp_path / "outputs" / "runs").glob("*/*/journal.jsonl")
    kept = journal.with_name("kept")
    if harm == "read-only":
        made = subprocess.run(["chattr", "+i", str(journal)], capture_output=True, check=False)
        if made.returncode:
            pytest.skip("this file system has no immutable files, and root may write to any other")
    else:
        journal.rename(kept)
        journal.mkdir()
    try:
        refused = sr_run(*words, "trainer.steps=6", code=2)
    finally:
        if harm == "read-only":
            subprocess.run(["chattr", "-i", str(journal)], check=True)
    assert (
        f"{journal} cannot be written (" in refused.stderr and "expected a file that can be written" in refused.stderr
    )
    assert "Traceback" not in refused.stderr and len([*(tmp_path / "outputs" / "runs").glob("*/*")]) == 1
    if kept.exists():
        journal.rmdir()
        kept.rename(journal)
    sr_run(*words, "trainer.steps=6")
    found = points(tmp_path / "outputs" / "mlflow.db")
    assert list(found) == [attempt_in(tmp_path / "outputs")]
    (mine,) = found.values()
    assert len(set(mine)) == len(mine) and {2, 4, 6} == {step for key, step in mine if key == "train/loss"}


def test_a_database_that_is_deleted_just_as_somebody_has_connected_to_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, connect = tmp_path / "mlflow.db", mlflow.MlflowClient
    server = Server(f"sqlite:///{database}", tmp_path / "artifacts")

    def connected(uri: str) -> mlflow.MlflowClient:
        client = connect(uri)
        client.search_experiments()
        database.unlink()
        return client

    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "MlflowClient", connected)
        server.ask(lambda client: None)
    assert server.ask(lambda client: client.create_experiment("mine")) and database.is_file()
