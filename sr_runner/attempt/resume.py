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
    return _Choice(parts, catalogue, identity, facts, hold).made()


def spool_of(parts: Parts) -> LocalStore | None:
    """The folder of this machine that takes what the store cannot be given; None where it would share its fate."""
    outputs = Path(parts.config.outputs)
    if isinstance(parts.store, LocalStore):
        existing = next(folder for folder in (parts.store.root, *parts.store.root.parents) if folder.exists())
        if existing.stat().st_dev == outputs.stat().st_dev:
            return None
    return LocalStore(outputs / "spool")


@dataclass(frozen=True)
class _Choice:
    parts: Parts
    catalogue: Catalogue
    identity: str
    facts: dict[str, Any]
    hold: Hold

    def made(self) -> Chosen:
        wanted, store = self.parts.trainer.resume, self.parts.store
        own = self._of_this_job()
        if own is not None:
            log.info("this job was started before: it goes on with %s", own)
            self.hold(own, False)
            state = self._restored(store, own) if store is not None else None
            if state is not None or not isinstance(wanted, str):
                return Chosen(own, state)
        if wanted is False or wanted is None:
            return Chosen(self._opened())
        if store is None:
            raise RequestError(f"trainer.resume={wanted}: checkpoint=none stores no checkpoints to resume from")
        return self._newest(store) if wanted is True else self._exactly(str(wanted), store, own)

    def _of_this_job(self) -> Attempt | None:
        """The newest attempt that an earlier life of this process's job worked on, by the attempt's folder, or where
        that is on another machine by its newest checkpoint. Whether that is damaged, whoever restores it finds out."""
        job = jobs.current()
        if job is None or not job.restarted:
            return None
        for attempt in reversed(self.catalogue.attempts(self.identity)):
            folder = self.catalogue.folder(attempt)
            if job.key in files.jobs(folder) or (not folder.exists() and self.catalogue.origin(attempt).job == job.key):
                return attempt
        return None

    def _opened(self) -> Attempt:
        attempt = self.catalogue.open_new(self.identity)
        jobs.remember(self.catalogue.folder(attempt))
        self.hold(attempt, True)
        return attempt

    def _newest(self, store: Store) -> Chosen:
        attempt, steps = self.catalogue.named(self.identity), self.parts.trainer.steps
        if attempt is not None:
            self.hold(attempt, False)
            state = self._restored(store, attempt)
            if state is None:
                older = [a for a in self.catalogue.attempts(self.identity)[:-1] if steps_of(store, str(a))]
                hint = f"; an older attempt has some: trainer.resume={older[-1]}" if older else ""
                log.warning("%s has no checkpoint yet: it starts at step 0%s", attempt, hint)
            return Chosen(attempt, state)
        log.warning("nothing to resume for %s: starting a first attempt", self.identity)
        for other, differing in self.catalogue.near_misses(self.facts, self.identity):
            keys = ", ".join(f"{key}={here} (there {there})" for key, (here, there) in differing.items())
            stretched = all(key.startswith("scheduler.") and here == steps for key, (here, _) in differing.items())
            why = " (the schedule is stretched over trainer.steps, so the length matters)" if stretched else ""
            log.warning(
                "  near miss: %s differs in %s%s. "
                "trainer.resume=%s trainer.allow_changes=true goes on from it, as a fork",
                other, keys, why, other,
            )  # fmt: skip
        return Chosen(self._opened())

    def _exactly(self, wanted: str, store: Store, begun: Attempt | None) -> Chosen:
        """`begun`: an attempt of this process's own, held, that has no checkpoint yet."""
        asked = f"trainer.resume={wanted}"
        found = find(wanted, self.catalogue, "trainer.resume=")
        theirs = found.catalogue.facts(found.attempt)
        if theirs is None:
            raise RequestError(f"{asked}: no config is recorded for {found.attempt} in {found.store.url}")
        differing = difference(self.facts, theirs)
        if differing and not self.parts.trainer.allow_changes:
            raise RequestError(
                f"{asked}: that run has another config in keys that matter:",
                *(f"  {key}: {here} here, {there} there" for key, (here, there) in differing.items()),
                "The same values resume it; trainer.allow_changes=true forks it under a new identity",
            )
        attempt, step = replace(found.attempt, step=None), found.attempt.step
        if not differing and found.catalogue is self.catalogue and step in (None, *steps_of(store, str(attempt))[-1:]):
            if attempt != begun:
                self.hold(attempt, False)
            return Chosen(attempt, self._restored(store, attempt, step))
        # Other settings, an older step, or a checkpoint from elsewhere: the attempt it belongs to stays as it is.
        state = found.restored()
        return Chosen(begun or self._opened(), state, parent=str(Name.of(str(attempt), state.step)))

    def _restored(self, store: Store, attempt: Attempt, step: int | None = None) -> TrainingState | None:
        return Reader(store, str(attempt), self.catalogue.scratch, spool_of(self.parts)).restore(step)
