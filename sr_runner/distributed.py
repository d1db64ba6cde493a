"""One run in several processes, as `torchrun` starts them, one per GPU.

The first process (rank 0) leads: it alone chooses the attempt, holds it, writes checkpoints, talks to MLflow, evaluates
and prints. The others compute their share of every batch. Gradients are averaged between `backward` and the update, in
a few large pieces, and not by `DistributedDataParallel`: a GAN step runs a network several times before one `backward`,
takes gradients for one of two networks, and (R1) differentiates twice, none of which DDP's hooks allow for. What that
costs is the overlap of the last pieces with `backward`: 43 M parameters are 172 MB.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from sr_runner.checkpoint import codec, tensors
from sr_runner.ending import Ended, ended, failed, store
from sr_runner.errors import RequestError, RunError
from sr_runner.gradients import MeanGradients
from sr_runner.processes import several
from sr_runner.signals import Stopped, StopSignal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed import Work

log = logging.getLogger(__name__)

_NEVER = timedelta(days=30)
"""An evaluation or a slow store may take its time; that a process has died is noticed by its connections, and by
torchrun, not by waiting."""
_LOOK_AGAIN = 0.01
_WRAP_UP = 60.0
"""Seconds that the leader gets to finish its record after another process has failed."""


class World(Protocol):
    """The processes of a run. Every method is called by all of them, in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks for all."""
        ...

    @property
    def share(self) -> dict[str, tuple[int, int]]:
        """Arguments for the data's `stream`: which part of every batch is this process's."""
        ...

    def tell(self, tree: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The leader's `tree` (tensors and plain data, see `checkpoint.codec`), on the CPU; nothing is pickled."""
        ...

    def gather(self, tree: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Everyone's `tree`, by rank."""
        ...

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes, summed in the order of their ranks."""
        ...

    def to_stop(self, *, at_once: bool = False) -> bool:
        """Whether all stop now, after the same step: as soon as one of them got a signal.

        Without `at_once` it may be heeded by the next call only, and nobody waits for anybody.
        """
        ...

    def asked_to_stop(self) -> bool:
        """For the leader, while the others wait for it: whether any process got a signal."""
        ...

    def mean_gradients(self, network: nn.Module) -> Callable[[], None] | None:
        """What makes the gradients of `network` their mean over the processes, and its buffers the leader's."""
        ...


class Alone:
    """The world of a run in one process."""

    rank, size, leads = 0, 1, True

    def __init__(self, stop: StopSignal | None = None):
        self._stop = stop or StopSignal()
        self.share: dict[str, tuple[int, int]] = {}

    def tell(self, tree: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return dict(tree or {})

    def gather(self, tree: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [dict(tree)]

    def mean(self, tensor: Tensor) -> Tensor:
        return tensor

    def to_stop(self, *, at_once: bool = False) -> bool:
        return self._stop.requested

    def asked_to_stop(self) -> bool:
        return self._stop.requested

    def mean_gradients(self, network: nn.Module) -> None:
        return None


class Together:
    """The world of one of several processes. Control messages go over gloo, tensors on GPUs over NCCL."""

    def __init__(self, stop: StopSignal):
        """Waits until all processes are there."""
        import torch.distributed as dist

        self._dist, self._stop, self._store = dist, stop, store()
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.leads = self.rank == 0
        self.share = {"share": (self.rank, self.size)}
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._pending: Work | None = None
        self._passed_on, self._looked = False, 0.0
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        if not dist.is_initialized():
            with self._lossy():
                dist.init_process_group(
                    backend, store=self._store, rank=self.rank, world_size=self.size, timeout=_NEVER
                )

    def tell(self, tree: Mapping[str, Any] | None = None) -> dict[str, Any]:
        message = _packed(tree or {}) if self.leads else bytearray()
        size = torch.tensor([len(message)])
        self._broadcast(size)
        message = message if self.leads else bytearray(int(size))
        self._broadcast(torch.frombuffer(message, dtype=torch.uint8))
        return dict(tree or {}) if self.leads else _unpacked(message)

    def gather(self, tree: Mapping[str, Any]) -> list[dict[str, Any]]:
        message = _packed(tree)
        sizes = [int(size) for size in self._all_gather(torch.tensor([len(message)]))]
        padded = message + bytes(max(sizes) - len(message))
        found = self._all_gather(torch.frombuffer(padded, dtype=torch.uint8))
        return [_unpacked(bytearray(each[:size].numpy())) for each, size in zip(found, sizes, strict=True)]

    def mean(self, tensor: Tensor) -> Tensor:
        first, *others = self._all_gather(tensor)
        for other in others:
            first = first + other
        return first / self.size

    def to_stop(self, *, at_once: bool = False) -> bool:
        agreed = self._collected()
        if not agreed:
            self._flag = torch.tensor([self._stop.signum or 0])
            with self._lossy():
                self._pending = self._dist.all_reduce(self._flag, self._dist.ReduceOp.MAX, async_op=True)
            agreed = self._collected() if at_once else 0
        if agreed:
            self._stop.note(agreed)
        return bool(agreed)

    def asked_to_stop(self) -> bool:
        if not self._stop.requested and time.monotonic() - self._looked > 0.1:
            self._looked = time.monotonic()
            if self._store.check(["stop"]):
                self._stop.note(int(self._store.get("stop")))
        return self._stop.requested

    def mean_gradients(self, network: nn.Module) -> Callable[[], None]:
        return MeanGradients(network, self.size, self._lossy)

    def heed(self, stop: StopSignal) -> None:
        """Listen to `stop` from now on: for the next of several runs of one process."""
        self._stop = stop

    def _collected(self) -> int:
        """The largest signal number that anybody had at the last call of `to_stop`."""
        if self._pending is None:
            return 0
        with self._lossy():
            self._pending.wait()
        self._pending = None
        return int(self._flag)

    def _broadcast(self, tensor: Tensor) -> None:
        """From the leader, who may take long: whoever waits for it lets it know of a signal."""
        with self._lossy():
            work = self._dist.broadcast(tensor, 0, async_op=True)
            while not self.leads and not work.is_completed():
                if self._stop.requested and not self._passed_on:
                    self._store.set("stop", str(self._stop.signum))
                    self._passed_on = True
                time.sleep(_LOOK_AGAIN)
            work.wait()

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._lossy():
            self._dist.all_gather(found, tensor.contiguous())
        return found

    @contextmanager
    def _lossy(self) -> Iterator[None]:
        """What breaks in a connection is another process's end: say that one's reason, and say it once."""
        try:
            yield
        except RuntimeError as error:
            raise self._reason(error) from error

    def _reason(self, error: RuntimeError) -> BaseException:
        if not self.leads:
            status = ended(_WRAP_UP, unless=lambda: self._stop.requested)
            return Ended(status if status is not None else 128 + (self._stop.signum or 15))
        found = failed()
        self._stop.defer()  # torchrun stops whoever is left; the run's record is closed first
        if found is None:
            log.debug("%s", error)
            return RunError(
                "another process of this run is gone without a word (torchrun says which). What was saved stays: "
                "trainer.resume=true goes on from there"
            )
        status, message = found
        if status > 128:
            return Stopped(status - 128)
        return RequestError(message) if status == 2 else RunError(message)


_WORLD: list[Together] = []


def join(stop: StopSignal) -> World:
    """The processes that `torchrun` started with this one; a process for itself, if there are no others."""
    if not several():
        return Alone(stop)
    if _WORLD:
        _WORLD[0].heed(stop)
    else:
        _WORLD.append(Together(stop))
    return _WORLD[0]


def _packed(tree: Mapping[str, Any]) -> bytearray:
    """The length of a JSON header, the header, and the tensors as a safetensors file."""
    flat, rest = codec.flatten(tree)
    header = json.dumps(rest).encode()
    file = tensors.TensorFile.of({name: tensor.detach().cpu() for name, tensor in flat.items()})
    return bytearray().join([struct.pack("<Q", len(header)), header, *file.chunks()])


def _unpacked(message: bytearray) -> dict[str, Any]:
    (length,) = struct.unpack_from("<Q", message)
    flat, _ = tensors.parse(message[8 + length :])  # a copy, whose first byte is aligned
    return codec.unflatten(json.loads(message[8 : 8 + length]), flat)
