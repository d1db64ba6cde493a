"""A checkpoint in object storage that is replaced: between the commit beside its place and the move there."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_runner.checkpoint import CheckpointManager, LocalStore, RemoteStore, TrainingState
from sr_runner.checkpoint.format import MANIFEST, Blob
from sr_runner.checkpoint.stores import MlflowStore, objects, store_at

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"
NAME = f"{ATTEMPT}/step-00000004"


class Bench:
    def __init__(self, folder: Path) -> None:
        self.store = RemoteStore(f"memory://{uuid.uuid4().hex}")
        self.manager = CheckpointManager(self.store, ATTEMPT, scratch=folder)

    def save(self, value: float) -> None:
        self.manager.save(TrainingState(4, {"weight": torch.full((3,), value)}, {"step": 4}, "a: 1\n"), wait=True)

    @property
    def value(self) -> float:
        state = self.manager.restore()
        assert state is not None
        return float(state.model["weight"][0])

    @property
    def folders(self) -> set[str]:
        return {key.split("/")[-2] for key in self.store._objects.keys(ATTEMPT)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_could_not_be_moved_to_its_place_counts_and_is_moved_before_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.save(1)

    def away(*_: Any) -> None:
        raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "_settle", away)
        bench.save(2)
    assert "is committed, but still beside its place (away)" in caplog.text
    assert len(bench.folders) == 2 and bench.value == 2 and bench.store.list() == [NAME]
    bench.save(3)
    assert bench.folders == {"step-00000004"} and bench.value == 3


def test_half_a_manifest_beside_leaves_the_old_checkpoint_where_it_is(bench: Bench) -> None:
    bench.save(1)
    beside = f"{objects._aside(NAME, objects._REPLACING)}-0123456789ab"
    bench.store._objects.write(f"{beside}/{MANIFEST}", Blob.of(MANIFEST, b'{"half'))
    assert bench.value == 1 and bench.store.list() == [NAME]
    bench.store.clean(ATTEMPT)
    assert bench.folders == {"step-00000004"} and bench.value == 1


def test_a_checkpoint_that_moves_while_it_is_read_is_read_at_its_new_place(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.save(1)
    peek, peeked = bench.store._objects.peek, []

    def moved(key: str, limit: int) -> bytes | None:
        peeked.append(key)
        return None if len(peeked) == 1 else peek(key, limit)

    monkeypatch.setattr(bench.store._objects, "peek", moved)
    assert bench.value == 1 and len(peeked) == 2


def test_what_is_not_there_is_said_by_every_verb(bench: Bench, tmp_path: Path) -> None:
    for verb in (bench.store.delete, lambda name: bench.store.get(name, tmp_path),
                 lambda name: bench.store.quarantine(name, "")):  # fmt: skip
        with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
            verb(NAME)


def test_a_store_is_named_by_a_folder_a_url_or_the_experiment_of_a_tracking_server(tmp_path: Path) -> None:
    local, remote, runs = store_at(str(tmp_path)), store_at("memory://x"), store_at("mlflow:http://host:1#mine")
    assert isinstance(local, LocalStore) and local.root == tmp_path
    assert isinstance(remote, RemoteStore) and remote.url == "memory://x"
    assert isinstance(runs, MlflowStore) and "http://host:1" in runs.url and "mine" in runs.url
