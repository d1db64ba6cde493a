"""`sr-run -m`: the jobs of a sweep, how each ended, and their parent run."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sr_runner.attempt import logs
from sr_runner.attempt.build import build
from sr_runner.attempt.execute import execute
from sr_runner.attempt.report import Shown
from sr_runner.config.compose import Application, job_config, job_request, jobs_to_check
from sr_runner.errors import RequestError, RunError
from sr_runner.files import LinkError, folder_named, own_folder, read_file, write_file
from sr_runner.masking import learn, masked, masked_text
from sr_runner.signals import Stopped, StopSignal
from sr_runner.tracking import Status, SweepParent, Tracker

log = logging.getLogger(__name__)

_PARENT_WAIT, _STOPPED_WAIT = 120.0, 15.0
"""Seconds to close the parent run: MLflow has to be imported for it. Who stops a sweep expects it to be gone soon."""
_RECORDS = "job-*.json"


@dataclass(frozen=True)
class Job:
    """How one job of a sweep ended. Its record is `job-<number>.json` in the sweep's folder."""

    number: int
    overrides: list[str]
    status: str
    """finished, failed or stopped."""
    identity: str = ""
    log: str = ""
    psnr: float | None = None
    error: str = ""


def sweep(app: Application, config_name: str, overrides: list[str], stop: StopSignal, *, in_json: bool = False) -> int:
    """Run the jobs that `overrides` and `hydra.sweeper.params` describe, by Hydra's sweeper and launcher.

    Prints how they ended as a table; `in_json` as a list of `Job`s, and nothing else.

    The exit status is 1 where a job failed. Raises `RequestError`, before any job starts, for a value that does not
    compose, and `Stopped` after a signal, once the job has its checkpoint: no further job is started.
    """
    whole = app.compose_config(config_name, overrides, RunMode.MULTIRUN)
    params = [f"{key}={value}" for key, value in (whole.hydra.sweeper.get("params") or {}).items()]
    all_overrides = [*params, *overrides]
    checked = [app.compose_config(config_name, each, RunMode.RUN) for each in jobs_to_check(all_overrides)]
    HydraConfig.instance().set_config(checked[0])
    config, _ = job_config(checked[0])
    tracker: Tracker = build(config.tracker, "tracker")
    if not whole.hydra.sweep.dir:
        folder = _folder(Path(config.outputs), all_overrides, resume=config.trainer.resume is not False)
    else:
        folder = folder_named("hydra.sweep.dir", whole.hydra.sweep.dir).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"hydra.sweep.dir={folder}: nothing can be written there ({error.strerror})") from error
    hydras = f"*/{whole.hydra.output_subdir or '.hydra'}"
    for path in (folder / "multirun.yaml", *folder.glob(hydras), *folder.glob(f"{hydras}/*.yaml")):
        if path.is_symlink():
            raise LinkError(path)  # Hydra writes there, and follows links
    for record in folder.glob(_RECORDS):  # of an earlier life of this sweep
        record.unlink()
    quoted = str(folder).replace("'", "\\'")
    status: Status = "KILLED"
    try:
        try:
            app.multirun(
                config_name,
                partial(job, shown="nothing" if in_json else "table"),
                [*overrides, "hydra.mode=MULTIRUN", f"hydra.sweep.dir='{quoted}'"],
            )
        except Exception as error:
            if not any(each.status == "failed" for each in _read_jobs(folder)):
                if not isinstance(error, HydraException | OmegaConfBaseException):
                    raise
                with app.explained(config_name, overrides):
                    raise
        jobs = _read_jobs(folder)
        failed = any(each.status != "finished" for each in jobs)
        status = "FAILED" if failed else "FINISHED"
        sys.stdout.write((json.dumps(list(map(asdict, jobs)), indent=1) if in_json else _table(jobs, folder)) + "\n")
        return int(failed)
    finally:
        with stop.deferred():  # what came is being heeded, or there is nothing left to stop
            tracker.close_parent(folder, status, wait=_PARENT_WAIT if status != "KILLED" else _STOPPED_WAIT)


def job(config: DictConfig, shown: Shown = "table") -> float | None:
    """One job of a sweep; its validation PSNR is what a sweeper optimises."""
    hydra = HydraConfig.get()
    folder, number = Path(hydra.sweep.dir).absolute(), int(hydra.job.num)
    request = job_request()
    given = masked(list(request.overrides))
    learn(OmegaConf.to_container(config))
    stop = StopSignal().install()
    logs.to_console()
    path = own_folder(folder, Path(hydra.runtime.output_dir).absolute()) / "job.log"

    def ended(status: str, **result: Any) -> None:
        record = Job(number, given, status, log=str(path), **result)
        write_file(folder / f"job-{number}.json", json.dumps(asdict(record), indent=1) + "\n")

    def failed(reason: str) -> None:
        ended("failed", error=masked_text(re.sub(r"\s+", " ", reason)))

    with logs.to_file(path):
        try:
            _check_launcher(hydra.launcher)
            config, choices = job_config(config)
            outcome = execute(config, choices, request, stop, SweepParent(folder, folder.name), shown=shown)
        except Stopped:
            ended("stopped")
            stop.hand_over()
            raise
        except (RequestError, RunError) as error:
            log.error("job %s failed: %s", " ".join(given), error)
            failed(f"{error}")
            raise
        except Exception as error:
            log.error("job %s failed", " ".join(given), exc_info=True)
            failed(f"{error!r}")
            raise
        finally:
            stop.uninstall()
    psnr = outcome.metrics.get("valid/psnr")
    ended("finished", identity=outcome.identity, psnr=psnr)
    stop.raise_if_requested()  # it came too late for this job: the next one is not to start
    return psnr


def _check_launcher(launcher: DictConfig) -> None:
    tasks = int(launcher.get("tasks_per_node") or 1) * int(launcher.get("nodes") or 1)
    if tasks > 1:
        raise RequestError(
            f"hydra.launcher: {tasks} tasks (tasks_per_node x nodes), but a job of a sweep is one process: expected 1. "
            "torchrun in a batch script trains one run on several GPUs"
        )


def _folder(outputs: Path, overrides: Sequence[str], *, resume: bool) -> Path:
    """Where a sweep keeps its record: `sweeps/<time>-<hash of what it sweeps>`.

    With `resume`, the newest folder of the same sweep, so that its jobs and its parent run go on.
    """
    what = sorted(o for o in overrides if not o.lstrip("+").startswith(("trainer.resume=", "hydra.", "hydra/")))
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
    earlier = sorted(path for path in (outputs / "sweeps").glob(f"*-{digest}") if not path.is_symlink())
    if resume and earlier:
        return earlier[-1]
    return outputs / "sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{digest}"


def _read_jobs(folder: Path) -> list[Job]:
    """The jobs that have ended, in order."""
    jobs = []
    for path in folder.glob(_RECORDS):
        try:
            jobs.append(Job(**json.loads(read_file(path))))
        except (OSError, ValueError, TypeError, RecursionError):
            continue
    return sorted(jobs, key=lambda job: job.number)


def _table(jobs: Sequence[Job], sweep: Path) -> str:
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
