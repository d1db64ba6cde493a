"""Somebody else may write to the bucket: whatever stands there, a run goes on with its newest good checkpoint."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from store_servers import S3Server

from sr_runner.checkpoint import CheckpointManager, LastN, TrainingState
from sr_runner.checkpoint.format import FILES, MANIFEST, Manifest
from sr_runner.checkpoint.lease import Holder
from sr_runner.checkpoint.stores import RemoteStore
from sr_runner.runs.catalogue import Catalogue

IDENTITY = "edsr-x2-0123456789ab"
ATTEMPT = f"{IDENTITY}/a0001-00ff"
NEWEST = f"{ATTEMPT}/step-00000002"


class Bucket:
    """A store with the checkpoints of steps 1 and 2, a folder to download to, and what others can do to it."""

    def __init__(self, server: S3Server, place: str, folder: Path):
        self.place, self.files, self.scratch = place, server.files(), folder / "scratch"
        self.store = RemoteStore(f"s3://bucket/{place}", retry_seconds=0)
        for step in (1, 2):
            self.manager().save(state(step), wait=True)

    def manager(self) -> CheckpointManager:
        return CheckpointManager(self.store, ATTEMPT, keep=[LastN(9)], scratch=self.scratch)

    def plant(self, key: str, body: bytes = b"x") -> bool:
        """Whether the server takes it: not every one takes every key."""
        with suppress(Exception):
            self.files.call_s3("put_object", Bucket="bucket", Key=f"{self.place}/{key}", Body=body)
            return True
        return False

    def remove(self, key: str) -> None:
        self.files.call_s3("delete_object", Bucket="bucket", Key=f"{self.place}/{key}")

    def content(self, key: str) -> bytes:
        found: bytes = self.files.cat_file(f"bucket/{self.place}/{key}")
        return found

    def restored(self) -> int:
        """The step that a run which is started now goes on with; whatever it leaves is below its scratch folder."""
        manager = self.manager()
        found = manager.restore()
        manager.prepare(state(0))
        outside = [path for path in self.scratch.parent.iterdir() if path != self.scratch]
        assert found is not None and outside == []
        return found.step


def state(step: int) -> TrainingState:
    return TrainingState(step, {"weight": torch.full((4, 3), float(step))}, {"step": step}, "a: 1\n")


@pytest.fixture
def bucket(
    s3_server: S3Server, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    for key, value in s3_server.environment().items():
        monkeypatch.setenv(key, value)
    return Bucket(s3_server, f"x{abs(hash(request.node.nodeid))}/checkpoints", tmp_path)


STEPS = (
    "step-10", "step-1e3", "step-99999999999999999999", "step-000000010", "step-00000010 ", "step-00000010\n",
    "step-\N{ARABIC-INDIC DIGIT ONE}" + 7 * "\N{ARABIC-INDIC DIGIT ZERO}", "step-+0000010", "step--0000010",
    ".replacing-step-000000010-abc", ".replacing-step-\N{ARABIC-INDIC DIGIT ONE}0000000-abc", "STEP-00000010",
)  # fmt: skip
OTHERS = (
    "evil\x1b[2J\nname/manifest.json", "../../escaped/manifest.json", "..", "../step-00000010/manifest.json",
    "/step-00000010/manifest.json", "step-00000010/../../../escaped", "step-00000010//manifest.json",
    "step-00000010", "step-00000010/manifest.json/more", f"{'long' * 150}/manifest.json", "step-00000010?versionId=1",
    "damaged-step-00000010-x/why.json", "lease.json/manifest.json", "*", "step-0000001[0]/manifest.json",
)  # fmt: skip


def test_forged_names_are_passed_over_and_nothing_is_printed_that_a_terminal_obeys(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {file: bucket.content(f"{NEWEST}/{file}") for file in (*FILES, MANIFEST)}
    taken = 0
    for step in STEPS:
        for file, data in whole.items():
            taken += bucket.plant(f"{ATTEMPT}/{step}/{file}", data)
    taken += sum(bucket.plant(f"{ATTEMPT}/{key}") for key in OTHERS)
    assert taken > 60
    # This server drops empty parts of a key: `step-00000010//manifest.json` is the manifest of a checkpoint to it.
    assert bucket.manager().steps() in ([1, 2], [1, 2, 10])
    assert bucket.restored() == 2
    assert "\x1b" not in caplog.text
    bucket.manager().save(state(3), wait=True)
    assert bucket.restored() == 3


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param("evil\x1b[2J\nname", id="control characters"),
        pytest.param("/".join(["x" * 92] * 10), id="as long as can be"),
        pytest.param("manifest.json/more", id="below a file", marks=pytest.mark.slow),
        pytest.param("a?versionId=b", id="a version", marks=pytest.mark.slow),
        pytest.param("%2e%2e", id="quoted", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_with_a_foreign_object_is_damaged_and_named_and_the_one_before_counts(
    extra: str, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    if not bucket.plant(f"{NEWEST}/{extra}"):
        pytest.skip("this server takes no such key")
    step = bucket.restored()
    assert step == 1 and "step-00000002 is damaged" in caplog.text
    assert "\x1b" not in "".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    kept = {key.rpartition("/")[2] for key in bucket.store._objects.keys(ATTEMPT) if "/damaged-step-00000002-" in key}
    assert {*FILES, MANIFEST, "why.json"} <= kept


def forged(bucket: Bucket, step: int, **files: tuple[int, str]) -> bytes:
    """A manifest that fits its own checksum."""
    true = Manifest.from_bytes(bucket.content(f"{NEWEST}/{MANIFEST}"))
    return Manifest(step, true.created, true.metrics, {**true.files, **files}).to_bytes()


def test_manifests_that_lie_are_named_and_fetch_nothing(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    manifests = {
        3: bytes(1 << 20),
        4: forged(bucket, 4, **{"../../escaped": (1, "0" * 64)}),
        5: forged(bucket, 5, **{FILES[0]: (1 << 50, "0" * 64)}),
        6: forged(bucket, 6, **{FILES[0]: (-1, "0" * 64)}),
        7: forged(bucket, 8),
        999_999_999_999: b"{" * 60_000,
    }
    for step, manifest in manifests.items():
        for file in FILES:
            bucket.plant(f"{ATTEMPT}/step-{step:08d}/{file}", bucket.content(f"{NEWEST}/{file}"))
        assert bucket.plant(f"{ATTEMPT}/step-{step:08d}/{MANIFEST}", manifest)
    assert bucket.restored() == 2
    for step in manifests:
        assert f"step-{step:08d} is damaged" in caplog.text
    assert sum(path.stat().st_size for path in bucket.scratch.rglob("*") if path.is_file()) < 1 << 17


@pytest.mark.parametrize("change", [pytest.param(-1, marks=pytest.mark.slow), 1, 1 << 40])
def test_an_object_whose_size_is_not_what_the_listing_says_is_damaged(
    change: int, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The manifest says what the listing does; only the object does not."""
    objects: Any = bucket.store._objects
    size = len(bucket.content(f"{NEWEST}/{FILES[1]}"))
    bucket.plant(f"{NEWEST}/{MANIFEST}", forged(bucket, 2, **{FILES[1]: (size + change, "0" * 64)}))
    keys = objects.keys

    def lying(folder: str) -> dict[str, int]:
        return {key: found + change * (key == f"{NEWEST}/{FILES[1]}") for key, found in keys(folder).items()}

    monkeypatch.setattr(objects, "keys", lying)
    assert bucket.restored() == 1
    assert "step-00000002 is damaged" in caplog.text


