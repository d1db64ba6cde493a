"""`sr-run -m`: the jobs of a sweep, by Hydra's sweeper and launcher."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sr_runner.attempt import labels, logs
from sr_runner.attempt.build import build
from sr_runner.attempt.execute import execute, identity_now
from sr_runner.attempt.record import SweepJob
from sr_runner.attempt.report import print_report
from sr_runner.commands.finished_jobs import OnlyUnfinished, determining, finished_before, sources_digest
from sr_runner.commands.runs.record import Record
from sr_runner.commands.search import is_search, judge_of, pruning
from sr_runner.commands.sweep_board import (
    CSV,
    RECORD,
    Board,
    Job,
    JobStatus,
    SweepRun,
    planned,
    quoted,
    read_job,
    records,
    write_job,
)
from sr_runner.config.compose import GRID, Application, job_config, job_request
from sr_runner.config.overrides import jobs_to_check, parse, swept_values
from sr_runner.errors import RequestError, RunError
from sr_runner.evaluation.named import lower_is_better
from sr_runner.files import Busy, LinkError, file_lock, folder_named, own_folder, write_file
from sr_runner.masking import cause, digested, digested_overrides, learn, masked_text
from sr_runner.runs.catalogue import Attempt, Catalogue
from sr_runner.runs.folder import LOCK, RUNS
from sr_runner.signals import Stopped, StopSignal
from sr_runner.tracking import RunRecord, Status, Tracker, settle
from sr_runner.tracking.journal import JOURNAL
from sr_runner.training import gpus
from sr_runner.training.result import psnr_of

log = logging.getLogger(__name__)

_WAIT, _STOPPED_WAIT = 120.0, 15.0
"""Seconds that the sweep's own run gets at the end. Who stops a sweep expects it to be gone soon."""
_MOST_PLANNED, _MOST_JOBS = 10_000, 100_000


@dataclass(frozen=True)
class Plan:
    """What each job is told of the sweep, by whatever launches it."""

    folder: Path
    keys: tuple[str, ...]
    process: int
    """The sweep's own."""
    resumes: bool
    stops: bool
    """After the first failure no further job is to start."""
    sources: str
    """A digest of what jobs are composed from, beside their overrides."""
    pruning: tuple[dict[str, Any], str] | None = None
    """Of a search: the pruner, and the metric that it looks at."""


_boards: dict[Path, Board] = {}
"""Of the sweeps that this process runs: their jobs are told of at once, and those of others at the next look."""


