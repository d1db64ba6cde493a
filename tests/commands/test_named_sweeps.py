"""`sweep.name`: one sweep, which grows by values, keys and settings."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf
from support import TINY, SrRun

from sr_runner.commands.sweep import _as_handed_on, _catch_up, _grown
from sr_runner.commands.sweep_board import Board, Job, read_job, write_job
from sr_runner.errors import RequestError
from sr_runner.masking import digested_overrides
from sr_runner.runs import folder as files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of two rates with 50 steps, both jobs finished."""
    for number, rate in enumerate(("0.001", "0.0003")):
        values, run = {"optimizer.lr": rate}, f"edsr-x2-00000000000{number}/a0001-00aa"
        overrides = ["trainer.steps=50", f"optimizer.lr={rate}", "outputs=there", "sweep.name=mine"]
        job = Job(number, f"lr={rate}", values, overrides, "finished", run=run, psnr=30.0 + number)
        (tmp_path / "mine" / f"optimizer.lr={rate}").mkdir(parents=True)
        write_job(tmp_path / "mine" / f"optimizer.lr={rate}", job)
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("swept", "constant", "columns"),
    [
        (["optimizer.lr"], {"trainer.steps": "50"}, ["optimizer.lr"]),
        (["seed"], {"trainer.steps": "50", "optimizer.lr": "0.1"}, ["optimizer.lr", "seed"]),
        (["optimizer.lr"], {"trainer.steps": "100"}, ["optimizer.lr", "trainer.steps"]),
        (["optimizer.lr", "trainer.steps"], {}, ["optimizer.lr", "trainer.steps"]),
        (["optimizer.lr"], {"trainer.steps": "50", "model": "wdsr_b"}, ["optimizer.lr", "model"]),
        (["optimizer.lr"], {"trainer.steps": "50", "outputs": "here", "tracker": "none"}, ["optimizer.lr"]),
    ],
)
def test_what_the_jobs_of_a_named_sweep_differ_by_becomes_a_column(
    swept: list[str], constant: dict[str, str], columns: list[str], folder: Path
) -> None:
    assert _grown(folder, swept, constant, resume=True) == columns


@pytest.mark.parametrize(
    ("swept", "constant", "resume", "said"),
    [
        (["optimizer.lr"], {}, True, "had trainer.steps=50; expected a value for that here too"),
        (["seed"], {"trainer.steps": "50"}, True, "had optimizer.lr|differ by optimizer.lr; expected a value"),
        (["optimizer.lr"], {"trainer.steps": "50"}, False, "expected trainer.resume=true too, or another name"),
    ],
)
def test_jobs_that_could_not_be_told_from_earlier_ones_are_refused(
    swept: list[str], constant: dict[str, str], resume: bool, said: str, folder: Path
) -> None:
    with pytest.raises(RequestError, match=said):
        _grown(folder, swept, constant, resume=resume)


def test_a_constant_secret_is_no_column(tmp_path: Path) -> None:
    overrides = ["model.token=S3CRET-1", "model.password=S3CRET-2", "data.url=http://me:S3CRET-3@host"]
    write_job(tmp_path, Job(0, "a", {"model.token": "x"}, digested_overrides(overrides), "finished"))
    (tmp_path / "a").mkdir()
    shutil.move(tmp_path / "job.json", tmp_path / "a")
    constant = _as_handed_on(overrides[1:])
    assert _grown(tmp_path, ["model.token"], constant, resume=True) == ["model.token"]
    assert "S3CRET" not in (tmp_path / "a" / "job.json").read_text()
    constant["model.password"] = "S3CRET-4"
    assert _grown(tmp_path, ["model.token"], constant, resume=True) == ["model.token", "model.password"]


def test_earlier_jobs_have_a_value_for_what_was_the_same_then(folder: Path) -> None:
    old = Board(folder, ["optimizer.lr", "trainer.steps"], "").jobs()
    assert [job.values["trainer.steps"] for job in old] == ["50", "50"] and old[0].name == "lr=0.0003 steps=50"


