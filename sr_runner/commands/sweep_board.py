"""What is known of the jobs of a sweep: their records on the disk, and what people read of them, as a table on the
terminal, `sweep.csv`, `sweep.html`, and the run of the tracking server that stands for the sweep."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import logging
import math
import shlex
import statistics
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_type_hints

from sr_runner.attempt.labels import given, short_names
from sr_runner.commands.sweep_page import JobRow, SweepRows, page
from sr_runner.config import types
from sr_runner.errors import printable
from sr_runner.evaluation.metrics import title
from sr_runner.files import file_lock, plain_json, read_file, write_file
from sr_runner.masking import cause
from sr_runner.runs.catalogue import is_attempt
from sr_runner.tracking import SWEEP_TAG, RunRecord, Status, Tracker, points

log = logging.getLogger(__name__)

RECORD = "job.json"
"""In the folder of each job."""
CSV = "sweep.csv"
"""The table, in the folder of the sweep."""
_FILE, _PAGE = "sweep.json", "sweep.html"
_LOOK_EVERY = 2.0  # seconds
_REST = 30
"""Between two accounts passes this many times what the first one took: with many jobs they are not a load."""


JobStatus = Literal["running", "finished", "pruned", "failed", "stopped", "left"]


@dataclass(frozen=True)
class Job:
    """What is known of one job. Its record is `job.json` in its folder."""

    number: int
    """Place in the sweep that it was started in last, from 0."""
    name: str
    """What it is called: `edsr lr=0.003 seed=1`."""
    values: dict[str, str]
    """What is swept, as it was written: `{"model": "edsr", "optimizer.lr": "0.003", "seed": "1"}`."""
    overrides: list[str]
    """All of the job's, secrets masked."""
    status: JobStatus
    """left: not started yet. pruned: ended by the search, since others were better."""
    run: str = ""
    """`<identity>/<attempt>`"""
    log: str = ""
    psnr: float | None = None
    """The last evaluation's mean, in dB."""
    gain: float | None = None
    """Over bicubic, in dB."""
    seconds: float | None = None
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    """Those that can be searched for."""
    sources: str = ""
    """A digest of what else the config was composed from."""

    def __str__(self) -> str:
        gain = f" ({self.gain:+.2f} dB over bicubic)" if self.gain is not None else ""
        result = f", PSNR {self.psnr:.2f} dB{gain}" if self.psnr is not None else ""
        reason = f": {self.error}" if self.error else ""
        took = f", {self.seconds:.0f} s" if self.seconds is not None and not reason else ""
        return f"{self.status}{result}{took}{reason}"


def write_job(folder: Path, job: Job) -> None:
    """Replace the record in `folder`, that of the job."""
    write_file(folder / RECORD, json.dumps(asdict(job), indent=1) + "\n")


