"""Checkpoints where there is no rename: object storage, and artifacts of a tracking server.

The files of a checkpoint are uploaded in the order given and the manifest last: its arrival is the commit. What has
no manifest is no checkpoint, and is removed by `clean`.

A checkpoint that is there already is replaced in two moves, so that one of the two is whole at every moment. The new
one is uploaded beside the old, into `.replacing-step-<step>-<id>/`, and counts under the name of the old one as soon
as its manifest is there. Then its files are copied, within the storage, to where they belong, the manifest last, and
the folder beside is removed. A writer that is killed in between leaves that to the next `clean` (or `put`).
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sr_runner.checkpoint.format import (
    FILES,
    MANIFEST,
    MANIFEST_LIMIT,
    PART,
    STEP,
    Blob,
    DamagedError,
    Manifest,
    Name,
    check_files,
)
from sr_runner.files import write_file

log = logging.getLogger(__name__)

_REPLACING = ".replacing-"
_DAMAGED = "damaged-"
_WHY = "why.json"
_LEASE = "lease.json"
_LEASE_LIMIT = 1 << 14
"""Bytes of a lease that are looked at: a longer one is none."""
_BESIDE = re.compile(rf"{re.escape(_REPLACING)}(?P<step>{STEP})-[0-9a-f]+")
_QUARANTINED = re.compile(rf"{re.escape(_DAMAGED)}(?P<step>{STEP})-.+")


class Objects(Protocol):
    """Files under keys such as `<identity>/<attempt>/step-00001000/model.safetensors`. An upload is whole or not there.

    Every verb repeats what fails for a while, may be repeated, and raises `OSError`.
    """

    url: str
    """Where they are, without credentials."""

    def keys(self, folder: str) -> Mapping[str, int]:
        """Every object below `folder` ("": everywhere) and its size in bytes."""

    def write(self, key: str, blob: Blob) -> None:
        """Upload a file of any size in bounded memory, over what is there."""

    def read(self, key: str, path: Path, size: int) -> None:
        """Download an object of `size` bytes into the new file `path`, in bounded memory. Raises `DamagedError` where
        it has another size."""

    def peek(self, key: str, limit: int) -> bytes | None:
        """The first `limit` bytes of an object, None where there is none."""

    def copy(self, source: str, target: str) -> None: ...

    def delete(self, keys: Sequence[str], *, once: bool = False) -> None:
        """Remove objects one after the other, in this order; those that are not there are passed over. With `once` the
        first request that fails ends it."""

    def abandon_uploads(self, folder: str) -> None:
        """Give up uploads into `folder` that nobody will complete."""


@dataclass(frozen=True)
class _Place:
    """A folder that holds a checkpoint or what is left of one: `files` are relative to it."""

    folder: str
    files: Mapping[str, int]

    @property
    def is_committed(self) -> bool:
        return MANIFEST in self.files

    @property
    def keys(self) -> list[str]:
        """All keys, the manifest's first: the order to delete in."""
        return [f"{self.folder}/{file}" for file in sorted(self.files, key=lambda file: (file != MANIFEST, file))]