def test_a_finished_job_gets_the_value_that_it_had_for_what_is_swept_since(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "edsr-x2-000000000000" / "a0001-00aa"
    files.begin(run, {}, "optimizer: {lr: 0.001, eps: 1.0e-08}\ntrainer: {steps: 50}\n", {"step": 0})
    board = Board(folder, ["optimizer.lr", "optimizer.eps", "trainer.steps"], "", runs=tmp_path / "runs")
    _catch_up(board, OmegaConf.create({"_target_": "sr_runner.tracking.NoTracker"}))
    had = read_job(folder / "optimizer.lr=0.001")
    assert had is not None and had.name == "lr=0.001 eps=1e-08 steps=50"
    assert had.values == {"optimizer.lr": "0.001", "optimizer.eps": "1e-08", "trainer.steps": "50"}
    write_job(folder / "optimizer.lr=0.0003", replace(had, number=7))  # the same run, as a job of the larger grid
    assert [job.run for job in board.jobs()] == [had.run]


def test_a_run_that_two_jobs_share_is_in_the_table_once_with_most_said(folder: Path) -> None:
    values = {"optimizer.lr": "0.001", "seed": "0"}
    job = Job(0, "lr=0.001 seed=0", values, [], "finished", run="edsr-x2-000000000000/a0001-00aa", psnr=30.0)
    (folder / "new").mkdir()
    write_job(folder / "new", job)
    found = Board(folder, ["optimizer.lr", "seed"], "").jobs()
    assert [(job.values["optimizer.lr"], job.values.get("seed")) for job in found] == [("0.0003", None), ("0.001", "0")]


def test_a_name_is_a_name_and_the_only_place(sr_run: SrRun) -> None:
    assert "expected a name" in sr_run("-m", "seed=0,1", "sweep.name=../x", code=2).stderr
    assert "expected one of them" in sr_run("-m", "seed=0,1", "sweep.name=x", "hydra.sweep.dir=y", code=2).stderr


@pytest.mark.slow
def test_a_named_sweep_grows_and_trains_only_what_is_new(sr_run: SrRun, tmp_path: Path) -> None:
    named = (*TINY, "-m", "sweep.name=mine", "trainer.resume=true")

    def seconds() -> dict[str, str]:
        with (tmp_path / "outputs" / "sweeps" / "mine" / "sweep.csv").open() as file:
            return {row["run"]: row["seconds"] for row in csv.DictReader(file)}

    sr_run(*named, "trainer.steps=4", "optimizer.lr=1e-3,3e-4")
    took = seconds()
    sr_run(*named, "trainer.steps=4", "optimizer.lr=1e-3,3e-4", "seed=0,1")
    assert took.items() < seconds().items()  # though two jobs were looked at again
    done = sr_run(*named, "trainer.steps=5", "optimizer.lr=1e-3", "optimizer.eps=1e-7,1e-6", "seed=0")
    assert "6 of 6 jobs finished" in done.stdout
    logs = [log.read_text() for log in (tmp_path / "outputs" / "sweeps" / "mine").glob("*/job.log")]
    assert len(logs) == 6 and not any("near miss" in log for log in logs)  # which would be looked for among all jobs
    with (tmp_path / "outputs" / "sweeps" / "mine" / "sweep.csv").open() as file:
        keys = ("optimizer.lr", "seed", "trainer.steps", "optimizer.eps")
        rows = {tuple(row[key] for key in keys): row["run"] for row in csv.DictReader(file)}
    assert rows.keys() == {
        ("0.001", "0", "4", "1e-08"), ("0.001", "1", "4", "1e-08"), ("0.0003", "0", "4", "1e-08"),
        ("0.0003", "1", "4", "1e-08"), ("0.001", "0", "5", "1e-07"), ("0.001", "0", "5", "1e-06"),
    }  # fmt: skip
    assert len(set(rows.values())) == 6 == len(list((tmp_path / "outputs" / "runs").glob("*/*")))
    found = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db").search_runs(["1"])
    params = {run.data.tags["sr_run.attempt"]: [run.data.params.get(key) for key in keys] for run in found}
    assert {tuple(params[run]) for run in rows.values()} == rows.keys()
    assert {run.info.status for run in found} == {"FINISHED"}
