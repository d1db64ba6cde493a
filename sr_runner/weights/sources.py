"""From a path or a URL to the weights file on this machine."""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import sys
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import torch

from sr_runner.errors import RequestError
from sr_runner.weights.tensorfile import TensorFile, read_tensor_file

KERAS_VGG19_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
MD5 = {KERAS_VGG19_URL: "253f8cb515780f3b799900260a226db6"}
"""Hashes of published files whose names have none. This one is in Keras' own code (applications/vgg19.py)."""

# PyTorch's own convention: edsr_x4-4f62e9ef.pt has a SHA-256 that begins with 4f62e9ef. All digits may be a date.
_HASH_IN_NAME = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,})\.")
_SILENCE = 30.0
"""Seconds after which a server that says nothing counts as gone."""

_log = logging.getLogger(__name__)


def read_source(source: str | Path) -> TensorFile:
    """The tensors of the file that `source` names; a URL is downloaded once, into torch.hub's folder.

    Raises:
        RequestError: no file is there, the download failed, or as `read_tensor_file`. What was downloaded and cannot
            be read is not kept: the next try downloads it again.
    """
    path = download(str(source)) if is_url(source) else Path(source).expanduser()
    if not path.exists():
        hint = "; of addresses, http and https can be downloaded" if "://" in str(source) else ""
        raise RequestError(f"{source}: no such file{hint}")
    try:
        return read_tensor_file(path)
    except RequestError as error:
        if not is_url(source):
            raise
        path.unlink(missing_ok=True)
        raise RequestError(f"{shown(source)}: what was downloaded {str(error).removeprefix(f'{path}: ')}") from error


def is_url(source: str | Path) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def shown(source: str | Path) -> str:
    """`source` as logs and messages may hold it: an address without password and query, where secrets stand."""
    if not is_url(source):
        return str(source)
    scheme, _, rest = str(source).partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def download(url: str, *, file_name: str | None = None) -> Path:
    """The file behind `url`, in torch.hub's folder; a hash in its name (`name-1a2b3c4d.pt`) or in `MD5` is checked.

    Raises:
        RequestError: it cannot be had, or its hash is another.
    """
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_SILENCE)  # torch.hub waits for a silent server without end
        name = Path(urlsplit(url).path).name or "weights"
        digest = hashlib.sha256(url.encode()).hexdigest()[:12]  # two addresses may end in the same name
        path = Path(torch.hub.get_dir()) / "checkpoints" / (file_name or f"{digest}-{name}")
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        _log.info("downloading %s to %s", shown(url), path)
        match = _HASH_IN_NAME.search(name)
        with TemporaryDirectory(dir=path.parent) as scratch:
            part = Path(scratch, "part")
            torch.hub.download_url_to_file(url, str(part), match[1] if match else None, progress=sys.stderr.isatty())
            if url in MD5 and (found := hashlib.md5(part.read_bytes()).hexdigest()) != MD5[url]:
                raise ValueError(f"its MD5 hash is {found}, not the published {MD5[url]}")
            part.replace(path)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise RequestError(f"{shown(url)}: cannot be downloaded ({error or type(error).__name__})") from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path
