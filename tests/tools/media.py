"""The places where checkpoints can be kept, each fresh for a test, and small checkpoints to put there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from store_servers import StorageServer

from sr_runner.checkpoint import TrainingState
from sr_runner.checkpoint.format import FILES, Blob, digest, load, seal
from sr_runner.checkpoint.stores import Store
from sr_runner.checkpoint.stores.objects import ObjectStore

IDENTITY = "edsr-x2-0123456789ab"
ATTEMPT = f"{IDENTITY}/a0001-00ff"
# A server of MLflow takes half a minute to start on a busy machine; what is behind it runs by default without it.
MLFLOW = pytest.param("mlflow", marks=pytest.mark.slow)
MEDIA = ("local", "memory", "file", "s3", "mlflow-sqlite", MLFLOW)
SERVED = ("s3", MLFLOW)
OUTLIVING = tuple(medium for medium in MEDIA if medium != "memory")
"""A process's own memory dies with it."""


def name(step: int, attempt: str = ATTEMPT) -> str:
    return f"{attempt}/step-{step:08d}"


def blobs(step: int, text: str = "first") -> list[Blob]:
    """The files of a checkpoint, with a true manifest."""
    data = [Blob.of(file, f"{text} {file} of {step}".encode()) for file in FILES]
    return [*data, seal(step, {"valid/psnr": 30.0}, lambda: digest(data))]


def content(folder: Path) -> str:
    """The `text` of the checkpoint in `folder`, which has to be whole."""
    _, files = load(folder)
    (text,) = {bytes(data).decode().split()[0] for data in files.values()}
    return text


def state(step: int) -> TrainingState:
    weight = torch.full((4, 3), float(step))
    return TrainingState(step, {"weight": weight}, {"step": step, "moment": weight / 2}, "a: 1\n")


@dataclass
class Medium:
    """One place for checkpoints, fresh for each test."""

    kind: str
    arguments: Mapping[str, Any]
    server: StorageServer | None = None
    folder: Path = field(default_factory=Path)
    made: Store | None = None

    def store(self) -> Store:
        """The test's store; making one costs a second where a cloud's library is behind it."""
        self.made = self.made or self.another()
        return self.made

    def another(self, **others: Any) -> Store:
        """A store as another process would make it: it knows nothing but its arguments."""
        module, _, kind = self.target.rpartition(".")
        made: Store = getattr(importlib.import_module(module), kind)(**{**self.arguments, **others})
        return made

    @property
    def target(self) -> str:
        kinds = {"local": "LocalStore", "mlflow": "MlflowStore", "mlflow-sqlite": "MlflowStore"}
        return f"sr_runner.checkpoint.stores.{kinds.get(self.kind, 'RemoteStore')}"

    # Behind the store's back:

    def write(self, key: str, data: bytes) -> None:
        if self.kind == "local":
            path = self.folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            objects_of(self.store()).write(key, Blob.of(key.rpartition("/")[2], data))

    def remove(self, key: str) -> None:
        if self.kind == "local":
            (self.folder / key).unlink()
        else:
            objects_of(self.store()).delete([key])

    def present(self) -> set[str]:
        """Every file that is there, whoever made it."""
        if self.kind == "local":
            return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        return set(objects_of(self.store()).keys(""))


def objects_of(store: Store) -> Any:
    assert isinstance(store, ObjectStore)
    return store._objects


def big(step: int, size: int) -> list[Blob]:
    """A checkpoint with one file that goes up in several parts."""

    def chunks() -> Iterator[bytes]:
        for start in range(0, size, 1 << 20):
            yield bytes([start >> 20 & 255]) * min(1 << 20, size - start)

    data = [Blob(FILES[0], chunks), *blobs(step)[1:-1]]
    return [*data, seal(step, {}, lambda: digest(data))]
