"""What a run asks of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import torch

from sr_runner.data.images import Pixels
from sr_runner.data.loader import Loader


@dataclass(frozen=True)
class Pair:
    """A validation pair: H x W x 3 uint8 RGB; HR is exactly `scale` times LR in both sizes."""

    name: str
    lr: Pixels
    hr: Pixels


@dataclass(frozen=True)
class LazyPairs(Sequence[Pair]):
    """Pairs that are read anew each time they are looked at: one that nobody looks at any more takes no memory."""

    readers: Sequence[Callable[[], Pair]]

    def __len__(self) -> int:
        return len(self.readers)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        return LazyPairs(self.readers[index]) if isinstance(index, slice) else self.readers[index]()


class Data(Protocol):
    """Batches of random crops for training and whole pairs for validation.

    Sample `n` is a pure function of the seed and `n`: a stream may start anywhere, and is the same for any number of
    workers and processes. The constructor checks its arguments and nothing else; `prepare` comes before all the rest
    but `summary`. Nothing has to be closed but what `stream` gives.

    Keys that cannot change the samples are in `not_in_identity`, and files whose content counts in `file_contents`:
    see `sr_runner.config.identity.Part`. Without these every key counts.
    """

    scale: int
    batch_size: int
    """Samples of a batch, for all processes together; a step takes `trainer.accumulate` batches."""
    patch_size: int
    """In HR pixels."""

    def prepare(self, progress: bool = True) -> None:
        """Fetch and decode what is not on this machine yet; `progress` shows a bar on a terminal.

        Raises `RequestError`, which names the file, for images that cannot be trained on.
        """

    def summary(self) -> Mapping[str, str | int]:
        """For the log and the tracker: `name`, `source` and what else a person should know of it."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the training images' content, in order, and of what is done to them; not of where they lie."""

    @property
    def valid(self) -> Sequence[Pair]:
        """The validation pairs of the evaluations during training; may be empty."""

    @property
    def valid_all(self) -> Sequence[Pair]:
        """All validation pairs, for the end of training."""

    def stream(
        self,
        first: int,
        count: int,
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
        share: tuple[int, int] = (0, 1),
    ) -> Loader:
        """Endless batches of float LR (N x 3 x h x w) and HR (N x 3 x H x W) in [0, 1], RGB, on `device`.

        The first has the samples first .. first + count - 1, the next go on from there. `share` (which, of how many):
        one of that number of equal parts of every batch. Raises `RequestError` where `batch_size` does not divide so.
        """
