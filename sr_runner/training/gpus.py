"""A GPU of its own for each of the jobs that run side by side on a machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from sr_runner.errors import RequestError
from sr_runner.files import Busy, file_lock

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds


def visible(key: str) -> list[str]:
    """The UUIDs of this process's GPUs, those of `CUDA_VISIBLE_DEVICES`, in PyTorch's order.

    Raises `RequestError` that names `key` where there is none.
    """
    if not torch.cuda.is_available():
        raise RequestError(f"{key}: this machine has no CUDA device, or CUDA_VISIBLE_DEVICES none of them")
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


@contextmanager
def own_gpu(folder: Path, uuids: Sequence[str]) -> Iterator[int]:
    """Holds the first of the GPUs `uuids` that no other job has, and gives its place among them; waits until one is
    free. Jobs that are to know of each other have the same `folder`.

    The kernel frees the GPU of a job that is killed. Known by its UUID, a GPU is the same for processes of which each
    sees other ones. A place rather than `CUDA_VISIBLE_DEVICES`, which PyTorch reads once: a process may do many jobs.
    """
    with ExitStack() as held:
        index = _free(folder, uuids, held)
        if index is None:
            log.info("waiting for a GPU that no other job has")
        while index is None:
            time.sleep(_LOOK_EVERY)
            index = _free(folder, uuids, held)
        yield index


def _free(folder: Path, uuids: Sequence[str], held: ExitStack) -> int | None:
    for index, uuid in enumerate(uuids):
        try:
            held.enter_context(file_lock(folder / f"{uuid}.lock", wait=False))
        except Busy:
            continue
        return index
    return None
