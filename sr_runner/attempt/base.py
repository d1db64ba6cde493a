"""`trainer.resume=RUN`: what RUN was started with is the base of the request, and what is given now applies on top."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from sr_runner.attempt.build import build, build_store
from sr_runner.config.compose import Application, Request, job_config
from sr_runner.config.fitting import fitted
from sr_runner.config.identity import flatten
from sr_runner.config.overrides import as_override, parse
from sr_runner.errors import RequestError
from sr_runner.files import scratch_folder
from sr_runner.masking import MASK, learn, masked
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Catalogue
from sr_runner.runs.resolve import Found, find
from sr_runner.tracking import Tracker

log = logging.getLogger(__name__)

_RESUME, _TARGET = "trainer.resume", "_target_"
_OF_A_START = (_RESUME, "trainer.allow_changes", "outputs", "data.preview", "sweep")
"""How a process is started is no property of the run."""
_PLACES = ("checkpoint", "tracker", "data.cache_dir")
"""Where things lie is known from the folder of a run, and not believed where only a checkpoint says it."""


def with_recorded(request: Request) -> Request:
    """`request` upon that of the run which its `trainer.resume` names; as it is where it names none.

    Raises `RequestError` where there is no such run, or where its record does not do.
    """
    given = parse(request.overrides)
    if not any(_names_a_run(override) for override in given if override.key_or_group == _RESUME):
        return request
    known = [each for each in given if _is_below(_key(each), (_RESUME, "outputs", "experiment", *_PLACES))]
    app = Application(request.config_path, request.config_dir)
    config, _ = job_config(app.compose_config(request.config_name, _lines(known), RunMode.RUN))
    learn(OmegaConf.to_container(config))
    wanted, outputs = config.trainer.resume, Path(config.outputs)
    if isinstance(wanted, bool | None):  # ${oc.decode:...}
        return request
    tracker: Tracker = build(config.tracker, "tracker", Tracker)
    with scratch_folder(outputs) as scratch:
        catalogue = Catalogue(outputs / files.RUNS, build_store(config), scratch, tracker.attempt_of)
        found = find(str(wanted), catalogue, f"{_RESUME}=")
        return _Base(request, given, found, outputs).applied()


@dataclass(frozen=True)
class _Base:
    request: Request
    given: Sequence[Override]
    found: Found
    outputs: Path

    def applied(self) -> Request:
        catalogue, attempt, asked = self.found.catalogue, self.found.attempt, self.found.asked
        recorded = catalogue.request(attempt)
        if recorded is None:
            raise RequestError(f"{asked}: no command is recorded for {attempt}; expected a run of sr-run")
        try:
            known = Request.of(recorded)
        except ValueError as error:
            raise RequestError(f"{asked}: its record is damaged; {error}") from error
        request = self._own_places(known)
        is_here = bool(files.starts(catalogue.folder(attempt)))
        left_out = _OF_A_START if is_here else (*_OF_A_START, *_PLACES)
        own = [_key(override) for override in self.given]
        everything = [each for each in parse(request.overrides) if not _is_below(_key(each), left_out)]
        base = [each for each in everything if not _is_below(_key(each), own)]
        self._refuse_code(base)
        for override in base:
            if MASK in str(override.input_line):
                raise RequestError(
                    f"{asked}: recorded is {override.input_line}, without its secret; expected "
                    f"{override.key_or_group}=... on this command line too"
                )
        pinned = self._pinned(request, _lines(everything), catalogue.config(attempt), [*left_out, *own])
        before = " ".join(_lines(everything)) or "no overrides"
        since = (
            f"; options have changed since, and these values are taken over too: {' '.join(pinned)}" if pinned else ""
        )
        log.info("%s was started with: %s%s. What is given now applies on top", asked, before, since)
        return Request(
            [*_lines(base), *pinned, *self.request.overrides],
            request.config_name, request.config_path, request.config_dir,
        )  # fmt: skip

    def _own_places(self, recorded: Request) -> Request:
        """`recorded`, where this command line says as well where its configs lie: they may name code."""
        for option in ("config_path", "config_dir"):
            there, here = getattr(recorded, option), getattr(self.request, option)
            if there is not None and here is None:
                self._refuse([f"--{option.replace('_', '-')}={there}"], "can name code")
        name = self.request.config_name if self.request.config_name != Request.config_name else recorded.config_name
        return Request(recorded.overrides, name, self.request.config_path, self.request.config_dir)

    def _refuse_code(self, overrides: Sequence[Override]) -> None:
        """A file never decides which code runs, nor what is read from the environment."""
        if code := names_code(overrides):
            self._refuse(code, "names code")
        for line in reads_environment(overrides):
            self._refuse([line], "reads the environment")

    def _refuse(self, words: Sequence[str], what: str) -> None:
        raise RequestError(
            f"{self.found.asked}: it was started with {' '.join(words)}, which {what}, and no record is believed about "
            f"that; expected the same on this command line: sr-run {shlex.join([*words, *self.request.overrides])}"
        )

    def _pinned(self, request: Request, base: list[str], recorded: str, left_out: Sequence[str]) -> list[str]:
        """Overrides for the values that the same request composes to something else than when it was recorded: an
        option file was changed meanwhile, or a default."""
        try:
            then = files.plain_yaml(recorded)
        except ValueError as error:
            raise RequestError(f"{self.found.asked}: its config cannot be read ({error})") from error
        if not isinstance(then, dict) or not isinstance(then.get("outputs"), str):
            return []
        app = Application(request.config_path, request.config_dir)
        try:
            placed = [*base, as_override("outputs", then["outputs"])]
            config, _ = job_config(app.compose_config(request.config_name, placed, RunMode.RUN))
            now = masked(OmegaConf.to_container(fitted(config, base), resolve=True))
        except RequestError as error:
            raise RequestError(f"{self.found.asked}: what it was started with does not compose: {error}") from error
        here, there = flatten(now), flatten(then)
        pinned = []
        for key in sorted(here.keys() | there.keys()):
            value = there.get(key)
            if here.get(key) == value or _is_below(key, left_out) or MASK in str(value) or "${" in str(value):
                continue
            if key.rpartition(".")[2].startswith("_"):
                self._refuse([f"{key}={value}"], "names code")
            with suppress(RequestError):  # the run's identity will tell
                pinned.append(as_override(key, value, sign="++") if key in there else f"~{key}")
        return pinned


def names_code(overrides: Sequence[Override]) -> list[str]:
    """Those that decide which code runs."""
    return _lines([each for each in overrides if _names_code(each)])


def _names_code(override: Override) -> bool:
    key, line = _key(override), str(override.input_line)
    if _TARGET in key.split(".") or _is_below(key, ["hydra"]):
        return True
    if override.is_delete() or _TARGET not in line:
        return False
    # What a resolver or a sweep makes of a text is not known here.
    return override.is_sweep_override() or "${" in line or _has_target(override.value())


def _has_target(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(str(key) == _TARGET or _has_target(inner) for key, inner in value.items())
    return isinstance(value, list) and any(map(_has_target, value))


def reads_environment(overrides: Sequence[Override]) -> list[str]:
    """Those whose value is a variable of the environment."""
    return [line for line in _lines(overrides) if "${" in line and "oc.env" in line]


def _names_a_run(override: Override) -> bool:
    if override.is_delete():
        return False
    if override.is_sweep_override():
        if any(str(value) not in ("true", "false") for value in override.sweep_string_iterator()):
            raise RequestError(f"{override.input_line}: expected one run, whose config is the base of all jobs")
        return False
    return not isinstance(override.value(), bool | None)


def _key(override: Override) -> str:
    return override.key_or_group.replace("/", ".")


def _is_below(key: str, names: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def _lines(overrides: Sequence[Override]) -> list[str]:
    return [str(override.input_line) for override in overrides]
