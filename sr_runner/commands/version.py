"""What `--version` prints. Imports nothing heavy: versions are read from the packages' metadata."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> str:
    """One line: sr-run's version and those that a result depends on."""
    named = ("sr-run", "torch", "hydra-core", "mlflow")
    return ", ".join([*(f"{name} {_version(name)}" for name in named), f"Python {platform.python_version()}"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
