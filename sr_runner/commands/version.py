"""What `--version` prints, on every command line. Imports nothing heavy."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("sr-run", "torch", "hydra-core", "mlflow")


def versions() -> str:
    """`sr-run 0.1.0, torch 2.14.1, hydra-core 1.3.2, mlflow 3.5.0`."""
    return ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout on the path
        return "(not installed)"
