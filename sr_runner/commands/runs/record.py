"""What is known of a run by its folder and its checkpoints; nothing is composed or built for it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sr_runner.attempt.report import result_of
from sr_runner.checkpoint import DamagedError, LocalStore
from sr_runner.checkpoint.reader import read_manifest
from sr_runner.checkpoint.stores import names_in
from sr_runner.commands.runs import Condition
from sr_runner.config.identity import flatten
from sr_runner.config.settings import Retention
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Attempt, Catalogue
from sr_runner.runs.resolve import Found
from sr_runner.training.result import Result, psnr_of

_OF_A_RUN = ("run", "name", "status", "step", "sweep", "from", "psnr")
_COMPARISONS = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One attempt of a run."""

    catalogue: Catalogue
    attempt: Attempt

    @classmethod
    def of(cls, found: Found) -> Record:
        return cls(found.catalogue, found.attempt)

    @property
    def folder(self) -> Path:
        return self.catalogue.folder(self.attempt)

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        return files.starts(self.folder)

    @property
    def start(self) -> dict[str, Any]:
        """The last one; empty where there is no record of it."""
        return self.starts[-1] if self.starts else {}

    @cached_property
    def parent(self) -> str | None:
        """The checkpoint, `<identity>/<attempt>/step-N`, from which it went on as a run of its own."""
        return next((each["parent"] for each in self.starts if isinstance(each.get("parent"), str)), None)

    @cached_property
    def end(self) -> dict[str, Any]:
        return files.ended(self.folder)

    @cached_property
    def params(self) -> dict[str, Any]:
        """The choice of each group, and what somebody chose, as in MLflow."""
        found = self.start.get("params")
        return found if isinstance(found, dict) else {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """Flat: `optimizer.lr` -> 1e-4."""
        with suppress(ValueError, RecursionError):
            return flatten(files.plain_yaml(self.catalogue.config(self.attempt) or "{}"))
        return {}

    @property
    def best_metric(self) -> str:
        """What its best evaluation is best by: `psnr`, `lpips`."""
        return str(self.value("checkpoint.best_metric") or Retention.best_metric).removeprefix("valid/")

    def final(self, name: str) -> float | None:
        """The metric `name` of the last evaluation, on all images where that was done at the end."""
        return self.metrics.get(f"final/{name}", self.metrics.get(f"valid/{name}"))

    @cached_property
    def status(self) -> str:
        """finished, pruned, stopped or failed, as the run wrote down; else running, or killed where nobody works on it.

        Of a process on another machine nobody knows here whether it lives: it counts as running. `elsewhere`: the run
        has no folder here.
        """
        if not self.folder.is_dir():
            return "elsewhere"
        if self.end:
            return str(self.end["end"])
        return "killed" if files.holder(self.folder) is None else "running"

    @cached_property
    def result(self) -> Result | None:
        return result_of(self.folder) if self.status in ("finished", "pruned") else None

    @cached_property
    def _newest(self) -> tuple[int, dict[str, float]]:
        """Step and metrics of the newest checkpoint; (0, {}) where there is none, or where a server had to be asked."""
        store = self.catalogue.store
        if isinstance(store, LocalStore):
            for name in reversed(names_in(store, f"{self.attempt}/")):
                with suppress(DamagedError, OSError):
                    return name.step, dict(read_manifest(store, str(name), self.catalogue.scratch).metrics)
        return 0, {}

    @cached_property
    def step(self) -> int:
        return self.result.step if self.result is not None else self._newest[0]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Those of the last evaluation, and `gain` over bicubic in dB."""
        if self.result is None:
            return self._newest[1]
        gain = self.result.gain
        return dict(self.result.metrics) | ({"gain": gain} if gain is not None else {})

    def value(self, key: str) -> Any:
        """What `key` is in this run: of the run itself, a param, a key of the config, a metric; None: nothing."""
        if key in _OF_A_RUN:
            if key == "psnr":
                return psnr_of(self.metrics)
            known = {"run": str(self.attempt), "status": self.status, "step": self.step, "from": self.parent}
            return known.get(key, self.start.get(key))
        for values in (self.params, self.config, self.metrics):
            if key in values:
                return values[key]
        return None

    def known_keys(self) -> Iterator[str]:
        yield from (*_OF_A_RUN, *self.params, *self.config, *self.metrics)

    def fulfils(self, condition: Condition) -> bool:
        value = self.value(condition.key)
        if condition.operator in _COMPARISONS:
            number, limit = number_of(value), number_of(condition.value)
            return None not in (number, limit) and bool(_COMPARISONS[condition.operator](number, limit))
        wanted = condition.value.split(",")
        is_one = any(_equal(value, each) for each in [*wanted, condition.value])
        return is_one == (condition.operator == "=")


def records(catalogue: Catalogue) -> list[Record]:
    """All attempts that have a folder, the one that was started last at the end."""
    folders = [folder for folder in catalogue.runs.glob("*/a*-*") if folder.is_dir()]
    here = {(folder.parent.name, folder.name) for folder in folders}
    known = Catalogue(catalogue.runs, None, catalogue.scratch)
    attempts = [a for identity in sorted({i for i, _ in here}) for a in known.attempts(identity)]
    found = [Record(catalogue, attempt) for attempt in attempts]
    return sorted(found, key=lambda record: str(record.start.get("time", "")))


def differing(found: Sequence[Record]) -> list[str]:
    """The params in which the runs differ; what one of two networks has and the other lacks is no difference."""
    keys = dict.fromkeys(key for record in found for key in record.params)
    return [key for key in keys if len({str(value) for r in found if (value := r.value(key)) is not None}) > 1]


def number_of(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _equal(value: Any, wanted: str) -> bool:
    number, other = number_of(value), number_of(wanted)
    if number is not None and other is not None and not isinstance(value, bool):
        return number == other
    text = {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_word(value) else str(value)
    return fnmatch.fnmatchcase(text, wanted)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
