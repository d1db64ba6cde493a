"""How a sweep ends: by a signal, and what it says of jobs that could not be done."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hydra.plugins.sweeper import Sweeper
from mlflow import MlflowClient
from run_server import Run, RunServer
from support import TINY, SrRun, environment, wait_until

from sr_runner.commands.run import main

SWEEP = (
    "-m", *TINY, "trainer.steps=4,150,5", "trainer.log_every=50", "trainer.eval_every=150", "checkpoint.every=10",
    "tracker=none",
)  # fmt: skip


def test_a_signal_in_the_second_of_three_jobs_keeps_its_checkpoint_and_the_same_command_goes_on(
    sr_run: SrRun, run_server: RunServer, tmp_path: Path, image_cache: Path
) -> None:
    said = tmp_path / "said"
    run = run_server.start([*SWEEP, f"data.cache_dir={image_cache}"], tmp_path, tmp_path / "report", said)
    saved = "outputs/checkpoints/*"
    wait_until(lambda: list(tmp_path.glob(f"{saved}/*/step-00000010/manifest.json")), "a checkpoint of the second")
    os.killpg(run.pid, signal.SIGHUP)  # as a terminal that is closed
    assert run.wait() == 128 + signal.SIGHUP, said.read_text()
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    records = [json.loads((sweep / f"trainer.steps={steps}" / "job.json").read_text()) for steps in (4, 150)]
    assert [record["status"] for record in records] == ["finished", "stopped"] and not (
        sweep / "trainer.steps=5"
    ).exists()
    report = (tmp_path / "report").read_text()
    assert "1 of 3 jobs finished, 1 stopped, 1 left" in report
    (command,) = re.findall("Go on with: sr-run (.*)", report)
    assert len(list(tmp_path.glob(saved))) == 2 and "Traceback" not in said.read_text()
    assert "saved step" not in said.read_text(), "one command goes on with the sweep, not one for each job"

    done = sr_run(*shlex.split(command))
    assert "3 of 3 jobs finished" in done.stdout and "job 1 of 3: steps=4: finished, PSNR" in done.stderr
    assert "resumed at step" in (sweep / "trainer.steps=150" / "job.log").read_text()
    assert "resumed" not in (sweep / "trainer.steps=4" / "job.log").read_text()
    assert list(tmp_path.glob("outputs/sweeps/*")) == [sweep]
    assert len(list(tmp_path.glob(saved))) == 3 and len(list(tmp_path.glob(f"{saved}/*"))) == 3


def test_a_job_that_cannot_be_done_is_said_in_one_sentence(sr_run: SrRun, tmp_path: Path) -> None:
    done = sr_run("-m", *TINY, "seed=0", "checkpoint.init_from=nowhere-x2-000000000000", "tracker=none", code=1)
    (log,) = tmp_path.glob("outputs/sweeps/*/job/job.log")
    for text in (done.stderr, log.read_text()):
        assert text.count("checkpoint.init_from=nowhere-x2-000000000000: ") == 1 and "Traceback" not in text, text
    assert "Error executing" not in done.stderr  # Hydra's line, a second message


def test_a_sweep_that_is_to_stop_at_a_failure_starts_no_further_job_and_one_of_an_earlier_start_stops_nothing(
    sr_run: SrRun, tmp_path: Path
) -> None:
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "sweep.failed").touch()  # what an earlier start has left
    done = sr_run(
        "-m", *TINY, "trainer.steps=1", "trainer.log_every=1", "trainer.eval_every=1", "tracker=none",
        "sweep.on_failure=stop", "hydra.sweep.dir=swept",
        f"checkpoint.init_from=null,{tmp_path / 'a.pt'},{tmp_path / 'b.pt'}", code=1,
    )  # fmt: skip
    assert "1 of 3 jobs finished, 1 failed, 1 left" in done.stdout and "sweep.on_failure=stop" in done.stdout


JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=4")
RAY = ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=4")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("launcher", [(), JOBLIB, RAY], ids=["", "joblib", "ray"])
def test_a_sweep_that_is_killed_at_random_instants_and_repeated_ends_like_one_that_was_not(
    launcher: tuple[str, ...], run_server: RunServer, tmp_path: Path, image_cache: Path
) -> None:
    if launcher == RAY:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="sr-run[ray] is not installed")
    sweep = (
        "-m", *TINY, "trainer.steps=90", "trainer.eval_every=30", "checkpoint.every=10", "trainer.log_every=10",
        "model=edsr,wdsr_b", "optimizer.lr=1e-3,3e-3", "seed=0,1,2", f"data.cache_dir={image_cache}",
    )  # fmt: skip

    def started(outputs: str, *launcher: str) -> Run:
        said = [tmp_path / f"{outputs}-{stream}" for stream in ("report", "said")]
        return run_server.start([*sweep, *launcher, f"outputs={outputs}", "trainer.resume=true"], tmp_path, *said)

    def saved() -> set[Path]:
        return set((tmp_path / "killed").glob("checkpoints/*/*/step-*"))

    def final(outputs: str) -> dict[str, list[bytes]]:
        attempts = (tmp_path / outputs / "checkpoints").glob("*/*")
        return {
            f"{attempt.parent.name}/{attempt.name[:5]}": [
                file.read_bytes() for file in sorted(max(attempt.glob("step-*")).glob("*.safetensors"))
            ]
            for attempt in attempts
        }

    generator, kills, amid_training = random.Random(7), 0, 0
    for number in range(10):
        there, run = saved(), started("killed", *launcher)
        process = psutil.Process(run.pid)
        while number % 4 and not saved() - there and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        time.sleep(generator.uniform(0, 3))
        amid_training += bool(saved() - there)
        for each in process.children(recursive=True) if number % 2 else ():  # or what it has started lives on for a bit
            with suppress(psutil.NoSuchProcess):
                each.kill()
        if run.kill() != -signal.SIGKILL:
            break
        kills += 1
    assert kills >= 6 and amid_training >= 5
    assert started("killed", *launcher).wait(600) == 0, (tmp_path / "killed-said").read_text()
    assert started("whole").wait(600) == 0
    assert len(final("whole")) == 12 and final("killed") == final("whole")
    client = MlflowClient(f"sqlite:///{tmp_path}/killed/mlflow.db")
    runs = client.search_runs(["1"])
    assert len(runs) == 13 and {run.info.status for run in runs} == {"FINISHED"}
    points = [[point.step for point in client.get_metric_history(each.info.run_id, "train/loss")] for each in runs]
    assert sorted(points) == [[], *[list(range(10, 91, 10))] * 12]


@pytest.mark.slow
def test_what_joblib_has_started_ends_when_the_sweep_is_killed(tmp_path: Path, image_cache: Path) -> None:
    sweep = (
        *TINY, "trainer.steps=100000", "seed=0,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        f"data.cache_dir={image_cache}",
    )  # fmt: skip
    command = [sys.executable, "-m", "sr_runner.commands.run", "-m", *sweep]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=said, stderr=said)
    wait_until(lambda: len(list(tmp_path.glob("outputs/checkpoints/*/*/step-*"))) >= 2, "two jobs that train")
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(started) > 2
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert len({path.parts[-3] for path in tmp_path.glob("outputs/checkpoints/*/*/step-*")}) == 2


def test_no_job_is_composed_once_more_before_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_cache: Path
) -> None:
    """Hydra would compose all of them to see whether they are legal, which takes minutes for a thousand."""
    monkeypatch.setattr(Sweeper, "validate_batch_is_legal", lambda *_: pytest.fail("all jobs are composed"))
    monkeypatch.chdir(tmp_path)
    sweep = (*TINY, "trainer.steps=1", "tracker=none", "seed=0,1", f"data.cache_dir={image_cache}")
    assert main(["-m", *sweep]) == 0
    assert len(list(tmp_path.glob("outputs/runs/*/*"))) == 2