def sweep(
    app: Application, config_name: str, overrides: list[str], stop: StopSignal, words: Sequence[str],
    *, in_json: bool = False,
) -> int:  # fmt: skip
    """Run the jobs that `overrides` and `hydra.sweeper.params` describe, by Hydra's sweeper and launcher.

    Prints how they ended as a table; `in_json` as a list of `Job`s, and nothing else. `words` are the command line.

    The exit status is 1 where a job failed. Raises `RequestError`, before any job starts, for a value that does not
    compose, and `Stopped` after a signal, once the job has its checkpoint: no further job is started.
    """
    whole = app.compose_config(config_name, overrides, RunMode.MULTIRUN)
    params = [f"{key}={value}" for key, value in (whole.hydra.sweeper.get("params") or {}).items()]
    all_overrides = [*params, *overrides]
    first, *others = jobs_to_check(all_overrides)
    config, choices = job_config(app.compose_config(config_name, first, RunMode.RUN))
    tracker: Tracker = build(config.tracker, "tracker")
    swept = swept_values(all_overrides, _MOST_PLANNED)
    for override in parse(all_overrides):
        differs = override.is_sweep_override() or "${" in str(override.input_line)
        if differs and override.key_or_group.startswith("sweep."):
            raise RequestError(f"{override.input_line}: expected one value, which is that of all jobs")
    resumes = config.trainer.resume is not False
    constant = {key: value for key, value in _as_handed_on(all_overrides).items() if key not in swept}
    if whole.hydra.sweep.dir:
        if config.sweep.name is not None:
            raise RequestError("sweep.name and hydra.sweep.dir: expected one of them, both say where the sweep is")
        folder = folder_named("hydra.sweep.dir", whole.hydra.sweep.dir).absolute()
    elif config.sweep.name is not None:
        folder = own_folder(Path(config.outputs), Path(config.outputs) / "sweeps" / config.sweep.name)
        columns = _grown(folder, swept, constant, resume=resumes)
        swept = {key: swept[key] if key in swept else [constant[key]] for key in columns if key in swept | constant}
        constant = {key: value for key, value in constant.items() if key not in swept}
    else:
        folder = _folder(Path(config.outputs), all_overrides, list(swept), resume=resumes)
    is_grid = whole.hydra.sweeper._target_ == GRID
    searches = is_search(whole.hydra.sweeper)
    pruner = pruning(whole.hydra.sweeper, all_overrides) if searches else None
    stops = config.sweep.on_failure == "stop"
    if searches and stops:
        raise RequestError("sweep.on_failure=stop: expected continue; to a search, a trial that fails is an answer")
    if config.sweep.gpu_per_job:
        if config.trainer.device not in ("auto", "cuda"):
            raise RequestError(f"trainer.device={config.trainer.device}: expected auto with {_GPU_PER_JOB}")
        gpus.visible(_GPU_PER_JOB)
    for override in parse(all_overrides):
        if is_grid and override.is_range_sweep() and not swept[override.key_or_group]:
            raise RequestError(f"{override.input_line}: expected at most {_MOST_PLANNED:,} values")
    if is_grid and (count := math.prod(map(len, swept.values()))) > _MOST_JOBS:
        raise RequestError(f"{' '.join(swept)}: {count:,} jobs; expected at most {_MOST_JOBS:,}")
    combinations = planned(digested(swept)) if is_grid and all(swept.values()) else ()
    metric = config.checkpoint.best_metric.removeprefix("valid/")
    board = Board(
        folder, list(swept), masked_text(quoted(words)), combinations,
        Path(config.outputs) / RUNS, [key for key in swept if key in choices],
        whole.hydra.sweeper.n_trials if searches else 0, metric=metric,
        lower_is_better=lower_is_better(metric, "checkpoint.best_metric"),
    )  # fmt: skip
    subdir = str(whole.hydra.sweep._get_node("subdir")._value())
    if len(combinations) > 1 and "${" not in subdir:
        raise RequestError(
            f"hydra.sweep.subdir={subdir}: expected a folder for each job, such as "
            "${folder_named:${hydra.job.override_dirname}}, the default"
        )
    sources = sources_digest(app.config_loader, all_overrides, Path(config.outputs))
    known = finished_before(board, sources) if resumes else {}
    for each in others:
        if determining(digested_overrides(each)) not in known:
            app.compose_config(config_name, each, RunMode.RUN)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"hydra.sweep.dir={folder}: nothing can be written there ({error.strerror})") from error
    hydras = f"*/{whole.hydra.output_subdir or '.hydra'}"
    for path in (folder / "multirun.yaml", *folder.glob(hydras), *folder.glob(f"{hydras}/*.yaml")):
        if path.is_symlink():
            raise LinkError(path)  # Hydra writes there, and follows links
    plan = Plan(folder, tuple(swept), os.getpid(), resumes, stops, sources, pruner)
    hydra = [
        "hydra.mode=MULTIRUN", "hydra.sweep.dir='{}'".format(str(folder).replace("'", "\\'")),
        "hydra.job.config.override_dirname.exclude_keys=[{}]".format(",".join(f"'{key}'" for key in constant)),
    ]  # fmt: skip

    def is_still(overrides: list[str], run: str) -> bool:
        whole = app.compose_config(config_name, overrides, RunMode.RUN)
        return identity_now(*job_config(whole), overrides) == run.partition("/")[0]

    def only_unfinished(launcher: Launcher) -> Launcher:
        return OnlyUnfinished(launcher, board, plan.sources, is_still) if resumes else launcher

    _catch_up(board, config.tracker)
    run = SweepRun(tracker, board)
    status: Status = "KILLED"
    board.begin()
    run.start()
    _boards[folder] = board
    stop.last_words = lambda: f"{board.going_on()}\n"
    try:
        try:
            (folder / _FAILED).unlink(missing_ok=True)
            app.run_sweep(config_name, partial(job, plan=plan), [*overrides, *hydra], only_unfinished)
            board.is_searched = True
        except Exception as error:
            if isinstance(error, OSError) and error.filename and folder in Path(error.filename).parents:
                raise RunError(f"{error.filename}: the sweep cannot write its file there ({error.strerror})") from error
            if not any(each.status == "failed" for each in board.jobs()):
                if not isinstance(error, HydraException | OmegaConfBaseException):
                    raise
                with app.explained(config_name, overrides):
                    raise
        status = "FINISHED" if board.is_complete(board.of_this_start()) else "FAILED"
        return int(status == "FAILED")
    except SystemExit as ended:
        if isinstance(ended, Stopped):
            stop.note(ended.signum)  # its job was told: the next Ctrl-C is the second
        stop.raise_if_requested()  # a launcher (Ray's) may make another exit of a `Stopped`
        raise
    finally:
        with stop.deferred():  # what came is being heeded, or there is nothing left to stop
            del _boards[folder]
            wait = _WAIT if status != "KILLED" else _STOPPED_WAIT
            settle(wait)
            drawn = _drawn(folder, list(whole.hydra.sweeper.metrics)) if searches and status != "KILLED" else []
            jobs = run.finish(status, wait, drawn)
            if any(each.status != "left" for each in jobs):
                print_report(
                    lambda: (
                        _as_json(jobs) if in_json else board.table(jobs) + compared(tracker, jobs, board.runs) + "\n"
                    ),
                    folder / CSV, "the sweep has ended",
                )  # fmt: skip


