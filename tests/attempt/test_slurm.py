"""A job that is preempted and started again: by Slurm under the same command, or by submitit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ranks
from mlflow import MlflowClient
from support import TINY, SrRun, command, environment

from sr_runner.attempt import scheduler as jobs
from sr_runner.commands import run as cli
from sr_runner.runs import folder as files

LONG = (*TINY, "trainer.steps=300", "trainer.log_every=50", "trainer.eval_every=150", "checkpoint.every=30")

SLURM = {
    "sbatch": """cp "$1" "$SLURM_FAKE/script"; "$SLURM_FAKE/life" 0 >"$SLURM_FAKE/log" 2>&1 </dev/null &
echo "Submitted batch job 4711" """,
    "life": """export SLURM_JOB_ID=4711 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_RESTART_COUNT=$1
echo RUNNING >"$SLURM_FAKE/state"; rm -f "$SLURM_FAKE/requeued"
bash "$SLURM_FAKE/script"
if [ -e "$SLURM_FAKE/requeued" ]; then exec "$0" $(($1 + 1)); fi
echo COMPLETED >"$SLURM_FAKE/state" """,
    "srun": """while [ "${1#-}" != "$1" ]; do
  case "$1" in --output | --error) shift 2 ;; *) shift ;; esac
done
echo $$ >"$SLURM_FAKE/pid"; exec "$@" """,
    "scontrol": """[ "$*" = "requeue 4711" ] && touch "$SLURM_FAKE/requeued" """,
    "sacct": """printf 'JobID|State|NodeList\\n4711|%s|here\\n' "$(cat "$SLURM_FAKE/state")" """,
}
"""As much of Slurm as submitit uses: a job is a script that runs here, again if it was requeued meanwhile."""


def wait_for(condition: Callable[[], object], process: subprocess.Popen, timeout: float = 300) -> None:
    began = time.monotonic()
    while not condition():
        assert process.poll() is None and time.monotonic() - began < timeout
        time.sleep(0.02)


def attempts(outputs: Path) -> list[Path]:
    return sorted((outputs / "runs").glob("*/a*"))


def checkpoints(outputs: Path) -> list[Path]:
    return [manifest.parent for manifest in outputs.glob("checkpoints/*/*/step-*/manifest.json")]


def final_bytes(outputs: Path) -> dict[str, bytes]:
    """Of every run in `outputs`, by identity; each has one attempt."""
    found = {}
    for attempt in (outputs / "checkpoints").glob("*/a*"):
        assert attempt.parent.name not in found
        tensors = sorted(max(attempt.glob("step-*")).glob("*.safetensors"))
        found[attempt.parent.name] = b"".join(file.read_bytes() for file in tensors)
    return found


def assert_one_run_each_without_a_gap(outputs: Path, number: int) -> None:
    """In MLflow: the sweep's runs are finished and have one point per metric and step."""
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    children = [run for run in runs if run.data.tags["sr_run.attempt"][:6] != "sweep/"]
    assert len(children) == number and len(runs) == number + 1
    for run in children:
        assert run.info.status == "FINISHED"
        losses = client.get_metric_history(run.info.run_id, "train/loss")
        assert [point.step for point in losses] == list(range(50, 301, 50))


def test_a_requeued_slurm_job_goes_on_with_the_attempt_that_it_opened_whatever_its_arguments_say(
    tmp_path: Path, image_cache: Path
) -> None:
    arguments = (*LONG, "trainer.eval_every=100000", "scheduler=constant", "tracker=none")

    def life(steps: int, **environment: str) -> ranks.Ranks:
        def work(rank: int) -> int:
            os.environ |= {"SLURM_JOB_ID": "4711"} | environment
            return cli.main([*arguments, f"trainer.steps={steps}", f"data.cache_dir={image_cache}"])

        return ranks.start(work, tmp_path, number=1)

    first = life(100_000)
    while not checkpoints(tmp_path / "outputs"):
        assert first.alive(), ranks.said(tmp_path, 1)
        time.sleep(0.02)
    os.kill(first.pids[0], signal.SIGUSR1)
    assert first.wait() == [128 + signal.SIGUSR1]
    (attempt,) = attempts(tmp_path / "outputs")
    stopped_at = int(max(checkpoints(tmp_path / "outputs")).name.removeprefix("step-"))

    assert life(stopped_at + 1, SLURM_RESTART_COUNT="1").wait() == [0]
    assert attempts(tmp_path / "outputs") == [attempt]
    assert f"goes on with {attempt.parent.name}/{attempt.name}" in ranks.said(tmp_path, 1)
    assert f"resumed at step {stopped_at} of {stopped_at + 1}" in ranks.said(tmp_path, 1)


