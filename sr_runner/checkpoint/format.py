"""What a checkpoint is: its name, its files, and the manifest that makes it one.

    <root>/<identity>/<attempt>/step-00001000/
      model.safetensors      the weights for inference
      training.safetensors   every other tensor
      state.json             everything else
      config.yaml            the run's config, secrets masked
      manifest.json          format version, size and SHA-256 of each file; written last: it is the commit

The manifest also says what retention needs (step, metrics, time), so that listing a store never opens the rest, and
carries a digest of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.errors import Lines
from sr_runner.files import open_own, read_file

FORMAT = "sr-run checkpoint"
VERSION = 1

MODEL = "model.safetensors"
TRAINING = "training.safetensors"
STATE = "state.json"
CONFIG = "config.yaml"
MANIFEST = "manifest.json"
FILES = (MODEL, TRAINING, STATE, CONFIG)

# Names from a store become paths, so they are matched whole and never "cleaned".
PART = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}"
STEP = r"step-(?:[0-9]{8}|[1-9][0-9]{8,11})"
"""Matches what `step_name` writes, and nothing else: another spelling of a step would be listed, and never found."""
_NAME = re.compile(rf"(?P<identity>{PART})/(?P<attempt>{PART})/(?P<step>{STEP})")
_WRITTEN_STEP = re.compile(r"step-([0-9]{1,12})")
MANIFEST_LIMIT = 1 << 16


class DamagedError(Lines):
    """A checkpoint is not what its manifest says; the message names the file and the reason."""


def step_name(step: int) -> str:
    """`step-00001000`, the last part of a checkpoint's name."""
    return f"step-{step:08d}"


def step_of(text: str) -> int | None:
    """The step in `step-1000` as a person writes it, with or without leading zeros; None for any other text."""
    match = _WRITTEN_STEP.fullmatch(text)
    return int(match[1]) if match else None


@dataclass(frozen=True, order=True)
class Name:
    """`<identity>/<attempt>/step-<step>`, the name of a checkpoint in every store."""

    identity: str
    attempt: str
    step: int

    def __str__(self) -> str:
        return f"{self.identity}/{self.attempt}/{step_name(self.step)}"

    @classmethod
    def parse(cls, text: str) -> Name | None:
        """The name, or None where `text` is not one (also where it tries to be a path)."""
        match = _NAME.fullmatch(text)
        if match is None or ".." in text:
            return None
        return cls(match["identity"], match["attempt"], int(match["step"].rpartition("-")[2]))

    @classmethod
    def of(cls, attempt: str, step: int) -> Name:
        """The checkpoint of `attempt` (`<identity>/<attempt>`) at `step`. Raises `ValueError` where that is no name."""
        name = cls.parse(f"{attempt}/{step_name(step)}")
        if name is None:
            raise ValueError(f"{attempt!r} is not the name of an attempt")
        return name


@dataclass(frozen=True)
class Blob:
    """One file on its way into a store. `chunks` can be called again, so that a store can retry."""

    name: str
    chunks: Callable[[], Iterator[bytes | memoryview]]

    @classmethod
    def of(cls, name: str, content: bytes) -> Blob:
        return cls(name, lambda: iter((content,)))

    @classmethod
    def of_file(cls, path: Path) -> Blob:
        def chunks() -> Iterator[bytes]:
            with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
                while chunk := file.read(8 << 20):
                    yield chunk

        return cls(path.name, chunks)