class ObjectStore:
    """A `Store` on top of `Objects`."""

    def __init__(self, objects: Objects):
        self.url = objects.url
        self._objects = objects

    def put(self, name: str, files: Sequence[Blob]) -> None:
        here, beside = self._places(name)
        if any(place.is_committed for place in beside):
            self._settle(name, here, beside)
            here, beside = self._places(name)
        target = f"{_aside(name, _REPLACING)}-{uuid.uuid4().hex[:12]}" if here.is_committed else name
        *data, manifest = files
        written: list[str] = []
        try:
            for blob in data:
                written.append(f"{target}/{blob.name}")
                self._objects.write(written[-1], blob)
        except BaseException:
            with suppress(OSError):
                self._objects.delete(written, once=True)
            raise
        # Nothing is removed where this fails: the manifest may have arrived although its answer did not.
        self._objects.write(f"{target}/{manifest.name}", manifest)
        if target != name:
            try:
                self._settle(name, *self._places(name))
            except OSError as error:
                log.warning("%s is committed, but still beside its place (%s): the next start moves it", name, error)

    def get(self, name: str, scratch: Path, only: Sequence[str] | None = None) -> Path:
        try:
            return self._fetch(name, scratch, only)
        except FileNotFoundError:
            return self._fetch(name, scratch, only)  # it was being replaced, and has moved to its place by now

    def list(self, prefix: str = "") -> Sequence[str]:
        parts = prefix.split("/")[:-1]
        if not all(re.fullmatch(PART, part) for part in parts):
            return []
        names = set()
        for key in self._objects.keys("/".join(parts)):
            folder, _, file = key.rpartition("/")
            attempt, _, step = folder.rpartition("/")
            if match := _BESIDE.fullmatch(step):
                folder = f"{attempt}/{match['step']}"
            if file == MANIFEST and folder.startswith(prefix) and Name.parse(folder):
                names.add(folder)
        return sorted(names)

    def delete(self, name: str) -> None:
        here, beside = self._places(name)
        if not here.files and not beside:
            raise FileNotFoundError(f"there is no checkpoint {name} in {self.url}")
        # The replaced one first: were it the other way round, a kill would bring the older state back.
        for place in (here, *beside):
            self._objects.delete(place.keys)

    def quarantine(self, name: str, reason: str) -> str:
        place, _, _ = self._current(name)
        target = f"{_aside(name, _DAMAGED)}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        moved = [file for file in place.files if self._is_copied(f"{place.folder}/{file}", f"{target}/{file}")]
        why = json.dumps({"name": name, "reason": reason}, indent=1) + "\n"
        # Last, and so the sign that the copy is complete (see `clean`).
        self._objects.write(f"{target}/{_WHY}", Blob.of(_WHY, why.encode()))
        self._objects.delete(_Place(place.folder, {file: place.files[file] for file in moved}).keys)
        return f"{self.url}/{target}"

    def _is_copied(self, source: str, target: str) -> bool:
        """False for a file that is none of a checkpoint, and that the storage does not take under a longer key: it must
        not keep a run from going on with the checkpoint before."""
        try:
            self._objects.copy(source, target)
        except OSError as error:
            if source.rpartition("/")[2] in (*FILES, MANIFEST):
                raise
            log.warning("%s stays where it is: %s", source, error)
            return False
        return True

    def clean(self, attempt: str) -> None:
        Name.of(attempt, 0)  # raises where that is no attempt
        folders = _by_folder(attempt, self._objects.keys(attempt))
        for step in {match["step"] for folder in folders if (match := _BESIDE.fullmatch(folder))}:
            here, beside = self._places(f"{attempt}/{step}", folders)
            if any(place.is_committed for place in beside):
                self._settle(f"{attempt}/{step}", here, beside)
        for place in _leftovers(_by_folder(attempt, self._objects.keys(attempt))):
            self._objects.delete(place.keys)
        self._objects.abandon_uploads(attempt)

    def read_lease(self, attempt: str) -> bytes | None:
        return self._objects.peek(_lease_key(attempt), _LEASE_LIMIT)

    def write_lease(self, attempt: str, record: bytes) -> None:
        self._objects.write(_lease_key(attempt), Blob.of(_LEASE, record))

    def drop_lease(self, attempt: str) -> None:
        self._objects.delete([_lease_key(attempt)])

    # -- the two places of a checkpoint ----------------------------------------------------------------------------

    def _places(self, name: str, folders: Mapping[str, _Place] | None = None) -> tuple[_Place, Sequence[_Place]]:
        """Where the checkpoint belongs, and the folders beside it that are to replace it."""
        if Name.parse(name) is None:
            raise ValueError(f"{name!r} is not the name of a checkpoint")
        attempt, _, step = name.rpartition("/")
        if folders is None:
            folders = _by_folder(attempt, self._objects.keys(attempt))
        beside = [
            folders[folder] for folder in sorted(folders)
            if (match := _BESIDE.fullmatch(folder)) and match["step"] == step
        ]  # fmt: skip
        return folders.get(step, _Place(name, {})), beside

    def _settle(self, name: str, here: _Place, beside: Sequence[_Place]) -> None:
        """Bring a committed replacement to its place. Killed anywhere, it can be done again."""
        new, _, _ = self._current(name)
        if new.folder == here.folder:  # half a manifest arrived: the old one stays
            for place in beside:
                self._objects.delete(place.keys)
            return
        self._objects.delete([f"{here.folder}/{MANIFEST}"] if here.is_committed else [])
        self._objects.delete([f"{here.folder}/{file}" for file in here.files if file not in new.files])
        for file in sorted(new.files, key=lambda file: file == MANIFEST):
            self._objects.copy(f"{new.folder}/{file}", f"{name}/{file}")
        for place in beside:
            self._objects.delete(place.keys)

    def _current(self, name: str) -> tuple[_Place, bytes, Manifest | None]:
        """The place that counts, and its manifest: its bytes, and what they say (None if damaged).

        A replacement counts once its manifest is whole: a server that was killed may keep half of one.
        """
        here, beside = self._places(name)
        places = [place for place in (*beside, here) if place.is_committed]
        content: bytes | None = b""
        for place in places:
            content = b""
            if place.files[MANIFEST] <= MANIFEST_LIMIT:
                content = self._objects.peek(f"{place.folder}/{MANIFEST}", MANIFEST_LIMIT)
                if content is None:
                    raise FileNotFoundError(f"{place.folder}/{MANIFEST} is not in {self.url} any more")
                with suppress(DamagedError):
                    return place, content, Manifest.from_bytes(content)
        if not places:
            raise FileNotFoundError(f"there is no checkpoint {name} in {self.url}")
        return places[-1], content or b"", None

    def _fetch(self, name: str, scratch: Path, only: Sequence[str] | None) -> Path:
        folder = scratch / name
        place, content, manifest = self._current(name)
        if manifest is None and place.files[MANIFEST] > MANIFEST_LIMIT:
            raise DamagedError(f"{MANIFEST} has {place.files[MANIFEST]} bytes")
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / MANIFEST, content)
        stated = {file: size for file, (size, _) in manifest.files.items()} if manifest else {}
        if only is not None:
            # Not fetched unless it has the size it should have: nothing is filled because a store says so.
            for file in set(only) - {MANIFEST}:
                if file in place.files and place.files[file] == stated.get(file):
                    self._download(place, file, folder)
        elif manifest is not None:
            check_files(manifest, place.files)
            for file in FILES:
                self._download(place, file, folder)
        return folder

    def _download(self, place: _Place, file: str, folder: Path) -> None:
        draft = folder / f".{file}.part"
        draft.unlink(missing_ok=True)
        self._objects.read(f"{place.folder}/{file}", draft, place.files[file])
        draft.replace(folder / file)


