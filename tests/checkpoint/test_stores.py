"""Every store under the same tests, and under the faults of its own medium. The servers are real."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from store_servers import MlflowArtifactServer, S3Server, StorageServer
from support import ROOT, environment

from sr_runner.checkpoint import CheckpointManager, DamagedError, LastN, LocalStore, TrainingState
from sr_runner.checkpoint.format import FILES, MANIFEST, Blob, Manifest, digest, load, seal
from sr_runner.checkpoint.stores import MlflowStore, RemoteStore, Store
from sr_runner.checkpoint.stores import remote as remote_module
from sr_runner.checkpoint.stores.objects import ObjectStore
from sr_runner.errors import RequestError

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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        server.make_bucket()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowArtifactServer]:
    server = MlflowArtifactServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def database_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def medium_of(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Medium]:
    def make(kind: str) -> Medium:
        place = f"x{uuid.uuid4().hex[:10]}"
        if kind == "local":
            return Medium(kind, {"root": str(tmp_path / place)}, folder=tmp_path / place)
        if kind == "memory":
            return Medium(kind, {"root": f"memory://{place}/checkpoints"})
        if kind == "file":
            return Medium(kind, {"root": f"file://{tmp_path}/{place}"})
        if kind == "s3":
            server: S3Server = request.getfixturevalue("s3_server")
            for key, value in server.environment().items():
                monkeypatch.setenv(key, value)
            return Medium(kind, {"root": f"s3://bucket/{place}/checkpoints", "retry_seconds": 120}, server)
        arguments = {"experiment": place, "retry_seconds": 120, "wait_for_run": 0}
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if kind == "mlflow":
            tracking: MlflowArtifactServer = request.getfixturevalue("mlflow_server")
            return Medium(kind, {"uri": tracking.uri, "outputs": str(tmp_path), **arguments}, tracking)
        outputs: Path = request.getfixturevalue("database_folder")
        return Medium(kind, {"uri": f"sqlite:///{outputs}/mlflow.db", "outputs": str(outputs), **arguments})

    return make


@pytest.fixture(params=MEDIA)
def medium(request: pytest.FixtureRequest, medium_of: Callable[[str], Medium]) -> Medium:
    return medium_of(request.param)


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest, medium_of: Callable[[str], Medium]) -> Medium:
    return medium_of(request.param)


class TestEveryStore:
    def test_what_was_put_is_listed_and_comes_back(self, medium: Medium, tmp_path: Path) -> None:
        store = medium.store()
        assert list(store.list()) == [] and list(store.list(f"{ATTEMPT}/")) == []
        store.put(name(3), blobs(3))
        assert list(medium.another().list()) == [name(3)]
        assert content(medium.another().get(name(3), tmp_path / "scratch")) == "first"

    def test_one_file_can_be_fetched_without_the_others(self, medium: Medium, tmp_path: Path) -> None:
        store = medium.store()
        store.put(name(3), blobs(3))
        folder = store.get(name(3), tmp_path / "scratch", only=[MANIFEST])
        assert Manifest.read(folder).step == 3
        assert (store.get(name(3), tmp_path / "scratch", only=["state.json"]) / "state.json").is_file()
        if medium.kind != "local":
            assert not (folder / "model.safetensors").exists()

    def test_a_listing_can_be_narrowed_to_an_identity_and_an_attempt(self, medium: Medium) -> None:
        store = medium.store()
        others = (f"{IDENTITY}/a0002-ffff", "wdsr_b-x4-ffffffffffff/a0001-00aa")
        for attempt in (ATTEMPT, *others):
            store.put(name(1, attempt), blobs(1))
        assert set(store.list()) == {name(1, attempt) for attempt in (ATTEMPT, *others)}
        assert set(store.list(f"{IDENTITY}/")) == {name(1), name(1, others[0])}
        assert list(store.list(f"{ATTEMPT}/")) == [name(1)]
        assert list(store.list("edsr/")) == [] and list(store.list("../")) == []

    def test_a_deleted_checkpoint_leaves_nothing(self, medium: Medium) -> None:
        store = medium.store()
        store.put(name(1), blobs(1))
        store.put(name(2), blobs(2))
        store.delete(name(1))
        assert list(store.list()) == [name(2)]
        assert not [key for key in medium.present() if key.startswith(name(1))]
        with pytest.raises(FileNotFoundError):
            store.delete(name(1))

    def test_a_checkpoint_of_the_same_name_is_replaced(self, medium: Medium, tmp_path: Path) -> None:
        store = medium.store()
        for text in ("first", "second", "third"):
            store.put(name(4), blobs(4, text))
            assert content(medium.store().get(name(4), tmp_path / "scratch")) == text
        assert list(store.list()) == [name(4)]
        assert medium.present() == {f"{name(4)}/{file}" for file in (*FILES, MANIFEST)}

    def test_half_an_upload_is_no_checkpoint_and_goes_at_the_next_start(self, medium: Medium) -> None:
        store = medium.store()
        store.put(name(1), blobs(1))
        if medium.kind == "local":
            medium.write(f"{ATTEMPT}/.writing-step-00000002-0123456789ab/model.safetensors", b"half")
        else:
            medium.write(f"{name(2)}/model.safetensors", b"half")
            medium.write(f"{name(3, f'{IDENTITY}/a0002-ffff')}/model.safetensors", b"half, of another attempt")
        assert list(medium.store().list()) == [name(1)]
        medium.store().clean(ATTEMPT)
        mine = {key for key in medium.present() if key.startswith(f"{ATTEMPT}/")}
        assert mine == {f"{name(1)}/{file}" for file in (*FILES, MANIFEST)}
        assert len(medium.present()) == len(mine) + (medium.kind != "local")

    def test_a_damaged_checkpoint_is_kept_out_of_the_way(self, medium: Medium) -> None:
        store = medium.store()
        store.put(name(1), blobs(1))
        where = store.quarantine(name(1), "a flipped bit")
        assert list(store.list()) == [] and "damaged-step-00000001-" in where
        aside = {key.rpartition("/")[2] for key in medium.present()}
        assert aside == {*FILES, MANIFEST, "why.json"}
        store.clean(ATTEMPT)
        assert {key.rpartition("/")[2] for key in medium.present()} == aside

    def test_a_put_that_fails_changes_nothing(self, medium: Medium, tmp_path: Path) -> None:
        store = medium.store()
        store.put(name(1), blobs(1))

        def broken() -> Iterator[bytes]:
            yield b"some bytes"
            raise OSError("no more")

        bad = [*blobs(1, "second")[:2], Blob("state.json", broken), *blobs(1, "second")[3:]]
        for step in (1, 2):
            with pytest.raises(OSError, match="no more"):
                store.put(name(step), bad)
        assert list(store.list()) == [name(1)] and content(store.get(name(1), tmp_path / "scratch")) == "first"
        store.clean(ATTEMPT)
        assert medium.present() == {f"{name(1)}/{file}" for file in (*FILES, MANIFEST)}

    @pytest.mark.parametrize(
        "wrong", ["../x/step-00000001", "a/b/../../etc", "/etc/passwd", "a/b/step-1", "a/b/step-00000001/c"]
    )
    def test_names_from_elsewhere_are_never_paths(self, wrong: str, medium: Medium, tmp_path: Path) -> None:
        store = medium.store()
        put: Callable[[str], object] = lambda n: store.put(n, blobs(1))  # noqa: E731
        for verb in (put, store.delete, lambda n: store.get(n, tmp_path), lambda n: store.quarantine(n, "")):
            with pytest.raises(ValueError, match="is not the name of a checkpoint"):
                verb(wrong)

    def test_the_manager_saves_restores_and_forgets(self, medium: Medium, tmp_path: Path) -> None:
        manager = CheckpointManager(medium.store(), ATTEMPT, keep=[LastN(2)], scratch=tmp_path / "scratch")
        assert manager.restore() is None
        manager.prepare(state(0))
        for step in (1, 2, 2, 3):
            manager.save(state(step), wait=True)
        other = CheckpointManager(medium.another(), ATTEMPT, keep=[], scratch=tmp_path / "elsewhere")
        restored = other.restore()
        assert restored is not None and restored.step == 3 and other.steps() == [2, 3]
        assert torch.equal(restored.training["moment"], torch.full((4, 3), 1.5))
        assert len(medium.present()) == 10

    @pytest.mark.parametrize("damage", ["a flipped bit", "a cut", "a missing file", "an extra file", "no manifest"])
    def test_a_damaged_object_is_named_and_passed_over(
        self, damage: str, medium: Medium, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        manager = CheckpointManager(medium.store(), ATTEMPT, keep=[LastN(5)], scratch=tmp_path / "scratch")
        manager.save(state(1), wait=True)
        manager.save(state(2), wait=True)
        model = f"{name(2)}/model.safetensors"
        data = bytearray((medium.store().get(name(2), tmp_path / "copy") / "model.safetensors").read_bytes())
        if damage == "a flipped bit":
            data[len(data) // 2] ^= 1
            medium.write(model, bytes(data))
        elif damage == "a cut":
            medium.write(model, bytes(data[:-1]))
        elif damage == "a missing file":
            medium.remove(model)
        elif damage == "an extra file":
            medium.write(f"{name(2)}/extra", b"x")
        else:
            medium.write(f"{name(2)}/{MANIFEST}", b"")
        restored = manager.restore()
        assert restored is not None and restored.step == 1 and manager.steps() == [1]
        assert "step-00000002 is damaged" in caplog.text
        assert any(key.startswith(f"{ATTEMPT}/damaged-step-00000002-") for key in medium.present())

    @pytest.mark.parametrize("medium", OUTLIVING, indirect=True)
    def test_a_writer_that_is_killed_amid_an_upload_costs_that_checkpoint_alone(
        self, medium: Medium, tmp_path: Path
    ) -> None:
        script = tmp_path / "writer.py"
        script.write_text(WRITER)
        arguments = json.dumps(dict(medium.arguments))
        writer = subprocess.Popen(
            [sys.executable, str(script), medium.target, arguments, name(1), name(2)],
            stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert writer.stdout is not None and writer.stdout.readline() == "amid\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        store = medium.store()
        assert list(store.list()) == [name(1)] and content(store.get(name(1), tmp_path / "scratch")) == "first"
        store.clean(ATTEMPT)
        assert medium.present() == {f"{name(1)}/{file}" for file in (*FILES, MANIFEST)}
        store.put(name(2), blobs(2))
        assert set(store.list()) == {name(1), name(2)}


WRITER = """
import importlib, json, sys, time
from sr_runner.checkpoint.format import Blob, FILES, digest, seal
from sr_runner.checkpoint.stores import remote
remote._PIECE = 5 << 20
target, arguments, first, second = sys.argv[1:]
module, _, kind = target.rpartition(".")
store = getattr(importlib.import_module(module), kind)(**json.loads(arguments))
data = [Blob.of(file, f"first {file} of 1".encode()) for file in FILES]
store.put(first, [*data, seal(1, {}, lambda: digest(data))])

