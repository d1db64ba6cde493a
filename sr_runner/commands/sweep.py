"""The folder of a sweep: which jobs it has, how each ended."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf

from sr_runner.masking import masked

JOB = "job.json"


@dataclass(frozen=True)
class Job:
    """How one job of a sweep ended."""

    number: int
    overrides: list[str]
    status: str
    """finished, failed or stopped."""
    identity: str = ""
    log: str = ""
    psnr: float | None = None
    error: str = ""


def folder_for(outputs: Path, overrides: Sequence[str], *, resume: bool) -> Path:
    """Where a sweep keeps its record: `sweeps/<time>-<hash of what it sweeps>`.

    With `resume`, the newest folder of the same sweep, so that its jobs and its parent run go on.
    """
    what = sorted(o for o in overrides if not o.lstrip("+").startswith(("trainer.resume=", "hydra.")))
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
    earlier = sorted((outputs / "sweeps").glob(f"*-{digest}"))
    if resume and earlier:
        return earlier[-1]
    return outputs / "sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{digest}"


def write_job(folder: Path, job: Job) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB).write_text(json.dumps(asdict(job), indent=1) + "\n")


def mask_record(folder: Path) -> None:
    """Hydra writes the config of the whole sweep into its folder as it is: take the secrets out of it."""
    for record in (folder / "multirun.yaml", *folder.glob("*/.hydra/*.yaml")):
        if record.is_file():
            plain = OmegaConf.to_container(OmegaConf.load(record))
            if (clean := masked(plain)) != plain:
                record.write_text(OmegaConf.to_yaml(OmegaConf.create(clean)))


def read_jobs(sweep: Path) -> list[Job]:
    """The jobs that have ended, in order."""
    jobs = []
    for path in sweep.glob(f"*/{JOB}"):
        try:
            jobs.append(Job(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(jobs, key=lambda job: job.number)


def clear_jobs(sweep: Path) -> None:
    """Forget how jobs of an earlier life of the sweep ended."""
    for path in sweep.glob(f"*/{JOB}"):
        path.unlink(missing_ok=True)


def as_text(jobs: Sequence[Job], sweep: Path) -> str:
    """The table that ends a sweep."""
    lines = [f"\nSweep {sweep}"]
    for job in jobs:
        result = f"PSNR {job.psnr:.2f} dB" if job.psnr is not None else job.error
        lines.append(f"  {job.number:>3}  {job.status:<8}  {' '.join(job.overrides)}  {job.identity}  {result}")
        if job.status == "failed" and job.log:
            lines.append(f"       log: {job.log}")
    done = sum(job.status == "finished" for job in jobs)
    lines.append(f"{done} of {len(jobs)} jobs finished")
    return "\n".join(lines)
