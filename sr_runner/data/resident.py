"""A whole data set in the memory of the device, and samples gathered from it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sr_runner.data.cache import MappedImages
from sr_runner.data.sampling import Draws
from sr_runner.errors import RequestError


class ResidentImages:
    """Images one after the other in one uint8 tensor on a device."""

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

    def crops(self, draws: Tensor, patch: int, factor: int) -> Tensor:
        """The patches (N x patch x patch x 3 uint8) that `assemble` makes of `draws` (the fields of `Draws` as rows).

        Row and column of each pixel of a patch are those of the pixel of the upright crop that goes there.
        """
        image, top, left, flip, turns = (field.view(-1, 1, 1) for field in draws)
        side, last = torch.arange(patch, device=draws.device), patch - 1
        i, j = side.view(1, -1, 1), side.view(1, 1, -1)
        row = _by_turns(turns, i, j, last - i, last - j)
        column = _by_turns(turns, j, last - i, last - j, i)
        column = torch.where(flip > 0, last - column, column)
        slot = self._slots[image]
        source = self._offsets[slot] + (top * factor + row) * self._widths[slot] + left * factor + column
        return self._pixels[source.view(-1)].view(-1, patch, patch, 3)


@dataclass(frozen=True)
class ResidentSamples:
    """Samples gathered from images on a device: `draw(first, count)` says which, as for those on the host."""

    draw: Callable[[int, int], Draws]
    lr: ResidentImages | None
    hr: ResidentImages
    lr_patch: int
    hr_patch: int
    device: torch.device

    def __call__(self, first: int, count: int) -> tuple[Tensor | None, Tensor]:
        drawn = torch.from_numpy(np.stack(self.draw(first, count)))
        if self.device.type == "cuda":
            drawn = drawn.pin_memory()
        draws = drawn.to(self.device, non_blocking=True)
        lr = None if self.lr is None else self.lr.crops(draws, self.lr_patch, 1)
        return lr, self.hr.crops(draws, self.hr_patch, self.hr_patch // self.lr_patch)


def _by_turns(turns: Tensor, *values: Tensor) -> Tensor:
    """values[turns], elementwise, for turns from 0 to 3."""
    a, b, c, d = values
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
