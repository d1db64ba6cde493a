"""From sample numbers to batches: uint8 pictures on the host or on the device, then floats for the train step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sr_runner.data.degradations import Degradation
from sr_runner.data.images import Pixels
from sr_runner.data.loader import Batch

Samples = Callable[[int, int], tuple[Tensor | None, Tensor]]
"""`samples(first, count)` gives LR (N x h x w x 3) and HR (N x H x W x 3) uint8; no LR where it is made from HR."""

Fill = Callable[[int, Pixels | None, Pixels], None]
"""`fill(first, lr, hr)` writes the samples from `first` on into `lr`, where there is one, and `hr`."""


@dataclass(frozen=True)
class HostSamples:
    """Samples copied together from decoded images in host memory, and sent to `device`; from pinned memory if wanted.

    Each batch has memory of its own; the allocator (torch's caching one, for pinned memory) takes it back once nobody
    holds it and no copy to the device is under way.
    """

    fill: Fill
    lr_patch: int | None
    hr_patch: int
    device: torch.device
    pin_memory: bool

    def __call__(self, first: int, count: int) -> tuple[Tensor | None, Tensor]:
        lr = None if self.lr_patch is None else self._memory(count, self.lr_patch)
        hr = self._memory(count, self.hr_patch)
        self.fill(first, None if lr is None else lr.numpy(), hr.numpy())
        return None if lr is None else lr.to(self.device, non_blocking=True), hr.to(self.device, non_blocking=True)

    def _memory(self, count: int, patch: int) -> Tensor:
        return torch.empty((count, patch, patch, 3), dtype=torch.uint8, pin_memory=self.pin_memory)


@dataclass(frozen=True)
class DegradedSamples:
    """Samples whose LR pictures are made from their HR pictures, where those are."""

    samples: Samples
    degradation: Degradation
    scale: int
    seed: int

    def __call__(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        _, hr = self.samples(first, count)
        n = np.arange(first, first + count, dtype=np.int64)
        lr = self.degradation(to_batch(hr, hr.device), scale=self.scale, seed=self.seed, n=n)
        return lr.permute(0, 2, 3, 1).contiguous(), hr


class FloatBatches:
    """Batch number b as floats in [0, 1] (N x 3 x h x w, N x 3 x H x W) on the device: the `count` samples from
    `first + b * every` on.

    Drawn by a loader's threads. On CUDA they work on a stream of their own, beside the train step; `finish` makes the
    consumer's stream wait for them.
    """

    def __init__(
        self, samples: Samples, first: int, count: int, *, every: int, device: torch.device, channels_last: bool
    ) -> None:
        self._samples, self._first, self._count, self._every = samples, first, count, every
        self._device, self._channels_last = device, channels_last
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: int) -> tuple[Batch, torch.cuda.Event | None]:
        with torch.no_grad(), torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            lr, hr = self._samples(self._first + batch * self._every, self._count)
            assert lr is not None
            pictures = to_batch(lr, self._device, self._channels_last), to_batch(hr, self._device, self._channels_last)
            return pictures, None if self._stream is None else self._stream.record_event()

    @staticmethod
    def finish(drawn: tuple[Batch, torch.cuda.Event | None]) -> Batch:
        """What `__call__` gave, ready to be used by the caller."""
        batch, done = drawn
        if done is not None:
            current = torch.cuda.current_stream(batch[0].device)
            current.wait_event(done)
            for pictures in batch:
                pictures.record_stream(current)  # or its memory might be given away while a step still reads it
        return batch


def to_batch(images: Tensor, device: torch.device | str, channels_last: bool = True) -> Tensor:
    """N x H x W x 3 uint8 to N x 3 x H x W float32 in [0, 1] on `device`; pinned memory is copied without waiting."""
    moved = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return moved.to(torch.float32, memory_format=layout).div_(255)
