"""Every store under the same tests. The servers are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from media import ATTEMPT, IDENTITY, Medium, big, blobs, content, name, objects_of, state

from sr_runner.checkpoint import CheckpointManager, DamagedError, LastN
from sr_runner.checkpoint.format import FILES, MANIFEST, Blob, Manifest, load
from sr_runner.checkpoint.stores import remote as remote_module


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
        for of_attempt in (store.clean, store.read_lease, lambda a: store.write_lease(a, b""), store.drop_lease):
            with pytest.raises((ValueError, FileNotFoundError)):  # a tracking server knows no such run
                of_attempt(wrong)

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


def test_an_upload_that_a_killed_process_began_is_given_up_at_the_next_start(
    medium_of: Callable[[str], Medium],
) -> None:
    store = medium_of("s3").store()
    objects: Any = store._objects  # type: ignore[attr-defined]
    other = f"{IDENTITY}/a0002-ffff"
    places = [objects._fs.split_path(objects._path(f"{attempt}/step-00000001/x"))[:2] for attempt in (ATTEMPT, other)]
    for bucket, key in places:
        objects._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert [len(objects._uploads(*place)) for place in places] == [1, 1]
    store.clean(ATTEMPT)
    assert [len(objects._uploads(*place)) for place in places] == [0, 1]


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
