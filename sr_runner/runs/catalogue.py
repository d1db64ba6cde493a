"""Which runs and attempts there are, in the store and in the folder of runs."""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.checkpoint import DamagedError, Origin, Store
from sr_runner.checkpoint.format import CONFIG, PART, STATE, Name, step_name
from sr_runner.checkpoint.stores import names_in
from sr_runner.files import own_folder
from sr_runner.mlflow_server import ARTIFACTS, Server, tracking_uri
from sr_runner.mlflow_server import attempt_of as ask_attempt_of
from sr_runner.runs import folder as files

FORKED_FROM = "forked_from"
"""The checkpoint that a fork started from, part of what determines its identity."""
ATTEMPT = re.compile(r"a([0-9]{4,9})-[0-9a-f]{4,}")


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
        attempt_of: Callable[[str], str | None] | None = None,
        *,
        follows_records: bool = False,
    ):
        """`attempt_of` asks the tracking server which attempt (`<identity>/<attempt>`) has an MLflow run id; the
        server is that of `$MLFLOW_TRACKING_URI` or of the folder of outputs, `runs/..`, where it is None.
        `follows_records`: nobody has named `store`, so that a run's checkpoints are where its folder says."""
        self.runs, self.store, self.scratch, self.follows_records = runs, store, scratch, follows_records
        outputs = runs.parent
        self._attempt_of = attempt_of or (
            lambda run_id: ask_attempt_of(run_id, Server(tracking_uri(None, outputs), outputs / ARTIFACTS))
        )

    def attempts(self, identity: str) -> list[Attempt]:
        """All attempts of a run, oldest first."""
        folders = [folder for folder in self.runs.glob(f"{identity}/a*-*") if folder.is_dir()]
        names = {folder.name for folder in folders if not (folder.is_symlink() or folder.parent.is_symlink())}
        names |= {name.attempt for name in self._checkpoints(f"{identity}/")}
        return [Attempt(identity, name) for name in sorted(filter(ATTEMPT.fullmatch, sorted(names)), key=_number)]

    def at(self, store: Store | None, *, follows_records: bool = False) -> Catalogue:
        """The same runs with another store."""
        return Catalogue(self.runs, store, self.scratch, self._attempt_of, follows_records=follows_records)

    def open_new(self, identity: str) -> Attempt:
        """A fresh attempt, with its folder."""
        latest = self.named(identity)
        number = _number(latest.name) + 1 if latest else 1
        attempt = Attempt(identity, f"a{number:04d}-{secrets.token_hex(4)}")
        own_folder(self.runs, self.folder(attempt)).mkdir(parents=True)
        return attempt

    def folder(self, attempt: Attempt) -> Path:
        return self.runs / attempt.identity / attempt.name

    def named(self, identity: str, attempt: str | None = None) -> Attempt | None:
        """That attempt of the run, or its newest one; None where there is none. Its number (`a0001`) is enough where
        only one has it: two machines may have started one each."""
        known = self.attempts(identity) if re.fullmatch(PART, identity) else []
        if attempt is not None:
            known = [each for each in known if attempt in (each.name, each.name.partition("-")[0])]
        return known[-1] if known and (attempt is None or len(known) == 1) else None

    def of_run_id(self, run_id: str) -> Attempt | None:
        """The attempt whose run in MLflow has this id: by the folders of runs, by the tracking server, and by the
        checkpoints themselves."""
        for ids in self.runs.glob(f"*/*/{files.TRACKER}"):
            if files.tracker(ids.parent).get("run_id") == run_id:
                return Attempt(ids.parent.parent.name, ids.parent.name)
        if (name := Name.parse(f"{self._attempt_of(run_id)}/{step_name(0)}")) is not None:
            return Attempt(name.identity, name.attempt)
        newest = {(name.identity, name.attempt): name for name in self._checkpoints("")}
        for name in newest.values():
            if self._origin(name).tracker.get("run_id") == run_id:
                return Attempt(name.identity, name.attempt)
        return None

    def identities(self) -> set[str]:
        return {folder.parent.name for folder in self.runs.glob("*/a*-*")} | {
            name.identity for name in self._checkpoints("")
        }

    def facts(self, attempt: Attempt) -> dict[str, Any] | None:
        """What the attempt's identity was computed from, where it can be found out."""
        known = files.facts(self.folder(attempt))
        return known if known is not None else dict(self.origin(attempt).facts) or None

    def request(self, attempt: Attempt) -> dict[str, Any] | None:
        """What the attempt's config was composed from at its last start, where it can be found out."""
        starts = files.starts(self.folder(attempt))
        known = starts[-1].get("request") if starts else None
        return known if isinstance(known, dict) else dict(self.origin(attempt).request) or None

    def config(self, attempt: Attempt) -> str:
        """The attempt's config at its last start, as YAML; empty where it cannot be found out."""
        if known := files.config(self.folder(attempt)):
            return known
        names = self._checkpoints(f"{attempt}/")
        if not names:
            return ""
        assert self.store is not None
        with suppress(DamagedError, FileNotFoundError):
            return (self.store.get(str(names[-1]), self.scratch, only=[CONFIG]) / CONFIG).read_text()
        return ""

    def origin(self, attempt: Attempt) -> Origin:
        """What the newest checkpoint of the attempt says of it, not checked; empty where there is none to be had."""
        names = self._checkpoints(f"{attempt}/")
        return self._origin(names[-1]) if names else Origin()

    def nearest(self, name: str, most: int = 5) -> list[str]:
        """The identity that is closest to `name`, where one is close, and the newest ones, by their folders."""

        def begun(identity: str) -> float:
            folder = self.runs / identity
            return folder.stat().st_mtime if folder.is_dir() else 0.0

        newest = sorted(sorted(self.identities()), key=begun, reverse=True)
        return list(dict.fromkeys([*difflib.get_close_matches(name, newest, n=1), *newest]))[:most]

    def near_misses(self, facts: Mapping[str, Any], identity: str) -> list[tuple[str, dict[str, Any]]]:
        """Three runs that differ from `facts` in the fewest keys, nearest first: (identity, key -> (here, there))."""
        found = []
        for other in self.identities() - {identity}:
            newest = self.named(other)
            theirs = self.facts(newest) if newest else None
            differing = difference(facts, theirs) if theirs is not None and FORKED_FROM not in theirs else {}
            if 0 < len(differing) <= 4:
                found.append((other, differing))
        return sorted(found, key=lambda item: (len(item[1]), item[0]))[:3]

    def _origin(self, name: Name) -> Origin:
        assert self.store is not None
        try:
            return Origin.read(self.store.get(str(name), self.scratch, only=[STATE]))
        except (DamagedError, FileNotFoundError):
            return Origin()

    def _checkpoints(self, prefix: str) -> list[Name]:
        return [] if self.store is None else names_in(self.store, prefix)


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ: key -> (here, there); an absent one is None."""
    keys = sorted(here.keys() | there.keys())
    return {key: (here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)}


def _number(attempt: str) -> int:
    match = ATTEMPT.fullmatch(attempt)
    return int(match[1]) if match else 0


def is_attempt(text: str) -> bool:
    """Whether it is the name of an attempt, `<identity>/<attempt>`, and no other path."""
    identity, _, attempt = text.partition("/")
    return bool(re.fullmatch(PART, identity) and ATTEMPT.fullmatch(attempt))
