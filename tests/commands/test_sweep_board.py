"""The table of a sweep, and what a person finds of it on MLflow's pages."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support import TINY, SrRun

from sr_runner.commands.sweep import compared
from sr_runner.commands.sweep_board import Board, Job, SweepRun, planned, quoted, read_job, write_job
from sr_runner.tracking import NoTracker

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


FORGED = json.dumps(
    {"number": 1, "name": "a", "values": {"seed": "0"}, "overrides": [], "status": "finished", "psnr": "high"}
)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """A sweep of two rates and two seeds: three jobs have ended, one by a fault; one is left."""
    plan = planned({"optimizer.lr": ["1e-4", "1e-3"], "seed": ["0", "1"]})
    board = Board(tmp_path, ["optimizer.lr", "seed"], "sr-run -m ... trainer.resume=true", plan)
    for number, (psnr, error) in enumerate([(30.0, ""), (31.0, ""), (None, "it broke\x1b[31m")]):
        job = Job(number, board.name(plan[number]), plan[number], [], "failed" if error else "finished", error=error)
        (tmp_path / str(number)).mkdir()
        write_job(
            tmp_path / str(number), replace(job, psnr=psnr, gain=0.5, seconds=3.0, run="edsr-x2-0123456789ab/a0001-00")
        )
    return board


def test_the_best_job_comes_first_then_those_that_failed_and_are_left(board: Board) -> None:
    jobs = board.jobs()
    assert [(job.name, job.status) for job in jobs] == [
        ("lr=1e-4 seed=1", "finished"), ("lr=1e-4 seed=0", "finished"), ("lr=1e-3 seed=0", "failed"),
        ("lr=1e-3 seed=1", "left"),
    ]  # fmt: skip
    table = board.table(jobs)
    assert [line.split()[:4] for line in table.splitlines() if line.startswith("*")] == [["*", "1e-4", "1", "31.00"]]
    assert "30.50 ± 0.71 dB (2 seeds)  lr=1e-4" in table and "Best: lr=1e-4, PSNR 30.50 ± 0.71 dB over 2 seeds" in table
    assert "2 of 4 jobs finished, 1 failed, 1 left" in table and "Go on with: sr-run -m ... trainer" in table
    assert "it broke" in table and "\x1b" not in table


def test_the_best_job_is_that_of_the_metric_that_runs_keep_their_best_by(board: Board) -> None:
    board = replace(board, metric="lpips", lower_is_better=True)
    measured: list[dict[str, float]] = [{"valid/lpips": 0.3}, {"valid/lpips": 0.4, "final/lpips": 0.2}]
    for number, metrics in enumerate(measured):
        job = read_job(board.folder / str(number))
        assert job is not None
        write_job(board.folder / str(number), replace(job, psnr=30.0 - number, metrics=metrics))
    jobs = board.jobs()
    assert [(job.number, board.value(job)) for job in jobs][:2] == [(1, 0.2), (0, 0.3)]
    table = board.table(jobs)
    assert table.splitlines()[2].split() == ["lr", "seed", "LPIPS", "PSNR", "gain", "status", "time", "run"]
    best = [line.split()[:5] for line in table.splitlines() if line[:1] == "*"]
    assert best == [["*", "1e-4", "1", "0.2000", "29.00"]]
    assert "LPIPS over seeds: mean and standard deviation" in table
    assert "Best: lr=1e-4, LPIPS 0.2500 ± 0.0707 over 2 seeds" in table
    board.write(jobs)
    assert "LPIPS 0.2500" in (board.folder / "sweep.html").read_text()
    assert [job.number for job in replace(board, lower_is_better=False).jobs()][:2] == [0, 1]


def test_a_sweep_that_grew_has_the_jobs_of_both_grids_and_its_status_is_that_of_the_new_one(board: Board) -> None:
    board = replace(board, planned=planned({"optimizer.lr": ["1e-4", "1e-2"], "seed": ["0", "1"]}))
    assert len(board.jobs()) == 5 and board.swept(board.jobs())["optimizer.lr"] == ["1e-4", "1e-3", "1e-2"]
    assert [job.name for job in board.of_this_start()] == [
        "lr=1e-4 seed=1", "lr=1e-4 seed=0", "lr=1e-2 seed=0", "lr=1e-2 seed=1",
    ]  # fmt: skip


class Notes(NoTracker):
    """Keeps what it is told to tag, and knows where runs are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, str] = {}

    def tag(self, tags: Mapping[str, str]) -> None:
        self.tags |= tags

    def ui_hint(self, runs: Sequence[Path] = ()) -> tuple[str, str]:
        return "mlflow ui", " ".join(path.parent.name for path in runs)


def test_of_many_jobs_the_page_of_the_sweep_and_the_address_name_the_best(tmp_path: Path) -> None:
    plan = planned({"seed": [str(seed) for seed in range(1000)]})
    board, tracker = Board(tmp_path, ["seed"], "sr-run", plan), Notes()
    for number in range(60):
        job = Job(number, board.name(plan[number]), plan[number], [], "finished")
        (tmp_path / str(number)).mkdir()
        write_job(
            tmp_path / str(number), replace(job, psnr=20 + number / 10, run=f"net{number}-x2-0123456789ab/a0001-00")
        )
    run = SweepRun(tracker, board)
    run.start()
    jobs = run.finish("KILLED", 0)
    page = tracker.tags["mlflow.note.content"]
    assert len(page) < 8000 and "18, …, 999 (1,000 values)" in page and "| 59 | 25.90" in page
    *_, first, command, address = compared(tracker, jobs, board.runs).splitlines()
    assert first == "Compare     the best 50 of 60 jobs" and command.strip() == "mlflow ui"
    assert address.split()[2:] == [f"net{number}-x2-0123456789ab" for number in range(59, 9, -1)]
    short = compared(tracker, jobs[:3], board.runs)
    assert "best" not in short and short.count("net") == 3


