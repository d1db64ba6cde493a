"""Which attempt a process works on: what `trainer.resume` means."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.attempt import scheduler as jobs
from sr_runner.attempt.build import Parts
from sr_runner.checkpoint import CheckpointManager, LocalStore, Store, TrainingState
from sr_runner.checkpoint.format import STATE
from sr_runner.checkpoint.stores import store_at
from sr_runner.errors import RequestError
from sr_runner.runs.catalogue import Attempt, Catalogue, difference

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


def choose(
    parts: Parts, catalogue: Catalogue, identity: str, facts: dict[str, Any], scratch: Path, hold: Hold
) -> Chosen:
    """What `trainer.resume` means here. Raises `RequestError` where it cannot be had.

    The attempt is held before anything of it is restored: a checkpoint that its holder is deleting looks damaged.
    """
    wanted = parts.trainer.resume
    own = _of_this_job(parts.store, catalogue, identity, scratch)
    if own is not None:
        log.info("this job was started before: it goes on with %s", own)
        hold(own, False)
        state = _manager(parts.store, own, scratch, spool_of(parts)).restore() if parts.store is not None else None
        if state is not None or not isinstance(wanted, str):
            return Chosen(own, state)
    if wanted is False or wanted is None:
        return Chosen(_opened(catalogue, identity, hold))
    if parts.store is None:
        raise RequestError(f"trainer.resume={wanted}: checkpoint=none keeps nothing to resume from")
    if wanted is True:
        return _newest(parts, parts.store, catalogue, identity, facts, scratch, hold)
    return _exactly(str(wanted), parts, catalogue, identity, facts, scratch, hold, own)


def _of_this_job(store: Store | None, catalogue: Catalogue, identity: str, scratch: Path) -> Attempt | None:
    """The newest attempt that an earlier life of this process's job worked on, by the attempt's folder, or where that
    is on another machine by its newest checkpoint."""
    job = jobs.current()
    if job is None or not job.restarted:
        return None
    for attempt in reversed(catalogue.attempts(identity)):
        folder = catalogue.folder(attempt)
        if jobs.worked_on(folder, job):
            return attempt
        steps = _manager(store, attempt, scratch).steps() if store is not None and not folder.exists() else []
        if store is not None and steps:
            try:
                state = store.get(f"{attempt}/step-{steps[-1]:08d}", scratch, only=[STATE]) / STATE
                if json.loads(state.read_bytes()).get("job") == job.key:
                    return attempt
            except (OSError, ValueError):
                continue  # whether it is damaged is found out by whoever restores it
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
    parts: Parts, store: Store, catalogue: Catalogue, identity: str, facts: dict[str, Any], scratch: Path, hold: Hold
) -> Chosen:
    attempt, steps = catalogue.newest(identity), parts.trainer.steps
    if attempt is not None:
        hold(attempt, False)
        state = _manager(store, attempt, scratch, spool_of(parts)).restore()
        if state is None:
            older = [a for a in catalogue.attempts(identity)[:-1] if _manager(store, a, scratch).steps()]
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
    catalogue: Catalogue,
    identity: str,
    facts: dict[str, Any],
    scratch: Path,
    hold: Hold,
    begun: Attempt | None,
) -> Chosen:
    """`begun`: an attempt of this process's own, held, that has no checkpoint yet."""
    store = parts.store
    assert store is not None
    found = _foreign(wanted, store)
    if found is None:
        try:
            found = store, catalogue.find(wanted)
        except RequestError as error:
            raise RequestError(f"trainer.resume={error}. true takes the newest attempt of this config") from error
    source, attempt = found
    differing = difference(facts, _facts_of(source, attempt, catalogue, scratch))
    if differing and not parts.trainer.allow_changes:
        keys = "\n".join(f"  {key}: {here} here, {there} there" for key, (here, there) in differing.items())
        raise RequestError(
            f"trainer.resume={wanted}: that run has another config in keys that matter:\n{keys}\n"
            "The same values resume it; trainer.allow_changes=true forks it under a new identity"
        )
    own = not differing and source is store
    if own and attempt.step is not None:
        steps = _manager(source, attempt, scratch, spool_of(parts)).steps()
        own = bool(steps) and attempt.step == steps[-1]
    if own:
        if attempt != begun:
            hold(attempt, False)
        return Chosen(attempt, _manager(source, attempt, scratch, spool_of(parts)).restore(attempt.step))
    # Other settings, an older step, or a checkpoint from elsewhere: the attempt it belongs to stays as it is.
    state = _manager(source, attempt, scratch).restore(attempt.step, own=False)
    if state is None:
        raise RequestError(f"trainer.resume={wanted}: {attempt} has no checkpoint to start from")
    return Chosen(begun or _opened(catalogue, identity, hold), state, parent=f"{attempt}/step-{state.step:08d}")


def _foreign(wanted: str, store: Store) -> tuple[Store, Attempt] | None:
    """A checkpoint by its path or URL that is not in the configured store."""
    is_url = "://" in wanted or wanted.startswith("mlflow:")
    place = wanted if is_url else str(Path(wanted).expanduser().absolute())
    match = re.fullmatch(r"(?P<root>.+)/(?P<identity>[^/]+)/(?P<attempt>[^/]+)/step-(?P<step>\d+)/?", place)
    if not match or match["root"] == store.url.rstrip("/"):
        return None
    if not is_url and not (Path(place) / "manifest.json").is_file():
        return None
    return store_at(match["root"]), Attempt(match["identity"], match["attempt"], int(match["step"]))


def _facts_of(store: Store, attempt: Attempt, catalogue: Catalogue, scratch: Path) -> dict[str, Any]:
    known = Catalogue(catalogue.runs if store.url == getattr(catalogue.store, "url", None) else scratch, store, scratch)
    facts = known.facts(attempt)
    if facts is None:
        raise RequestError(f"trainer.resume={attempt}: nothing is known of it in {store.url}")
    return facts


def _manager(store: Store, attempt: Attempt, scratch: Path, spool: Store | None = None) -> CheckpointManager:
    return CheckpointManager(store, str(attempt), keep=(), scratch=scratch, spool=spool)
