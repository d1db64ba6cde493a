"""Downloads in pieces, from a file system that gives other bytes than were asked for; uploads that are left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sr_runner.checkpoint.format import DamagedError
from sr_runner.checkpoint.stores import remote
from sr_runner.checkpoint.stores.remote import FsspecObjects
from sr_runner.checkpoint.stores.requests import Requests


class FileSystem:
    """One object of ten bytes; `answers` (bytes, or errors) come instead of what is asked for, one a request."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.content, self.answers, self.asked = b"0123456789", list(answers), list[tuple[int, int]]()

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        answer = self.answers.pop(0) if self.answers else self.content[start:end]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def info(self, path: str) -> dict[str, Any]:
        return {"size": len(self.content)}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PIECE", 4)


def objects(file_system: FileSystem, seconds: float = 60) -> FsspecObjects:
    made = FsspecObjects("memory://x", "memory", Requests(seconds), {})
    made._made = os.getpid(), file_system
    return made


def test_an_object_is_read_piece_by_piece(tmp_path: Path) -> None:
    file_system = FileSystem()
    objects(file_system).read("a", tmp_path / "a", 10)
    assert (tmp_path / "a").read_bytes() == b"0123456789" and file_system.asked == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize("answer", [b"01", OSError(errno.EINVAL, "no such range"), OSError(errno.ECONNRESET, "reset")])
def test_a_piece_that_comes_short_or_not_at_all_is_asked_for_again(answer: Any, tmp_path: Path) -> None:
    file_system = FileSystem(b"0123", answer)
    if isinstance(answer, OSError) and answer.errno == errno.EINVAL:  # where the size is right, it is the range's fault
        with pytest.raises(OSError, match="no such range"):
            objects(file_system).read("a", tmp_path / "a", 10)
    else:
        objects(file_system).read("a", tmp_path / "a", 10)
        assert (tmp_path / "a").read_bytes() == b"0123456789"
        assert file_system.asked == [(0, 4), (4, 8), (4, 8), (8, 10)]


@pytest.mark.parametrize("answer", [b"01", OSError(errno.EINVAL, "no such range")])
def test_an_object_of_another_size_than_was_said_is_damage_and_not_asked_for_again(answer: Any, tmp_path: Path) -> None:
    file_system = FileSystem(answer)
    with pytest.raises(DamagedError, match="a has 10 bytes instead of 12"):
        objects(file_system).read("a", tmp_path / "a", 12)
    assert len(file_system.asked) == 1


def test_the_first_bytes_of_an_empty_object_are_none(tmp_path: Path) -> None:
    file_system = FileSystem()
    assert objects(file_system).peek("a", 4) == b"0123" and objects(file_system).peek("a", 99) == b"0123456789"
    file_system.content = b""
    assert objects(file_system).peek("a", 4) == b"" and file_system.asked == [(0, 4), (0, 10)]


class Uploads:
    """An S3 that lists its uploads one a page, whatever prefix it is asked for; the first was given up meanwhile."""

    def __init__(self, *keys: str) -> None:
        self.pages: list[dict[str, Any]] = [{"Uploads": [{"Key": key, "UploadId": f"id of {key}"}]} for key in keys]
        self.given_up: list[tuple[str, str, str]] = []

    def split_path(self, path: str) -> tuple[str, str, None]:
        return *path.split("/", 1), None  # type: ignore[return-value]

    def call_s3(self, method: str, Bucket: str, Prefix: str, KeyMarker: str = "0", **_: str) -> dict[str, Any]:
        assert (method, Bucket, Prefix) == ("list_multipart_uploads", "bucket", "run/a/b/")
        here = int(KeyMarker)
        more = {"IsTruncated": True, "NextKeyMarker": str(here + 1)} if here < len(self.pages) else {}
        return {**(self.pages[here] if more else {}), **more}

    def abort_mpu(self, *what: str) -> None:
        self.given_up.append(what)  # type: ignore[arg-type]
        if len(self.given_up) == 1:
            raise FileNotFoundError(what)


def test_all_uploads_into_an_attempt_that_nobody_will_complete_are_given_up_and_no_others() -> None:
    made = FsspecObjects("s3://bucket/run", "s3", Requests(60), {})
    uploads = Uploads("run/a/b/step-1/x", "run/a/bb/y", "run/a/b/step-2/z")
    made._made = os.getpid(), uploads
    made.abandon_uploads("a/b")
    assert uploads.given_up == [("bucket", key, f"id of {key}") for key in ("run/a/b/step-1/x", "run/a/b/step-2/z")]
    other = objects(FileSystem())
    other.abandon_uploads("a/b")  # other storage knows of none
