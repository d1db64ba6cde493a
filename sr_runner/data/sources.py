"""Where images and LR/HR pairs come from."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sr_runner.data.cache import Facts
from sr_runner.data.images import Pixels, image_area, read_image
from sr_runner.errors import RequestError

DECODER = 1
"""Raised when reading or shrinking would give other pixels than before, so that caches are built anew."""


class ImageSource(Protocol):
    """An encoded image somewhere; `str` of it is where, for messages."""

    @property
    def name(self) -> str:
        """Unique among all images on this machine."""

    def facts(self) -> Facts:
        """What changes when the image does, cheaply. Raises `RequestError` where it is gone."""

    def area(self) -> int:
        """Number of pixels, read only from the header; 0 where that cannot be read."""

    def read(self) -> Pixels:
        """H x W x 3 uint8 RGB. Raises `RequestError` where it is damaged."""


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.absolute())

    def facts(self) -> Facts:
        try:
            found = self.path.stat()
        except OSError as error:
            raise RequestError(f"{self.path}: cannot be read ({error.strerror}).") from error
        if not stat.S_ISREG(found.st_mode):
            raise RequestError(f"{self.path}: not a file.")
        return {"file": self.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns, "decoder": DECODER}

    def area(self) -> int:
        return image_area(self.path)

    def read(self) -> Pixels:
        return read_image(self.path)

    def __str__(self) -> str:
        return os.fspath(self.path)


@dataclass(frozen=True)
class PairSource:
    """An HR image, and its LR image where that is not to be made by MATLAB's bicubic.

    `slack` is by how many LR pixels the size of the LR image may differ from HR / scale; what both cover is used.
    """

    name: str
    hr: ImageSource
    lr: ImageSource | None = None
    slack: int = 0


@dataclass
class Photographs:
    """The images of a data set, before anything is decoded; `source` is where they come from, for people."""

    name: str
    source: str
    train: Sequence[PairSource]
    valid: Sequence[PairSource]

    def fetch(self, *, progress: bool) -> None:
        """Get what is not on this machine yet: nothing, unless a subclass has something to get."""
