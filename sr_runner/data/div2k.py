"""DIV2K (Agustsson and Timofte, NTIRE 2017 and 2018): 800 photographs to train on and 100 to validate on."""

from __future__ import annotations

import logging
import shutil
import urllib.parse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from sr_runner.data import checks
from sr_runner.data.archives import ArchiveError, unpack_images
from sr_runner.data.dataset import PairData, PairOptions
from sr_runner.data.degradations import Degradation
from sr_runner.data.div2k_archives import ARCHIVES, BASE_URL
from sr_runner.data.download import DownloadError, Remote, WrongFileError, download, sha256_of, shown, size_of
from sr_runner.data.names import Ranges, numbers
from sr_runner.data.sources import ImageFile, PairSource, Photographs
from sr_runner.errors import RequestError, RunError, nearest
from sr_runner.files import LinkError, file_lock, folder_named

logger = logging.getLogger(__name__)

_SCALES = {"bicubic": (2, 3, 4, 8), "unknown": (2, 3, 4), "mild": (4,), "difficult": (4,), "wild": (4,)}
"""How the LR images were made, and the scales at which they were."""

_REALISTIC = {"mild": "m", "difficult": "d", "wild": "w"}
"""Tracks that have one archive for all scales, and what the names of their images end in."""

_LAST_TRAIN, _LAST = 800, 900

_SLACK = 16
"""LR pixels by which mild, difficult and wild images may differ from HR / 4: they were moved about, and cropped."""


class Div2kPhotographs(Photographs):
    """The pairs of DIV2K below `root`; see `Div2kData`."""

    def __init__(
        self,
        *,
        root: Path,
        scale: int,
        track: str | None,
        train: Ranges,
        valid: Ranges,
        download: bool,
        base_url: str,
        archives: Mapping[str, tuple[int, str]],
    ) -> None:
        self._root, self._scale, self._track = root, scale, track
        self._download, self._base_url, self._archives = download, base_url, archives
        if track is not None:
            _check_track(track, scale)
        _check_url(base_url)
        self._train_ids = numbers("data.train", train, _LAST)
        self._valid_ids = numbers("data.valid", valid, _LAST)
        if shared := sorted(set(self._train_ids) & set(self._valid_ids)):
            raise RequestError(f"data.train={train!r} and data.valid={valid!r} share images, {shared[0]} for one.")
        name = f"DIV2K {track or 'HR'} x{scale}"
        super().__init__(name, str(root.absolute()), self._pairs(self._train_ids), self._pairs(self._valid_ids))

    def fetch(self, *, progress: bool) -> None:
        """Download and unpack what is missing below `root`; nothing is asked of the network where all is there.

        Raises `RequestError` where it cannot be had, `RunError` where what a server has is not what it should be.
        """
        try:
            if self._missing():
                self._fetch_missing(progress)
            self.train, self.valid = self._pairs(self._train_ids), self._pairs(self._valid_ids)
        except PermissionError as error:
            raise RequestError(f"data.root={str(self._root)!r}: cannot be read ({error}).") from error

    def _fetch_missing(self, progress: bool) -> None:
        try:
            with file_lock(self._root / ".lock", waiting="Another process is downloading DIV2K; waiting for it."):
                for name in self._missing():
                    self._get(name, progress)
                    if missing := self._missing().get(name):
                        raise RunError(f"data=div2k: {name}.zip does not hold {missing[0].name}.")
        except DownloadError as error:
            raise RequestError(str(error), *self._by_hand()) from error
        except WrongFileError as error:
            raise RunError(str(error), *self._by_hand()) from error
        except LinkError:
            raise
        except OSError as error:
            raise RequestError(
                f"data.root={str(self._root)!r}: cannot be written to ({error.strerror}); choose another folder."
            ) from error

    def _get(self, name: str, progress: bool) -> None:
        """One folder, from an archive that somebody put into `root`, or from the network."""
        size, sha256 = self._archives[name]
        remote = Remote(self._url(name), size, sha256)
        archive = self._root / f"{name}.zip"
        if archive.is_file():
            _check_archive(archive, remote)
            unpack_images(archive, self._root, _folder(name))
            return
        if not self._download:
            raise RequestError(f"data=div2k: {_folder(name)} is not in {self._root.absolute()}.", *self._by_hand())
        partial = archive.with_suffix(".zip.part")
        self._check_room(remote, partial)
        logger.info("Downloading %s (%.2g GB).", remote, size / 1e9)
        download(remote, partial, progress=progress)
        try:
            unpack_images(partial, self._root, _folder(name))
        except ArchiveError:
            partial.unlink()
            raise
        partial.unlink()

    def _url(self, name: str) -> str:
        parts = urllib.parse.urlsplit(self._base_url)
        return urllib.parse.urlunsplit(parts._replace(path=f"{parts.path}{name}.zip"))

    def _check_room(self, remote: Remote, partial: Path) -> None:
        needed, free = 2 * remote.size - size_of(partial), shutil.disk_usage(self._root).free
        if free < needed:
            raise RequestError(
                f"data.root={str(self._root)!r}: {needed / 1e9:.2g} GB are needed to download and unpack "
                f"{partial.stem} and {free / 1e9:.2g} GB are free; make room, or choose another folder."
            )

    def _by_hand(self) -> list[str]:
        """What to do on a machine without a network."""
        lines = [f"To do it by hand, put these archives into {self._root.absolute()} (as they are, or unpacked there):"]
        for name in self._missing():
            lines.append(f"  {shown(self._url(name))}  ({self._archives[name][0] / 1e9:.2g} GB)")
        own = "or give the folder where you have DIV2K already (the one with DIV2K_train_HR in it): data.root=FOLDER"
        return [*lines, own]

    # -- layout --------------------------------------------------------------------------------------------------------

    def _missing(self) -> dict[str, list[Path]]:
        """Wanted files that are not there, by the archives (named without `.zip`) that they are in."""
        missing: dict[str, list[Path]] = defaultdict(list)
        for number in (*self._train_ids, *self._valid_ids):
            for archive, files in self._files(number).items():
                missing[archive] += [path for path in files if not path.is_file()]
        return {archive: paths for archive, paths in missing.items() if paths}

    def _files(self, number: int) -> dict[str, list[Path]]:
        """The HR image and the LR images of one photograph: several for `wild`, where they are there."""
        split = "train" if number <= _LAST_TRAIN else "valid"
        hr = f"DIV2K_{split}_HR"
        files = {hr: [self._root / hr / f"{number:04}.png"]}
        if self._track is not None:
            size = "" if self._scale == 8 or self._track in _REALISTIC else f"_X{self._scale}"
            lr = f"DIV2K_{split}_LR_{'x8' if self._scale == 8 else self._track}{size}"
            stem = f"{number:04}x{self._scale}{_REALISTIC.get(self._track, '')}"
            several = sorted((self._root / _folder(lr)).glob(f"{stem}[0-9].png")) if self._track == "wild" else []
            files[lr] = several or [self._root / _folder(lr) / f"{stem}.png"]
        return files

    def _pairs(self, numbers: Sequence[int]) -> list[PairSource]:
        slack = _SLACK if self._track in _REALISTIC else 0
        pairs = []
        for number in numbers:
            [hr], *lr = self._files(number).values()
            if lr:
                pairs += [PairSource(path.stem, ImageFile(hr), ImageFile(path), slack) for path in lr[0]]
            else:
                pairs.append(PairSource(hr.stem, ImageFile(hr)))
        return pairs


