"""Which file is meant by the model that a command line names: a run, a checkpoint, a weights file, a URL."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.checkpoint import DamagedError
from sr_runner.checkpoint.format import MANIFEST, STATE, Name
from sr_runner.checkpoint.stores import Store, checkpoint_at, store_at
from sr_runner.errors import RequestError, RunError
from sr_runner.runs.catalogue import Catalogue

_TRACKER = "tracker.json"
"""In a run's folder: the ids that MLflow gave it."""
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Source:
    """Where a model is, in words that `load_model` understands."""

    location: str
    """A file, a checkpoint's folder or a URL."""
    label: str
    """A short name for tables."""
    outputs: Path = Path("outputs")
    """Folder of runs."""

    @property
    def step(self) -> int:
        """The step of a checkpoint, 0 for other files."""
        match = _STEP.fullmatch(Path(self.location).name)
        return int(match[1]) if match else 0

    @property
    def tracker(self) -> dict[str, Any]:
        """What is known of the checkpoint's run in MLflow: `run_id`, `tracking_uri`; empty where nothing is.

        The checkpoint tells, and where MLflow had not answered yet when it was written, the run's folder.
        """
        folder = Path(self.location).absolute()
        if not (folder / STATE).is_file():
            return {}
        name = Path(folder.parents[1].name, folder.parent.name)
        places = [self.outputs / "runs", folder.parents[2].parent / "runs"]
        known = [_json(folder / STATE).get("tracker"), *(_json(place / name / _TRACKER) for place in places)]
        return next((each for each in known if isinstance(each, dict) and each.get("run_id")), {})


def find_source(wanted: str, *, outputs: Path, checkpoints: str | Path) -> Source:
    """`wanted` is a URL, a weights file, a checkpoint's folder, or what names a run: `identity`, `identity/attempt`,
    either with `/step-N`, or its MLflow id. The newest checkpoint of the newest attempt counts where none is named.

    `outputs` is the folder of runs, `checkpoints` the folder or URL of the store of their checkpoints. A checkpoint in
    any store is also named by its own URL (`s3://bucket/prefix/identity/attempt/step-N`). Raises `RequestError`.
    """
    if (elsewhere := checkpoint_at(wanted)) is not None:
        return _checkpoint_of(elsewhere[1], outputs, elsewhere[0])
    if "://" in wanted:
        return Source(wanted, Path(wanted.partition("?")[0]).stem)
    path = Path(wanted).expanduser()
    if path.is_file():
        return Source(str(path), path.stem)
    if (path / MANIFEST).is_file():
        return Source(str(path), _label(path.absolute()), outputs)
    return _checkpoint_of(wanted, outputs, store_at(str(checkpoints)))


def _checkpoint_of(wanted: str, outputs: Path, store: Store) -> Source:
    scratch = Path(tempfile.mkdtemp(prefix="sr-run-"))  # what is fetched from afar is read later
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    catalogue = Catalogue(outputs / "runs", store, scratch)
    try:
        try:
            attempt = catalogue.find(wanted)
        except RequestError as error:
            raise RequestError(_nothing(wanted, catalogue.identities(), outputs)) from error
        steps = sorted(name.step for text in store.list(f"{attempt}/") if (name := Name.parse(text)) is not None)
        if not steps:
            raise RequestError(f"{wanted}: the run {attempt} has no checkpoint in {store.url}.")
        step = attempt.step if attempt.step is not None else steps[-1]
        if step not in steps:
            raise RequestError(f"{wanted}: {attempt} has checkpoints at {', '.join(map(str, steps))} alone.")
        folder = store.get(f"{attempt}/step-{step:08d}", scratch)
    except OSError as error:
        raise RunError(f"{store.url} cannot be read: {error}") from error
    except DamagedError as error:
        raise RunError(f"{wanted} is damaged: {error}") from error
    return Source(str(folder), _label(folder), outputs)


def _nothing(wanted: str, identities: set[str], outputs: Path) -> str:
    known = f" Runs there: {', '.join(sorted(identities)[-5:])}." if identities else ""
    return (
        f"{wanted}: no such file, no checkpoint, and no run of that name in {outputs}.{known} "
        "outputs=FOLDER looks for runs elsewhere."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _label(folder: Path) -> str:
    match = _STEP.fullmatch(folder.name)
    return f"{folder.parents[1].name} step {int(match[1])}" if match else folder.name
