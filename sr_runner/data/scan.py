"""Finding images: folders with the folders in them, globs, single files and LMDB databases."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from sr_runner.data.images import EXTENSIONS
from sr_runner.data.lmdb import is_lmdb, lmdb_images
from sr_runner.data.sources import ImageFile, ImageSource
from sr_runner.errors import RequestError, nearest

logger = logging.getLogger(__name__)


def find_images(key: str, where: str | Path) -> dict[str, ImageSource]:
    """The images at `where` by name, in alphabetical order.

    `where` is a folder (searched with the folders in it; hidden ones are left out, links are followed), a glob such as
    `/data/*/HR` or `/data/**/*_HR.png`, an image file, or an LMDB database as BasicSR makes them. Names are paths
    without extension, relative to the folder (of a glob: to its part before the first wildcard). `key` is the config's
    name for it. Raises `RequestError` where there is nothing, no image, or two images that differ only in
    their extension.
    """
    try:
        return _found(key, where)
    except PermissionError as error:
        raise RequestError(f"{key}={str(where)!r}: cannot be read ({error}).") from error


def _found(key: str, where: str | Path) -> dict[str, ImageSource]:
    path = Path(where).expanduser()
    if is_lmdb(path):
        return lmdb_images(key, path)
    if path.is_dir():
        base, files = path, files_below(path)
    elif path.is_file():
        base, files = path.parent, [path]
    elif glob.has_magic(str(path)):
        base, files = _glob(path)
    else:
        raise RequestError(f"{key}={str(where)!r}: there is no such folder or file.{nearest_beside(path)}")
    images: dict[str, ImageSource] = {**image_files(f"{key}={str(where)!r}", base, files)}
    if not images:
        extensions = " ".join(EXTENSIONS)
        raise RequestError(f"{key}={str(where)!r}: no image there (looked for {extensions} in it and in its folders).")
    return images


def image_files(place: str, base: Path, files: Iterable[Path]) -> dict[str, ImageFile]:
    """Those of `files` that are images, by path without extension relative to `base`; `place` is for messages."""
    found: dict[str, ImageFile] = {}
    for path in sorted(set(files)):
        if path.suffix.lower() in EXTENSIONS:
            name = path.relative_to(base).with_suffix("").as_posix()
            if name in found:
                raise RequestError(f"{place}: {found[name].path.name} and {path.name} have the same name.")
            found[name] = ImageFile(path)
    return found


def _glob(pattern: Path) -> tuple[Path, list[Path]]:
    """What a glob matches, with all that is below folders, and the folder before its first wildcard."""
    plain = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    base = Path(*pattern.parts[:plain])
    matches = [path for path in base.glob(str(Path(*pattern.parts[plain:]))) if not _is_hidden(path.relative_to(base))]
    folders = [file for match in matches if match.is_dir() for file in files_below(match)]
    return base, [*folders, *(match for match in matches if match.is_file())]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def files_below(folder: Path) -> list[Path]:
    """The files in `folder` and in the folders in it; hidden ones are left out, links are followed."""
    found: list[Path] = []
    seen: set[str] = set()  # a link to a folder above it would be followed forever
    for parent, folders, files in os.walk(folder, onerror=partial(_unreadable, folder), followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.extend(Path(parent, name) for name in files if not name.startswith("."))
    return found


def _unreadable(folder: Path, error: OSError) -> None:
    """Folders such as `lost+found` do not keep the others from being read; without `folder` itself there is nothing."""
    if Path(error.filename) == folder:
        raise error
    logger.warning("%s: left out, it cannot be read (%s).", error.filename, error.strerror)


def nearest_beside(path: Path) -> str:
    """`nearest` among what there is in the folder that `path` should be in."""
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, [beside.name for beside in path.parent.iterdir()])
