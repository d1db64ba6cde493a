"""From sample numbers to batches: uint8 pictures on the host or on the device, then floats for the train step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sr_runner.data.augment import PARTNER, Augment
from sr_runner.data.crops import Images
from sr_runner.data.degradations import Degradation
from sr_runner.data.loader import Batch
from sr_runner.data.sampling import Sampler


@dataclass(frozen=True)
class Samples:
    """Samples as uint8 pictures: crops of HR images, and of LR images or what a degradation makes of the HR crops."""

    sampler: Sampler
    lr: Images | Degradation
    hr: Images
    patch_size: int
    scale: int
    seed: int
    augment: Augment | None = None

    def __call__(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """LR (count x h x w x 3) and HR (count x H x W x 3) uint8 of samples first .. first + count - 1."""
        pictures = self._plain(first, count)
        if self.augment is None:
            return pictures
        n = np.arange(first, first + count, dtype=np.int64)
        return self.augment(pictures, partial(self._plain, first + PARTNER, count), seed=self.seed, n=n)

    def _plain(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        draws = self.sampler.draw(first, count)
        hr = self.hr.crops(draws, self.patch_size, self.scale)
        if not isinstance(self.lr, Degradation):
            return self.lr.crops(draws, self.patch_size // self.scale, 1), hr
        n = np.arange(first, first + count, dtype=np.int64)
        lr = self.lr(to_batch(hr, hr.device), scale=self.scale, seed=self.seed, n=n)
        return lr.permute(0, 2, 3, 1).contiguous(), hr


class FloatBatches:
    """Batch number b as floats in [0, 1] (N x 3 x h x w, N x 3 x H x W) on the device: what `draw(b)` gives as uint8.

    Drawn by a loader's threads. On CUDA they work on a stream of their own, beside the train step; `finish` makes the
    consumer's stream wait for them.
    """

    def __init__(
        self, draw: Callable[[int], tuple[Tensor, Tensor]], *, device: torch.device, channels_last: bool
    ) -> None:
        self._draw, self._device, self._channels_last = draw, device, channels_last
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: int) -> tuple[Batch, torch.cuda.Event | None]:
        with torch.no_grad(), torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            lr, hr = self._draw(batch)
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
