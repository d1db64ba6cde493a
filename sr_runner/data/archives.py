"""Zip archives of images, unpacked without trusting them."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from sr_runner.data.download import NO_ROOM
from sr_runner.errors import RequestError

_GROWTH = 4
_ALLOWANCE = 1 << 24
"""PNG files do not compress: an archive that unpacks to more than this many times its size plus 16 MiB is a bomb."""


def unpack_images(archive: Path, root: Path, folder: str) -> None:
    """Unpack the PNG files in `archive`, whatever folders they are in there, to `root / folder`.

    Each file appears whole, by a rename, and replaces one of its name. Raises `RequestError` where the archive is
    damaged, holds anything else (other files, links, paths that lead elsewhere, one name twice), would grow out of
    proportion, or where the disk is full.
    """
    temporary = root / f".unpacking {archive.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with zipfile.ZipFile(archive) as opened:
            for member in _checked_members(opened, archive):
                with (
                    opened.open(member) as source,
                    (temporary / PurePosixPath(member.filename).name).open("wb") as file,
                ):
                    shutil.copyfileobj(source, file, 1 << 20)
        (root / folder).mkdir(parents=True, exist_ok=True)
        for unpacked in temporary.iterdir():
            unpacked.replace(root / folder / unpacked.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise RequestError(f"{archive}: damaged archive ({error}); delete it, so that it is fetched anew.") from error
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise RequestError(f"{root}: no room to unpack {archive.name} ({error.strerror}); make room.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checked_members(opened: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    files = [member for member in opened.infolist() if not _is_clutter(member.filename)]
    names: set[str] = set()
    for member in files:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise RequestError(f"{archive}: {member.filename!r} points outside the archive; not unpacked.")
        if path.suffix != ".png" or path.name.startswith(".") or path.name in names:
            raise RequestError(f"{archive}: {member.filename!r} does not belong among DIV2K's images; not unpacked.")
        names.add(path.name)
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise RequestError(f"{archive}: {member.filename!r} is a link or a device; not unpacked.")
    total, size = sum(member.file_size for member in files), archive.stat().st_size
    if total > _GROWTH * size + _ALLOWANCE:
        raise RequestError(
            f"{archive}: {size} bytes would unpack to {total}; this looks like a zip bomb; not unpacked."
        )
    return files


def _is_clutter(name: str) -> bool:
    """Folders, which come with their files, and what macOS adds."""
    return name.endswith("/") or name.startswith("__MACOSX/") or PurePosixPath(name).name == ".DS_Store"
