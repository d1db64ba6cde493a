"""What stands for weights in a run's identity: their content, never the place of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """16 hexadecimal digits for the names, types, shapes and values of `tensors` in any order, and for `facts`."""
    hashed = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        hashed.update(values.numpy().tobytes())
    return hashed.hexdigest()[:16]
