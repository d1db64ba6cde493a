"""Writers that are killed, and servers that are: what was committed stays, and half a checkpoint is none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from media import ATTEMPT, OUTLIVING, Medium, blobs, content, name, objects_of, state
from support import environment

from sr_runner.checkpoint import CheckpointManager, LastN
from sr_runner.checkpoint.format import FILES, MANIFEST, Blob, digest, seal
from sr_runner.checkpoint.stores import Store
from sr_runner.checkpoint.stores.objects import ObjectStore

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


@pytest.mark.parametrize(
    "medium",
    [pytest.param(kind, marks=pytest.mark.slow) if kind == "mlflow-sqlite" else kind for kind in OUTLIVING],
    indirect=True,
)
def test_a_writer_that_is_killed_amid_an_upload_costs_that_checkpoint_alone(medium: Medium, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("kind", ["memory", pytest.param("s3", marks=pytest.mark.slow)])
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
