"""Which attempt a process works on: what `trainer.resume` means."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sr_runner.attempt import scheduler as jobs
from sr_runner.attempt.build import Parts
from sr_runner.checkpoint import LocalStore, Name, RunState, Store, TrainingState
from sr_runner.checkpoint.reader import Reader
from sr_runner.checkpoint.stores import steps_of
from sr_runner.config.overrides import parse
from sr_runner.errors import RequestError
from sr_runner.objectives.base import MODEL
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import FORKED_FROM, Attempt, Catalogue, difference
from sr_runner.runs.resolve import Found, find

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """The attempt that this process works on, and the state it starts from, if any."""

    attempt: Attempt
    facts: Mapping[str, Any]
    """What the attempt's identity is computed from."""
    state: TrainingState | None = None
    parent: str | None = None
    """The checkpoint of another attempt that the state is taken from."""


_STEPS = "trainer.steps"

Hold = Callable[[Attempt, bool], None]
"""Makes an attempt (a fresh one, says the flag) this process's own. Raises `RequestError` where it is taken."""

Identify = Callable[[Mapping[str, Any]], str]
"""The identity of a run that these facts determine."""


def choose(
    parts: Parts, catalogue: Catalogue, facts: Mapping[str, Any], identify: Identify, hold: Hold,
    *, in_sweep: bool = False,
) -> Chosen:  # fmt: skip
    """What `trainer.resume` means here. Raises `RequestError` where it cannot be had.

    The attempt is held before anything of it is restored: a checkpoint that its holder is deleting looks damaged.
    """
    return _Choice(parts, catalogue, facts, identify, hold, in_sweep).made()


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
    facts: Mapping[str, Any]
    identify: Identify
    hold: Hold
    in_sweep: bool

    def made(self) -> Chosen:
        wanted, store = self.parts.trainer.resume, self.parts.store
        identity = self.identify(self.facts)
        own = self._of_this_job(identity)
        if own is not None:
            log.info("this job was started before: it goes on with %s", own)
            self.hold(own, False)
            state = self._restored(store, own) if store is not None else None
            if state is not None or not isinstance(wanted, str):
                return Chosen(own, self.facts, state)
        if wanted is False or wanted is None:
            self._mention_unfinished(identity)
            return Chosen(self._opened(identity), self.facts)
        assert store is not None, "checked before anything was written"
        return self._newest(identity, store) if wanted is True else self._exactly(str(wanted), store, own)

    def _of_this_job(self, identity: str) -> Attempt | None:
        """The newest attempt that an earlier life of this process's job worked on, by the attempt's folder, or where
        that is on another machine by its newest checkpoint. Whether that is damaged, whoever restores it finds out."""
        job = jobs.current()
        if job is None or not job.restarted:
            return None
        for attempt in reversed(self.catalogue.attempts(identity)):
            folder = self.catalogue.folder(attempt)
            if job.key in files.jobs(folder) or (not folder.exists() and self.catalogue.origin(attempt).job == job.key):
                return attempt
        return None

    def _mention_unfinished(self, identity: str) -> None:
        """Somebody who starts anew may not know that there is something to go on with."""
        attempt, store = self.catalogue.named(identity), self.parts.store
        steps = steps_of(store, str(attempt)) if attempt is not None and store is not None else []
        if attempt is not None and steps and steps[-1] < self.parts.trainer.steps:
            holder = files.holder(self.catalogue.folder(attempt))
            log.info(
                "%s has the same config and is at step %d of %d: %s; this is a fresh attempt",
                attempt, steps[-1], self.parts.trainer.steps,
                f"{holder} trains it" if holder is not None else "trainer.resume=true goes on with it",
            )  # fmt: skip

    def _opened(self, identity: str) -> Attempt:
        attempt = self.catalogue.open_new(identity)
        jobs.remember(self.catalogue.folder(attempt))
        self.hold(attempt, True)
        return attempt

    def _newest(self, identity: str, store: Store) -> Chosen:
        attempt = self.catalogue.named(identity)
        if attempt is not None:
            self.hold(attempt, False)
            state = self._restored(store, attempt)
            if any(each.key_or_group == _STEPS for each in parse(self.parts.overrides)):
                self._check_steps(str(attempt), state)
            if state is None:
                older = [a for a in self.catalogue.attempts(identity)[:-1] if steps_of(store, str(a))]
                hint = f"; an older attempt has some: trainer.resume={older[-1]}" if older else ""
                log.warning("%s has no checkpoint yet: it starts at step 0%s", attempt, hint)
            return Chosen(attempt, self.facts, state)
        if self.in_sweep:  # in one that grows that is how things are, and others of its jobs are its near misses
            return Chosen(self._opened(identity), self.facts)
        log.warning("nothing to resume for %s: starting a first attempt", identity)
        for other, differing in self.catalogue.near_misses(self.facts, identity):
            keys = ", ".join(f"{key}={here} (there {there})" for key, (here, there) in differing.items())
            if self._is_stretched(differing):
                log.warning(
                    "  near miss: %s differs in %s (the schedule is stretched over trainer.steps, so the length "
                    "matters). trainer.resume=%s trainer.steps=%d makes that run longer",
                    other, keys, other, self.parts.trainer.steps,
                )  # fmt: skip
            else:
                log.warning(
                    "  near miss: %s differs in %s. trainer.resume=%s trainer.allow_changes=true and what differs goes "
                    "on from it, as a fork", other, keys, other,
                )  # fmt: skip
        return Chosen(self._opened(identity), self.facts)

    def _exactly(self, wanted: str, store: Store, begun: Attempt | None) -> Chosen:
        """`begun`: an attempt of this process's own, held, that has no checkpoint yet."""
        found = find(wanted, self.catalogue, "trainer.resume=")
        theirs = found.catalogue.facts(found.attempt)
        if theirs is None:
            raise RequestError(f"{found.asked}: no config is recorded for {found.attempt} in {found.store.url}")
        differing = difference(self.facts, {key: value for key, value in theirs.items() if key != FORKED_FROM})
        attempt, step = replace(found.attempt, step=None), found.attempt.step
        if differing:
            return self._forked(found, store, differing)
        if found.catalogue is self.catalogue and step in (None, *steps_of(store, str(attempt))[-1:]):
            if attempt != begun:
                self.hold(attempt, False)
            own = self._restored(store, attempt, step)
            self._check_steps(wanted, own)
            return Chosen(attempt, theirs, own)
        # An older step, or a checkpoint from elsewhere: the attempt it belongs to stays as it is.
        state = found.restored()
        self._check_steps(wanted, state)
        parent = str(Name.of(str(attempt), state.step))
        return Chosen(begun or self._opened(attempt.identity), theirs, state, parent)

    def _check_steps(self, name: str, state: TrainingState | None) -> None:
        """Raises `RequestError` where the run is longer already: a slip, which later resumes would repeat."""
        if state is not None and state.step > self.parts.trainer.steps:
            raise RequestError(
                f"{_STEPS}={self.parts.trainer.steps}: {name} is at step {state.step}; expected at least that"
            )

    def _forked(self, found: Found, store: Store, differing: dict[str, tuple[Any, Any]]) -> Chosen:
        """A run under other settings that starts with the state of `found`. The same request goes on with it."""
        trainer, asked = self.parts.trainer, found.asked
        if self._is_stretched(differing) and not trainer.allow_changes:
            self._check_steps(asked.partition("=")[2], found.restored())
        listed = [f"  {key}: {here} here, {there} there" for key, (here, there) in differing.items()]
        longer = self._is_stretched(differing) and all(there < here for here, there in differing.values())
        if not trainer.allow_changes and not longer:
            raise RequestError(
                f"{asked}: that run has another config in keys that matter:",
                *listed,
                "The same values resume it; trainer.allow_changes=true forks it under a new identity",
            )
        state = found.restored()
        if state.step >= trainer.steps:
            raise RequestError(
                f"trainer.steps={trainer.steps}: {asked} is at step {state.step}, so a fork of it has nothing to train"
                f"; expected more than {state.step}"
            )
        self._check_shapes(found, state)
        parent = str(Name.of(f"{found.attempt.identity}/{found.attempt.name}", state.step))
        facts = {**self.facts, FORKED_FROM: parent}
        identity = self.identify(facts)
        log.info("fork of %s. What differs:", parent)
        for line in listed:
            log.info("%s", line)
        attempt = self.catalogue.named(identity)
        if attempt is None:
            return Chosen(self._opened(identity), facts, state, parent)
        self.hold(attempt, False)
        log.info("this fork was begun before: it goes on with %s", attempt)
        own = self._restored(store, attempt)
        return Chosen(attempt, facts, own) if own is not None else Chosen(attempt, facts, state, parent)

    def _is_stretched(self, differing: dict[str, tuple[Any, Any]]) -> bool:
        """Whether only the length differs, through a schedule that is stretched over it by the config."""
        given = {each.key_or_group for each in parse(self.parts.overrides)}
        return all(
            key.startswith("scheduler.") and key not in given and here == self.parts.trainer.steps
            and isinstance(there, int)
            for key, (here, there) in differing.items()
        )  # fmt: skip

    def _check_shapes(self, found: Found, state: TrainingState) -> None:
        """Raises `RequestError` where the state is that of another network."""
        theirs = {MODEL: state.model}
        with suppress(KeyError, ValueError):  # what does not fit, the Orchestrator refuses
            theirs |= RunState.of(state.training).networks
        for name in self.parts.learners.keys() & theirs.keys():
            here = {key: tuple(value.shape) for key, value in self.parts.learners[name].network.state_dict().items()}
            there = {key: tuple(value.shape) for key, value in theirs[name].items()}
            for key in (each for each in {**here, **there} if here.get(each) != there.get(each)):
                sizes = [" x ".join(map(str, each[key])) if key in each else "none" for each in (here, there)]
                raise RequestError(
                    f"{found.asked}: its {name} has other tensors than this config's ({key}: {sizes[1]} there, "
                    f"{sizes[0]} here); expected the same network. checkpoint.init_from={found.attempt} "
                    "checkpoint.init_rule=matching starts a new run with the weights that fit"
                )

    def _restored(self, store: Store, attempt: Attempt, step: int | None = None) -> TrainingState | None:
        return Reader(store, str(attempt), self.catalogue.scratch, spool_of(self.parts)).restore(step)
