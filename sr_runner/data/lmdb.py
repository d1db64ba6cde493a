"""LMDB databases as BasicSR makes them: PNG files by name, listed in `meta_info.txt`."""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.data.cache import Facts
from sr_runner.data.images import Pixels, decode_image, image_area
from sr_runner.data.sources import DECODER, ImageSource
from sr_runner.errors import RequestError

_ONE_AT_A_TIME = threading.Lock()


def is_lmdb(path: Path) -> bool:
    """Whether `path` is a folder that holds an LMDB database."""
    return (path / "data.mdb").is_file()


@dataclass(frozen=True)
class LmdbImage:
    """An encoded image in the LMDB database in the folder `path`."""

    path: Path
    key: str

    @property
    def name(self) -> str:
        return f"{self.path.absolute()}::{self.key}"

    def facts(self) -> Facts:
        stat = (self.path / "data.mdb").stat()
        return {"lmdb": self.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "decoder": DECODER}

    def area(self) -> int:
        return image_area(io.BytesIO(self._encoded()))

    def read(self) -> Pixels:
        return decode_image(self._encoded(), str(self))

    def _encoded(self) -> bytes:
        with _reading(self.path) as transaction:
            data: bytes | None = transaction.get(self.key.encode())
        if data is None:
            raise RequestError(f"{self}: listed in meta_info.txt, but not in the database.")
        return data

    def __str__(self) -> str:
        return f"{self.path}::{self.key}"


def lmdb_images(key: str, path: Path) -> dict[str, ImageSource]:
    """The images of a database by name, in alphabetical order; `key` is the config's name for it."""
    names = sorted(_listed(path) or _stored(path))
    if not names:
        raise RequestError(f"{key}={str(path)!r}: this LMDB database is empty.")
    return {name: LmdbImage(path, name) for name in names}


def _listed(path: Path) -> list[str]:
    """Names in `meta_info.txt`, whose lines are like `0001_s001.png (480,480,3) 1`; keys have no extension."""
    try:
        lines = (path / "meta_info.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [re.sub(r"\.\w+$", "", line.split(" (")[0].strip()) for line in lines if line.strip()]


def _stored(path: Path) -> list[str]:
    with _reading(path) as transaction:
        return [bytes(name).decode() for name in transaction.cursor().iternext(values=False)]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """A transaction; unlocked, as nobody writes to a data set and it may lie on a read-only disk.

    One at a time: LMDB opens a database only once in a process.
    """
    try:
        import lmdb
    except ImportError as error:
        raise RequestError(f"{path} is an LMDB database; to read it: pip install 'sr-run[lmdb]'") from error
    try:
        with (
            _ONE_AT_A_TIME,
            lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False) as environment,
            environment.begin() as transaction,
        ):
            yield transaction
    except lmdb.Error as error:
        raise RequestError(f"{path}: damaged LMDB database ({error}).") from error