def read_job(folder: Path) -> Job | None:
    """The record in `folder`, no link; None where there is none, or one that cannot be read.

    A PSNR or gain that is no number (a diverged job's) is None: no order has a place for it.
    """
    path = folder / RECORD
    try:
        found = path.lstat()
        return None if folder.is_symlink() else _read_job(path, found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError:
        return None


@functools.lru_cache(maxsize=100_000)
def _read_job(path: Path, file: int, modified: int, size: int) -> Job | None:
    """A record is looked at every few seconds, and is another file once it is replaced."""
    try:
        job = Job(**plain_json(read_file(path)))
    except (ValueError, TypeError, RecursionError):
        return None
    if not all(types.fits(getattr(job, name), hint) for name, hint in _HINTS.items()):
        return None
    psnr, gain = (value if value is not None and math.isfinite(value) else None for value in (job.psnr, job.gain))
    return replace(job, psnr=psnr, gain=gain)


def records(folder: Path) -> list[Job]:
    """Those of all jobs of the sweep in `folder` that have begun."""
    return [job for path in sorted(folder.glob(f"*/{RECORD}")) if (job := read_job(path.parent))]


_HINTS = get_type_hints(Job)
_NOT_SHOWN = ("values", "overrides", "number", "metrics", "sources")


@dataclass
class Board:
    """The jobs of one sweep, while it runs and afterwards."""

    folder: Path
    keys: Sequence[str]
    """What is swept."""
    command: str
    """What starts or goes on with the sweep."""
    planned: Sequence[Mapping[str, str]] = ()
    """What the jobs of this start have for `keys`, where that is known beforehand."""
    runs: Path = Path()
    """`outputs/runs`"""
    groups: Collection[str] = ()
    """Those of `keys` that are groups of the config."""
    trials: int = 0
    """How many jobs a search takes in all; two of them may be the same."""
    is_searched: bool = False
    """It has had them all."""
    metric: str = "psnr"
    """What the best job is best by: that of `checkpoint.best_metric`."""
    lower_is_better: bool = False
    _numbers: dict[frozenset[tuple[str, str]], int] = field(init=False)
    """By the values of a job its place among `planned`."""
    _told: dict[str, Job] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._numbers = {frozenset(values.items()): number for number, values in enumerate(self.planned)}

    def jobs(self) -> list[Job]:
        """All jobs, those of earlier starts and those that are left included: best first, then in their order."""
        found = list(self._told_apart([self._with_keys(job) for job in records(self.folder)]))
        known = {frozenset(job.values.items()) for job in found}
        left = [
            Job(number, self.name(values), dict(values), [], "left")
            for number, values in enumerate(self.planned)
            if frozenset(values.items()) not in known
        ]
        order = ("finished", "pruned", "running", "stopped", "failed", "left")
        ranked = [*found, *left]
        return sorted(ranked, key=lambda job: (order.index(job.status), self._rank(self.value(job)), job.number))

    def value(self, job: Job) -> float | None:
        """Of `metric`, in the evaluation on all images at the end where there was one."""
        if self.metric == "psnr":
            return job.psnr
        value = job.metrics.get(f"final/{self.metric}", job.metrics.get(f"valid/{self.metric}"))
        return value if value is not None and math.isfinite(value) else None

    def _rank(self, value: float | None) -> float:
        """Smaller for the better."""
        return math.inf if value is None else value if self.lower_is_better else -value

    def in_words(self, value: float) -> str:
        return f"{value:.2f} dB" if self.metric.startswith("psnr") else f"{value:.4f}"

    @property
    def head(self) -> list[str]:
        """Of the columns that `cells` fills."""
        own = [title(self.metric)] if self.metric != "psnr" else []
        return [*(key.rpartition(".")[2] for key in self.keys), *own, "PSNR", "gain", "status", "time", "run"]

    def cells(self, job: Job) -> list[str]:
        value = self.value(job)
        own = [] if self.metric == "psnr" else ["" if value is None else f"{value:.4f}"]
        psnr = f"{job.psnr:.2f}" if job.psnr is not None else ""
        gain = f"{job.gain:+.2f}" if job.gain is not None else ""
        took = f"{job.seconds:.0f} s" if job.seconds is not None else ""
        values = [job.values.get(key, "") for key in self.keys]
        return [*values, *own, psnr, gain, job.status, took, job.run.partition("/")[0]]

    def _with_keys(self, job: Job) -> Job:
        """`job` with a value of each key that was the same for all when it began."""
        if all(key in job.values for key in self.keys):
            return job
        asked = job.values | given(job.overrides)
        values = {key: asked[key] for key in self.keys if key in asked}
        return replace(job, values=values, name=self.name(values))

    @staticmethod
    def _told_apart(jobs: Sequence[Job]) -> Iterator[Job]:
        """Less those whose run is that of a job which says more of it, or the same: the sweep has got further keys
        since."""
        most: dict[str, int] = {}
        told: dict[tuple[str, frozenset[tuple[str, str]]], Job] = {}
        for job in jobs:
            most[job.run] = max(len(job.values), most.get(job.run, 0))
            told[job.run, frozenset(job.values.items())] = job
        yield from (job for job in jobs if not job.run)
        yield from (job for (run, _), job in told.items() if run and len(job.values) == most[run])

    def name(self, values: Mapping[str, str]) -> str:
        """What a job is called: `edsr lr=0.003 seed=1`."""
        return " ".join(short_names(values, self.groups).values()) or "job"

    def swept(self, jobs: Sequence[Job]) -> dict[str, list[str]]:
        """Per key its values among all `jobs`, those of earlier starts included."""
        jobs = sorted(jobs, key=lambda job: job.number)
        return {key: list(dict.fromkeys(job.values.get(key, "") for job in jobs)) for key in self.keys}

    def of_this_start(self) -> list[Job]:
        """The jobs that this start was asked for; where they are not known beforehand, all."""
        asked = self._numbers
        return [job for job in self.jobs() if not asked or frozenset(job.values.items()) in asked]

    def look(self) -> list[Job]:
        """Tell of the jobs that other processes began and ended; all jobs."""
        with self._lock:
            jobs = self.jobs()
            for job in sorted(jobs, key=lambda job: job.number):
                if job.status != "left" and job != self._told.get(job.name):
                    self._tell(job)
            return jobs

    def record(self, folder: Path, job: Job) -> None:
        """Write the record of a job that began or ended in this process, and tell of it."""
        with self._lock:
            write_job(folder, job)
            self._tell(job)

    def tell_again(self, job: Job) -> None:
        """Tell of a job that had finished before this start."""
        with self._lock:
            self._tell(job)

    def _tell(self, job: Job) -> None:
        self._told[job.name] = job
        number = self._numbers.get(frozenset(job.values.items()), job.number)
        count = len(self.planned) or self.trials
        place = f"job {number + 1}" + (f" of {count}" if count else "")
        level = logging.WARNING if job.status == "failed" else logging.INFO
        log.log(level, "%s: %s%s", place, job.name, f": {job}" if job.status != "running" else "")

    def begin(self) -> None:
        """What ended before this start is no news."""
        self._told = {job.name: job for job in self.jobs()}

    def table(self, jobs: Sequence[Job]) -> str:
        """What ends a sweep on a terminal."""
        rows = [self.head, *map(self.cells, jobs)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        right = range(len(self.keys), len(self.head) - 3)
        lines = [f"\nSweep {self.folder}"]
        best = jobs[0] if jobs and self.value(jobs[0]) is not None else None
        for job, row in zip((None, *jobs), rows, strict=True):
            cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
            mark = "*" if best is not None and job is best else " "
            lines.append(f"{mark} {'  '.join(cells)}".rstrip())
            if job is not None and job.error:
                lines.append(f"      {job.error}")
            if job is not None and job.status == "failed" and job.log:
                lines.append(f"      log: {job.log}")
        lines += [f"  {text}" for text in self.over_seeds(jobs)]
        if best is not None:
            lines.append(f"Best: {self.best(jobs)}")
        lines.append(count(jobs))
        if not self.is_complete(jobs):
            lines.append(self.going_on())
        return "\n".join(map(printable, "\n".join(lines).split("\n")))

    def going_on(self) -> str:
        return f"Go on with: {self.command}"

    def is_complete(self, jobs: Sequence[Job]) -> bool:
        """Nothing is left to do. In a search, a trial that failed is an answer too."""
        done = ("finished", "pruned", "failed") if self.trials else ("finished", "pruned")
        return all(job.status in done for job in jobs) and (not self.trials or self.is_searched)

    def over_seeds(self, jobs: Sequence[Job]) -> Iterator[str]:
        """Mean and deviation over the seeds of each setting, best first, where seeds were swept."""
        means = self._means(jobs)
        if means:
            yield ""
            yield f"{title(self.metric)} over seeds: mean and standard deviation"
        for name, group in means:
            yield f"{self._mean(group)} ({_seeds(group)})  {name}"

    def best(self, jobs: Sequence[Job]) -> str:
        """The best setting, by its mean over the seeds where they were swept: a seed is nobody's choice."""
        means = self._means(jobs)
        if not means:
            value = self.value(jobs[0])
            return f"{jobs[0].name}, {title(self.metric)} {'' if value is None else self.in_words(value)}"
        name, group = means[0]
        return f"{name}, {title(self.metric)} {self._mean(group)} over {_seeds(group)}"

    def _means(self, jobs: Sequence[Job]) -> list[tuple[str, list[float]]]:
        """Per setting, best first, the `metric` of each seed; none where no setting has two."""
        others = [key for key in self.keys if key != "seed"]
        groups: dict[tuple[str, ...], list[float]] = {}
        for job in jobs:
            if (value := self.value(job)) is not None and "seed" in self.keys:
                groups.setdefault(tuple(job.values.get(key, "") for key in others), []).append(value)
        if not others or all(len(group) < 2 for group in groups.values()):
            return []
        ranked = sorted(groups.items(), key=lambda each: self._rank(statistics.mean(each[1])))
        return [(self.name(dict(zip(others, setting, strict=True))), group) for setting, group in ranked]

    def _mean(self, values: Sequence[float]) -> str:
        digits, unit = (2, " dB") if self.metric.startswith("psnr") else (4, "")
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}{unit}"

    def write(self, jobs: Sequence[Job]) -> list[Path]:
        """Write `sweep.csv` and `sweep.html`; their paths."""
        text = io.StringIO()
        columns = [each.name for each in fields(Job) if each.name not in _NOT_SHOWN]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.keys, *columns])
        for job in jobs:
            writer.writerow([*(job.values.get(key, "") for key in self.keys), *(getattr(job, c) for c in columns)])
        write_file(self.folder / CSV, text.getvalue())
        rows, best = [self._row(job) for job in jobs], ""
        if self._means(jobs) or (self.metric != "psnr" and jobs and self.value(jobs[0]) is not None):
            best = self.best(jobs)
        write_file(self.folder / _PAGE, page(SweepRows(self.folder.name, self.command, list(self.keys), rows, best)))
        return [self.folder / CSV, self.folder / _PAGE]

    def is_own(self, run: str) -> bool:
        """Whether it names a run here: whoever wrote a record may have written anything, and nothing is read but what
        lies in the folder of a run."""
        folder = self.runs / run
        return is_attempt(run) and not any(path.is_symlink() for path in (folder, folder.parent))

    def _row(self, job: Job) -> JobRow:
        folder, is_own = self.runs / job.run, self.is_own(job.run)
        pictures: dict[str, Path] = {}
        if is_own and not (folder / "pictures").is_symlink():
            for path in sorted((folder / "pictures").glob("step-*-*.png")):  # the newest of each image
                pictures[path.stem.split("-", 2)[2]] = path
        curve = points(folder, "valid/psnr") if is_own else []
        return JobRow(
            job.name, dict(job.values), "left" if job.status == "running" else job.status, job.psnr, job.gain,
            job.seconds, job.run, job.error, curve, pictures,
        )  # fmt: skip


