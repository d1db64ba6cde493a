"""Large files over HTTP: resumed, checked, and retried where waiting helps."""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import logging
import os
import re
import socket
import stat
import string
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any, BinaryIO
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit, urlunsplit

from tqdm.auto import tqdm

from sr_runner.errors import RequestError, RunError
from sr_runner.files import LinkError, open_own
from sr_runner.masking import masked_text

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 30.0
_LEAST = 1 << 16
"""Bytes of the file that have to come in `_TIMEOUT` seconds, and between two failures."""
_ATTEMPTS = 5
"""Failures in a row before giving up."""

_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTIONS = (301, 302, 303, 307, 308)
_MOST_REDIRECTIONS = 10
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DownloadError(RequestError):
    """A file could not be downloaded."""


class WrongFileError(RunError):
    """A server answers, but what it has is not the file that it should have."""


@dataclass(frozen=True)
class Remote:
    """A file on a server, with what is known of it. `url` may hold user, password and query."""

    url: str
    size: int
    sha256: str

    def __str__(self) -> str:
        """The address for people: without password and query, where secrets stand."""
        return shown(self.url)


def shown(url: str) -> str:
    """`url` without the secrets that it may hold: user and password masked, the query left out."""
    return masked_text(url).partition("?")[0]


def download(remote: Remote, path: Path, *, progress: bool) -> None:
    """Fetch `remote` into `path`, going on behind the bytes that `path` holds already from an earlier attempt.

    Connections that fail or break and servers that are busy are tried again, 1, 2, 4, ... seconds later. On return
    size and SHA-256 are right; where they cannot be made right, `path` is removed and `WrongFileError` is raised.
    `DownloadError`s leave what has been fetched for the next attempt. Raises `LinkError` where `path` is a link: what
    it leads to is somebody else's.
    """
    resumed = size_of(path) > 0
    _fetch(remote, path, progress)
    found = sha256_of(path)
    if found != remote.sha256 and resumed:
        logger.warning("%s: the part fetched earlier was damaged; fetching it anew.", path.name)
        path.unlink()
        _fetch(remote, path, progress)
        found = sha256_of(path)
    if found != remote.sha256:
        path.unlink()
        raise WrongFileError(
            f"{remote}: the SHA-256 of what was downloaded is {found}, it should be {remote.sha256}; "
            "what the server has is damaged, or not this file."
        )


def size_of(path: Path) -> int:
    """Bytes in the file `path`; 0 where there is none. Raises `LinkError` where it is a link."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(found.st_mode):
        raise LinkError(path)
    return found.st_size


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(remote: Remote, path: Path, progress: bool) -> None:
    """Fill `path` up to the right size."""
    have = size_of(path)
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
    failures, furthest = 0, have
    with bar:
        while have < remote.size:
            problem = _attempt(remote, path, have, bar.update)
            have = size_of(path)
            # Not where the attempt before stood: a server without ranges begins anew each time.
            failures = 0 if have - furthest >= _LEAST else failures + 1
            furthest = max(furthest, have)
            if have == remote.size:
                return
            if failures >= _ATTEMPTS:
                raise DownloadError(f"{remote}: {problem} ({failures} attempts in a row failed).")
            wait = 2 ** max(failures - 1, 0)
            logger.info("%s: %s; going on at byte %d in %d s.", remote, problem, have, wait)
            sleep(wait)


class _Watch:
    """Shuts down the connection on which less than `_LEAST` bytes of the file came in `_TIMEOUT` seconds.

    A time-out of each read is no such limit: headers, lengths of chunks, `100 Continue` over and over, and the file
    itself can come a byte at a time, for years.
    """

    def __init__(self) -> None:
        self.came = 0
        self._stalled: TimeoutError | None = None
        self._connection: socket.socket | None = None
        self._over = threading.Event()

    def __enter__(self) -> _Watch:
        threading.Thread(target=self._look, name="download-watch", daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._over.set()
        if self._connection is not None:
            self._connection.close()
        if error is None or isinstance(error, OSError | http.client.HTTPException):
            self.check()

    def check(self) -> None:
        """Raises `TimeoutError` where the connection was shut down: what came of it is not whole."""
        if self._stalled is not None:
            raise self._stalled

    def connect(self, *arguments: Any) -> socket.socket:
        self.check()
        made = socket.create_connection(*arguments)
        if self._connection is not None:
            self._connection.close()  # that of a redirection
        self._connection = made.dup()  # TLS takes the other over
        return made

    def _look(self) -> None:
        before = 0
        while not self._over.wait(_TIMEOUT):
            if self.came - before < _LEAST:
                self._stalled = TimeoutError(f"only {self.came - before} bytes came in {_TIMEOUT:.0f} s")
                with suppress(OSError, AttributeError):  # there is none yet, or no more
                    self._connection.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
            before = self.came


class _Http(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens the connections that `watch` looks after."""

    def __init__(self, watch: _Watch):
        urllib.request.HTTPSHandler.__init__(self)
        self._watch = watch

    def do_open(self, http_class: Any, req: Any, **arguments: Any) -> Any:
        def connection(host: str, **others: Any) -> http.client.HTTPConnection:
            made = http_class(host, **others)
            made._create_connection = self._watch.connect
            return made  # type: ignore[no-any-return]

        return super().do_open(connection, req, **arguments)


