"""Checkpoints in object storage (S3, Google Cloud, Azure, ...) through fsspec."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sr_runner.checkpoint.format import Blob, DamagedError
from sr_runner.checkpoint.stores.objects import ObjectStore, pieces
from sr_runner.checkpoint.stores.requests import Requests
from sr_runner.errors import RequestError, nearest
from sr_runner.masking import masked_text

log = logging.getLogger(__name__)

PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "memory": "fsspec", "file": "fsspec",
}  # fmt: skip
"""What reads the URLs of a scheme."""
_S3FS = "2025.3"
"""As pyproject.toml asks for."""
_PIECE = 32 << 20
"""What is uploaded or downloaded with one request. S3 takes 10,000 parts of at least 5 MiB."""


class RemoteStore(ObjectStore):
    """Checkpoints below a URL such as `s3://bucket/prefix` (see `ObjectStore` for how they are committed).

    Endpoint and credentials come from where the service's own tools take them: `AWS_ENDPOINT_URL`,
    `AWS_ACCESS_KEY_ID`, `~/.aws/config`, `GOOGLE_APPLICATION_CREDENTIALS`, ... `options` are keyword arguments of the
    fsspec file system (`{anon: true}`). A request that fails is sent again for `retry_seconds`.

    The constructor talks to nobody. Raises `RequestError` for a root that cannot be, or a package that is missing.
    """

    def __init__(
        self, root: str | None = None, *, retry_seconds: float = 60.0, options: Mapping[str, Any] | None = None
    ):
        url, protocol = _checked_url(root)
        self._files = FsspecObjects(url, protocol, Requests(retry_seconds), dict(options or {}))
        super().__init__(self._files)

    def check(self) -> None:
        """Ask the storage. Raises `RequestError` where it says no (credentials, bucket), `OSError` if it is silent."""
        try:
            self._files.keys(".check")
        except (FileNotFoundError, PermissionError) as error:
            raise RequestError(f"checkpoint.root={self.url} cannot be used: {error}") from error


class FsspecObjects:
    """`Objects` of an fsspec file system."""

    def __init__(self, url: str, protocol: str, requests: Requests, options: dict[str, Any]):
        self.url = url
        self._protocol = protocol
        self._send = requests.send
        self._options = _defaults(protocol) | options
        self._made: tuple[int, Any] | None = None
        filesystem = _filesystem_class(protocol)
        self._root = str(filesystem._strip_protocol(url)).rstrip("/")

    def keys(self, folder: str) -> Mapping[str, int]:
        path = self._path(folder)
        try:
            found = self._ask(f"listing {self.url}/{folder}", "find", path, detail=True)
        except FileNotFoundError:
            if self._is_s3:
                raise  # an empty folder is no error there: the bucket is missing
            return {}
        start = len(self._root) + 1
        return {
            name[start:]: int(info["size"] or 0)
            for name, info in found.items()
            if info["type"] == "file" and not name.endswith("/")
        }

    def write(self, key: str, blob: Blob) -> None:
        next_piece = pieces(blob, _PIECE)
        first, second = next_piece(), next_piece()
        path, what = self._path(key), f"uploading {self.url}/{key}"
        if not second:
            self._ask(what, "pipe_file", path, first)
        elif self._is_s3:
            self._upload_parts(path, what, [first, second], next_piece)
        else:
            self._upload_stream(path, what, blob)

    def read(self, key: str, path: Path, size: int) -> None:
        source, what = self._path(key), f"downloading {self.url}/{key}"
        with path.open("xb") as file:
            for start in range(0, size, _PIECE):
                file.write(self._send(what, partial(self._piece, source, start, min(start + _PIECE, size), size)))

    def peek(self, key: str, limit: int) -> bytes | None:
        path, what = self._path(key), f"reading {self.url}/{key}"
        try:
            size = int(self._ask(what, "info", path)["size"] or 0)
            if not size:  # of which no storage gives a range
                return b""
            found: bytes = self._ask(what, "cat_file", path, start=0, end=min(size, limit))
        except FileNotFoundError:
            return None
        return found

    def copy(self, source: str, target: str) -> None:
        self._ask(f"copying {self.url}/{source}", "cp_file", self._path(source), self._path(target))

    def delete(self, keys: Sequence[str], *, once: bool = False) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                self._ask(f"deleting {self.url}/{key}", "rm_file", self._path(key), once=once)

    def abandon_uploads(self, folder: str) -> None:
        if not self._is_s3:
            return
        bucket, prefix, _ = self._fs.split_path(f"{self._path(folder)}/")
        for upload in self._uploads(bucket, prefix):
            key = upload["Key"]
            if key.startswith(prefix):
                with suppress(FileNotFoundError):
                    self._ask(f"giving up the upload of {key}", "abort_mpu", bucket, key, upload["UploadId"])

    @property
    def _is_s3(self) -> bool:
        return self._protocol in ("s3", "s3a")

    @property
    def _fs(self) -> Any:
        """The file system; one of its own for each process, since its event loop does not survive a fork."""
        if self._made is None or self._made[0] != os.getpid():
            filesystem = _filesystem_class(self._protocol)(
                **self._options, skip_instance_cache=True, use_listings_cache=False
            )
            if self._is_s3:
                filesystem.retries = 1  # `Requests` repeats
                logging.getLogger("aiobotocore").setLevel(logging.WARNING)  # where credentials were found is no news
            self._made = (os.getpid(), filesystem)
        return self._made[1]

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _ask(self, what: str, verb: str, /, *arguments: Any, once: bool = False, **options: Any) -> Any:
        """What the file system's method `verb` answers; the file system is made within, since that may fail as well."""
        return self._send(what, lambda: getattr(self._fs, verb)(*arguments, **options), once=once)

    def _piece(self, path: str, start: int, end: int, size: int) -> bytes:
        """The bytes from `start` to `end` of an object that should have `size`."""
        try:
            data: bytes = self._fs.cat_file(path, start=start, end=end)
            if len(data) == end - start:
                return data
            fault = OSError(f"{len(data)} bytes came instead of {end - start}")
        except OSError as error:
            if error.errno != errno.EINVAL:  # a range that there is not
                raise
            fault = error
        # Not by asking again for a minute, where the object is another one than the listing said.
        if (found := self._fs.info(path)["size"]) != size:
            raise DamagedError(f"{path.rpartition('/')[2]} has {found} bytes instead of {size}") from fault
        raise fault

    def _uploads(self, bucket: str, prefix: str) -> list[dict[str, Any]]:
        """The multipart uploads in progress whose key begins with `prefix`."""
        found: list[dict[str, Any]] = []
        marker: dict[str, Any] = {}
        while True:
            what = f"listing the uploads to {self.url}"
            page = self._ask(what, "call_s3", "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)
            found += page.get("Uploads") or []
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return found
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}

    def _upload_parts(self, path: str, what: str, first: list[bytes], next_piece: Callable[[], bytes]) -> None:
        """S3's multipart upload: only a part that fails is sent again. The object appears whole, at the end."""
        bucket, key, _ = self._fs.split_path(path)
        place = {"Bucket": bucket, "Key": key}

        def call(method: str, **arguments: Any) -> Any:
            return self._ask(what, "call_s3", method, **place, **arguments)

        place["UploadId"] = call("create_multipart_upload")["UploadId"]
        parts: list[dict[str, Any]] = []
        try:
            while piece := first.pop(0) if first else next_piece():
                number = len(parts) + 1
                answer = call("upload_part", PartNumber=number, Body=piece)
                checksums = {name: value for name, value in answer.items() if name in _CHECKSUMS}
                parts.append({"PartNumber": number, "ETag": answer["ETag"]} | checksums)
            call("complete_multipart_upload", MultipartUpload={"Parts": parts})
        except BaseException:
            try:
                self._fs.abort_mpu(bucket, key, place["UploadId"])
            except Exception as error:
                log.debug("%s could not be given up: %s", key, error)  # `clean` does
            raise

    def _upload_stream(self, path: str, what: str, blob: Blob) -> None:
        """Any other storage: what fails is begun again as a whole."""

        def upload() -> None:
            file = self._fs.open(path, "wb", block_size=_PIECE)
            try:
                for chunk in blob.chunks():
                    file.write(chunk)
            except BaseException:
                file.closed = True  # `close` would keep what has been written as if it were all
                raise
            file.close()

        self._send(what, upload)