@dataclass(frozen=True)
class Manifest:
    """The commit record of a checkpoint."""

    step: int
    created: float
    """Seconds since 1970, of the machine that wrote it; shown to people, and used only by time-based retention."""
    metrics: Mapping[str, float]
    files: Mapping[str, tuple[int, str]]
    """File name -> size in bytes, SHA-256."""

    def to_bytes(self) -> bytes:
        body: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "step": self.step,
            "created": self.created,
            "metrics": dict(self.metrics),
            "files": {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()},
        }
        return json.dumps(body | {"sha256": _digest_of(body)}, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises `DamagedError` unless `data` is an intact manifest of a version that this release reads."""
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{MANIFEST} is not JSON ({error})" if data else f"{MANIFEST} is empty") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise DamagedError(f"{MANIFEST} is not the manifest of an {FORMAT}")
        if body.get("version") != VERSION:
            raise DamagedError(
                f"{MANIFEST} says format version {body.get('version')!r}; this release of sr-run reads {VERSION}"
            )
        stated = body.pop("sha256", None)
        if stated != _digest_of(body):
            raise DamagedError(f"{MANIFEST} does not match its own checksum")
        try:
            files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in body["files"].items()}
            metrics = {str(key): float(value) for key, value in body["metrics"].items()}
            return cls(int(body["step"]), float(body["created"]), metrics, files)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DamagedError(f"{MANIFEST} lacks or garbles {error}") from error

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        path = folder / MANIFEST
        try:
            if (size := path.lstat().st_size) > MANIFEST_LIMIT:
                raise DamagedError(f"{MANIFEST} has {size} bytes")
            return cls.from_bytes(read_file(path, MANIFEST_LIMIT))
        except FileNotFoundError as error:
            raise DamagedError(f"{MANIFEST} is missing: the write was never finished") from error
        except OSError as error:
            raise DamagedError(f"{MANIFEST} cannot be read ({error})") from error


def seal(step: int, metrics: Mapping[str, float], digests: Callable[[], Mapping[str, tuple[int, str]]]) -> Blob:
    """The manifest as the last file of a checkpoint; asks for the digests only when a store comes to write it."""
    created = time.time()

    def chunks() -> Iterator[bytes]:
        yield Manifest(step, created, metrics, digests()).to_bytes()

    return Blob(MANIFEST, chunks)


def digest(blobs: Iterable[Blob]) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each blob."""
    result = {}
    for blob in blobs:
        sha, size = hashlib.sha256(), 0
        for chunk in blob.chunks():
            sha.update(chunk)
            size += len(chunk)
        result[blob.name] = (size, sha.hexdigest())
    return result


def load(
    folder: Path, *, expected_step: int | None = None, only: Sequence[str] = FILES
) -> tuple[Manifest, dict[str, bytes]]:
    """The files (or `only` some) of the checkpoint in `folder`, checked against its manifest. Memory: their sizes.

    Raises `DamagedError` that names the first file that is missing, too long, too short, altered, or not in the
    manifest.
    """
    manifest = Manifest.read(folder)
    if expected_step is not None and manifest.step != expected_step:
        raise DamagedError(f"{MANIFEST} is that of step {manifest.step}")
    found = {}
    for entry in folder.iterdir():
        if entry.is_symlink() or not entry.is_file():
            raise DamagedError(f"{entry.name} is {'a link' if entry.is_symlink() else 'no file'}")
        found[entry.name] = entry.stat().st_size
    check_files(manifest, found, only)
    return manifest, {name: _read(folder / name, *manifest.files[name]) for name in only}


def check_files(manifest: Manifest, found: Mapping[str, int], only: Sequence[str] = FILES) -> None:
    """Raises `DamagedError` where the files `found` (name -> size in bytes) cannot be those of the manifest.

    Cheap, and done before anything is read: nothing is allocated because a manifest or a store says so.
    """
    if set(manifest.files) != set(FILES):
        raise DamagedError(f"{MANIFEST} lists {', '.join(sorted(manifest.files)) or 'no file'}")
    if extra := found.keys() - {*FILES, MANIFEST}:
        raise DamagedError(f"{min(extra)} is not in {MANIFEST}")
    for name in only:
        if name not in found:
            raise DamagedError(f"{name} is missing")
        if found[name] != manifest.files[name][0]:
            raise DamagedError(f"{name} has {found[name]} bytes instead of {manifest.files[name][0]}")


def _read(path: Path, size: int, expected: str) -> bytes:
    try:
        data = read_file(path, size)
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read ({error})") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise DamagedError(f"{path.name} does not match its checksum")
    return data


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
