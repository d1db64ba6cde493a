"""What a network costs, by the rules of NTIRE's challenge on efficient super-resolution (x4).

The definitions are those of the challenge's test code and of its ranking (github.com/Amazingren/NTIRE2024_ESR,
`test_demo.py` and `utils/model_summary.py`, and the README of github.com/Amazingren/NTIRE2025_ESR; Ren et al., "The
Tenth NTIRE 2025 Efficient Super-Resolution Challenge Report", arXiv 2504.10686):

- Parameters are all of the network's, in millions.
- FLOPs are counted on an LR image of 256x256, thus an SR image of 1024x1024, a multiplication and the addition that
  follows it as one. Convolutions, linear layers and other products of matrices are counted. Since 2024 the challenge
  uses fvcore, which also counts normalisations and interpolations; before, its own code counted activation functions.
- Activations are the elements of the outputs of all convolutions (`Conv2d`, `ConvTranspose2d`) on the same image.
- The runtime is the mean time of the network per image, whole images one by one. (The challenge leaves PyTorch's TF32
  on; `sr-eval` computes in true fp32 unless it is asked for another precision.)
- Memory is the most that is allocated on the GPU meanwhile, in MiB.
- The score is 0.7 s(runtime) + 0.15 s(FLOPs) + 0.15 s(parameters), with s(x) = exp(2 x / x of the baseline): 7.389 for
  the baseline, lower is better. The baseline is that of 2025, EFDN: 16.69 ms on an RTX A6000, 16.70 G, 0.276 M. Scores
  of other devices compare with each other only.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sr_runner.errors import RequestError
from sr_runner.inference.tiling import Upscale

LR_SIZE = 256
"""Of the image, in pixels squared, that FLOPs and activations are counted on."""
SCALE = 4
_BASELINE = {"milliseconds": 16.69, "flops": 16.70e9, "parameters": 0.276e6}
_WEIGHTS = {"milliseconds": 0.7, "flops": 0.15, "parameters": 0.15}


@dataclass(frozen=True)
class Cost:
    """What a network costs, in the numbers that the module explains."""

    parameters: int
    flops: int
    activations: int
    convolutions: int
    """How many there are, each as often as it is called."""
    milliseconds: float = math.nan
    """Per image."""
    memory_mib: float | None = None
    """None on a CPU."""

    @property
    def score(self) -> float:
        """Of the main track."""
        parts = ((weight, getattr(self, name) / _BASELINE[name]) for name, weight in _WEIGHTS.items())
        return sum(weight * math.exp(2 * min(share, 300)) for weight, share in parts)  # a float ends near exp(700)

    def by_name(self) -> dict[str, float]:
        """All that is known, score included."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return known | {"ntire_score": self.score}


def count(network: nn.Module, *, lr_size: int = LR_SIZE) -> Cost:
    """Parameters, FLOPs and activations of `network`, on its device.

    Raises `RequestError` where it fails on an image of that size.
    """
    weight = next(network.parameters())
    outputs: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append(output.numel())

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            network(torch.zeros(1, 3, lr_size, lr_size, device=weight.device, dtype=weight.dtype))
    except Exception as error:
        raise RequestError(
            f"protocol=ntire_esr: the network fails on an LR image of {lr_size}x{lr_size}: {error!r}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    parameters = sum(each.numel() for each in network.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, sum(outputs), len(outputs))


@dataclass
class Stopwatch:
    """`upscale` of `network` on `device`, with the time and the memory that it takes."""

    upscale: Upscale
    network: nn.Module
    device: torch.device
    seconds: list[float] = field(default_factory=list)
    memory_mib: float | None = None

    def __call__(self, lr: Tensor) -> Tensor:
        before = self._mark()
        began = time.perf_counter()
        sr = self.upscale(lr)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(time.perf_counter() - began)
        if before is not None:
            # What else is on the device, such as another model, is not the network's.
            own = [lr, *self.network.parameters(), *self.network.buffers()]
            peak = torch.cuda.max_memory_allocated(self.device) - before + sum(each.nbytes for each in own)
            self.memory_mib = max(self.memory_mib or 0.0, peak / 2**20)
        return sr

    @property
    def milliseconds(self) -> float:
        """The mean over all images."""
        return 1000 * sum(self.seconds) / len(self.seconds) if self.seconds else math.nan

    def _mark(self) -> int | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)
