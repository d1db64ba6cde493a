"""A copy of the training state in host memory that is allocated once."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class HostSnapshot:
    """Holds one copy of a set of tensors; taking the next one overwrites it.

    The copy is all that the train step waits for. Buffers keep their tensors' strides, so that copying is one pass
    over memory whatever the memory format; pinned where tensors come from a GPU, so that copies overlap.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy `tensors`; the result is valid until the next call."""
        for name in self._buffers.keys() - tensors.keys():
            del self._buffers[name]
        on_gpu = False
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(tensor, non_blocking=tensor.is_cuda)
            on_gpu |= tensor.is_cuda
        if on_gpu:
            torch.cuda.synchronize()
        return {name: self._buffers[name] for name in tensors}