def test_a_record_that_cannot_be_read_is_a_job_that_is_left(board: Board) -> None:
    for number, text in enumerate(["", "[" * 100_000, FORGED.replace('"high"', "1" + "0" * 400)]):
        (board.folder / str(number) / "job.json").write_text(text)
    assert {job.status for job in board.jobs()} == {"left"}


def test_a_job_whose_psnr_is_no_number_is_not_the_best(board: Board) -> None:
    (last,) = (job for job in board.jobs() if job.name == "lr=1e-4 seed=0")
    write_job(board.folder / "0", replace(last, psnr=float("nan")))
    assert [job.psnr for job in board.jobs()] == [31.0, None, None, None]


def test_a_sweep_that_goes_on_with_its_keys_in_another_order_has_the_same_jobs(board: Board) -> None:
    board = replace(board, planned=planned({"seed": ["0", "1"], "optimizer.lr": ["1e-4", "1e-3"]}))
    assert len(board.jobs()) == 4 == len(board.of_this_start())


def test_the_command_that_goes_on_is_the_one_that_was_typed() -> None:
    assert quoted(["-m", "seed=0,1", "+trainer.resume=false", "data.train='a b'"]) == (
        "sr-run -m seed=0,1 'data.train='\"'\"'a b'\"'\"'' trainer.resume=true"
    )


def test_a_record_that_names_another_folder_as_its_run_shows_nothing_of_that(board: Board, tmp_path: Path) -> None:
    board.runs = tmp_path / "outputs" / "runs"
    (board.runs / "a").mkdir(parents=True)
    pictures = tmp_path / "secret" / "pictures"
    pictures.mkdir(parents=True)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(pictures / "step-00000001-cat.png")
    job = replace(board.jobs()[0], run="../../secret")
    assert board._row(job).pictures == {} and "data:image" not in page_of(board, job)
    (board.runs / "a" / "a0001-cafe").symlink_to(tmp_path / "secret")
    assert board._row(replace(job, run="a/a0001-cafe")).pictures == {}


def test_the_page_begins_with_the_best_setting(board: Board) -> None:
    text = board.write(board.jobs())[1].read_text()
    assert "Best: lr=1e-4, PSNR 30.50 \\u00b1 0.71 dB over 2 seeds" in text


def page_of(board: Board, job: Job) -> str:
    return board.write([job])[1].read_text()


@pytest.fixture
def mlflow_ui(tmp_path: Path) -> Iterator[str]:
    """The address of a real `mlflow ui` on the database of `tmp_path`'s outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    uri = f"sqlite:///{tmp_path}/outputs/mlflow.db"
    with subprocess.Popen([*command, "--backend-store-uri", uri], cwd=tmp_path, start_new_session=True) as server:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def page(address: str) -> str:
    """The text of a page once its scripts have run."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,2400"]
    limits = ["--virtual-time-budget=30000", "--dump-dom"]
    done = subprocess.run([*command, *limits, address], capture_output=True, text=True, timeout=120, check=True)
    return " ".join(re.sub(r"<[^>]*>", " ", done.stdout).split())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_mlflows_pages_show_the_jobs_by_what_was_swept_and_compare_them_by_it(
    sr_run: SrRun, tmp_path: Path, mlflow_ui: str
) -> None:
    done = sr_run("-m", *TINY, "model=edsr,wdsr_b", "optimizer.lr=1e-3,3e-3")
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(mlflow_ui, timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    names = [f"{model} lr={rate}" for model in ("edsr", "wdsr_b") for rate in ("0.001", "0.003")]
    runs = page(f"{mlflow_ui}/#/experiments/1/runs?workflowType=machine_learning")
    charts = page(f"{mlflow_ui}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART")
    assert all(name in runs and name in charts for name in [*names, "sweep model lr"])
    # How many charts each section has; the best PSNR stands first.
    assert re.search(r"runs best \(2\) .* checkpoint \(\d+\) .* train \([1-9]\d*\) .* valid \([1-9]\d*\)", charts), (
        charts
    )
    (path,) = re.findall(r"http://127.0.0.1:5000(/#/compare-runs\S+)", done.stdout)
    compared = page(mlflow_ui + path)
    assert "Comparing 4 Runs" in compared and all(name in compared for name in names)
    axes = compared.partition("Parameters:")[2].partition("Clear All")[0]
    assert re.findall(r"model|optimizer\.lr|[a-z]+/psnr", axes.partition("Metrics:")[0]) == ["model", "optimizer.lr"]
    assert "best/psnr" in axes.partition("Metrics:")[2]
    (sweep,) = tmp_path.glob("outputs/sweeps/*/tracker.json")
    parent = page(f"{mlflow_ui}/#/experiments/1/runs/{json.loads(sweep.read_text())['run_id']}")
    assert "Best: " in parent and "4 of 4 jobs finished" in parent and "jobs/best_psnr" in parent
