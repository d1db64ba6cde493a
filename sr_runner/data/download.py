"""Large files over HTTP: resumed, checked, and retried where waiting helps."""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import BinaryIO

from tqdm.auto import tqdm

from sr_runner.errors import RequestError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 30.0
_ATTEMPTS = 5
"""Failures in a row, without a byte in between, before giving up."""

_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DownloadError(RequestError):
    """A file could not be downloaded."""


@dataclass(frozen=True)
class Remote:
    """A file on a server, with what is known of it."""

    url: str
    size: int
    sha256: str


def download(remote: Remote, path: Path, *, progress: bool) -> None:
    """Fetch `remote` into `path`, going on behind the bytes that `path` holds already from an earlier attempt.

    Connections that fail or break and servers that are busy are tried again, 1, 2, 4, ... seconds later. On return
    size and SHA-256 are right; where they cannot be made right, `path` is removed and `DownloadError` is raised. Other
    `DownloadError`s leave what has been fetched for the next attempt.
    """
    resumed = path.exists() and path.stat().st_size > 0
    _fetch(remote, path, progress)
    found = sha256_of(path)
    if found != remote.sha256 and resumed:
        logger.warning("%s: the part fetched earlier was damaged; fetching it anew.", path.name)
        path.unlink()
        _fetch(remote, path, progress)
        found = sha256_of(path)
    if found != remote.sha256:
        path.unlink()
        raise DownloadError(
            f"{remote.url}: the SHA-256 of what was downloaded is {found}, it should be {remote.sha256}; "
            "what the server has is damaged, or not this file."
        )


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(remote: Remote, path: Path, progress: bool) -> None:
    """Fill `path` up to the right size."""
    failures = 0
    have = path.stat().st_size if path.exists() else 0
    if have > remote.size:
        path.unlink()
        have = 0
    bar = tqdm(
        desc=path.name.removesuffix(".part"),
        initial=have,
        total=remote.size,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    )
    with bar:
        while have < remote.size:
            problem = _attempt(remote, path, have, bar.update)
            now = path.stat().st_size if path.exists() else 0
            failures = 0 if now > have else failures + 1
            have = now
            if have == remote.size:
                return
            if failures >= _ATTEMPTS:
                raise DownloadError(f"{remote.url}: {problem} ({failures} attempts in a row failed).")
            wait = 2 ** max(failures - 1, 0)
            logger.info("%s: %s; going on at byte %d in %d s.", remote.url, problem, have, wait)
            sleep(wait)


def _attempt(remote: Remote, path: Path, have: int, report: Callable[[float], object]) -> object:
    """One request, up to its end or to a problem that may pass, which is returned; others raise `DownloadError`."""
    try:
        _receive(remote, path, have, report)
    except urllib.error.HTTPError as error:
        if error.code not in _TEMPORARY:
            raise DownloadError(f"{remote.url}: the server answers {error.code} {error.reason}.") from error
        return error
    except urllib.error.URLError as error:
        if not have and isinstance(error.reason, socket.gaierror):
            raise DownloadError(f"{remote.url}: {error.reason.strerror} (is there a network?)") from error
        return error.reason
    except PermissionError:  # of the file
        raise
    except (http.client.HTTPException, OSError) as error:  # OSError: no route to the host, a broken TLS record, ...
        return error
    return "the connection ended early"


def _receive(remote: Remote, path: Path, have: int, report: Callable[[float], object]) -> None:
    """One request; appends to `path` until the connection ends."""
    headers = {"User-Agent": "sr-run", **({"Range": f"bytes={have}-"} if have else {})}
    with urllib.request.urlopen(urllib.request.Request(remote.url, headers=headers), timeout=_TIMEOUT) as response:
        start, total = _extent(response)
        if start not in (0, have) or total not in (None, remote.size):
            raise DownloadError(
                f"{remote.url}: the server has {total} bytes there, but the file should have {remote.size}; "
                "it is not this file."
            )
        report(start - have)
        try:
            with path.open("ab" if start else "wb") as file:
                _copy(response, file, remote.size - start, report)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise DownloadError(
                f"{path}: no room for the whole {remote.size / 1e9:.2g} GB ({error.strerror}); make room, or put "
                "data.root elsewhere. What has been fetched is kept."
            ) from error


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte and size of the whole file, as far as the server states it; a server may ignore the wanted range."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status == 206 and match:
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _copy(response: http.client.HTTPResponse, file: BinaryIO, expected: int, report: Callable[[float], object]) -> None:
    while expected > 0 and (chunk := response.read(min(_CHUNK, expected))):
        file.write(chunk)
        expected -= len(chunk)
        report(len(chunk))
