"""The archives of DIV2K, with official names and layout and tiny photographs, and an HTTP server that has them."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sr_runner.data import Div2kData
from sr_runner.data.div2k_archives import ARCHIVES

NUMBERS = {"train": (1, 2, 3), "valid": (801, 802)}


def photograph(number: int, height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def members(name: str) -> dict[str, bytes]:
    """The files of an official archive, with tiny photographs: HR 48 x 72."""
    split = "train" if "train" in name else "valid"
    if name.endswith("HR"):
        return {f"{name}/{n:04}.png": photograph(n, 48, 72) for n in NUMBERS[split]}
    if match := re.search(r"(bicubic|unknown)_X(\d)$", name):
        folder, scale, suffixes = name.removesuffix(f"_X{match[2]}") + f"/X{match[2]}", int(match[2]), [""]
    elif name.endswith("x8"):
        folder, scale, suffixes = name, 8, [""]
    else:
        wild = ["w1", "w2", "w3", "w4"] if split == "train" else ["w"]
        folder, scale, suffixes = name, 4, {"mild": ["m"], "difficult": ["d"], "wild": wild}[name.rpartition("_")[2]]
    odd = 2 if suffixes != [""] else 0  # the realistic tracks are of slightly other size
    return {
        f"{folder}/{n:04}x{scale}{suffix}.png": photograph(10 * n + scale, 48 // scale - odd, 72 // scale + odd)
        for n in NUMBERS[split]
        for suffix in suffixes
    }


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


@cache
def official(name: str) -> bytes:
    return zipped(members(name))


class Server(ThreadingHTTPServer):
    """Serves the archives; `faults` (status codes, or bytes after which to hang up) hit one request each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"{name}.zip": official(name) for name in ARCHIVES}
        self.faults: list[tuple[str, int]] = []
        self.moved = False
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[Handler], bool] = lambda request: False
        """Asked first; True where it has answered the request itself."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def table(self) -> dict[str, tuple[int, str]]:
        """What `archives` should be for what is served now."""
        digests = {name.removesuffix(".zip"): (len(d), hashlib.sha256(d).hexdigest()) for name, d in self.files.items()}
        assert digests.keys() == ARCHIVES.keys()
        return digests


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, wanted = self.path.rpartition("/")[2].partition("?")[0], self.headers.get("Range")
        self.server.headers.append(dict(self.headers) | {"path": self.path})
        if self.server.answer(self):
            return None
        if self.server.moved and not self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", f"/moved/{name}")
            return self.end_headers()
        self.server.requests.append((name, wanted))
        kind, value = self.server.faults.pop(0) if self.server.faults else ("none", 0)
        content = self.server.files.get(name)
        if content is None or kind == "status":
            return self.send_error(value or 404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + value] if kind == "hang up after" else content[start:])
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass

    def say(self, status: int, *headers: tuple[str, str], body: bytes = b"") -> bool:
        """An answer of one's own."""
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        return True


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def div2k(server: Server, root: Path, **changes: Any) -> Div2kData:
    options = {
        "scale": 4,
        "patch_size": 16,
        "batch_size": 2,
        "seed": 0,
        "workers": 0,
        "train": "1-3",
        "valid": "801-802",
    }
    table = changes.pop("archives", None) or server.table()
    return Div2kData(
        **{
            "root": root,
            "base_url": server.url,
            "archives": table,
            "cache_dir": root.parent / "cache",
            **options,
            **changes,
        }
    )


def prepared(server: Server, root: Path, **changes: Any) -> Div2kData:
    data = div2k(server, root, **changes)
    data.prepare(progress=False)
    return data
