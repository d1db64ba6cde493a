"""Which runs and attempts there are, in the store and in the folder of runs."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.checkpoint.format import NAME, STATE, DamagedError, Name
from sr_runner.checkpoint.stores import Store
from sr_runner.errors import RequestError, nearest

ATTEMPT = re.compile(r"a(\d{4,})-[0-9a-f]{4}")
RECORD = "run.json"
"""In a run's folder: what it was started with."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run, and, where exactly one of its checkpoints is meant, its step."""

    identity: str
    name: str
    step: int | None = None

    def __str__(self) -> str:
        return f"{self.identity}/{self.name}"


class Catalogue:
    """Finds and opens attempts. An attempt exists once it has a folder of its own or a checkpoint in the store.

    Attempts are numbered, so that the newest one is known without trusting anybody's clock, and end in random digits,
    so that two machines that start the same number do not meet.
    """

    def __init__(
        self,
        runs: Path,
        store: Store | None,
        scratch: Path,
        attempt_of: Callable[[str], str | None] = lambda run_id: None,
    ):
        """`attempt_of` knows the attempt (`<identity>/<attempt>`) of a tracker's run id, if anybody does."""
        self.runs, self.store, self.scratch, self._attempt_of = runs, store, scratch, attempt_of

    def attempts(self, identity: str) -> list[Attempt]:
        """All attempts of a run, oldest first."""
        names = {folder.name for folder in self.runs.glob(f"{identity}/a*-*") if folder.is_dir()}
        names |= {name.attempt for name in self._checkpoints(f"{identity}/")}
        return [Attempt(identity, name) for name in sorted(filter(ATTEMPT.fullmatch, names), key=_number)]

    def newest(self, identity: str) -> Attempt | None:
        attempts = self.attempts(identity)
        return attempts[-1] if attempts else None

    def open_new(self, identity: str) -> Attempt:
        """A fresh attempt, with its folder."""
        latest = self.newest(identity)
        number = _number(latest.name) + 1 if latest else 1
        attempt = Attempt(identity, f"a{number:04d}-{secrets.token_hex(2)}")
        self.folder(attempt).mkdir(parents=True)
        return attempt

    def folder(self, attempt: Attempt) -> Path:
        return self.runs / attempt.identity / attempt.name

    def find(self, wanted: str) -> Attempt:
        """The attempt that `wanted` names: an identity (its newest attempt), `identity/attempt`, either with
        `/step-N`, a path that ends in one of these, or an MLflow run id.

        Raises `RequestError` where there is none.
        """
        parts = Path(wanted).parts
        for length in (3, 2, 1):
            found = self._exact(parts[-length:]) if len(parts) >= length else None
            if found is not None:
                return found
        for record in self.runs.glob("*/*/tracker.json"):
            if wanted and wanted == _read(record).get("run_id"):
                return Attempt(record.parent.parent.name, record.parent.name)
        match = NAME.fullmatch(f"{self._attempt_of(wanted)}/step-00000000")
        if match is not None:
            return Attempt(match["identity"], match["attempt"])
        known = self.identities()
        some = f" Known: {', '.join(sorted(known)[-5:])}." if known else ""
        raise RequestError(
            f"{wanted}: no such run in {self.runs}{f' or {self.store.url}' if self.store else ''}."
            f"{nearest(parts[-1] if parts else wanted, known)}{some}"
        )

    def folder_of_checkpoint(self, wanted: str) -> Path:
        """A local folder with the checkpoint that `wanted` names as in `find`: that step, or the newest.

        Raises `RequestError` where there is none.
        """
        attempt = self.find(wanted)
        steps = sorted(name.step for name in self._checkpoints(f"{attempt}/"))
        step = attempt.step if attempt.step is not None else (steps[-1] if steps else None)
        if step not in steps or self.store is None or step is None:
            raise RequestError(f"{wanted}: {attempt} has no such checkpoint")
        return self.store.get(str(Name(attempt.identity, attempt.name, step)), self.scratch)

    def identities(self) -> set[str]:
        return {folder.parent.name for folder in self.runs.glob("*/a*-*")} | {
            name.identity for name in self._checkpoints("")
        }

    def facts(self, attempt: Attempt) -> dict[str, Any] | None:
        """What the attempt's identity was computed from, where it can be found out."""
        record = _read(self.folder(attempt) / RECORD)
        if "facts" in record:
            return dict(record["facts"])
        names = sorted(self._checkpoints(f"{attempt}/"))
        if not names or self.store is None:
            return None
        try:
            state = _read(self.store.get(str(names[-1]), self.scratch, only=[STATE]) / STATE)
        except (DamagedError, FileNotFoundError):
            return None
        return dict(state["facts"]) if "facts" in state else None

    def near_misses(self, facts: Mapping[str, Any], identity: str, limit: int = 3) -> list[tuple[str, dict[str, Any]]]:
        """Runs that differ from `facts` in few keys, nearest first: (identity, key -> (here, there))."""
        found = []
        for other in self.identities() - {identity}:
            newest = self.newest(other)
            theirs = self.facts(newest) if newest else None
            if theirs is not None:
                differing = difference(facts, theirs)
                if 0 < len(differing) <= 4:
                    found.append((other, differing))
        return sorted(found, key=lambda item: (len(item[1]), item[0]))[:limit]

    def _exact(self, parts: tuple[str, ...]) -> Attempt | None:
        identity, *rest = parts
        if not re.fullmatch(r"[\w.-]+", identity):  # the / that a path begins with, or a pattern
            return None
        if not rest:
            return self.newest(identity) if identity in self.identities() else None
        for attempt in self.attempts(identity):
            if attempt.name == rest[0]:
                match = re.fullmatch(r"step-(\d+)", rest[1]) if len(rest) == 2 else None
                return Attempt(identity, attempt.name, int(match[1]) if match else None)
        return None

    def _checkpoints(self, prefix: str) -> list[Name]:
        if self.store is None:
            return []
        return [name for text in self.store.list(prefix) if (name := Name.parse(text)) is not None]


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ: key -> (here, there); an absent one is None."""
    keys = sorted(here.keys() | there.keys())
    return {key: (here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)}


def _number(attempt: str) -> int:
    match = ATTEMPT.fullmatch(attempt)
    return int(match[1]) if match else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
