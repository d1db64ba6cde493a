"""What a name means, the same for every command and key: `trainer.resume`, `checkpoint.init_from`, `load_model`, ...

Tried in this order, the first that fits counts:

 1. an http(s) URL: of a weights file
 2. the path of a file: a weights file
 3. a path or a store's URL (s3://..., mlflow:...) that ends in IDENTITY, IDENTITY/ATTEMPT, or either with /step-N;
    below the folder of checkpoints or that of runs, of this or of another folder of outputs
 4. IDENTITY, IDENTITY/ATTEMPT, or either with /step-N, of the configured store and folder of runs; of ATTEMPT, the
    number (a0001) is enough where there is only one of it
 5. the path of a checkpoint's folder under another name: somebody's copy
 6. the id of a run in MLflow

Without ATTEMPT that is the newest attempt, without step-N its newest good checkpoint. N may have leading zeros.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from sr_runner import weights
from sr_runner.checkpoint import DamagedError, LocalStore, Manifest, Name, Origin, Store, TrainingState
from sr_runner.checkpoint.format import CONFIG, MANIFEST, MODEL, STATE, load, step_of
from sr_runner.checkpoint.reader import Reader
from sr_runner.checkpoint.stores import names_in, store_at
from sr_runner.errors import RequestError, RunError, nearest
from sr_runner.files import scratch_folder
from sr_runner.masking import MASK, masked_text
from sr_runner.mlflow_server import RUN_ID
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import ATTEMPT, Attempt, Catalogue

log = logging.getLogger(__name__)

_ATTEMPT = re.compile(rf"a[0-9]{{4,9}}|{ATTEMPT.pattern}")
_UNNAMED = "checkpoint/a0000-0000"
"""Stands for the attempt of a copied checkpoint that does not name its own."""


@dataclass(frozen=True)
class Source:
    """Weights to read, checked if they are those of a checkpoint, and what their checkpoint knows of its run."""

    location: str
    """A file on this machine, or an http(s) URL."""
    label: str
    """A short name for tables."""
    step: int = 0
    """0 where it is no checkpoint."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run's config."""
    tracker: Mapping[str, Any] = field(default_factory=dict)
    """The run in MLflow: `run_id`, `tracking_uri`; empty where nothing is known."""

    def path(self) -> Path:
        """The file, downloaded if need be. Raises `RequestError` where it cannot be had."""
        return weights.download(self.location) if weights.is_url(self.location) else Path(self.location).expanduser()


@dataclass(frozen=True)
class Found:
    """An attempt, or where `attempt.step` is set one of its checkpoints, and the catalogue that knows it."""

    asked: str
    """The name, as messages quote it: `trainer.resume=NAME`."""
    catalogue: Catalogue
    attempt: Attempt

    @property
    def store(self) -> Store:
        if self.catalogue.store is None:
            raise RequestError(f"{self.asked}: checkpoint=none stores no checkpoints")
        return self.catalogue.store

    def names(self) -> list[Name]:
        """Its checkpoints, oldest first. Raises `RequestError` where there is none."""
        there = names_in(self.store, f"{self.attempt}/")
        names = [name for name in there if self.attempt.step in (None, name.step)]
        if not names:
            steps = ", ".join(str(name.step) for name in there)
            which = f" at step {self.attempt.step}, only at {steps}" if there else ""
            raise RequestError(f"{self.asked}: {self.attempt} has no checkpoint in {self.store.url}{which}")
        return names

    def restored(self) -> TrainingState:
        """The newest good state, or exactly that of the step; damaged ones stay where they are.

        Raises `RequestError` where there is no checkpoint, `RunError` where none is good.
        """
        self.names()
        state = Reader(self.store, str(self.attempt), self.catalogue.scratch).restore(self.attempt.step, own=False)
        assert state is not None
        return state

    def weights(self) -> Source:
        """The weights for inference of the newest good checkpoint, or of exactly that step, checked by its manifest.

        A damaged one is named in the log. Raises as `restored`.
        """
        names, damages = self.names(), ""
        for name in reversed(names):
            try:
                # Without the optimizer's state, which is twice as large and would be fetched from afar.
                folder = self.store.get(str(name), self.catalogue.scratch, only=[MODEL, STATE, CONFIG, MANIFEST])
                _, data = load(folder, expected_step=name.step, only=(MODEL, STATE, CONFIG))
                config = files.plain_yaml(bytes(data[CONFIG]).decode())
            except (DamagedError, ValueError) as damage:
                damages = f"{damages}; {name} is damaged: {damage}"
                log.error("checkpoint %s is damaged: %s", name, damage)
                continue
            except OSError as error:
                raise RunError(f"{self.asked}: {self.store.url} cannot be read: {error}") from error
            # MLflow may not have answered yet when the checkpoint was written: then the run's folder knows.
            known = [Origin.read(folder).tracker, files.tracker(self.catalogue.folder(self.attempt))]
            return Source(
                str(folder / MODEL),
                f"{name.identity} step {name.step}",
                name.step,
                config if isinstance(config, dict) else {},
                next((ids for ids in known if ids.get("run_id")), {}),
            )
        raise RunError(f"{self.asked}: no good checkpoint in {self.store.url}{damages}")