class SweepRun:
    """The run of the tracking server that stands for the sweep, kept up to date while its jobs run."""

    def __init__(self, tracker: Tracker, board: Board) -> None:
        self._tracker, self._board = tracker, board
        self._ended = threading.Event()
        self._began, self._second = 0.0, -1
        self._thread = threading.Thread(target=self._keep_up, name="sweep", daemon=True)

    def start(self) -> None:
        """Raises `RequestError` where the tracker cannot record."""
        board = self._board
        with file_lock(board.folder / "sweep.lock"):
            try:
                known = plain_json(read_file(board.folder / _FILE))
                name, self._began = str(known["id"]), float(known["time"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                name, self._began = f"sweep/{board.folder.name}-{uuid.uuid4().hex[:8]}", time.time()
                write_file(board.folder / _FILE, json.dumps({"id": name, "time": self._began}) + "\n")
        words = [key.rpartition(".")[2] for key in board.keys]
        swept = {key: ", ".join(values) for key, values in board.swept(board.jobs()).items()}
        tags = {SWEEP_TAG: board.folder.name, "sr_run.swept": json.dumps(swept)}
        record = RunRecord(
            run_dir=board.folder, attempt=name, run_name=" ".join(["sweep", *words]), params={}, tags=tags,
            sweep=board.folder,
        )  # fmt: skip
        self._tracker.start(record)
        self._thread.start()

    def finish(self, status: Status, wait: float, pictures: Iterable[Path] = ()) -> list[Job]:
        """Give the run its end, with `pictures` of it; all jobs as they are then."""
        self._ended.set()
        self._thread.join()
        board = self._board
        board.look()
        jobs = [replace(job, status="stopped") if job.status == "running" else job for job in board.jobs()]
        self._account(jobs)
        for path in pictures:
            self._tracker.artifact(path)
        self._tracker.finish(status, {"sr_run.status": status.lower()}, wait=wait)
        return jobs

    def _keep_up(self) -> None:
        shown: list[Job] = []
        rest = 0.0
        while not self._ended.wait(_LOOK_EVERY):
            jobs = self._board.look()
            rest -= _LOOK_EVERY
            if jobs != shown and rest <= 0:
                began, shown = time.monotonic(), jobs
                self._account(jobs)
                rest = _REST * (time.monotonic() - began)

    def _account(self, jobs: Sequence[Job]) -> None:
        board, tracker = self._board, self._tracker
        finished = [job for job in jobs if job.status == "finished" and job.psnr is not None]
        counts = {state: sum(job.status == state for job in jobs) for state in ("finished", "failed")}
        metrics: dict[str, float] = {f"jobs/{state}": float(number) for state, number in counts.items()}
        metrics["jobs/left"] = float(len(jobs) - sum(counts.values()))
        if finished and (best := board.value(finished[0])) is not None:
            metrics[f"jobs/best_{board.metric}"] = best
        # Of two accounts of one second the tracker would keep the first.
        self._second = max(int(time.time() - self._began), self._second + 1)
        tracker.log(self._second, metrics)
        tracker.tag({"mlflow.note.content": _description(board, jobs)})
        try:
            for path in board.write(jobs):
                tracker.artifact(path)
        except Exception as error:  # whatever is wrong with a picture or a disk, the jobs are what they are
            log.warning("the account of the sweep could not be written: %s", cause(error))


def planned(values: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of the values of the keys, in the order in which Hydra runs them."""
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


def count(jobs: Sequence[Job]) -> str:
    """`2 of 3 jobs finished, 1 failed`"""
    done = sum(job.status == "finished" for job in jobs)
    others = [
        f"{number} {s}" for s in ("pruned", "failed", "stopped", "left") if (number := sum(j.status == s for j in jobs))
    ]
    return ", ".join([f"{done} of {len(jobs)} jobs finished", *others])


def _seeds(values: Sequence[float]) -> str:
    return f"{len(values)} seed{'s' if len(values) > 1 else ''}"


def _description(board: Board, jobs: Sequence[Job]) -> str:
    """Markdown for the page of the sweep's run."""
    best = jobs[0] if jobs and board.value(jobs[0]) is not None else None
    head = f"**Best: {board.best(jobs)}.** " if best is not None else ""
    lines = [
        f"{head}{count(jobs)}",
        "",
        *(f"- {key}: {_some(values)}" for key, values in board.swept(jobs).items()),
        "",
    ]
    lines += [f"    {board.command}", ""]
    columns = [*board.keys, *board.head[len(board.keys) :]]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows = (board.cells(job) for job in jobs[:100])
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    lines += ["", *(f"    {text}" for text in board.over_seeds(jobs) if text)]
    return "\n".join(map(printable, lines))


def _some(values: Sequence[str]) -> str:
    """Those that a person reads."""
    if len(values) <= _MOST_VALUES:
        return ", ".join(values)
    return f"{', '.join(values[: _MOST_VALUES - 1])}, …, {values[-1]} ({len(values):,} values)"


_MOST_VALUES = 20


def quoted(words: Sequence[str]) -> str:
    """The command line of `words` that goes on with what they started."""
    kept = [word for word in words if not word.lstrip("+").startswith("trainer.resume=")]
    return shlex.join(["sr-run", *kept, "trainer.resume=true"])