def test_only_a_restarted_job_goes_on_and_only_with_attempts_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    jobs.remember(tmp_path)
    first = jobs.current()
    assert first is not None and not first.restarted
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = jobs.current()
    assert again is not None and again.restarted and again.key in files.jobs(tmp_path)
    for key, value in (("SLURM_JOB_ID", "4712"), ("SLURM_CLUSTER_NAME", "another")):
        with monkeypatch.context() as changed:
            changed.setenv(key, value)
            other = jobs.current()
            assert other is not None and other.key not in files.jobs(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert jobs.current() is None


def test_the_tasks_of_a_slurm_array_are_jobs_of_their_own_and_keep_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = []
    for job, task in (("50", "0"), ("51", "1"), ("99", "1")):  # the last one requeued, under a new raw id
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "50")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        keys.append(jobs.current().key)  # type: ignore[union-attr]
    assert keys[0] != keys[1] == keys[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_of_submitits_local_executor_are_preempted_and_go_on(
    sr_run: SrRun, tmp_path: Path, image_cache: Path
) -> None:
    sweep = ("-m", *LONG, "optimizer.lr=1e-4,1e-3")
    process = subprocess.Popen(
        command(*sweep, "hydra/launcher=submitit_local", f"data.cache_dir={image_cache}"), cwd=tmp_path,
        env=environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: len({each.parent for each in checkpoints(tmp_path / "outputs")}) == 2, process)
    below = psutil.Process(process.pid).children(recursive=True)
    jobs = [each for each in below if "submitit.core._submit" in each.cmdline()]
    assert len(jobs) == 2
    for each in jobs:
        each.send_signal(signal.SIGUSR2)
    assert process.wait(600) == 0
    assert len(attempts(tmp_path / "outputs")) == 2
    assert_one_run_each_without_a_gap(tmp_path / "outputs", 2)
    sr_run(*sweep, "outputs=unbroken")
    assert final_bytes(tmp_path / "outputs") == final_bytes(tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_submitits_slurm_job_asks_for_its_requeue_after_its_checkpoint(
    sr_run: SrRun, tmp_path: Path, image_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "slurm"
    fake.mkdir()
    for name, script in SLURM.items():
        (fake / name).write_text(f"#!/bin/bash\n{script}\n")
        (fake / name).chmod(0o755)
    monkeypatch.setenv("SLURM_FAKE", str(fake))
    monkeypatch.setenv("PATH", str(fake), prepend=os.pathsep)
    sweep = ("-m", *LONG, "optimizer.lr=1e-3")
    process = subprocess.Popen(
        command(*sweep, "hydra/launcher=submitit_slurm", f"data.cache_dir={image_cache}"), cwd=tmp_path,
        env=environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(2):
        life = (fake / "pid").read_text() if (fake / "pid").exists() else ""
        wait_for(lambda life=life: (fake / "pid").exists() and (fake / "pid").read_text() != life, process)
        there = set(checkpoints(tmp_path / "outputs"))
        wait_for(lambda there=there: set(checkpoints(tmp_path / "outputs")) - there, process)
        os.kill(int((fake / "pid").read_text()), signal.SIGUSR2)
    assert process.wait(600) == 0
    assert (fake / "state").read_text() == "COMPLETED\n"
    assert len(attempts(tmp_path / "outputs")) == 1
    assert_one_run_each_without_a_gap(tmp_path / "outputs", 1)
    sr_run(*sweep, "outputs=unbroken")
    assert final_bytes(tmp_path / "outputs") == final_bytes(tmp_path / "unbroken")


def has_slurm() -> bool:
    return shutil.which("sbatch") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not has_slurm(), reason="Slurm is not installed, or its controller does not answer")
def test_jobs_in_slurm_are_requeued_go_on_at_the_same_step_and_outlive_their_sweep_which_goes_on_all_the_same(
    sr_run: SrRun, tmp_path: Path, image_cache: Path
) -> None:
    sweep = ("-m", *LONG, "trainer.steps=6000", "trainer.eval_every=3000", "trainer.log_every=1000", "seed=0,1")

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(
                *sweep, "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=20", "trainer.resume=true",
                f"data.cache_dir={image_cache}",
            ),
            cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def steps(words: str) -> list[int]:
        logs = sorted(tmp_path.glob("outputs/runs/*/*/run.log"))
        return [int(step) for log in logs for step in re.findall(rf"{words} at step (\d+)", log.read_text())]

    try:
        first = start()
        wait_for(lambda: len({each.parent for each in checkpoints(tmp_path / "outputs")}) == 2, first)
        (job,) = {path.name.partition("_")[0] for path in tmp_path.glob("outputs/sweeps/*/.submitit/[0-9]*_[0-9]*")}
        subprocess.run(["scancel", "--signal=USR2", job], check=True)  # what Slurm sends before the time limit
        wait_for(lambda: len(steps("resumed")) == 2, first, 600)  # Slurm takes two minutes
        assert steps("resumed") == steps("stopping on signal 12")
        first.kill()
        first.wait()
        second = start()
        assert second.wait(900) == 0
    finally:
        for path in tmp_path.glob("outputs/sweeps/*/.submitit/[0-9]*_[0-9]*"):
            subprocess.run(["scancel", path.name])
    assert len(attempts(tmp_path / "outputs")) == 2
    sr_run(*sweep, "outputs=unbroken")
    assert final_bytes(tmp_path / "outputs") == final_bytes(tmp_path / "unbroken")