def _drawn(folder: Path, metrics: Sequence[str]) -> list[Path]:
    """Pictures of the search for `metrics`."""
    from sr_runner.commands.search_plots import draw

    try:
        return draw(folder, metrics)
    except Exception as error:  # whatever is wrong with a picture or a disk, the trials are what they are
        log.warning("the search could not be drawn: %s", cause(error))
        return []


def _as_json(jobs: Sequence[Job]) -> str:
    return json.dumps(list(map(asdict, jobs)), indent=1) + "\n"


def job(config: DictConfig, plan: Plan) -> float | None:
    """One job of a sweep; its validation PSNR is what a sweeper optimises."""
    hydra = HydraConfig.get()
    request, number = job_request(), int(hydra.job.num)
    if os.getppid() == plan.process:
        _end_with(plan.process)
    learn(OmegaConf.to_container(config))
    stop = StopSignal().install()
    logs.to_console(only=_SHOWN)
    output = own_folder(plan.folder, Path(hydra.runtime.output_dir).absolute())
    before, began = read_job(output), time.monotonic()
    given = labels.given(request.overrides)
    values = digested({key: given[key] for key in plan.keys if key in given})  # two secrets are two jobs
    name = " ".join(labels.short_names(values, hydra.runtime.choices).values()) or "job"
    record = Job(
        number, name, values, digested_overrides(request.overrides), "running", log=str(output / "job.log"),
        sources=plan.sources,
    )  # fmt: skip
    done = before.run if before is not None and plan.resumes and before.status == "finished" else ""
    paused = before if before is not None and before.status == "pruned" else None
    number = paused.number if paused is not None else number
    board = _boards.get(plan.folder) if os.getpid() == plan.process else None
    if board is not None:
        stop.last_words = lambda: f"{board.going_on()}\n"
    of = SweepJob(plan.folder, plan.keys, done, settles=board is None)

    def tell(status: JobStatus, **result: Any) -> None:
        now = replace(record, status=status, **result)
        write_job(output, now) if board is None else board.record(output, now)

    def failed(reason: str) -> None:
        if plan.stops:
            write_file(plan.folder / _FAILED, name)
        tell("failed", error=masked_text(re.sub(r"\s+", " ", reason)), seconds=time.monotonic() - began)

    if plan.stops and (plan.folder / _FAILED).exists():
        stop.uninstall()
        return None
    with logs.to_file(output / "job.log"), ExitStack() as held:
        try:
            config, choices = job_config(config)
            if config.sweep.gpu_per_job and not done:
                folder = own_folder(Path(config.outputs), Path(config.outputs) / "gpus")
                config.trainer.device = f"cuda:{held.enter_context(gpus.own_gpu(folder, gpus.visible(_GPU_PER_JOB)))}"
            if not done:
                tell("running")
            _check_launcher(hydra.launcher)
            judge = judge_of(plan.folder, *plan.pruning, request.overrides) if plan.pruning is not None else None
            outcome = execute(config, choices, request, stop, of, shown="nothing", judge=judge)
        except Stopped:
            tell("stopped", seconds=time.monotonic() - began)
            stop.hand_over()
            raise
        except (RequestError, RunError) as error:
            if board is None:  # who tells of it is elsewhere
                log.error("%s failed: %s", name, error)
            failed(f"{error}")
            raise
        except Exception as error:
            log.info("%s failed", name, exc_info=True)  # the console has the reason only
            failed(f"{error!r}")
            raise
        finally:
            stop.uninstall()
    psnr, seconds = psnr_of(outcome.metrics), outcome.seconds
    metrics = outcome.metrics | {"parameters": float(outcome.parameters)}
    if seconds is not None:
        metrics["seconds"] = seconds
    ended: JobStatus = "finished" if outcome.step == config.trainer.steps else "pruned"
    tell(ended, run=outcome.attempt, psnr=psnr, gain=outcome.gain, seconds=seconds, metrics=metrics)
    stop.raise_if_requested()  # it came too late for this job: the next one is not to start
    return psnr


