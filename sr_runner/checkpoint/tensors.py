"""Tensors <-> the bytes of a safetensors file.

Written here rather than by the library because a checkpoint is hashed and written straight out of the snapshot's
host memory, without a second copy of the state; the layout is https://github.com/huggingface/safetensors#format and
any reader of safetensors reads it. Reading checks the whole header against the file's size before it touches data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}
_MAX_HEADER = 100 << 20  # the library's own limit
_CHUNK = 8 << 20


class TensorFileError(ValueError):
    """Bytes that are no intact safetensors file."""


@dataclass(frozen=True)
class TensorFile:
    """The content of a safetensors file, not yet written. Holds references to the tensors, which must be on the CPU."""

    header: bytes
    tensors: tuple[torch.Tensor, ...]
    size: int

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> TensorFile:
        """Lay `tensors` out in name order, which makes the bytes a function of the content alone."""
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        entries: dict[str, object] = {"__metadata__": dict(sorted((metadata or {}).items()))} if metadata else {}
        offset = 0
        for name in names:
            tensor = tensors[name]
            if tensor.dtype not in _DTYPES:
                raise TypeError(f"{name}: a safetensors file cannot hold {tensor.dtype}")
            end = offset + tensor.numel() * tensor.element_size()
            entries[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # data starts aligned
        header = struct.pack("<Q", len(text)) + text
        return cls(header, tuple(tensors[name] for name in names), len(header) + offset)

    def chunks(self) -> Iterator[memoryview]:
        """The file's bytes, in pieces of at most 8 MiB, without copying contiguous tensors."""
        yield memoryview(self.header)
        for tensor in self.tensors:
            if tensor.numel() == 0:
                continue
            raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            view = memoryview(raw)  # type: ignore[arg-type]
            for start in range(0, len(view), _CHUNK):
                yield view[start : start + _CHUNK]


def parse(data: bytearray) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata in the bytes of a safetensors file. The tensors share `data`'s memory.

    Raises `TensorFileError` where header and data do not fit together exactly: every byte belongs to one tensor.
    """
    if len(data) < 8:
        raise TensorFileError(f"{len(data)} bytes are too few for a safetensors file")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(_MAX_HEADER, len(data) - 8):
        raise TensorFileError(f"its header claims {length} bytes of a file of {len(data)}")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        spans = sorted((_span(entry), name, entry) for name, entry in header.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TensorFileError(f"its header cannot be read: {error}") from error
    base, position, tensors = 8 + length, 0, {}
    for (start, end), name, entry in spans:
        dtype, shape = _BY_NAME.get(str(entry.get("dtype"))), entry.get("shape")
        if dtype is None or not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
            raise TensorFileError(f"tensor {name!r} has dtype {entry.get('dtype')!r} and shape {shape!r}")
        if start != position or end - start != math.prod(shape) * dtype.itemsize or base + end > len(data):
            raise TensorFileError(f"tensor {name!r} does not fit at bytes {start} to {end}")
        count = math.prod(shape)
        if count == 0:
            tensors[name] = torch.empty(shape, dtype=dtype)
        elif (base + start) % dtype.itemsize:  # torch wants alignment; only foreign files lack it
            tensors[name] = torch.frombuffer(bytearray(data[base + start : base + end]), dtype=dtype).reshape(shape)
        else:
            tensors[name] = torch.frombuffer(data, dtype=dtype, count=count, offset=base + start).reshape(shape)
        position = end
    if base + position != len(data):
        raise TensorFileError(f"{len(data) - base - position} bytes belong to no tensor")
    return tensors, metadata


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    start, end = entry["data_offsets"]
    if type(start) is not int or type(end) is not int:
        raise TypeError(f"data_offsets {start!r} to {end!r}")
    return start, end