def endless():
    for _ in range(3):
        yield bytes(5 << 20)
    print("amid", flush=True)
    time.sleep(600)

store.put(second, [data[0], Blob(FILES[1], endless), *data[2:]])
"""


class Killed(BaseException):
    """What a process that is killed does not get to see; everything it had not sent is lost."""


class Interposed:
    """`Objects` that end with `Killed` after `left` changes."""

    def __init__(self, objects: Any, left: int):
        self._objects, self._left = objects, left

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._objects, verb)
        if verb == "delete":  # one request for each key
            return lambda keys, **_: [self._change(found, [key]) for key in keys]
        return partial(self._change, found) if verb in ("write", "copy") else found

    def _change(self, request: Callable[..., object], *arguments: object) -> None:
        if self._left == 0:
            raise Killed
        self._left -= 1
        request(*arguments)


def killed_at_each_change(medium: Medium, act: Callable[[Store], object]) -> Iterator[bool]:
    """Do `act` with a kill before its first change, its second, ... until it comes through; True for each kill."""
    for number in range(100):
        store = ObjectStore(Interposed(objects_of(medium.store()), number))  # type: ignore[arg-type]
        try:
            act(store)
        except Killed:
            yield True
        else:
            yield False
            return
    raise AssertionError("it never came through")


@pytest.mark.parametrize("kind", ["memory", "s3"])
class TestKilledAtEachChange:
    def test_a_replacement_is_the_old_or_the_new_one_at_every_moment(
        self, kind: str, medium_of: Callable[[str], Medium], tmp_path: Path
    ) -> None:
        medium, kills, committed = medium_of(kind), 0, 0
        medium.store().put(name(1), blobs(1, "old"))
        for killed in killed_at_each_change(medium, lambda store: store.put(name(1), blobs(1, "new"))):
            kills += killed
            assert list(medium.store().list()) == [name(1)]
            seen = content(medium.store().get(name(1), tmp_path / "scratch"))
            committed += killed and seen == "new"
            medium.store().clean(ATTEMPT)
            assert list(medium.store().list()) == [name(1)]
            assert medium.present() == {f"{name(1)}/{file}" for file in (*FILES, MANIFEST)}
            assert content(medium.store().get(name(1), tmp_path / "scratch")) == seen
            medium.store().put(name(1), blobs(1, "old"))
        assert kills > 12 and 0 < committed < kills

    def test_a_first_upload_is_whole_or_not_there(
        self, kind: str, medium_of: Callable[[str], Medium], tmp_path: Path
    ) -> None:
        medium = medium_of(kind)
        for killed in killed_at_each_change(medium, lambda store: store.put(name(1), blobs(1))):
            listed = list(medium.store().list())
            assert listed == [name(1)] or (killed and listed == [])
            if listed:
                assert content(medium.store().get(name(1), tmp_path / "scratch")) == "first"
            medium.store().clean(ATTEMPT)
            assert bool(medium.present()) == bool(listed)
            for each in listed:
                medium.store().delete(each)

    def test_a_deletion_leaves_all_or_nothing(
        self, kind: str, medium_of: Callable[[str], Medium], tmp_path: Path
    ) -> None:
        medium = medium_of(kind)
        medium.store().put(name(1), blobs(1))
        for _ in killed_at_each_change(medium, lambda store: store.delete(name(1))):
            if medium.store().list():
                assert content(medium.store().get(name(1), tmp_path / "scratch")) == "first"
            else:
                medium.store().clean(ATTEMPT)
                assert medium.present() == set()
            medium.store().put(name(1), blobs(1))

    def test_a_quarantine_loses_no_file(self, kind: str, medium_of: Callable[[str], Medium], tmp_path: Path) -> None:
        medium = medium_of(kind)
        medium.store().put(name(1), blobs(1))
        for _ in killed_at_each_change(medium, lambda store: store.quarantine(name(1), "reason")):
            medium.store().clean(ATTEMPT)
            folders: dict[str, set[str]] = {}
            for key in medium.present():
                folders.setdefault(key.rpartition("/")[0], set()).add(key.rpartition("/")[2])
            assert folders and all({*FILES, MANIFEST} <= files for files in folders.values())
            for key in medium.present():
                medium.remove(key)
            medium.store().put(name(1), blobs(1))


def big(step: int, size: int) -> list[Blob]:
    """A checkpoint with one file that goes up in several parts."""

    def chunks() -> Iterator[bytes]:
        for start in range(0, size, 1 << 20):
            yield bytes([start >> 20 & 255]) * min(1 << 20, size - start)

    data = [Blob(FILES[0], chunks), *blobs(step)[1:-1]]
    return [*data, seal(step, {}, lambda: digest(data))]


@pytest.mark.parametrize("kind", ["memory", "file", "s3"])
def test_a_large_file_goes_in_parts_and_comes_back_whole(
    kind: str, medium_of: Callable[[str], Medium], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "_PIECE", 5 << 20)
    store = medium_of(kind).store()
    for size in ((5 << 20) - 1, 5 << 20, (5 << 20) + 1, (17 << 20) + 12345):
        store.put(name(1), big(1, size))
        manifest, _ = load(store.get(name(1), tmp_path / "scratch"))
        assert manifest.files[FILES[0]][0] == size


def test_a_store_that_claims_a_huge_file_is_not_believed(
    medium_of: Callable[[str], Medium], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    medium = medium_of("memory")
    medium.store().put(name(1), blobs(1))
    medium.write(f"{name(1)}/model.safetensors", bytes(1 << 20))
    fetched: list[str] = []
    store = medium.store()
    read = objects_of(store).read
    monkeypatch.setattr(objects_of(store), "read", lambda key, *rest: (fetched.append(key), read(key, *rest)))
    with pytest.raises(DamagedError, match=r"model.safetensors has 1048576 bytes instead of"):
        store.get(name(1), tmp_path / "scratch")
    medium.write(f"{name(1)}/{MANIFEST}", bytes(2 << 20))
    with pytest.raises(DamagedError, match=r"manifest.json has 2097152 bytes"):
        store.get(name(1), tmp_path / "scratch")
    assert fetched == []


class TestOutage:
    def test_a_save_outlives_a_server_that_is_killed_and_started_again(self, served: Medium, tmp_path: Path) -> None:
        store, server = served.store(), served.server
        assert server is not None
        store.put(name(1), blobs(1))
        back: list[threading.Thread] = []

        def killed_here() -> Iterator[bytes]:
            if not back:
                server.kill()
                back.append(threading.Thread(target=server.start))
                back[0].start()
            yield b"first state.json of 2"

        data = [*blobs(2)[:2], Blob("state.json", killed_here), blobs(2)[3]]
        store.put(name(2), [*data, seal(2, {}, lambda: digest(data))])
        back[0].join()
        assert set(store.list()) == {name(1), name(2)}
        for step in (1, 2):
            assert content(store.get(name(step), tmp_path / "scratch")) == "first"

    @pytest.mark.slow
    def test_a_server_that_stays_away_costs_that_checkpoint_and_the_manager_goes_on(
        self, served: Medium, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = served.server
        assert server is not None
        manager = CheckpointManager(served.another(retry_seconds=1), ATTEMPT, keep=[LastN(3)], scratch=tmp_path / "s")
        manager.save(state(1), wait=True)
        server.kill()
        try:
            manager.save(state(2), wait=True)
            assert "could not be written" in caplog.text
            with pytest.raises(OSError):
                served.another(retry_seconds=0.1).get(name(1), tmp_path / "other")
        finally:
            server.start()
        manager = CheckpointManager(served.store(), ATTEMPT, keep=[LastN(3)], scratch=tmp_path / "s")
        manager.prepare(state(0))
        manager.save(state(3), wait=True)
        assert manager.steps() == [1, 3]

    @pytest.mark.slow
    def test_a_restore_outlives_a_server_that_is_killed_and_started_again(
        self, served: Medium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, server = served.store(), served.server
        assert server is not None
        store.put(name(1), blobs(1))
        read, back = objects_of(store).read, []

        def killed_before_the_second_file(key: str, path: Path, size: int) -> None:
            if not key.endswith(MANIFEST) and not back:
                server.kill()
                back.append(threading.Thread(target=server.start))
                back[0].start()
            read(key, path, size)

        monkeypatch.setattr(objects_of(store), "read", killed_before_the_second_file)
        assert content(store.get(name(1), tmp_path / "scratch")) == "first"
        back[0].join()


class TestS3:
    def test_a_wrong_secret_is_said_and_never_shown(
        self, s3_server: S3Server, medium_of: Callable[[str], Medium], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        medium = medium_of("s3")
        wrong = "not-the-secret-9876543210"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
        store = medium.store()
        assert isinstance(store, RemoteStore)
        with pytest.raises(RequestError, match="cannot be used") as refused:
            store.check()
        with pytest.raises(PermissionError) as failed:
            store.put(name(1), blobs(1))
        assert wrong not in str(refused.value) + str(failed.value) + store.url

    def test_a_bucket_that_is_not_there_is_no_empty_store(self, medium_of: Callable[[str], Medium]) -> None:
        store = medium_of("s3").another(root="s3://nowhere/checkpoints")
        assert isinstance(store, RemoteStore)
        with pytest.raises(FileNotFoundError, match="bucket"):
            store.list()
        with pytest.raises(RequestError, match=r"checkpoint.root=s3://nowhere/checkpoints cannot be used"):
            store.check()

    @pytest.mark.slow
    def test_more_checkpoints_than_one_page_of_a_listing_holds(self, medium_of: Callable[[str], Medium]) -> None:
        medium = medium_of("s3")
        objects = objects_of(medium.store())
        for number in range(1005):
            objects._fs.pipe_file(objects._path(f"{name(number + 1)}/{MANIFEST}"), b"x")
        assert len(medium.store().list(f"{ATTEMPT}/")) == 1005

    def test_a_store_can_be_used_after_a_fork(self, medium_of: Callable[[str], Medium]) -> None:
        store = medium_of("s3").store()
        store.put(name(1), blobs(1))
        child = os.fork()
        if child == 0:
            os._exit(0 if list(store.list()) == [name(1)] else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("medium", ["mlflow-sqlite", MLFLOW], indirect=True)
class TestMlflow:
    def tagged(self, medium: Medium, start_time: int | None = None) -> Any:
        from mlflow import MlflowClient

        client = MlflowClient(medium.arguments["uri"])
        experiment = client.get_experiment_by_name(medium.arguments["experiment"])
        if experiment:
            ident = experiment.experiment_id
        else:
            place = None if medium.kind == "mlflow" else Path(medium.arguments["outputs"], "artifacts").as_uri()
            ident = client.create_experiment(medium.arguments["experiment"], artifact_location=place)
        return client.create_run(ident, start_time, tags={"sr_run.attempt": ATTEMPT})

    def runs(self, medium: Medium) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(medium.arguments["uri"])
        experiment = client.get_experiment_by_name(medium.arguments["experiment"])
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id]))

    def test_checkpoints_are_artifacts_of_the_run_that_the_tracker_made(self, medium: Medium) -> None:
        from mlflow import MlflowClient

        run = self.tagged(medium)
        medium.store().put(name(1), blobs(1))
        (only,) = self.runs(medium)
        assert only.info.run_id == run.info.run_id
        files = MlflowClient(medium.arguments["uri"]).list_artifacts(run.info.run_id, "checkpoints/step-00000001")
        assert {file.path.rpartition("/")[2] for file in files} == {*FILES, MANIFEST}
        medium.store().delete(name(1))
        assert MlflowClient(medium.arguments["uri"]).list_artifacts(run.info.run_id, "checkpoints") == []

    def test_the_first_save_waits_for_the_tracker_to_make_the_run(self, medium: Medium) -> None:
        later = threading.Timer(1.0, self.tagged, [medium])
        later.start()
        medium.another(wait_for_run=30).put(name(1), blobs(1))
        later.join()
        assert len(self.runs(medium)) == 1

    def test_without_a_tracker_the_store_makes_the_run_once(self, medium: Medium) -> None:
        medium.store().put(name(1), blobs(1))
        medium.store().put(name(2), blobs(2))
        (run,) = self.runs(medium)
        assert run.data.tags["sr_run.attempt"] == ATTEMPT

    def test_what_went_to_a_second_run_of_the_attempt_is_found_though_that_run_is_deleted(
        self, medium: Medium, tmp_path: Path
    ) -> None:
        from mlflow import MlflowClient

        medium.store().put(name(1), blobs(1))
        (second,) = self.runs(medium)
        self.tagged(medium, start_time=1)
        MlflowClient(medium.arguments["uri"]).delete_run(second.info.run_id)
        medium.store().put(name(2), blobs(2))
        assert set(medium.store().list()) == {name(1), name(2)}
        for step in (1, 2):
            assert content(medium.store().get(name(step), tmp_path / "scratch")) == "first"
        medium.store().delete(name(1))
        assert list(medium.store().list()) == [name(2)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, r"checkpoint.root is not set: expected a URL such as checkpoint.root=s3://bucket/prefix"),
        ({"root": "???"}, "checkpoint.root is not set"),
        ({"root": "/mnt/folder"}, r"checkpoint.root=/mnt/folder is not a URL.*checkpoint=local"),
        ({"root": "s3x://bucket"}, r"s3x:// is not supported.* Did you mean 's3'"),
        ({"root": "s3://"}, "names no bucket"),
        ({"root": "s3://bucket/../other"}, "cannot be in it"),
        ({"root": "gs://bucket/x"}, "the package gcsfs is missing: pip install gcsfs"),
        ({"root": "memory://x", "retry_seconds": -1}, "retry_seconds=-1"),
    ],
)
def test_a_root_that_cannot_be_is_refused_before_anything_is_asked(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        RemoteStore(**arguments)


def test_an_s3fs_that_is_too_old_is_refused_with_the_version_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda protocol: object)  # it has no `call_s3`
    with pytest.raises(RequestError, match=r"s3fs [\d.]+ is too old: expected 2025\.3 or later") as refused:
        RemoteStore("s3://bucket/prefix")
    needed = re.search(r"s3fs>=([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert needed is not None and f"expected {needed[1]} " in str(refused.value)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(RequestError, match="credentials must not be in the URL") as refused:
        RemoteStore("s3://AKIAKEY:verysecret@bucket/prefix")
    assert "verysecret" not in str(refused.value)
    assert "verysecret" not in MlflowStore(uri="http://me:verysecret@host:5000").url


def test_mlflow_takes_no_root() -> None:
    with pytest.raises(RequestError, match=r"leave checkpoint.root out"):
        MlflowStore("s3://bucket")


def test_nothing_of_a_store_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, sr_runner.checkpoint.stores as stores; stores.MlflowStore(uri='http://127.0.0.1:9'); "
        "print(sorted({'mlflow', 'fsspec', 's3fs', 'botocore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def fits(store: Store) -> Sequence[str]:
    return store.list()


def test_every_store_is_a_store(tmp_path: Path) -> None:
    for store in (LocalStore(tmp_path), RemoteStore("memory://none"), MlflowStore(outputs=tmp_path)):
        assert list(fits(store)) == []