@cache
def _end_with(sweep: int) -> None:
    """Stop this process, a launcher's child, when that of its sweep is gone: joblib's would wait for jobs for ever, and
    the same sweep could not go on with a job that is still being trained."""

    def watch() -> None:
        while os.getppid() == sweep:
            time.sleep(1.0)
        while True:  # amid a job the first is heeded, and whoever called the job goes on: the next one ends that
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.0)

    threading.Thread(target=watch, name="sweep-watch", daemon=True).start()


_SHOWN = ("sr_runner.commands.sweep_board", "sr_runner.training.progress")
"""Whose messages a sweep shows beside warnings; all of a job's are in its log."""


def _check_launcher(launcher: DictConfig) -> None:
    tasks = int(launcher.get("tasks_per_node") or 1) * int(launcher.get("nodes") or 1)
    if tasks > 1:
        raise RequestError(
            f"hydra.launcher: {tasks} tasks (tasks_per_node x nodes), but a job of a sweep is one process: expected 1. "
            "torchrun in a batch script trains one run on several GPUs"
        )


_GPU_PER_JOB = "sweep.gpu_per_job=true"
_FAILED = "sweep.failed"
"""A file in the sweep's folder: a job has failed, and no further one is to start."""


def _folder(outputs: Path, overrides: Sequence[str], keys: Sequence[str], *, resume: bool) -> Path:
    """Where a sweep keeps its record: `sweeps/<time>-<hash of what it sweeps and of what stays the same>`.

    With `resume`, the newest folder of the same sweep: it goes on, and may have grown by other values.
    """
    others = ("trainer.resume", "sweep.", "hydra.", "hydra/", *(f"{key}=" for key in keys))
    constant = [each for each in overrides if not each.lstrip("+~").startswith(others)]
    digest = hashlib.sha256(json.dumps([sorted(keys), sorted(constant)]).encode()).hexdigest()[:8]
    earlier = sorted(path for path in (outputs / "sweeps").glob(f"*-{digest}") if not path.is_symlink())
    if resume and earlier:
        return earlier[-1]
    return outputs / "sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{digest}"