def _lease_key(attempt: str) -> str:
    Name.of(attempt, 0)  # raises where that is no attempt
    return f"{attempt}/{_LEASE}"


def _aside(name: str, mark: str) -> str:
    attempt, _, step = name.rpartition("/")
    return f"{attempt}/{mark}{step}"


def _by_folder(attempt: str, keys: Mapping[str, int]) -> dict[str, _Place]:
    """The folders right below an attempt."""
    found: dict[str, dict[str, int]] = {}
    for key, size in keys.items():
        folder, _, file = key.removeprefix(f"{attempt}/").partition("/")
        if file:
            found.setdefault(folder, {})[file] = size
    return {folder: _Place(f"{attempt}/{folder}", files) for folder, files in found.items()}


def _leftovers(folders: Mapping[str, _Place]) -> list[_Place]:
    """What killed uploads, deletions and quarantines left. Nothing whose name is not one of ours."""

    def is_left(folder: str, place: _Place) -> bool:
        if match := _QUARANTINED.fullmatch(folder):
            original = folders.get(match["step"])
            return _WHY not in place.files and original is not None and original.is_committed
        ours = _BESIDE.fullmatch(folder) or Name.parse(place.folder)
        return bool(ours) and not place.is_committed

    return [place for folder, place in folders.items() if is_left(folder, place)]


def pieces(blob: Blob, size: int) -> Callable[[], bytes]:
    """A reader of `blob`: each call gives its next `size` bytes (the last ones fewer), and b"" at its end."""
    chunks, rest = blob.chunks(), bytearray()

    def next_piece() -> bytes:
        while len(rest) < size and (chunk := next(chunks, None)) is not None:
            rest.extend(chunk)
        piece = bytes(memoryview(rest)[:size])
        del rest[:size]
        return piece

    return next_piece