def test_a_lease_of_gigabytes_is_none_and_is_not_fetched(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.plant(f"{ATTEMPT}/lease.json", b"{" * (8 << 20))
    fetched: list[int] = []
    files = bucket.store._files._fs
    real = files.cat_file
    monkeypatch.setattr(files, "cat_file", lambda *a, **k: (found := real(*a, **k), fetched.append(len(found)))[0])
    record = bucket.store.read_lease(ATTEMPT)
    assert record is not None and Holder.parse(record) is None and sum(fetched) < 1 << 17
    bucket.plant(f"{ATTEMPT}/lease.json", b"")
    assert bucket.store.read_lease(ATTEMPT) == b""
    bucket.store.drop_lease(ATTEMPT)
    assert bucket.store.read_lease(ATTEMPT) is None


def test_an_attempt_with_a_number_without_end_does_not_keep_a_run_from_starting(bucket: Bucket, tmp_path: Path) -> None:
    for name in (f"a{'9' * 122}-abcd", "a\N{ARABIC-INDIC DIGIT NINE}999-abcd", "a0002-ABCD", "a9999-../x"):
        bucket.plant(f"{IDENTITY}/{name}/step-00000010/{MANIFEST}")
    catalogue = Catalogue(tmp_path / "runs", bucket.store, bucket.scratch)
    newest = catalogue.named(IDENTITY)
    assert newest is not None and str(newest) == ATTEMPT
    assert catalogue.open_new(IDENTITY).name.startswith("a0002-")


def test_what_is_settled_or_set_aside_needs_no_file_in_the_systems_folder(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    bucket.manager().save(state(2), wait=True)
    assert bucket.manager().steps() == [1, 2]
    assert "damaged-step-00000002-" in bucket.store.quarantine(NEWEST, "because")
    assert not (tmp_path / "nowhere").exists()
