"""Jobs that a scheduler starts again under the same command: Slurm's requeue, submitit's, torchrun's restarts.

Such a job is to go on with the attempt that it worked on before, although its arguments may say `trainer.resume=false`:
they were written for its first life.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from sr_runner.runs import folder


@dataclass(frozen=True)
class Job:
    """What started this process, where that starts the same command again."""

    key: str
    restarted: bool
    """Whether this may be another life of the job than the first."""


def current() -> Job | None:
    """This process's job, by the environment; None outside any."""
    found = [job for job in (_slurm(), _submitit_local(), _torchrun()) if job is not None]
    return Job(found[0].key, any(job.restarted for job in found)) if found else None


def remember(attempt: Path) -> None:
    """Write into the folder of an attempt that this process's job works on it."""
    job = current()
    if job is not None and job.key not in folder.jobs(attempt):
        folder.add_job(attempt, job.key)


def _slurm() -> Job | None:
    """An array's tasks have one id in common and a number each. https://slurm.schedmd.com/sbatch.html"""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    words = ("slurm", os.environ.get("SLURM_CLUSTER_NAME", ""), f"{array}_{task}" if array and task else job)
    return Job(" ".join(filter(None, words)), int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0)


def _submitit_local() -> Job | None:
    """submitit's own executor does not say which life this is; but one job is one call of one function."""
    job = os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    if not job:
        return None
    return Job(f"submitit {platform.node()} {job} {os.environ.get('SUBMITIT_FOLDER', '')}".rstrip(), True)


def _torchrun() -> Job | None:
    """With `--max-restarts`. Without `--rdzv-id` a start is known by torchrun's own process."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if count is None:
        return None
    start = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    start = f"{platform.node()} {os.getppid()}" if start == "none" else start
    return Job(f"torchrun {start}", int(count) > 0)
