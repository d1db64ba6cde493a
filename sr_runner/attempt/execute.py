"""One run, from a composed config to its report."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_runner.attempt import logs, own_code, scheduler
from sr_runner.attempt.announce import announce, going_on
from sr_runner.attempt.build import Parts, build_parts
from sr_runner.attempt.lock import AttemptLock
from sr_runner.attempt.logs import LogFile
from sr_runner.attempt.pretrained import initialise
from sr_runner.attempt.ranks import broadcast_start, train_as_peer
from sr_runner.attempt.record import SweepJob, record, start_of, write_record
from sr_runner.attempt.report import Outcome, Shown, as_json, json_of, print_report, report_of, result_of
from sr_runner.attempt.resume import Chosen, choose, spool_of
from sr_runner.checkpoint import CheckpointManager, Name, Origin
from sr_runner.config.compose import Request
from sr_runner.config.identity import identity as identity_of
from sr_runner.data.preview import preview as preview_of
from sr_runner.distributed.world import join
from sr_runner.errors import RequestError, RunError
from sr_runner.evaluation.protocol import Evaluation
from sr_runner.files import check_writable, draft_of, scratch_folder, write_file
from sr_runner.masking import learn, masked_text
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Catalogue
from sr_runner.signals import Stopped, StopSignal
from sr_runner.tracking import RunRecord, Status, is_delivered
from sr_runner.training.orchestrator import Judge, Orchestrator
from sr_runner.training.result import Result

log = logging.getLogger(__name__)

_MOST_PREVIEWED = 1000  # samples
# Seconds that the tracker gets to bring the last points home. A stopped run is expected to be gone soon.
_FINISHED_WAIT, _STOPPED_WAIT = 30.0, 10.0


def execute(
    config: DictConfig,
    choices: dict[str, str],
    request: Request,
    stop: StopSignal,
    sweep: SweepJob | None = None,
    *,
    command: str | None = None,
    shown: Shown = "table",
    judge: Judge | None = None,
) -> Outcome:
    """Train (or go on with, or report) the run that `config` describes; print the outcome as `shown` says.

    `request` is what `config` was composed from, `command` what was typed for it, `judge` what may end it early.

    Raises `RequestError` before anything was written where the request is wrong, `RunError` and whatever else where
    the run fails, `Stopped` after a signal. One that comes when the last checkpoint is there is noted in `stop`, and
    the run has finished.
    """
    began = time.perf_counter()
    logs.remember()
    learn(OmegaConf.to_container(config))
    world = join(stop)
    parts = build_parts(config, request.overrides, world)
    stop.grace_seconds = parts.trainer.grace_seconds
    if not world.is_main:
        return train_as_peer(parts, stop)
    _check_places(parts)
    pretrained, _ = _initialised(parts), parts.measures  # before anything is written: a wrong request leaves nothing
    parts.data.prepare(progress=sys.stderr.isatty())
    outputs = Path(config.outputs)
    outputs.mkdir(parents=True, exist_ok=True)
    world.broadcast()
    with scratch_folder(outputs) as scratch:
        catalogue = _catalogue(parts, scratch)
        facts = parts.identity_facts(pretrained)
        identify = partial(identity_of, choices.get("model", "model"), config.scale)
        # The job of a sweep that was killed may live on, in Slurm or for a second: its sweep goes on all the same.
        lock = AttemptLock(parts, catalogue, stop, waits=sweep is not None)
        with lock:
            chosen = choose(parts, catalogue, facts, identify, lock.hold, in_sweep=sweep is not None)
            own_code.warn_of_changes(parts.config, chosen, catalogue)
            folder = catalogue.folder(chosen.attempt)
            if sweep is not None and sweep.finished == str(chosen.attempt):
                old = _finished(parts, chosen, folder)
                if old is not None:
                    return old
            run_log = lock.enter_context(logs.to_file(folder / files.LOG))
            manager = _manager(parts, chosen, scratch, stop, lock)
            if sweep is None:  # one command goes on with all jobs of a sweep
                command_again = masked_text(going_on(parts, chosen, request))
                lock.enter_context(_last_words(stop, partial(_how_to_go_on, manager, chosen, command_again)))
            start = start_of(request, command, chosen)
            run = record(parts, chosen, folder, start, choices, sweep)

            def made_again() -> None:
                lock.hold_again(folder)
                write_record(parts, chosen, folder, start)
                log.warning(
                    "%s was deleted while this run works on it: its log and record are written anew, the pictures that "
                    "were in it are lost. Training goes on", folder,
                )  # fmt: skip

            run_log.on_deleted = made_again
            job = scheduler.current()
            origin = Origin(
                facts=chosen.facts, attempt=str(chosen.attempt), request=start["request"],
                job=job.key if job is not None else None,
            )  # fmt: skip
            orchestrator = parts.orchestrator(stop, manager, origin, judge)
            broadcast_start(parts, chosen, folder)
            announce(parts, chosen, folder)
            wait = _FINISHED_WAIT if sweep is None or sweep.settles else None
            result = _train(orchestrator, parts, run, chosen, run_log, began, wait)
            outcome = Outcome(
                chosen.attempt.identity, str(chosen.attempt), folder, _checkpoint(parts, chosen, result), result.step,
                dict(result.metrics), parts.tracker.run_id, result.gain, parts.parameters,
                files.seconds(folder, result.step),
            )  # fmt: skip
            if shown == "json":
                print_report(lambda: json_of(outcome), folder / files.RESULT)
            elif shown == "table":
                seconds = time.perf_counter() - began
                print_report(lambda: report_of(outcome, result, parts, choices, seconds), folder / files.RESULT)
    return outcome


def identity_now(config: DictConfig, choices: Mapping[str, str], overrides: Sequence[str]) -> str:
    """The identity of the run that `config` describes. Prepares its data. Raises `RequestError`."""
    return identity_of(choices.get("model", "model"), config.scale, facts_now(config, overrides))


def facts_now(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """What determines the identity of the run that `config` describes. Prepares its data. Raises `RequestError`."""
    parts = build_parts(config, overrides)
    pretrained = _initialised(parts)
    parts.data.prepare(progress=sys.stderr.isatty())
    return dict(parts.identity_facts(pretrained))


def preview(config: DictConfig, overrides: Sequence[str]) -> Path:
    """Write a sheet of `data.preview` training samples, LR beside HR, instead of training; where it is."""
    if not 0 < config.data.preview <= _MOST_PREVIEWED:
        raise RequestError(f"data.preview={config.data.preview}: expected 0 to {_MOST_PREVIEWED} samples")
    parts = build_parts(config, overrides)
    outputs = Path(config.outputs)
    check_writable(f"outputs={outputs}", outputs)
    parts.data.prepare(progress=sys.stderr.isatty())
    outputs.mkdir(parents=True, exist_ok=True)
    path = outputs / "preview.png"
    with draft_of(path) as draft:
        preview_of(parts.data, config.data.preview).save(draft, format="PNG")
    return path


def _manager(
    parts: Parts, chosen: Chosen, scratch: Path, stop: StopSignal, lock: AttemptLock
) -> CheckpointManager | None:
    if parts.store is None:
        return None
    return CheckpointManager(
        parts.store, str(chosen.attempt), keep=parts.keep, scratch=scratch, spool=spool_of(parts),
        max_failures=parts.checkpoint.max_failures, when_busy=parts.checkpoint.when_busy,
        should_stop=lambda: stop.requested, confirm=lock.confirm,
    )  # fmt: skip


def _catalogue(parts: Parts, scratch: Path) -> Catalogue:
    return Catalogue(Path(parts.config.outputs) / files.RUNS, parts.store, scratch, parts.tracker.attempt_of)


def _check_places(parts: Parts) -> None:
    outputs, wanted = Path(parts.config.outputs), parts.trainer.resume
    if parts.trainer.allow_changes and isinstance(wanted, bool | None):
        raise RequestError(f"trainer.allow_changes=true: expected trainer.resume=NAME, not {wanted}")
    if parts.store is None and wanted not in (False, None):
        raise RequestError(f"trainer.resume={wanted}: checkpoint=none stores no checkpoints to resume from")
    check_writable(f"outputs={outputs}", outputs)
    if parts.store is not None:
        try:
            parts.store.check()
        except OSError as error:
            raise RunError(f"checkpoint.root={parts.store.url} cannot be reached: {error}") from error


def _initialised(parts: Parts) -> str | None:
    """`initialise`, for which nothing has to be there yet."""
    with scratch_folder(Path(parts.config.outputs)) as scratch:
        return initialise(parts.model, parts.checkpoint, _catalogue(parts, scratch))


def _train(
    orchestrator: Orchestrator, parts: Parts, run: RunRecord, chosen: Chosen, run_log: LogFile, began: float,
    wait: float | None,
) -> Result:  # fmt: skip
    tracker, folder, status, reason = parts.tracker, run.run_dir, "failed", ""
    try:
        with orchestrator.stop.deferred():
            result = orchestrator.train(run, chosen.state, fork=chosen.parent is not None)
            orchestrator.stop.finish()
        status = "finished" if result.step == parts.trainer.steps else "pruned"
        run_log.keep()
        try:
            write_file(folder / files.RESULT, as_json(result))
            write_file(folder / files.IMAGES, Evaluation(list(result.scores)).as_csv())
        except OSError as error:
            log.warning("the run has finished, but its result could not be written (%s): see its checkpoint", error)
        tracker.artifact(folder / files.IMAGES)
        return result
    except Stopped:
        status = "stopped"
        raise
    except (RequestError, RunError) as error:
        log.error("%s", error)
        reason = str(error)
        raise
    except BaseException as error:
        # The console says it once, in the words of the caller; the run's own log keeps the traceback.
        log.critical("the run failed", exc_info=True)
        reason = repr(error)
        raise
    finally:
        reason = masked_text(" ".join(reason.split()))
        with suppress(OSError):  # a full disk, a folder that is gone
            files.end(folder, status, time.perf_counter() - began, reason)
        ended: Status = {"finished": "FINISHED", "failed": "FAILED"}.get(status, "KILLED")  # type: ignore[assignment]
        if orchestrator.recording:
            for path in (folder / files.CONFIG, folder / files.STARTS, *files.diffs(folder), folder / files.LOG):
                tracker.artifact(path)
            limit = orchestrator.stop.within(_STOPPED_WAIT) if status == "stopped" else wait
            tags = {"sr_run.status": status} | ({"sr_run.error": reason} if reason else {})
            tracker.finish(ended, tags, wait=limit)


def _finished(parts: Parts, chosen: Chosen, folder: Path) -> Outcome | None:
    """What a run that needs nothing more came to; None where it is not done, or not all of it recorded."""
    result = result_of(folder)
    is_done = chosen.state is not None and result is not None and result.step == parts.trainer.steps
    if not is_done or result is None or not is_delivered(folder):
        return None
    attempt, metrics = chosen.attempt, dict(result.metrics)
    checkpoint = _checkpoint(parts, chosen, result)
    return Outcome(
        attempt.identity,
        str(attempt),
        folder,
        checkpoint,
        result.step,
        metrics,
        None,
        result.gain,
        parts.parameters,
        files.seconds(folder, result.step),
    )


@contextmanager
def _last_words(stop: StopSignal, words: Callable[[], str]) -> Iterator[None]:
    """Within, a signal that ends the run is answered with `words`, and so is a second one that ends it at once."""
    stop.last_words = lambda: f"{words()}\n".lstrip()
    try:
        yield
    except Stopped:
        if said := words():
            log.warning("%s", said)
        raise


def _how_to_go_on(manager: CheckpointManager | None, chosen: Chosen, command: str) -> str:
    if manager is None:
        return "saved nothing: checkpoint=none"
    saved = manager.saved if manager.saved is not None or chosen.state is None else chosen.state.step
    return f"saved {f'step {saved}' if saved is not None else 'nothing yet'}; go on with: {command}"


def _checkpoint(parts: Parts, chosen: Chosen, result: Result) -> str | None:
    if parts.store is None:
        return None
    return f"{parts.store.url.rstrip('/')}/{Name.of(str(chosen.attempt), result.step)}"
