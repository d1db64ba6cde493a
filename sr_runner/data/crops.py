"""The patches that samples are, cut from images: in memory-mapped files, or all in the memory of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from sr_runner.data.cache import MappedImages
from sr_runner.data.images import Pixels
from sr_runner.data.sampling import Draws
from sr_runner.errors import RequestError


class Images(Protocol):
    """Images that patches can be cut from."""

    def crops(self, draws: Draws, patch: int, factor: int) -> Tensor:
        """The patches (N x patch x patch x 3 uint8, on the device) that `draws` names, flipped and rotated.

        Draws are in LR pixels: `factor` is 1 for LR images and the scale for HR images.
        """


class HostImages:
    """Images in memory-mapped files, whose patches are copied together on the host and sent to `device`.

    Each batch has memory of its own; the allocator (torch's caching one, for pinned memory) takes it back once nobody
    holds it and no copy to the device is under way.
    """

    def __init__(self, images: MappedImages, device: torch.device) -> None:
        self._images, self._device = images, device

    def crops(self, draws: Draws, patch: int, factor: int) -> Tensor:
        size = len(draws.image), patch, patch, 3
        patches = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        columns = (field.tolist() for field in draws)
        for out, image, top, left, flip, quarter_turns in zip(patches.numpy(), *columns, strict=True):
            top, left = top * factor, left * factor
            _COPY[2 * quarter_turns + flip](self._images[image][top : top + patch, left : left + patch], out)
        return patches.to(self._device, non_blocking=True)


# OpenCV does in 5 to 40 us for a patch of 192 pixels what numpy's negative strides take 600 us for. Each function
# below writes np.rot90(source, quarter_turns), with the source mirrored left to right first where `flip`.
_COPY: tuple[Callable[[Pixels, Pixels], object], ...] = (
    lambda source, out: np.copyto(out, source),
    lambda source, out: cv2.flip(source, 1, dst=out),  # left to right
    lambda source, out: cv2.rotate(source, cv2.ROTATE_90_COUNTERCLOCKWISE, dst=out),
    lambda source, out: cv2.transpose(source, dst=out),
    lambda source, out: cv2.flip(source, -1, dst=out),  # both ways
    lambda source, out: cv2.flip(source, 0, dst=out),  # upside down
    lambda source, out: cv2.rotate(source, cv2.ROTATE_90_CLOCKWISE, dst=out),
    lambda source, out: cv2.flip(cv2.transpose(source, dst=out), -1, dst=out),
)
"""By 2 * quarter_turns + flip."""


class ResidentImages:
    """Images one after the other in one uint8 tensor on `device`."""

    def __init__(self, images: MappedImages, device: torch.device) -> None:
        """Copies `images` to `device`. Raises `RequestError` where there is no room for them."""
        pixels = [height * width for height, width in images.sizes]
        _check_room(3 * sum(pixels), device)
        self._offsets = torch.tensor(np.cumsum([0, *pixels[:-1]]), device=device)
        self._widths = torch.tensor([width for _, width in images.sizes], device=device)
        self._slots = torch.tensor(images.slots, device=device)
        self._pixels = torch.empty((sum(pixels), 3), dtype=torch.uint8, device=device)
        for index, start in enumerate(self._offsets.tolist()):
            part = torch.from_numpy(images.at(index).reshape(-1, 3).copy())
            self._pixels[start : start + len(part)] = part
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # samples are gathered on other streams

    def crops(self, draws: Draws, patch: int, factor: int) -> Tensor:
        """See `Images`. Row and column of each pixel of a patch are those of the pixel of the upright crop that goes
        there."""
        drawn, device = torch.from_numpy(np.stack(draws)), self._pixels.device
        drawn = (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)
        image, top, left, flip, turns = (field.view(-1, 1, 1) for field in drawn)
        side, last = torch.arange(patch, device=device), patch - 1
        i, j = side.view(1, -1, 1), side.view(1, 1, -1)
        row = _by_turns(turns, i, j, last - i, last - j)
        column = _by_turns(turns, j, last - i, last - j, i)
        column = torch.where(flip > 0, last - column, column)
        slot = self._slots[image]
        source = self._offsets[slot] + (top * factor + row) * self._widths[slot] + left * factor + column
        return self._pixels[source.view(-1)].view(-1, patch, patch, 3)


def _by_turns(turns: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(a, b, c, d)[turns], elementwise."""
    return torch.where(turns < 2, torch.where(turns == 0, a, b), torch.where(turns == 2, c, d))


def _check_room(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise RequestError(
            f"data.cache=device: the images need {needed / 1e9:.2g} GB and {free / 1e9:.2g} GB are free on {device}; "
            "data.cache=disk keeps them in memory-mapped files."
        )
