"""Weights of networks: from files of every layout that users have, into networks, and out again.

Layouts: sr-run's own (`model.safetensors`), EDSR-PyTorch's `.pt`, BasicSR's `.pth`, krasserm/super-resolution's Keras
`.h5`, and safetensors with any of these names.
"""

from __future__ import annotations

from sr_runner.weights.applying import Report, apply
from sr_runner.weights.exporting import describe, export
from sr_runner.weights.loading import load_model, spandrel_network, vgg19_features
from sr_runner.weights.reading import LoadedWeights, read

__all__ = [
    "LoadedWeights",
    "Report",
    "apply",
    "describe",
    "export",
    "load_model",
    "read",
    "spandrel_network",
    "vgg19_features",
]