def _attempt(remote: Remote, path: Path, have: int, report: Callable[[float], object]) -> object:
    """One request, up to its end or to a problem that may pass, which is returned; others are raised."""
    try:
        with _Watch() as watch:
            _receive(remote, path, have, watch, report)
    except (LinkError, PermissionError):  # of the file
        raise
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in _TEMPORARY:
            raise DownloadError(f"{remote}: the server answers {error.code} {error.reason}.") from error
        return error
    except urllib.error.URLError as error:
        if not have and isinstance(error.reason, socket.gaierror):
            raise DownloadError(f"{remote}: {error.reason.strerror} (is there a network?)") from error
        return error.reason
    except (http.client.HTTPException, OSError) as error:  # OSError: no route to the host, a broken TLS record, ...
        return error
    return "the connection ended early"


def _receive(remote: Remote, path: Path, have: int, watch: _Watch, report: Callable[[float], object]) -> None:
    """One request; appends to `path` until the connection ends."""
    headers = {"User-Agent": "sr-run", **({"Range": f"bytes={have}-"} if have else {})}
    with _open(remote, headers, watch) as response:
        watch.check()
        start, total = _extent(response)
        if start not in (0, have) or total not in (None, remote.size):
            raise WrongFileError(
                f"{remote}: the server has {total} bytes there, but the file should have {remote.size}; "
                "it is not this file."
            )
        report(start - have)
        behind = os.O_APPEND if start else os.O_TRUNC
        try:
            with os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | behind), "ab") as file:
                _copy(response, file, remote.size - start, watch, report)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise DownloadError(
                f"{path}: no room for the whole {remote.size / 1e9:.2g} GB ({error.strerror}); make room, or put "
                "data.root elsewhere. What has been fetched is kept."
            ) from error


class _NotFollowed(urllib.request.HTTPRedirectHandler):
    """Leaves redirections to `_open`: urllib reads the whole body of each, however long, gives the credentials to
    whatever host it is sent to, and goes to ftp."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _open(remote: Remote, headers: dict[str, str], watch: _Watch) -> Any:
    """The answer to a request for `remote`, wherever on the web it has moved."""
    address, user = _without_user(remote.url)
    home, opener = urlsplit(address)[:2], urllib.request.build_opener(_NotFollowed, _Http(watch))
    for _ in range(_MOST_REDIRECTIONS + 1):
        own = {"Authorization": f"Basic {base64.b64encode(user).decode()}"} if user else {}
        sent = headers | (own if urlsplit(address)[:2] == home else {})
        try:
            return opener.open(urllib.request.Request(address, headers=sent), timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code not in _REDIRECTIONS or "Location" not in error.headers:
                raise
            error.close()
            address = _redirected(remote, address, error.headers["Location"])
        except UnicodeError as error:  # a name of a host that no resolver takes
            raise WrongFileError(f"{remote}: {shown(address)!r} is no address of the web ({error}).") from error
    raise WrongFileError(f"{remote}: the server redirects more than {_MOST_REDIRECTIONS} times.")


def _without_user(url: str) -> tuple[str, bytes]:
    """The address, and `user:password` where it has that."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host)), unquote_to_bytes(user)


def _redirected(remote: Remote, address: str, location: str) -> str:
    # Headers come as Latin-1; what no address may hold is quoted as browsers do.
    written = quote(location, encoding="iso-8859-1", safe=string.punctuation)
    try:
        found = urlsplit(urljoin(address, written))
        if found.scheme in ("http", "https") and found.hostname and "@" not in found.netloc and found.port != 0:
            return urlunsplit(found._replace(fragment=""))
    except ValueError as error:
        raise WrongFileError(f"{remote}: the server redirects to {shown(written)!r} ({error}).") from error
    raise WrongFileError(f"{remote}: the server redirects to {shown(written)!r}; expected a place on the web.")


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte and size of the whole file, as far as the server states it; a server may ignore the wanted range."""
    stated = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", stated)
    if response.status == 206 and match:
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, expected: int, watch: _Watch, report: Callable[[float], object]
) -> None:
    while expected > 0 and (chunk := response.read1(min(_CHUNK, expected))):
        file.write(chunk)
        expected -= len(chunk)
        watch.came += len(chunk)
        report(len(chunk))
