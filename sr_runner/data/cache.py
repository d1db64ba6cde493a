"""Decoded images in memory-mapped files, shared by processes, sweep jobs and later runs.

One file holds one image: a header of 4096 bytes with what it was made from (`facts`), its size and the digest of its
pixels, then the pixels. Whoever asks with other facts (the photograph was edited, the decoder changed) does not find
it, builds it again, and removes the stale one. A file appears by a rename, whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sr_runner.data.images import Pixels
from sr_runner.errors import RequestError, RunError
from sr_runner.files import file_lock, open_own, own_folder

Facts = Mapping[str, str | int]
"""What determines an image's pixels, in JSON's types: a path with its size and time, a scale, a version."""

_HEADER = 4096
_FORMAT = "sr-run image 1"


@dataclass(frozen=True)
class CachedImage:
    """A decoded image on disk: `height` x `width` x 3 uint8, and the SHA-256 of its size and pixels."""

    path: Path
    height: int
    width: int
    digest: str
    make_again: Callable[[], object] | None = field(default=None, compare=False, repr=False)
    """Puts it into the cache once more, where somebody has emptied that, unless its source has changed."""

    @property
    def nbytes(self) -> int:
        return self.height * self.width * 3

    def pixels(self) -> Pixels:
        """The pixels, mapped read-only; they stay readable even where the file is replaced or deleted meanwhile.

        Raises `RunError` where the file is gone, and what it was made from is gone as well, or was edited.
        """
        if self.make_again is not None and not self.path.exists():
            try:
                self.make_again()
            except (OSError, RequestError) as error:
                raise RunError(f"an image is gone from data.cache_dir, and cannot be made again: {error}") from error
        try:
            file = os.fdopen(open_own(self.path, os.O_RDONLY), "rb")
        except FileNotFoundError as error:
            raise RunError(f"{self.path}: gone from the image cache; its image was edited during the run.") from error
        with file:
            mapped = mmap.mmap(file.fileno(), _HEADER + self.nbytes, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, np.uint8, self.nbytes, _HEADER).reshape(self.height, self.width, 3)


class ImageCache:
    """The images below `folder`, by name. Processes may share it; a full disk is a `RequestError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str, facts: Facts) -> CachedImage | None:
        """The image stored under `name` where it was made from exactly `facts` and is whole, else None."""
        path = self._path(name, facts)
        try:
            with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
                header = json.loads(file.read(_HEADER))
                size = os.fstat(file.fileno()).st_size
        except (
            FileNotFoundError,
            NotADirectoryError,
            PermissionError,
            ValueError,
        ):  # `building` says what it cannot do
            return None
        if header.get("format") != _FORMAT or header["facts"] != dict(facts):
            return None
        image = CachedImage(path, header["height"], header["width"], header["digest"])
        return image if size == _HEADER + image.nbytes else None

    def store(self, name: str, facts: Facts, pixels: Pixels, *, job: str) -> CachedImage:
        """Write `pixels` (H x W x 3 uint8) under `name`, whole or not at all. `job` as in `building`."""
        pixels = np.ascontiguousarray(pixels)
        height, width = pixels.shape[:2]
        digest = hashlib.sha256(f"{height}x{width} ".encode())
        digest.update(pixels.data)
        image = CachedImage(self._path(name, facts), height, width, digest.hexdigest())
        header = {"format": _FORMAT, "facts": dict(facts), "height": height, "width": width, "digest": image.digest}
        encoded = json.dumps(header).encode()
        if len(encoded) > _HEADER:
            raise RequestError(f"data: the path is too long to be noted in the cache: {facts!r}.")
        temporary = self._temporary(job) / f"{os.getpid()}-{threading.get_ident()}"
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            image.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.write(encoded.ljust(_HEADER))
                file.write(pixels.data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(image.path)
            for stale in image.path.parent.glob(f"{image.path.stem}.*"):
                if stale != image.path:
                    stale.unlink(missing_ok=True)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
                raise RequestError(
                    f"data.cache_dir={str(self._folder)!r}: no room for the decoded images ({error.strerror}); "
                    "make room, or put the cache elsewhere."
                ) from error
            raise
        return image

    @contextlib.contextmanager
    def building(self, job: str) -> Iterator[None]:
        """Hold the right to build what `job` (any string) names; other processes with the same job wait for it.

        The lock is the kernel's: it ends with the process that holds it, however that ends. What a killed builder
        left behind is removed by the next one.
        """
        lock = own_folder(self._folder, self._folder / "locks") / _hashed(job)
        with contextlib.ExitStack() as stack:
            try:
                exclusive = stack.enter_context(
                    file_lock(lock, waiting="Another process fills the image cache; waiting for it.")
                )
            except OSError as error:
                raise RequestError(
                    f"data.cache_dir={str(self._folder)!r}: cannot be written to ({error.strerror}); "
                    "choose another folder."
                ) from error
            if exclusive:
                shutil.rmtree(self._temporary(job), ignore_errors=True)
            yield
            if exclusive:
                shutil.rmtree(self._temporary(job), ignore_errors=True)

    def _path(self, name: str, facts: Facts) -> Path:
        """Other facts give another file, so that a run never sees an image change under it."""
        key = _hashed(name)
        folder = own_folder(self._folder, self._folder / "images" / key[:2])
        return folder / f"{key[2:]}.{_hashed(json.dumps(dict(facts), sort_keys=True))[:16]}"

    def _temporary(self, job: str) -> Path:
        return own_folder(self._folder, self._folder / "building" / _hashed(job))


class MappedImages:
    """Pixels of many cached images by index, with a bound on how much is mapped at a time.

    Mapped pages count as the process's memory as soon as they are touched. Dropping the least recently used maps keeps
    that below `budget` bytes whatever the size of the data set; the pages stay in the system's page cache. Threads may
    share it. Where everything fits, nothing is ever dropped.
    """

    def __init__(self, images: Sequence[CachedImage], *, budget: int) -> None:
        unique: dict[Path, int] = {}
        self.slots = [unique.setdefault(image.path, len(unique)) for image in images]
        """For each of the images its place among the different ones: one that comes several times is mapped once."""
        self._images = list({image.path: image for image in images}.values())
        self._budget = budget
        self._mapped: OrderedDict[int, Pixels] = OrderedDict()
        self._mapped_bytes = 0
        self._lock = threading.Lock()
        self._everything_fits = sum(image.nbytes for image in self._images) <= budget

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each of the different images."""
        return [(image.height, image.width) for image in self._images]

    def __getitem__(self, index: int) -> Pixels:
        return self.at(self.slots[index])

    def at(self, index: int) -> Pixels:
        """The pixels of one of the different images."""
        pixels = self._mapped.get(index)
        if pixels is not None and self._everything_fits:
            return pixels
        with self._lock:
            if index in self._mapped:
                self._mapped.move_to_end(index)
                return self._mapped[index]
            pixels = self._mapped[index] = self._images[index].pixels()
            self._mapped_bytes += pixels.nbytes
            while self._mapped_bytes > self._budget and len(self._mapped) > 1:
                self._mapped_bytes -= self._mapped.popitem(last=False)[1].nbytes
            return pixels


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
