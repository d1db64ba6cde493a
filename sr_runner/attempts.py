"""Which attempt a process works on: what `trainer.resume` means."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.checkpoint import CheckpointManager, Store, TrainingState
from sr_runner.checkpoint.catalogue import Attempt, Catalogue, difference
from sr_runner.checkpoint.stores import store_at
from sr_runner.errors import RequestError
from sr_runner.parts import Parts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """The attempt that this process works on, and the state it starts from, if any."""

    attempt: Attempt
    state: TrainingState | None = None
    parent: str | None = None
    """The checkpoint that a fork takes its state from."""


def choose(parts: Parts, catalogue: Catalogue, identity: str, facts: dict[str, Any], scratch: Path) -> Chosen:
    """What `trainer.resume` means here. Raises `RequestError` where it cannot be had."""
    wanted = parts.trainer.resume
    if wanted is False or wanted is None:
        return Chosen(catalogue.open_new(identity))
    if parts.store is None:
        raise RequestError(f"trainer.resume={wanted}: checkpoint=none keeps nothing to resume from")
    if wanted is True:
        return _newest(parts.store, catalogue, identity, facts, scratch, parts.trainer.steps)
    return _exactly(str(wanted), parts, catalogue, identity, facts, scratch)


def _newest(
    store: Store, catalogue: Catalogue, identity: str, facts: dict[str, Any], scratch: Path, steps: int
) -> Chosen:
    attempt = catalogue.newest(identity)
    if attempt is not None:
        state = _manager(store, attempt, scratch).restore()
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
    return Chosen(catalogue.open_new(identity))


def _exactly(
    wanted: str, parts: Parts, catalogue: Catalogue, identity: str, facts: dict[str, Any], scratch: Path
) -> Chosen:
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
    state = _manager(source, attempt, scratch).restore(attempt.step)
    if not differing and source is store and attempt.step is None:
        return Chosen(attempt, state)
    if state is None:
        raise RequestError(f"trainer.resume={wanted}: {attempt} has no checkpoint to start from")
    newest = max(_manager(source, attempt, scratch).steps())
    if not differing and source is store and state.step == newest:
        return Chosen(attempt, state)
    # Other settings, an older step, or a checkpoint from elsewhere: the attempt it belongs to stays as it is.
    return Chosen(catalogue.open_new(identity), state, parent=f"{attempt}/step-{state.step:08d}")


def _foreign(wanted: str, store: Store) -> tuple[Store, Attempt] | None:
    """A checkpoint by its path or URL that is not in the configured store."""
    place = wanted if "://" in wanted else str(Path(wanted).expanduser().absolute())
    match = re.fullmatch(r"(?P<root>.+)/(?P<identity>[^/]+)/(?P<attempt>[^/]+)/step-(?P<step>\d+)/?", place)
    if not match or match["root"] == store.url.rstrip("/"):
        return None
    if "://" not in wanted and not (Path(place) / "manifest.json").is_file():
        return None
    return store_at(match["root"]), Attempt(match["identity"], match["attempt"], int(match["step"]))


def _facts_of(store: Store, attempt: Attempt, catalogue: Catalogue, scratch: Path) -> dict[str, Any]:
    known = Catalogue(catalogue.runs if store.url == getattr(catalogue.store, "url", None) else scratch, store, scratch)
    facts = known.facts(attempt)
    if facts is None:
        raise RequestError(f"trainer.resume={attempt}: nothing is known of it in {store.url}")
    return facts


def _manager(store: Store, attempt: Attempt, scratch: Path) -> CheckpointManager:
    return CheckpointManager(store, str(attempt), keep=(), scratch=scratch)
