"""Tensors out of an untrusted file: safetensors, PyTorch's `.pt`/`.pth`, Keras' HDF5.

The kind of a file is read from its first bytes, never from its name. Nothing in it is executed (`torch.load` runs with
`weights_only`), and no size is believed before it has been compared with that of the file, so that a small hostile
file cannot claim much memory. Whatever is wrong ends in one `RequestError` that names the file.
"""

from __future__ import annotations

import importlib.util
import io
import re
import stat
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from sr_runner.errors import RequestError
from sr_runner.weights.hdf5_process import REFUSED

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip"}

HDF5_SECONDS = 60.0
"""A file of VGG19 (80 MB) takes about one."""

STATE_KEYS = (
    "params_ema", "params", "state_dict", "model_state_dict", "model", "generator", "net_g", "network", "net",
)  # fmt: skip
"""Where training codes keep the state dict inside a `.pth`, the better one first (BasicSR: EMA before raw)."""

SHARED_BYTES = 256 * 2**20
"""What tensors that share their numbers with others may add up to beyond twice the file's size."""


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file by name, in the file's order, on the CPU. Floating point is fp32, whatever it was."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    """The header of a safetensors file; {} of the others."""


def read_tensor_file(path: Path) -> TensorFile:
    """Read every tensor of `path`.

    Raises:
        RequestError: it is missing, damaged, hostile, or no such file at all.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            what = "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
            _refuse(path, f"{what}; expected a weights file")
        with path.open("rb") as file:
            start = file.read(16)
        size = status.st_size
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        _refuse(path, "is empty")
    for magic, name in _ARCHIVES.items():
        if start.startswith(magic):
            _refuse(path, f"is a {name} archive: unpack it and give the weights file inside")
    metadata: dict[str, str] = {}
    if start.startswith(_HDF5):
        tensors = _read_hdf5(path)
    elif start[8:9] == b"{":
        tensors, metadata = _read_safetensors(path)
    elif start.startswith(_ZIP) or start[0] == 0x80:
        tensors = _read_torch(path, size, zipped=start.startswith(_ZIP))
    else:
        is_tensorflow = path.suffix == ".index" or ".data-" in path.name
        hint = " (TensorFlow checkpoints: save_weights('x.h5') in the code that wrote it)" if is_tensorflow else ""
        _refuse(path, f"is not a weights file: expected safetensors, a PyTorch .pt or .pth, or a Keras .h5{hint}")
    if not tensors:
        _refuse(path, "holds no tensors")
    return TensorFile({name: _as_fp32(path, name, tensor) for name, tensor in tensors.items()}, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = {str(key): str(value) for key, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in sorted(file.keys(), key=natural)}, metadata
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        _refuse(path, f"is damaged or no safetensors file ({_brief(error)})", error)


def _read_torch(path: Path, size: int, *, zipped: bool) -> dict[str, Tensor]:
    if zipped:
        _check_zip(path, size)
    try:
        # The old format, which torch 1.5 and older wrote, cannot be memory-mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a malformed pickle can raise anything
        if _FORBIDDEN.search(str(error)):
            name = match[1] if (match := _GLOBAL.search(str(error))) else "a class or function"
            _refuse(
                path,
                f"holds more than tensors ({name}), which is not loaded as it could run code:"
                " save the network's state_dict() by itself",
                error,
            )
        _refuse(path, f"is damaged or no PyTorch weights file ({_brief(error)})", error)
    tensors = {str(name): value for name, value in _state_dict(loaded).items() if isinstance(value, Tensor)}
    _check_sizes(path, size, tensors)
    return tensors


_FORBIDDEN = re.compile(r"weights_only|Unsupported (global|class)|not an allowed global")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def _state_dict(loaded: object, depth: int = 3) -> Mapping[Any, Any]:
    """The state dict in what a `.pth` holds: by itself, or below one or more of `STATE_KEYS`."""
    if not isinstance(loaded, Mapping):
        return {}
    for key in STATE_KEYS if depth else ():
        inner = _state_dict(loaded.get(key), depth - 1)
        if any(isinstance(value, Tensor) for value in inner.values()):
            return inner
    return loaded


def _check_zip(path: Path, size: int) -> None:
    """torch.save stores its entries uncompressed; compressed ones could swell to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        _refuse(path, f"is damaged: a PyTorch file that cannot be opened ({_brief(error)})", error)
    if any(Path(entry.filename).name == "constants.pkl" for entry in entries):
        _refuse(path, "is a TorchScript program, which is not run: save the network's state_dict() instead")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        _refuse(path, "is a compressed zip archive, which torch.save does not write: unpack it first")
    if sum(entry.file_size for entry in entries) > size:
        _refuse(path, "claims to hold more than its own size")


def _check_sizes(path: Path, size: int, tensors: Mapping[str, Tensor]) -> None:
    """A view with strides of 0 can be of any shape over one stored number; reading it out would fill the memory."""
    total = 0
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            _refuse(path, f"holds {name} as a sparse, quantised or empty-handed tensor; only plain ones are read")
        total += tensor.numel() * tensor.element_size()
        if total > 2 * size + SHARED_BYTES:  # one tensor may stand under several names
            _refuse(path, f"claims more numbers ({name}: {'x'.join(map(str, tensor.shape))}) than its size can hold")


def _read_hdf5(path: Path) -> dict[str, Tensor]:
    """In a process of its own: the HDF5 library loops forever or crashes on some damaged files."""
    if importlib.util.find_spec("h5py") is None:
        raise RequestError(f"{path}: is an HDF5 file: expected h5py to be there, pip install 'sr-run[keras-weights]'")
    command = [sys.executable, "-P", str(Path(__file__).with_name("hdf5_process.py")), str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=HDF5_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        _refuse(path, f"is damaged: the HDF5 library did not finish reading it within {HDF5_SECONDS:g} s", error)
    if done.returncode == REFUSED:
        _refuse(path, done.stderr.decode(errors="replace").strip())
    if done.returncode:
        _refuse(path, f"is damaged: the HDF5 library crashed on it (exit status {done.returncode})")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
        return {name: torch.tensor(arrays[name]) for name in arrays.files}


def _as_fp32(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        _refuse(path, f"holds {name} as complex numbers, which no network here has")
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which body.2 comes before body.10, and conv2d before conv2d_1."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _brief(error: Exception) -> str:
    lines = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()  # torch writes in colours
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _refuse(path: Path, why: str, cause: Exception | None = None) -> NoReturn:
    raise RequestError(f"{path}: {why}") from cause
