"""Files of sr-run's own: each is there whole or not at all, and no link in their folders leads out of them. And locks
between processes, that the system lets go of when their holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from sr_runner.errors import RequestError

logger = logging.getLogger(__name__)

DRAFT = ".draft-"
"""Begins the name of a file that is not whole yet."""
SMALL = 1 << 26
"""Bytes: no record of a run is longer."""
_HOLDER = 200
"""Bytes that are read of what a lock's file says."""


class LinkError(RequestError, OSError):
    """Where a file or folder of sr-run's own is expected there is a link, a pipe or a device."""

    def __init__(self, path: Path, expected: str = "file"):
        super().__init__(f"{path}: expected a {expected}, not a link or a device; nothing was written through it")
        self.strerror = f"expected a {expected}, not a link or a device"


def folder_named(key: str, value: str | Path | None, of_url: Callable[[str], str] = lambda scheme: "") -> Path:
    """The folder that the config key `key` names; `~` is the home. Raises `RequestError` for null, for nothing, and
    for a URL, which as a path would be a folder `s3:` where one works; `of_url` says what else takes such ones."""
    if value in (None, ""):
        raise RequestError(f"{key}={'null' if value is None else ''}: expected a folder")
    if match := re.match(r"([A-Za-z][\w+.-]+):/", str(value)):
        raise RequestError(f"{key}={value}: expected a folder, not a URL{of_url(match[1])}")
    return Path(value).expanduser()


def open_own(path: Path, flags: int) -> int:
    """`os.open` of a regular file, which follows no link in the last part of `path`. Raises `LinkError`."""
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # O_NONBLOCK: a pipe would be waited for
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise LinkError(path) from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise LinkError(path)
    return file


def written_anew(path: Path, file: int) -> int:
    """Somebody has deleted `path` while it was open as `file`, for reading and appending: what it held is still there,
    and becomes the content of a new `path`. That, opened in the same way; `file` is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(path) as draft, draft.open("wb") as copy:
        at = 0
        while block := os.pread(file, 1 << 20, at):
            copy.write(block)
            at += len(block)
    anew = open_own(path, os.O_RDWR | os.O_APPEND)
    os.close(file)
    return anew


def read_file(path: Path, limit: int = SMALL) -> bytes:
    """The content of a file of at most `limit` bytes. Raises `LinkError`, or `OSError` where it is longer."""
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than {limit}", str(path))
        return file.read(size)


def plain_json(text: str | bytes) -> Any:
    """What a record of ours says, which anyone may have written. Raises `ValueError`, also for whole numbers that no
    float can hold, and `RecursionError`."""
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int:
    number = int(digits)
    if abs(number) >= 2**63:
        raise ValueError(f"{digits[:20]}... is out of range")
    return number


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """An empty file to write to, which takes the place of `path` at the end: also of a link, which is not followed."""
    draft = path.with_name(f"{DRAFT}{secrets.token_hex(8)}")
    os.close(open_own(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Make `content` (text as UTF-8) that of `path`, as `draft_of` does."""
    with draft_of(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def check_writable(asked: str, folder: Path) -> None:
    """Raises a `RequestError` that begins with `asked` (`output=NAME`) unless files can be written in `folder`.

    One that is not there yet is not made: the nearest one above it says so.
    """
    try:
        existing = next(
            each for each in (folder.absolute(), *folder.absolute().parents) if each.exists() or each.is_symlink()
        )
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise RequestError(f"{asked}: nothing can be written there ({error.strerror})") from error


def own_folder(root: Path, folder: Path) -> Path:
    """`folder`, which need not exist, if neither it nor one between it and `root` is a link; `root` may be one.

    Raises `LinkError`.
    """
    for part in (folder, *folder.parents):
        if part == root:
            break
        if part.is_symlink():
            raise LinkError(part, "folder")
    return folder


@contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A folder below `place` for the time being; the system's own where nothing can be written there.

    Those that killed processes of this machine left there are removed: the kernel has let go of their locks. A file
    system without locks keeps them.
    """
    parent = own_folder(place, place / ".scratch")
    try:
        parent.mkdir(exist_ok=True)
        usable = os.access(parent, os.W_OK | os.X_OK)
    except OSError:  # no `place`, or one like /proc, which says that it can be written
        usable = False
    if not usable:
        with tempfile.TemporaryDirectory(prefix="sr-run-") as elsewhere:
            yield Path(elsewhere)
        return
    mine = re.sub(r"[^\w.-]", "_", platform.node()) + "-"
    for left in parent.glob(f"{mine}*"):
        with suppress(OSError):
            lock = _locked(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        parent.mkdir(exist_ok=True)
        held = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=mine, dir=parent))
            held = _locked(folder)
        except (FileNotFoundError, BlockingIOError):  # another process removes what it takes for left behind
            continue
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
                raise
        if folder.exists():
            break
        if held is not None:
            os.close(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)
        with suppress(OSError):
            parent.rmdir()


class Busy(Exception):
    """Another process holds the lock: which one, says the message."""


@contextmanager
def file_lock(path: Path, *, wait: bool = True, waiting: str = "") -> Iterator[bool]:
    """Holds the exclusive lock on the file `path`, which is made if need be, says who holds it, and stays.

    Logs `waiting` where another process holds it, or raises `Busy` if `wait` is false. Gives False where the file
    system has no locks: then nobody is kept out. Raises `OSError` where `path` cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_own(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0) as file:
        exclusive = True
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise Busy(file.read(_HOLDER).decode(errors="replace") or "another process") from None
                logger.info(waiting or f"Waiting for the process that holds {path}.")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            _warn_once()
            exclusive = False
        if exclusive:
            with suppress(OSError):  # a full disk is no reason not to hold it
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield exclusive


@cache
def _warn_once() -> None:
    logger.warning("No locks on this file system: processes that start together may do the same work.")


def _locked(folder: Path) -> int:
    """The open `folder`, exclusively locked. Raises `BlockingIOError` where another process has it."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(opened)
        raise
    return opened