def _grown(folder: Path, swept: Iterable[str], constant: Mapping[str, str], *, resume: bool) -> list[str]:
    """What the jobs of the named sweep in `folder` differ by, with those of this start: keys that are swept, or were,
    and settings that were the same for all so far.

    Raises `RequestError` where jobs of this start could not be told from earlier ones.
    """
    name, jobs = f"sweep.name={folder.name}", records(folder)
    if jobs and not resume:
        raise RequestError(f"{name}: there is such a sweep; expected trainer.resume=true too, or another name")
    columns = dict.fromkeys(key for job in jobs for key in job.values) | dict.fromkeys(swept)
    here = digested({key: value for key, value in constant.items() if not _is_of_the_start(key)})
    for job in jobs:
        there = {key: value for key, value in _as_handed_on(job.overrides).items() if not _is_of_the_start(key)}
        columns |= dict.fromkeys(key for key, value in here.items() if there.get(key) != value)
        lacking = [f"{key}={value}" for key, value in there.items() if key not in columns and key not in here]
        if lacking:
            raise RequestError(
                f"{name}: its job {job.name} had {' '.join(lacking)}; expected a value for that here too"
            )
    for key in columns:
        if jobs and key not in constant and key not in swept:
            raise RequestError(f"{name}: its jobs differ by {key}; expected a value for that here too")
    return list(columns)


def _catch_up(board: Board, tracker: DictConfig) -> None:
    """Give the finished jobs of earlier starts, in their records and as params of the tracking server, the values that
    they had for what is swept since: without them nobody could compare them with the new ones by it."""
    catalogue = Catalogue(board.runs, None, board.folder)
    for path in board.folder.glob(f"*/{RECORD}"):
        job = read_job(path.parent)
        lacking = [key for key in board.keys if job is not None and key not in job.values]
        if job is None or not lacking or job.status != "finished" or not board.is_own(job.run):
            continue
        identity, _, name = job.run.partition("/")
        run = Record(catalogue, Attempt(identity, name))
        had = {key: str(value) for key in lacking if (value := run.value(key)) is not None}
        try:
            if had and (run.folder / JOURNAL).is_file():
                with file_lock(run.folder / LOCK, wait=False):
                    again: Tracker = build(tracker, "tracker")
                    again.start(RunRecord(run.folder, job.run, job.name, had, sweep=board.folder))
                    again.finish("FINISHED", wait=None)
        except (RequestError, OSError, Busy) as error:
            log.warning("%s gets no %s in the tracking server: %s", job.run, ", ".join(had), error)
        values = job.values | had | {key: text for key, text in labels.given(job.overrides).items() if key in had}
        write_job(path.parent, replace(job, values=values, name=board.name(values)))


def _as_handed_on(overrides: Sequence[str]) -> dict[str, str]:
    """Keys and values as Hydra hands them to jobs: 1e-3 becomes 0.001."""
    handed_on = ((each.key_or_group, "" if each.is_delete() else _text(each)) for each in parse(overrides))
    return {key: value.strip("'\"").replace("\\:", ":") for key, value in handed_on}


def _text(override: Override) -> str:
    return "" if override.is_sweep_override() else override.get_value_element_as_str()


def _is_of_the_start(key: str) -> bool:
    """It says how a job starts or where its files are, and nothing of what it is."""
    return f"{key}.".startswith(("trainer.resume.", "sweep.", "hydra.", "hydra/", "outputs.", "checkpoint", "tracker"))


_MOST_COMPARED = 50
"""Each makes the address of the page longer by 41 characters, and the page slower."""


def compared(tracker: Tracker, jobs: Sequence[Job], runs: Path) -> str:
    """Where the jobs, of which the best come first, are compared."""
    begun = [runs / each.run for each in jobs if each.run]
    hint = tracker.ui_hint(begun[:_MOST_COMPARED])
    if hint is None:
        return ""
    command, address = hint
    best = [f"the best {_MOST_COMPARED} of {len(begun):,} jobs"] * (len(begun) > _MOST_COMPARED)
    lines = [*best, *([command, f"then open {address}"] if command else [address])]
    return "\nCompare     " + "\n            ".join(lines)