_CHECKSUMS = ("ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256")


def _checked_url(root: str | None) -> tuple[str, str]:
    """The URL without a slash at its end, and its protocol."""
    if root is None or not str(root).strip() or str(root) == "???":
        raise RequestError("checkpoint.root is not set: expected a URL such as checkpoint.root=s3://bucket/prefix")
    protocol, separator, rest = str(root).strip().partition("://")
    url = f"{protocol}{separator}{rest.rstrip('/')}"
    if not separator:
        raise RequestError(
            f"checkpoint.root={url} is not a URL: expected s3://bucket/prefix, or checkpoint=local for a folder"
        )
    if protocol not in PACKAGES:
        raise RequestError(
            f"checkpoint.root={masked_text(url)}: {protocol}:// is not supported."
            f"{nearest(protocol, PACKAGES)} Expected one of {', '.join(PACKAGES)}"
        )
    if urlsplit(url).password is not None:
        raise RequestError(
            f"checkpoint.root={masked_text(url)}: credentials must not be in the URL. "
            "They come from the service's own environment variables and files (AWS_ACCESS_KEY_ID, ~/.aws/credentials)"
        )
    if not rest.strip("/") and protocol != "memory":
        raise RequestError(f"checkpoint.root={url} names no bucket: expected {protocol}://bucket/prefix")
    if re.search(r"[?#*\[\]]|(^|/)\.\.?(/|$)", rest):
        raise RequestError(f"checkpoint.root={url}: ?, #, *, brackets and .. cannot be in it")
    return url, protocol


def _filesystem_class(protocol: str) -> Any:
    try:
        import fsspec

        found = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = PACKAGES[protocol]
        extra = "pip install 'sr-run[s3]'" if package in ("fsspec", "s3fs") else f"pip install {package}"
        raise RequestError(f"checkpoint.root={protocol}://...: the package {package} is missing: {extra}") from error
    if PACKAGES[protocol] == "s3fs" and not hasattr(found, "call_s3"):
        raise RequestError(
            f"checkpoint.root={protocol}://...: s3fs {version('s3fs')} is too old: expected {_S3FS} or later: "
            "pip install --upgrade 'sr-run[s3]'"
        )
    return found


def _defaults(protocol: str) -> dict[str, Any]:
    if protocol in ("s3", "s3a"):
        return {
            "config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 1}},
            "default_block_size": _PIECE,
        }
    return {"auto_mkdir": True} if protocol == "file" else {}
