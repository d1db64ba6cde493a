"""Gradients as their mean over all processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import groupby

import torch
from torch import Tensor, nn

_BUCKET = 32 << 20
"""Bytes that are sent at a time: enough to fill a connection, little enough for several to be under way."""


class GradientAverage:
    """Called between `backward` and the update of one network.

    A parameter without a gradient here counts as zero, and stays without one where no process has one for it: the
    layout of what is sent depends only on the network, so that a layer that one process left out cannot mix things up.
    Buffers (BatchNorm's statistics, which each process takes from its own share of the batch) become those of the first
    process, so that all networks are equal after every step, and equal to what a checkpoint holds.
    """

    def __init__(self, network: nn.Module, size: int, connection_errors: Callable[[], AbstractContextManager[None]]):
        """`connection_errors` is entered around everything that another process's end would break."""
        import torch.distributed as dist

        self._dist, self._network, self._size, self._connection_errors = dist, network, size, connection_errors
        self._buckets = _buckets([p for p in network.parameters() if p.requires_grad])
        self._ones = [bucket[0].new_ones(len(bucket)) for bucket in self._buckets]

    @torch.no_grad()
    def __call__(self) -> None:
        flats = [self._flat(bucket, ones) for bucket, ones in zip(self._buckets, self._ones, strict=True)]
        with self._connection_errors():
            works = [self._dist.all_reduce(flat, async_op=True) for flat in flats]
        for bucket, flat, work in zip(self._buckets, flats, works, strict=True):
            with self._connection_errors():
                work.wait()
            self._take(bucket, flat)
        self._share_buffers()

    def _flat(self, bucket: list[nn.Parameter], ones: Tensor) -> Tensor:
        """The bucket's gradients one after the other, and for each parameter a 1 where it has one."""
        given = ones
        if any(p.grad is None for p in bucket):
            given = torch.tensor([float(p.grad is not None) for p in bucket]).to(ones)
        pieces = [torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in bucket]
        return torch.cat([*pieces, given])

    def _take(self, bucket: list[nn.Parameter], flat: Tensor) -> None:
        *pieces, given = torch.split(flat, [*(p.numel() for p in bucket), len(bucket)])
        means = [piece.div_(self._size).view(p.shape) for piece, p in zip(pieces, bucket, strict=True)]
        mine = [(p.grad, mean) for p, mean in zip(bucket, means, strict=True) if p.grad is not None]
        if mine:
            torch._foreach_copy_([grad for grad, _ in mine], [mean for _, mean in mine])
        if len(mine) < len(bucket):
            for p, mean, count in zip(bucket, means, given.tolist(), strict=True):
                if p.grad is None and count:
                    p.grad = torch.empty_like(p).copy_(mean)

    def _share_buffers(self) -> None:
        kept = self._network.state_dict(keep_vars=True)
        buffers = [buffer for name, buffer in self._network.named_buffers() if name in kept]
        for _, group in groupby(sorted(buffers, key=lambda b: str(b.dtype)), key=lambda b: b.dtype):
            same = list(group)
            flat = torch.cat([buffer.reshape(-1) for buffer in same])
            with self._connection_errors():
                self._dist.broadcast(flat, 0)
            pieces = torch.split(flat, [buffer.numel() for buffer in same])
            torch._foreach_copy_(same, [piece.view(b.shape) for piece, b in zip(pieces, same, strict=True)])


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters of one type and device together, in order, at most `_BUCKET` bytes unless a single one has more."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for p in parameters:
        size = p.numel() * p.element_size()
        last = buckets[-1][0] if buckets else None
        if last is None or (p.dtype, p.device) != (last.dtype, last.device) or size > room:
            buckets.append([])
            room = _BUCKET
        buckets[-1].append(p)
        room -= size
    return buckets