def find(wanted: str, catalogue: Catalogue, key: str = "") -> Found:
    """The attempt or checkpoint that `wanted` means (see above).

    Raises `RequestError` where there is no such thing, `RunError` where a store cannot be read; the messages begin
    with `key` (`trainer.resume=`) and `wanted`.
    """
    if is_weights_file(wanted):
        raise RequestError(
            f"{key}{weights.shown(wanted)}: a weights file; expected a run or a checkpoint, which hold a training state"
        )
    if not wanted.strip():
        raise RequestError(f"{key}{wanted}: expected the name of a run or a checkpoint")
    asked = f"{key}{masked_text(wanted)}"
    path = Path(wanted).expanduser()
    is_address = "://" in wanted or wanted.startswith("mlflow:")
    try:
        found = _placed(asked, wanted if is_address else str(path.absolute()), is_address, catalogue)
        if found is None and not is_address:
            root, words = _split(wanted)
            found = _named(catalogue, words) if not root else None
            if found is None and _is_file(path / MANIFEST):
                copy = _Copy(path)
                found = Catalogue(catalogue.scratch / "none", copy, catalogue.scratch), copy.attempt
            if found is None and RUN_ID.fullmatch(wanted) and (attempt := catalogue.of_run_id(wanted)) is not None:
                found = catalogue, attempt
        if found is None:
            _refuse(asked, None if is_address else path, catalogue)
        return Found(asked, _where_recorded(asked, *found), found[1])
    except OSError as error:
        raise RunError(f"{asked}: a store cannot be read: {error}") from error
    except DamagedError as damage:
        raise RunError(f"{asked} is damaged: {damage}") from damage


def source(wanted: str, catalogue: Catalogue, key: str = "") -> Source:
    """The weights that `wanted` means. Raises as `find` and `Found.weights`."""
    if is_weights_file(wanted):
        return Source(wanted, Path(weights.shown(wanted)).stem)
    return find(wanted, catalogue, key).weights()


def catalogue_at(outputs: Path, checkpoints: str | Path | None, scratch: Path) -> Catalogue:
    """What a command looks for runs in: `outputs` is the folder of outputs, `checkpoints` the folder or URL of the
    store; None: that below `outputs`, and for a run that records another, that one."""
    store = store_at(str(checkpoints or outputs / files.CHECKPOINTS))
    return Catalogue(outputs / files.RUNS, store, scratch, follows_records=checkpoints is None)


def find_source(wanted: str, *, outputs: Path, checkpoints: str | Path | None = None) -> Source:
    """`source` for a command; see `catalogue_at`."""
    stack = ExitStack()
    atexit.register(stack.close)  # what is fetched from afar is read later
    scratch = stack.enter_context(scratch_folder(outputs))
    return source(wanted, catalogue_at(outputs, checkpoints, scratch))


