"""The jobs of a sweep that have finished before: known again without composing, building or starting anything."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from sr_runner.commands.sweep_board import Board, Job
from sr_runner.errors import RequestError, RunError
from sr_runner.masking import digested_overrides
from sr_runner.runs import folder as files
from sr_runner.tracking import is_delivered

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]


def sources_digest(loader: ConfigLoader, overrides: Sequence[str], outputs: Path) -> str:
    """A digest of all that turns overrides into a config: sr-run itself, the files of the config tree, and the
    variables of the environment that those or `overrides` name. `outputs` may lie in a folder of the tree."""
    assert isinstance(loader, ConfigLoaderImpl)
    digest, texts = hashlib.sha256(), [" ".join(overrides)]
    trees = [Path(each.path) for each in loader.repository.get_sources() if each.scheme() == "file"]
    for suffix, tree in ((".py", _PACKAGE), *((".yaml", tree) for tree in trees)):
        for folder, names, files_here in os.walk(tree):
            names[:] = sorted(name for name in names if name[:1] != "." and Path(folder, name) != outputs)
            for path in sorted(Path(folder, name) for name in files_here if name.endswith(suffix)):
                content = b""
                with suppress(OSError):  # Hydra says so where it needs the file
                    content = path.read_bytes()
                digest.update(f"{path.relative_to(tree)} {len(content)} ".encode() + content)
                texts += [content.decode(errors="replace")] if suffix == ".yaml" else []
    for name in sorted({name for text in texts for name in re.findall(r"oc\.env:\s*(\w+)", text)}):
        digest.update(f"{name}={os.environ.get(name)} ".encode())
    return digest.hexdigest()[:16]


class OnlyUnfinished(Launcher):
    """Hydra's `launcher`, less the jobs that have finished before: those are answered from their records.

    A record holds if it was written by the same overrides and the same sources (see `sources_digest`), and if the files
    that it was trained on are as they were. For that, one job of all that were trained on the same is built in full:
    `is_still` says whether the run of that name is what the overrides describe.
    """

    def __init__(
        self, launcher: Launcher, board: Board, sources: str, is_still: Callable[[list[str], str], bool]
    ) -> None:
        self._launcher, self._board, self._sources, self._is_still = launcher, board, sources, is_still
        self._verified: dict[str, bool] = {}

    def setup(self, **_: Any) -> None:
        """Was done to `launcher`."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        known = finished_before(self._board, self._sources)
        found = [known.get(determining(digested_overrides(overrides))) for overrides in job_overrides]
        done = [
            job if job is not None and self._holds(job, overrides) else None
            for job, overrides in zip(found, job_overrides, strict=True)
        ]
        left = [overrides for overrides, job in zip(job_overrides, done, strict=True) if job is None]
        for job in filter(None, done):
            self._board.tell_again(job)
        launched = iter(self._launcher.launch(left, initial_job_idx) if left else ())
        return [
            next(launched) if job is None else JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=job.psnr)
            for overrides, job in zip(job_overrides, done, strict=True)
        ]

    def _holds(self, job: Job, overrides: Sequence[str]) -> bool:
        folder = self._board.runs / job.run
        facts = files.facts(folder) if self._board.is_own(job.run) else None
        if facts is None or not (folder / files.RESULT).is_file() or not is_delivered(folder):
            return False
        swept = tuple(f"{key}." for key in self._board.keys)
        group = json.dumps(
            {key: value for key, value in facts.items() if _is_digest(value) or not f"{key}.".startswith(swept)}
        )
        if group not in self._verified:
            try:
                self._verified[group] = self._is_still(list(overrides), job.run)
            except (RequestError, RunError, OSError) as error:  # the job itself will say it
                log.debug("%s: %s", job.run, error)
                self._verified[group] = False
        return self._verified[group]


def finished_before(board: Board, sources: str) -> dict[frozenset[str], Job]:
    """By their `determining` overrides, the jobs that have finished and would be composed from the same."""
    return {
        determining(job.overrides): job
        for job in board.jobs()
        if job.status == "finished" and job.sources == sources and job.overrides
    }


def determining(overrides: Sequence[str]) -> frozenset[str]:
    """Whatever a job does but how it starts."""
    return frozenset(each for each in overrides if not each.lstrip("+").startswith(("trainer.resume=", "sweep.")))


def _is_digest(fact: object) -> bool:
    """Facts that come from files are digests."""
    return isinstance(fact, str) and re.fullmatch("[0-9a-f]{12,}", fact) is not None