class Div2kData(PairData):
    """DIV2K with its official LR images; other arguments as in `PairData`.

    `root` holds the images in the official layout (`DIV2K_train_HR/0001.png`, `DIV2K_train_LR_bicubic/X4/0001x4.png`,
    ...). What is missing there is unpacked from archives in `root`, else downloaded from `base_url` where `download`
    is true. `degradation` is how the LR images were made: `bicubic` (scales 2, 3, 4, 8), `unknown` (2, 3, 4), `mild`,
    `difficult` or `wild` (4); a `Degradation` makes LR pictures and uses only the HR images. `train` and `valid` are
    ranges of image numbers from 1 to 900, such as `1-800`, or lists of those. `archives` replaces the table of sizes
    and SHA-256.
    """

    # Where images are; which images they are is in the fingerprint.
    not_in_identity = PairData.not_in_identity | {"root", "train", "valid", "download", "base_url", "archives"}

    def __init__(
        self,
        *,
        root: str | Path,
        degradation: Degradation | str = "bicubic",
        train: Ranges = "1-800",
        valid: Ranges = "801-900",
        download: bool = True,
        base_url: str = BASE_URL,
        archives: Mapping[str, tuple[int, str]] = ARCHIVES,
        **options: Unpack[PairOptions],
    ) -> None:
        photographs = Div2kPhotographs(
            root=folder_named("data.root", root),
            scale=checks.whole_number("scale", options["scale"], at_least=1),
            track=None if isinstance(degradation, Degradation) else str(degradation),
            train=train,
            valid=valid,
            download=bool(download),
            base_url=base_url,
            archives=archives,
        )
        own = degradation if isinstance(degradation, Degradation) else "bicubic"
        super().__init__(photographs, degradation=own, **options)


def _folder(archive: str) -> str:
    """What an archive unpacks to: `DIV2K_train_LR_bicubic/X4` for `DIV2K_train_LR_bicubic_X4`."""
    return archive.replace("_X", "/X")


def _check_track(track: str, scale: int) -> None:
    if scale in _SCALES.get(track, ()):
        return
    possible = "; ".join(f"{name} at scale {', '.join(map(str, scales))}" for name, scales in _SCALES.items())
    guess = "" if track in _SCALES else nearest(track, _SCALES)
    raise RequestError(
        f"data.degradation={track} scale={scale}: DIV2K has no such LR images.{guess} It has {possible}."
    )


def _check_url(base_url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(base_url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.fragment
    except ValueError:  # a port that is no number, half an IPv6 address, ...
        fits = False
    if not fits or not parts.path.endswith("/"):
        raise RequestError(
            f"data.base_url={shown(base_url)!r}: expected a URL that begins with https:// or http:// and whose path "
            "ends with a slash."
        )


def _check_archive(archive: Path, remote: Remote) -> None:
    size = archive.stat().st_size
    if size != remote.size:
        raise RequestError(
            f"{archive}: has {size} bytes, {remote} has {remote.size}; it is truncated or another file. "
            "Delete it, or put the whole one there."
        )
    if (found := sha256_of(archive)) != remote.sha256:
        raise RequestError(
            f"{archive}: its SHA-256 is {found}, it should be {remote.sha256}; it is damaged. "
            "Delete it, or put an intact one there."
        )
