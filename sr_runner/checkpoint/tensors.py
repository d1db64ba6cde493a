"""Tensors <-> the bytes of a safetensors file.

Written here rather than by the library because a checkpoint is hashed and written straight out of the snapshot's
host memory, without a second copy of the state; the layout is https://github.com/huggingface/safetensors#format and
any reader of safetensors reads it. Read by the library, which checks the whole header against the file's size.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import safetensors.torch
import torch

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
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
        """Lay `tensors` out in name order, which makes the bytes a function of nothing but the content."""
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        entries: dict[str, object] = {"__metadata__": dict(sorted((metadata or {}).items()))} if metadata else {}
        offset = 0
        for name in names:
            tensor = tensors[name]
            if tensor.dtype not in DTYPES:
                raise TypeError(f"{name}: a safetensors file cannot hold {tensor.dtype}")
            end = offset + tensor.numel() * tensor.element_size()
            entries[name] = {
                "dtype": DTYPES[tensor.dtype],
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


def parse(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata in the bytes of a safetensors file, which it must fill exactly.

    Raises `TensorFileError` for any other bytes. Memory: the tensors are copies.
    """
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, AssertionError, ValueError, RuntimeError, OverflowError) as error:
        raise TensorFileError(str(error)) from error
    (length,) = struct.unpack_from("<Q", data)
    return tensors, json.loads(data[8 : 8 + length]).get("__metadata__") or {}
