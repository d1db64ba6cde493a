"""Which attempt a process works on: what `trainer.resume` means."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sr_runner.attempt import scheduler as jobs
from sr_runner.attempt.build import Parts
from sr_runner.checkpoint import LocalStore, Name, Store, TrainingState
from sr_runner.checkpoint.reader import Reader
from sr_runner.checkpoint.stores import steps_of
from sr_runner.errors import RequestError
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Attempt, Catalogue, difference
from sr_runner.runs.resolve import find

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """The attempt that this process works on, and the state it starts from, if any."""

    attempt: Attempt
    state: TrainingState | None = None
    parent: str | None = None
    """The checkpoint that a fork takes its state from."""


Hold = Callable[[Attempt, bool], None]
"""Makes an attempt (a fresh one, says the flag) this process's own. Raises `RequestError` where it is taken."""


def choose(parts: Parts, catalogue: Catalogue, identity: str, facts: dict[str, Any], hold: Hold) -> Chosen:
    """What `trainer.resume` means here. Raises `RequestError` where it cannot be had.

    The attempt is held before anything of it is restored: a checkpoint that its holder is deleting looks damaged.
    """
    wanted = parts.trainer.resume
    own = _of_this_job(catalogue, identity)
    if own is not None:
        log.info("this job was started before: it goes on with %s", own)
        hold(own, False)
        state = _restored(parts, catalogue, own)
        if state is not None or not isinstance(wanted, str):
            return Chosen(own, state)
    if wanted is False or wanted is None:
        return Chosen(_opened(catalogue, identity, hold))
    if parts.store is None:
        raise RequestError(f"trainer.resume={wanted}: checkpoint=none keeps nothing to resume from")
    if wanted is True:
        return _newest(parts, parts.store, catalogue, identity, facts, hold)
    return _exactly(str(wanted), parts, parts.store, catalogue, identity, facts, hold, own)


def _of_this_job(catalogue: Catalogue, identity: str) -> Attempt | None:
    """The newest attempt that an earlier life of this process's job worked on, by the attempt's folder, or where that
    is on another machine by its newest checkpoint. Whether that is damaged is found out by whoever restores it."""
    job = jobs.current()
    if job is None or not job.restarted:
        return None
    for attempt in reversed(catalogue.attempts(identity)):
        folder = catalogue.folder(attempt)
        if job.key in files.jobs(folder) or (not folder.exists() and catalogue.state(attempt).get("job") == job.key):
            return attempt
    return None


def spool_of(parts: Parts) -> LocalStore | None:
    """The folder of this machine that takes what the store cannot be given; None where it would share its fate."""
    outputs = Path(parts.config.outputs)
    if isinstance(parts.store, LocalStore):
        existing = next(folder for folder in (parts.store.root, *parts.store.root.parents) if folder.exists())
        if existing.stat().st_dev == outputs.stat().st_dev:
            return None
    return LocalStore(outputs / "spool")


def _opened(catalogue: Catalogue, identity: str, hold: Hold) -> Attempt:
    attempt = catalogue.open_new(identity)
    jobs.remember(catalogue.folder(attempt))
    hold(attempt, True)
    return attempt


def _newest(
    parts: Parts, store: Store, catalogue: Catalogue, identity: str, facts: dict[str, Any], hold: Hold
) -> Chosen:
    attempt, steps = catalogue.named(identity), parts.trainer.steps
    if attempt is not None:
        hold(attempt, False)
        state = _restored(parts, catalogue, attempt)
        if state is None:
            older = [a for a in catalogue.attempts(identity)[:-1] if steps_of(store, str(a))]
            hint = f"; an older attempt has some: trainer.resume={older[-1]}" if older else ""
            log.warning("%s has no checkpoint yet: it starts at step 0%s", attempt, hint)
        return Chosen(attempt, state)
    log.warning("nothing to resume for %s: starting a first attempt", identity)
    for other, differing in catalogue.near_misses(facts, identity):
        keys = ", ".join(f"{key}={here} (there {there})" for key, (here, there) in differing.items())
        stretched = all(key.startswith("scheduler.") and here == steps for key, (here, _) in differing.items())
        why = " (the schedule is stretched over trainer.steps, so the length matters)" if stretched else ""
        log.warning(
            "  near miss: %s differs in %s%s. trainer.resume=%s trainer.allow_changes=true goes on from it, as a fork",
            other,
            keys,
            why,
            other,
        )
    return Chosen(_opened(catalogue, identity, hold))


def _exactly(
    wanted: str,
    parts: Parts,
    store: Store,
    catalogue: Catalogue,
    identity: str,
    facts: dict[str, Any],
    hold: Hold,
    begun: Attempt | None,
) -> Chosen:
    """`begun`: an attempt of this process's own, held, that has no checkpoint yet."""
    asked = f"trainer.resume={wanted}"
    found = find(wanted, catalogue, "trainer.resume=")
    theirs = found.catalogue.facts(found.attempt)
    if theirs is None:
        raise RequestError(f"{asked}: {found.attempt} does not tell its config, in {found.store.url}")
    differing = difference(facts, theirs)
    if differing and not parts.trainer.allow_changes:
        keys = "\n".join(f"  {key}: {here} here, {there} there" for key, (here, there) in differing.items())
        raise RequestError(
            f"{asked}: that run has another config in keys that matter:\n{keys}\n"
            "The same values resume it; trainer.allow_changes=true forks it under a new identity"
        )
    attempt, step = replace(found.attempt, step=None), found.attempt.step
    if not differing and found.catalogue is catalogue and step in (None, *steps_of(store, str(attempt))[-1:]):
        if attempt != begun:
            hold(attempt, False)
        return Chosen(attempt, _restored(parts, catalogue, attempt, step))
    # Other settings, an older step, or a checkpoint from elsewhere: the attempt it belongs to stays as it is.
    state = found.restored()
    return Chosen(begun or _opened(catalogue, identity, hold), state, parent=str(Name.of(str(attempt), state.step)))


def _restored(parts: Parts, catalogue: Catalogue, attempt: Attempt, step: int | None = None) -> TrainingState | None:
    if parts.store is None:
        return None
    return Reader(parts.store, str(attempt), catalogue.scratch, spool_of(parts)).restore(step)
