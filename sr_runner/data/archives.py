"""Zip archives of images, unpacked without trusting them."""

from __future__ import annotations

import errno
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from sr_runner.data.download import NO_ROOM
from sr_runner.data.images import image_area
from sr_runner.errors import RequestError, RunError

_GROWTH = 2
_ALLOWANCE = 1 << 24
"""PNG files do not compress: an archive that unpacks to more than this many times its size plus 16 MiB is a bomb."""
_MOST = 10_000
"""Files in an archive; the largest has 3,200."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The others are unpacked in one go, however much it is: a megabyte of bzip2 can become 20 GB of memory."""
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError,
    struct.error,
)  # fmt: skip
"""What zipfile raises for damaged archives, depending on the place of the damage."""


class ArchiveError(RunError):
    """An archive is not one of images, and nothing of it was kept; the message names the archive and the entry."""


def unpack_images(archive: Path, root: Path, folder: str) -> None:
    """Unpack the PNG files in `archive`, whatever folders they are in there, to `root / folder`.

    Each file appears whole, by a rename, and replaces one of its name. Raises `ArchiveError` where the archive is
    damaged, holds anything else (other files, links, paths that lead elsewhere, one name twice) or would grow out of
    proportion, `RequestError` where the disk is full.
    """
    temporary = root / f".unpacking {archive.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with _damage_of(f"{archive}: damaged archive"), zipfile.ZipFile(archive) as opened:
            for member in _checked_members(opened, archive):
                _unpack(opened, member, temporary / PurePosixPath(member.filename).name, archive)
        (root / folder).mkdir(parents=True, exist_ok=True)
        for unpacked in temporary.iterdir():
            unpacked.replace(root / folder / unpacked.name)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise RequestError(f"{root}: no room to unpack {archive.name} ({error.strerror}); make room.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, archive: Path) -> None:
    """No more than the `file_size` of `member`, whose sum over all members has been looked at."""
    with (
        _damage_of(f"{archive}: {member.filename!r} is damaged"),
        opened.open(member) as source,
        path.open("wb") as file,
    ):
        shutil.copyfileobj(source, file, 1 << 20)
    if not image_area(path):
        raise ArchiveError(f"{archive}: {member.filename!r} is not an image; not unpacked.")


@contextmanager
def _damage_of(what: str) -> Iterator[None]:
    try:
        yield
    except ArchiveError:
        raise
    except _DAMAGE as error:
        raise ArchiveError(f"{what} ({error or type(error).__name__}); not unpacked.") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is told to go to a place before the beginning of the file
            raise
        raise ArchiveError(f"{what} ({error.strerror}); not unpacked.") from error


def _checked_members(opened: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    files = [member for member in opened.infolist() if not _is_clutter(member.filename)]
    if len(files) > _MOST:
        raise ArchiveError(f"{archive}: {len(files)} files, expected {_MOST} at most; not unpacked.")
    names: set[str] = set()
    for member in files:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
            raise ArchiveError(f"{archive}: {member.filename!r} points outside the archive; not unpacked.")
        if path.suffix != ".png" or path.name.startswith(".") or len(path.name) > 64 or path.name in names:
            raise ArchiveError(f"{archive}: {member.filename!r} does not belong among DIV2K's images; not unpacked.")
        names.add(path.name)
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ArchiveError(f"{archive}: {member.filename!r} is a link or a device; not unpacked.")
        if member.compress_type not in _METHODS:
            raise ArchiveError(
                f"{archive}: {member.filename!r} is compressed in a way that PNG files are not (method "
                f"{member.compress_type}); not unpacked."
            )
    total, size = sum(member.file_size for member in files), archive.stat().st_size
    if total > _GROWTH * size + _ALLOWANCE:
        largest = max(files, key=lambda member: member.file_size)
        raise ArchiveError(
            f"{archive}: {size} bytes would unpack to {total}, {largest.filename!r} to {largest.file_size}; this looks "
            "like a zip bomb; not unpacked."
        )
    return files


def _is_clutter(name: str) -> bool:
    """Folders, which come with their files, and what macOS adds."""
    return name.endswith("/") or name.startswith("__MACOSX/") or PurePosixPath(name).name == ".DS_Store"
