"""What the small tools share: where and how precisely their networks compute."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sr_runner.errors import RequestError
from sr_runner.inference.ensemble import self_ensemble
from sr_runner.inference.tiling import Upscale

PRECISIONS = ("fp32", "bf16", "fp16")


def device_named(wanted: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises `RequestError` for a device that this machine lacks."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise RequestError(f"device={wanted}: one of auto, cpu, cuda or cuda:N is needed.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        raise RequestError(f"device={wanted}: this machine has {count} CUDA devices; device=auto takes what is there.")
    return torch.device(wanted)


def network_at_work(network: nn.Module, device: torch.device, *, precision: str, ensemble: bool) -> Upscale:
    """`network` on `device`, in evaluation mode, as a function of an LR batch. fp32 means it: TF32 is off."""
    if precision == "fp16" and device.type != "cuda":
        raise RequestError(f"precision=fp16 needs a GPU, and the device is {device}; expected fp32 or bf16.")
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def upscale(lr: Tensor) -> Tensor:
        context = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
        with torch.no_grad(), context:
            sr: Tensor = network(lr)
        return sr.float()

    return self_ensemble(upscale) if ensemble else upscale


def scale_of(upscale: Upscale, device: torch.device) -> int:
    """The factor by which `upscale` enlarges, found by trying it."""
    lr = torch.zeros(1, 3, 32, 48, device=device)
    sr = upscale(lr)
    scale = sr.shape[-1] // lr.shape[-1]
    if sr.shape != (1, 3, lr.shape[-2] * scale, lr.shape[-1] * scale) or scale < 1:
        raise RequestError(
            f"the network made {tuple(sr.shape)} of an LR batch of {tuple(lr.shape)}: it does not enlarge RGB images "
            "by a whole factor."
        )
    return scale
