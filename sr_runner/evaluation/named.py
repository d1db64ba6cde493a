"""Metrics by name: which there are, which way is better, and what computes them.

PSNR and SSIM come out of `metrics`. Further ones compare features of a pre-trained network, or judge the SR image
alone: `lpips` (Zhang et al. 2018, v0.1 on AlexNet), `dists` (Ding et al. 2020), the metrics of one image or pair that
pyiqa has (`niqe`, `clipiqa`, ...), and classes of one's own. Their packages bring or download weights.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sr_runner.config.targets import locate
from sr_runner.errors import RequestError, RunError, nearest
from sr_runner.evaluation.metrics import METRICS, UInt8Image, cropped
from sr_runner.inference.tiling import to_unit_range

Measure = Callable[[UInt8Image, UInt8Image], float]
"""SR and HR, uint8 H x W x 3, to a number."""

_Network = Callable[[Tensor, Tensor], Any]
"""SR and HR, float32 1 x 3 x H x W in [0, 1], to a number."""

_OF_AUTHORS = {"lpips": "lpips", "dists": "DISTS_pytorch"}
"""Name, and extra, to package."""
_OF_SETS = ("fid", "sfid", "fid_dinov2", "inception_score", "clipscore")
"""Those of pyiqa's that are no metric of an image or of a pair of them."""


@dataclass(frozen=True)
class _Kind:
    lower_is_better: bool = False
    make: Callable[[], _Network] | None = None
    """None: `metrics.score` computes it."""


def lower_is_better(name: str, key: str) -> bool:
    """Which way the metric `name` improves. Raises `RequestError` that names `key` where there is no such metric."""
    return _kind(name, key).lower_is_better


def measures(names: Sequence[str], *, key: str, crop: int, device: torch.device | str) -> dict[str, Measure]:
    """What computes those of the metrics `names` that `metrics.score` does not, their networks loaded on `device`.

    Images go in whole, `crop` pixels left out on each side as for PSNR. Networks are in evaluation mode and compute in
    fp32. Neither loading nor measuring changes what the global random generators give to others, and a metric that
    draws from them gets the same numbers for every image.

    Raises `RequestError` that names `key` for a name that is none, where a package is missing (with its extra), and
    where weights cannot be downloaded.
    """
    device = torch.device(device)
    kinds = {name: _kind(name, key) for name in names}
    return {name: _measure(name, kind.make, key, crop, device) for name, kind in kinds.items() if kind.make is not None}


def _kind(name: str, key: str) -> _Kind:
    if name in METRICS:
        return _Kind()
    if name in _OF_AUTHORS:
        return _Kind(lower_is_better=True, make=lambda: _of_its_author(name, key))
    if "." in name:
        own = locate(key, name)
        return _Kind(bool(getattr(own, "lower_is_better", False)), own)
    known = [*METRICS, *_OF_AUTHORS]
    expected = f"{key}={name}: expected {', '.join(known)}, package.Class or a metric of pyiqa's"
    try:
        configs = importlib.import_module("pyiqa.default_model_configs").DEFAULT_CONFIGS
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        raise RequestError(
            f"{expected}, which cannot be loaded ({error}): pip install 'sr-run[pyiqa]'.{nearest(name, known)}"
        ) from error
    theirs = {each.replace("+", "_plus"): each for each in configs if each not in _OF_SETS}  # MLflow allows no +
    if name not in theirs:
        raise RequestError(f"{expected}.{nearest(name, [*known, *theirs])}")
    return _Kind(bool(configs[theirs[name]].get("lower_better")), lambda: _of_pyiqa(theirs[name]))


def _of_its_author(name: str, key: str) -> _Network:
    package = _OF_AUTHORS[name]
    try:
        module = importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        raise RequestError(
            f"{key}={name} needs the package {package} and cannot load it ({error}): pip install 'sr-run[{name}]'"
        ) from error
    if name == "dists":
        return module.DISTS()  # type: ignore[no-any-return]
    network = module.LPIPS(net="alex", verbose=False)
    return _Scaled(network)


class _Scaled(nn.Module):
    """LPIPS was trained on [-1, 1]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, sr: Tensor, hr: Tensor) -> Any:
        return self.network(sr * 2 - 1, hr * 2 - 1)


def _of_pyiqa(name: str) -> _Network:
    return importlib.import_module("pyiqa").create_metric(name, device="cpu")  # type: ignore[no-any-return]


def _measure(name: str, make: Callable[[], _Network], key: str, crop: int, device: torch.device) -> Measure:
    with _aside(device):
        try:
            network = make()
            if isinstance(network, nn.Module):
                network = network.to(device).eval().requires_grad_(False)
        except RequestError:
            raise
        except OSError as error:
            raise RequestError(
                f"{key}={name}: its weights cannot be downloaded ({error}). On a machine that can, they are put into "
                f"{torch.hub.get_dir()}; copy that folder"
            ) from error
        except Exception as error:
            raise RequestError(f"{key}={name} cannot be made: {error!r}") from error

    def measure(sr: UInt8Image, hr: UInt8Image) -> float:
        # PSNR has accepted the pair by now, so that its name does not matter here.
        images = [to_unit_range(image, device).contiguous() for image in cropped("", sr, hr, crop)]
        with _aside(device), torch.no_grad(), torch.autocast(device.type, enabled=False):
            try:
                return float(network(*images))
            except Exception as error:
                size = f"{hr.shape[1]}x{hr.shape[0]}"
                raise RunError(f"{key}={name} fails on an image of {size}, {crop} pixels cropped: {error!r}") from error

    return measure


@contextlib.contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Within, every global random generator begins anew; afterwards all are as they were, for the training to draw
    from. TF32 is off, and what packages print goes where the log goes."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    fast: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    tf32 = [each.allow_tf32 for each in fast]
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        contextlib.redirect_stdout(sys.stderr),
    ):
        try:
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            for each in fast:
                each.allow_tf32 = False
            yield
        finally:
            for each, was in zip(fast, tf32, strict=True):
                each.allow_tf32 = was
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
