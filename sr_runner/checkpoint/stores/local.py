"""Checkpoints in a folder.

A checkpoint is written into a hidden folder beside its place, every file and the folder flushed to the disk, and
then renamed: rename is atomic on local and network file systems alike, hard links and locks are not needed. A
checkpoint that is replaced is moved aside first, and counts (under its own name) until the new one has its place, so
a kill between the two renames loses nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sr_runner.checkpoint.format import MANIFEST, PART, STEP, Blob, DamagedError, Name
from sr_runner.checkpoint.stores.remote import PACKAGES
from sr_runner.files import DRAFT, check_writable, folder_named, own_folder, read_file, write_file

_WRITING = ".writing-"
_REPLACED = ".replaced-"
_DELETED = ".deleted-"
_LEASE = "lease.json"
_ASIDE = re.compile(rf"{re.escape(_REPLACED)}(?P<step>{STEP})-[0-9a-f]+")


def _other_store(scheme: str) -> str:
    if scheme.startswith(("mlflow", "runs", "models")):
        return "; checkpoint=mlflow keeps checkpoints in MLflow, where tracker.uri says"
    return f"; add checkpoint=s3 for checkpoints below {scheme}://" if scheme in PACKAGES else ""


class LocalStore:
    """A folder, `<root>/<identity>/<attempt>/step-<step>/`."""

    def __init__(self, root: str | Path):
        self.root = folder_named("checkpoint.root", root, _other_store).absolute()
        self.url = str(self.root)

    def check(self) -> None:
        check_writable(f"checkpoint.root={self.root}", self.root)

    def put(self, name: str, files: Sequence[Blob]) -> None:
        place = self._path(name)
        _make_durable_folder(place.parent)
        temporary = place.with_name(f"{_WRITING}{place.name}-{uuid.uuid4().hex[:12]}")
        try:
            temporary.mkdir()
            for blob in files:
                _write(temporary / blob.name, blob)
            _sync_folder(temporary)
            self._swap_in(temporary, place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def get(self, name: str, scratch: Path, only: Sequence[str] | None = None) -> Path:
        place = self._place(name)
        if place.is_symlink():
            raise DamagedError(f"{place.name} is a link")
        return place

    def list(self, prefix: str = "") -> Sequence[str]:
        names = []
        parts = prefix.split("/")[:-1]
        if not all(re.fullmatch(PART, part) for part in parts):
            return []
        for attempt in self.root.glob("/".join([*parts, "*", "*"][:2])):
            if attempt.is_symlink() or attempt.parent.is_symlink():
                continue
            # A link counts, as damage: nothing of it is read.
            steps = {entry.name for entry in attempt.glob("*") if entry.is_symlink() or (entry / MANIFEST).is_file()}
            steps.update(self._aside(attempt))
            names += [f"{attempt.parent.name}/{attempt.name}/{step}" for step in steps]
        return [name for name in names if name.startswith(prefix) and Name.parse(name)]

    def delete(self, name: str) -> None:
        place = self._place(name)
        doomed = place.with_name(f"{_DELETED}{place.name}-{uuid.uuid4().hex[:12]}")
        place.rename(doomed)
        doomed.unlink() if doomed.is_symlink() else shutil.rmtree(doomed)

    def quarantine(self, name: str, reason: str) -> str:
        place = self._place(name)
        stamp = time.strftime("%Y%m%dT%H%M%S")
        target = place.with_name(f"damaged-{self._path(name).name}-{stamp}-{uuid.uuid4().hex[:6]}")
        if place.is_symlink():
            target.mkdir()
            place.rename(target / place.name)
        else:
            place.rename(target)
        why = target / "why.json"
        if why.is_dir() and not why.is_symlink():  # whoever forged the checkpoint made it: nothing takes its place
            why.rename(target / f"found-{uuid.uuid4().hex[:6]}-why.json")
        write_file(why, json.dumps({"name": name, "reason": reason}, indent=1) + "\n")
        return str(target)

    def clean(self, attempt: str) -> None:
        folder = self._folder(attempt)
        for step, aside in self._aside(folder).items():
            aside.rename(folder / step)  # killed between the two renames of a replacement
        for mark in (_WRITING, _DELETED, _REPLACED, DRAFT):
            for left in folder.glob(f"{mark}*"):
                _remove(left)

    def read_lease(self, attempt: str) -> bytes | None:
        try:
            return read_file(self._folder(attempt) / _LEASE)
        except FileNotFoundError:
            return None

    def write_lease(self, attempt: str, record: bytes) -> None:
        folder = self._folder(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / _LEASE, record)

    def drop_lease(self, attempt: str) -> None:
        folder = self._folder(attempt)
        (folder / _LEASE).unlink(missing_ok=True)
        for empty in (folder, folder.parent):  # of a run that never saved anything
            with suppress(OSError):
                empty.rmdir()

    def _folder(self, attempt: str) -> Path:
        return self._path(str(Name.of(attempt, 0))).parent

    def _path(self, name: str) -> Path:
        if Name.parse(name) is None:
            raise ValueError(f"{name!r} is not the name of a checkpoint")
        place = self.root / name
        own_folder(self.root, place.parent)
        return place

    def _place(self, name: str) -> Path:
        """Where the checkpoint is, which may be a link; where it belongs, if it is nowhere."""
        place = self._path(name)
        return place if os.path.lexists(place) else self._aside(place.parent).get(place.name, place)

    @staticmethod
    def _aside(attempt: Path) -> dict[str, Path]:
        """Checkpoints that were moved aside for a successor which has not arrived, by the name they count under."""
        found = {}
        for entry in attempt.glob(f"{_REPLACED}*"):
            match = _ASIDE.fullmatch(entry.name)
            if match is None or entry.is_symlink() or os.path.lexists(attempt / match["step"]):
                continue
            if (entry / MANIFEST).is_file():
                found[match["step"]] = entry
        return found

    @staticmethod
    def _swap_in(temporary: Path, place: Path) -> None:
        aside = None
        if os.path.lexists(place):
            aside = place.with_name(f"{_REPLACED}{place.name}-{uuid.uuid4().hex[:12]}")
            place.rename(aside)
        temporary.rename(place)
        _sync_folder(place.parent)
        if aside is not None:
            _remove(aside)


def _remove(path: Path) -> None:
    """As far as possible, and of a link only the link."""
    with suppress(OSError):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()


def _write(path: Path, blob: Blob) -> None:
    with path.open("xb", buffering=0) as file:
        for chunk in blob.chunks():
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """A new name is durable only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_durable_folder(folder: Path) -> None:
    """Create `folder` so that the folders above it survive a power failure as well."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        _sync_folder(created.parent)
