"""Where and how precisely a run computes."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from sr_runner.config.settings import TrainerSettings
from sr_runner.distributed.processes import local_rank
from sr_runner.errors import RequestError
from sr_runner.objectives import Precision

log = logging.getLogger(__name__)


def resolve_device(wanted: str, key: str = "trainer.device") -> torch.device:
    """`auto` is the GPU where there is one; of several processes each takes one.

    Raises `RequestError` that names `key` for one that is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise RequestError(f"{key}={wanted}: expected auto, cpu, cuda or cuda:N") from error
    number = local_rank()
    if device.type == "cuda" and number is not None:
        return _own_gpu(device, number)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            build = "" if torch.version.cuda else " (this build of PyTorch is for the CPU)"
            has = f"has {count} CUDA device{'s' * (count > 1)}" if count else f"has no CUDA device{build}"
            raise RequestError(f"{key}={wanted}: this machine {has}; {key}=auto takes what is there")
    return device


def _own_gpu(device: torch.device, number: int) -> torch.device:
    """That of process `number` on this machine."""
    count, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes > count:
        raise RequestError(
            f"torchrun --nproc-per-node={processes}: this machine has {count} CUDA device{'s' * (count != 1)}, one for "
            f"each process; expected --nproc-per-node={count}" + (", or trainer.device=cpu" if count else "")
        )
    if device.index is not None and processes > 1:
        raise RequestError(
            f"trainer.device={device} is one GPU for {processes} processes: expected trainer.device=auto"
        )
    return device if device.index is not None else torch.device("cuda", number)


def resolve_precision(wanted: str, device: torch.device, key: str = "trainer.precision") -> Precision:
    """`auto` is bf16 where the device computes it natively (elsewhere it is slower than fp32 by a factor of ten)."""
    if wanted == "auto":
        return "bf16" if _fast_bf16(device) else "fp32"
    if wanted == "fp16" and device.type != "cuda":
        raise RequestError(f"{key}=fp16 needs a GPU, the device is {device}; expected bf16, fp32 or auto")
    return cast(Precision, wanted)


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(feature() for feature in features if feature is not None)


def configure(device: torch.device, *, deterministic: bool, threads: int | None) -> None:
    """Process-wide switches of PyTorch. `deterministic` makes a GPU repeat itself bit by bit; a CPU always does."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = not deterministic
        torch.use_deterministic_algorithms(deterministic)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    # For networks and losses that use the legacy generator, which takes 32 bits a number.
    np.random.seed([seed % 2**32, seed // 2**32])  # noqa: NPY002


def random_state() -> dict[str, Any]:
    """Every global generator that a network or loss may draw from. The data draw from none of them."""
    version, words, gauss_next = random.getstate()
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, np.asarray(words, dtype=np.int64), gauss_next),
        "numpy": (name, np.asarray(keys, dtype=np.int64), position, has_gauss, gauss),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(int(word) for word in words), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def environment(device: torch.device, settings: TrainerSettings, *, processes: int) -> dict[str, Any]:
    """What the last bits of a run depend on beside its config."""
    return {
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "compile": settings.compile,
        "channels_last": settings.channels_last,
        "processes": processes,
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def warn_of_change(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say what has changed between the environments of a checkpoint and of this process."""
    changed = [f"{key} {saved[key]} -> {now[key]}" for key in now if key in saved and saved[key] != now[key]]
    if changed:
        log.warning(
            "resumed under other conditions (%s): the result may differ in the last bits from an unbroken run",
            ", ".join(changed),
        )
