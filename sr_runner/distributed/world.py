"""One run in several processes, as `torchrun` starts them, one per GPU.

Only the main process (rank 0) chooses the attempt, locks it, writes checkpoints, talks to MLflow, evaluates and prints.
The others compute their share of every batch. Gradients are averaged between `backward` and the update, in
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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sr_runner.checkpoint import codec, tensors
from sr_runner.distributed.exit import MainProcessExited, main_exit_status, peer_failure, rendezvous_store
from sr_runner.distributed.gradients import GradientAverage
from sr_runner.distributed.processes import is_distributed
from sr_runner.errors import RequestError, RunError
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
"""Seconds that the main process gets to finish its record after another process has failed."""


class SingleProcess:
    """The world of a run in one process. Every method is called by all processes of a run, in the same order."""

    rank, size = 0, 1
    is_main = True
    """Whether this is the process that logs, evaluates and writes for all: rank 0."""

    def __init__(self, stop: StopSignal | None = None):
        self._stop = stop or StopSignal()
        self.shard: dict[str, tuple[int, int]] = {}
        """Arguments for the data's `stream`: which part of every batch is this process's."""

    def broadcast(self, tree: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The main process' `tree` (tensors and plain data, see `checkpoint.codec`), on the CPU; nothing is pickled."""
        return dict(tree or {})

    def all_gather(self, tree: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Everyone's `tree`, by rank."""
        return [dict(tree)]

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes, summed in the order of their ranks."""
        return tensor

    def should_stop(self, *, at_once: bool = False) -> bool:
        """Whether all stop now, after the same step: as soon as one of them got a signal.

        Without `at_once`, a signal may take effect only at the next call, and nobody waits for anybody.
        """
        return self._stop.requested

    def stop_requested(self) -> bool:
        """For the main process, while its peers wait for it: whether any process got a signal."""
        return self._stop.requested

    def gradient_average(self, network: nn.Module) -> Callable[[], None] | None:
        """Averages the gradients of `network` over the processes; its buffers become those of the main process."""
        return None


class ProcessGroup:
    """The world of one of several processes; what the methods promise stands at `SingleProcess`.

    Control messages go over gloo, tensors on GPUs over NCCL.
    """

    def __init__(self, stop: StopSignal):
        """Waits until all processes are there."""
        import torch.distributed as dist

        self._dist, self._stop, self._store = dist, stop, rendezvous_store()
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.is_main = self.rank == 0
        self.shard = {"share": (self.rank, self.size)}
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._pending: Work | None = None
        self._passed_on, self._looked = False, 0.0
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        if not dist.is_initialized():
            with self._connection_errors():
                dist.init_process_group(
                    backend, store=self._store, rank=self.rank, world_size=self.size, timeout=_NEVER
                )

    def broadcast(self, tree: Mapping[str, Any] | None = None) -> dict[str, Any]:
        message = _packed(tree or {}) if self.is_main else bytearray()
        size = torch.tensor([len(message)])
        self._broadcast(size)
        message = message if self.is_main else bytearray(int(size))
        self._broadcast(torch.frombuffer(message, dtype=torch.uint8))
        return dict(tree or {}) if self.is_main else _unpacked(message)

    def all_gather(self, tree: Mapping[str, Any]) -> list[dict[str, Any]]:
        message = _packed(tree)
        sizes = [int(size) for size in self._all_gather(torch.tensor([len(message)]))]
        padded = message + bytes(max(sizes) - len(message))
        found = self._all_gather(torch.frombuffer(padded, dtype=torch.uint8))
        return [_unpacked(bytearray(each[:size].numpy())) for each, size in zip(found, sizes, strict=True)]

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        first, *others = self._all_gather(tensor)
        for other in others:
            first = first + other
        return first / self.size

    def should_stop(self, *, at_once: bool = False) -> bool:
        agreed = self._collected()
        if not agreed:
            self._flag = torch.tensor([self._stop.signum or 0])
            with self._connection_errors():
                self._pending = self._dist.all_reduce(self._flag, self._dist.ReduceOp.MAX, async_op=True)
            agreed = self._collected() if at_once else 0
        if agreed:
            self._stop.note(agreed)
        return bool(agreed)

    def stop_requested(self) -> bool:
        if not self._stop.requested and time.monotonic() - self._looked > 0.1:
            self._looked = time.monotonic()
            if self._store.check(["stop"]):
                self._stop.note(int(self._store.get("stop")))
        return self._stop.requested

    def gradient_average(self, network: nn.Module) -> Callable[[], None]:
        return GradientAverage(network, self.size, self._connection_errors)

    def listen_to(self, stop: StopSignal) -> None:
        """Listen to `stop` from now on: for the next of several runs of one process."""
        self._stop = stop

    def _collected(self) -> int:
        """The largest signal number that anybody had at the last call of `should_stop`."""
        if self._pending is None:
            return 0
        with self._connection_errors():
            self._pending.wait()
        self._pending = None
        return int(self._flag)

    def _broadcast(self, tensor: Tensor) -> None:
        """From the main process, which may take long: a peer that waits for it passes a signal on to it."""
        with self._connection_errors():
            work = self._dist.broadcast(tensor, 0, async_op=True)
            assert work is not None  # only for processes outside the group
            while not self.is_main and not work.is_completed():
                if self._stop.requested and not self._passed_on:
                    self._store.set("stop", str(self._stop.signum))
                    self._passed_on = True
                time.sleep(_LOOK_AGAIN)
            work.wait()

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._connection_errors():
            self._dist.all_gather(found, tensor.contiguous())
        return found

    @contextmanager
    def _connection_errors(self) -> Iterator[None]:
        """A broken connection means that a peer has exited: raise its reason instead."""
        try:
            yield
        except RuntimeError as error:
            raise self._reason(error) from error

    def _reason(self, error: RuntimeError) -> BaseException:
        if not self.is_main:
            status = main_exit_status(_WRAP_UP, unless=lambda: self._stop.requested)
            return MainProcessExited(status if status is not None else 128 + (self._stop.signum or 15))
        found = peer_failure()
        self._stop.defer()  # torchrun stops whoever is left; the run's record is closed first
        if found is None:
            log.debug("%s", error)
            return RunError(
                "another process of this run died without an error message (torchrun says which). What was saved "
                "stays: trainer.resume=true goes on from there"
            )
        status, message = found
        if status > 128:
            return Stopped(status - 128)
        return RequestError(message) if status == 2 else RunError(message)


World = SingleProcess | ProcessGroup

_WORLD: list[ProcessGroup] = []


def join(stop: StopSignal) -> World:
    """The processes that `torchrun` started with this one; a process for itself, if there are no others."""
    if not is_distributed():
        return SingleProcess(stop)
    if _WORLD:
        _WORLD[0].listen_to(stop)
    else:
        _WORLD.append(ProcessGroup(stop))
    return _WORLD[0]


def _packed(tree: Mapping[str, Any]) -> bytearray:
    """The length of a JSON header, the header, and the tensors as a safetensors file."""
    flat, rest = codec.flatten(tree)
    header = json.dumps(rest).encode()
    file = tensors.TensorFile.of({name: tensor.detach().cpu() for name, tensor in flat.items()})
    return bytearray().join([struct.pack("<Q", len(header)), header, *file.chunks()])


def _unpacked(message: bytearray) -> dict[str, Any]:
    (length,) = struct.unpack_from("<Q", message)
    flat, _ = tensors.parse(bytes(memoryview(message)[8 + length :]))
    return codec.unflatten(json.loads(message[8 : 8 + length]), flat)
