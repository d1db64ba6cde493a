"""From what a user names (a path, a checkpoint folder, a URL) to the file on this machine."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import torch

from sr_runner.errors import RequestError
from sr_runner.weights.tensorfile import parse_json

_MODEL, _MANIFEST = "model.safetensors", "manifest.json"
# PyTorch's own convention: edsr_x4-4f62e9ef.pt has a SHA-256 that begins with 4f62e9ef.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")

_log = logging.getLogger(__name__)


def locate(source: str | Path) -> Path:
    """The weights file that `source` names; a URL is downloaded once, into torch.hub's folder.

    Raises:
        RequestError: nothing is there, a checkpoint's weights do not match its manifest, or the download failed.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return download(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_checkpoint(path)
    if not path.exists():
        raise RequestError(f"{source}: no such file or folder")
    return path


def download(url: str, *, file_name: str | None = None) -> Path:
    """The file behind `url`, in torch.hub's folder; a hash in its name (`name-1a2b3c4d.pt`) is checked.

    Raises:
        RequestError: it cannot be had, or its hash is another.
    """
    name = Path(urlsplit(url).path).name or "weights"
    match = _HASH_IN_NAME.search(name)
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]  # two addresses may end in the same name
    path = Path(torch.hub.get_dir()) / "checkpoints" / (file_name or f"{digest}-{name}")
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    _log.info("downloading %s to %s", url, path)
    try:
        # Writes to a temporary file beside it first, and compares the hash before the rename.
        torch.hub.download_url_to_file(url, os.fspath(path), match[1] if match else None, progress=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError(f"{url}: cannot be downloaded ({error})") from error
    return path


def _of_checkpoint(folder: Path) -> Path:
    model, manifest = folder / _MODEL, folder / _MANIFEST
    if not model.is_file():
        raise RequestError(
            f"{folder}: a folder without {_MODEL}: name a checkpoint (…/step-00001000) or a weights file"
        )
    if not manifest.is_file():
        raise RequestError(f"{folder}: a checkpoint without {_MANIFEST}, so its writing was never finished")
    body = parse_json(manifest.read_text(errors="replace"))
    files = body.get("files") if isinstance(body, dict) else None
    entry = files.get(_MODEL) if isinstance(files, dict) else None
    stated = entry.get("sha256") if isinstance(entry, dict) else None
    with model.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if stated != actual:
        raise RequestError(f"{folder}: damaged, as {_MODEL} does not match the checksum in {_MANIFEST}")
    return model