class _Copy(LocalStore):
    """A store of one checkpoint: a folder under whatever name somebody gave it."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        name = Name.of(Origin.read(folder).attempt or _UNNAMED, Manifest.read(folder).step)
        self.attempt, self._name = Attempt(name.identity, name.attempt, name.step), str(name)

    def list(self, prefix: str = "") -> Sequence[str]:
        return [self._name] if self._name.startswith(prefix) else []

    def get(self, name: str, scratch: Path, only: Sequence[str] | None = None) -> Path:
        return self.root


def _placed(asked: str, place: str, is_address: bool, catalogue: Catalogue) -> tuple[Catalogue, Attempt] | None:
    """What the absolute path or URL `ROOT/IDENTITY[/ATTEMPT][/step-N]` means."""
    root, words = _split(place)
    try:
        runs, store, outputs = catalogue.scratch / "none", store_at(root), Path(root).parent
    except RequestError as error:
        raise RequestError(f"{asked}: {error}") from error
    own = Path(root) == catalogue.runs.absolute() or (catalogue.store is not None and store.url == catalogue.store.url)
    if own:
        return _named(catalogue, words)
    is_runs = not is_address and Path(root).name == files.RUNS
    if is_runs and ((outputs / files.CHECKPOINTS).is_dir() or Path(root, words[0]).is_dir()):
        runs, store = Path(root), LocalStore(outputs / files.CHECKPOINTS)
    return _named(Catalogue(runs, store, catalogue.scratch, follows_records=is_runs), words)


def _where_recorded(asked: str, catalogue: Catalogue, attempt: Attempt) -> Catalogue:
    """`catalogue`, with the store that the folder of `attempt` records where nobody has named one."""
    place = files.store(catalogue.folder(attempt), catalogue.runs.parent) if catalogue.follows_records else None
    if place is None:
        return catalogue
    if MASK in place:
        raise RequestError(
            f"{asked}: its checkpoints are in {place}, whose secret is not recorded; expected checkpoint.root=... or "
            "checkpoint=mlflow tracker.uri=..."
        )
    there = store_at(place)
    is_here = catalogue.store is not None and names_in(catalogue.store, f"{attempt}/")
    return catalogue if is_here and not names_in(there, f"{attempt}/") else catalogue.at(there)


_Words = tuple[str, str | None, int | None]
"""Identity, attempt and step."""


def _named(catalogue: Catalogue, words: _Words) -> tuple[Catalogue, Attempt] | None:
    known = catalogue.named(*words[:2])
    return None if known is None else (catalogue, replace(known, step=words[2]))


def _split(place: str) -> tuple[str, _Words]:
    """The root of `ROOT/IDENTITY[/ATTEMPT][/step-N]`, which may be empty, and the other parts."""
    parts = place.rstrip("/").split("/")
    step = step_of(parts[-1])
    if step is not None:
        parts.pop()
    attempt = parts.pop() if parts and _ATTEMPT.fullmatch(parts[-1]) else None
    identity = parts.pop() if parts else ""
    return "/".join(parts) or place[: place.startswith("/")], (identity, attempt, step)


def _refuse(asked: str, path: Path | None, catalogue: Catalogue) -> NoReturn:
    """Raises `RequestError`: what was looked for and where, the nearest name, and a few known ones."""
    if path is None:
        raise RequestError(f"{asked}: no such run, attempt or checkpoint in that store")
    if os.path.isdir(path):  # noqa: PTH112
        raise RequestError(
            f"{asked}: a folder, but not of a run, an attempt or a whole checkpoint (which has a {MANIFEST})"
        )
    identity, attempt, _ = _split(str(path))[1]
    where = f"{catalogue.runs}{f' or {catalogue.store.url}' if catalogue.store is not None else ''}"
    if attempt is not None and catalogue.named(identity) is not None:
        there = catalogue.attempts(identity)
        fitting = [each for each in there if each.name.startswith(f"{attempt}-")] or there[-5:]
        expected = " or ".join(map(str, fitting))
        raise RequestError(f"{asked}: no such attempt in {where}, or several of that number; expected {expected}")
    known = catalogue.nearest(identity)
    some = f" Known: {', '.join(known)}." if known else ""
    raise RequestError(
        f"{asked}: no such file, and no such run, attempt or checkpoint in {where}.{nearest(identity, known)}{some}"
    )


def is_weights_file(wanted: str) -> bool:
    """Whether the name is that of a file, or of one on the web."""
    return weights.is_url(wanted) or _is_file(Path(wanted).expanduser())


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # no error for what is too long for a path
