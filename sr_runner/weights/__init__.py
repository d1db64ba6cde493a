"""Weights of networks: from files of every layout that users have, into networks, and out again.

Layouts: sr-run's own (`model.safetensors`), EDSR-PyTorch's `.pt`, BasicSR's `.pth`, krasserm/super-resolution's Keras
`.h5`, and safetensors with any of these names.
"""

from __future__ import annotations

from sr_runner.weights.applying import MisfitError, apply
from sr_runner.weights.digests import digest
from sr_runner.weights.exporting import check_layout, describe, export
from sr_runner.weights.loading import load_model, spandrel_network, vgg19_features
from sr_runner.weights.reading import LoadedWeights, read
from sr_runner.weights.sources import download, is_url, shown

__all__ = [
    "LoadedWeights",
    "MisfitError",
    "apply",
    "check_layout",
    "describe",
    "digest",
    "download",
    "export",
    "is_url",
    "load_model",
    "read",
    "shown",
    "spandrel_network",
    "vgg19_features",
]
