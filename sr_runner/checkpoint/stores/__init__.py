"""Where checkpoints live: one protocol, one file per medium."""

import re

from sr_runner.checkpoint.stores.base import Store
from sr_runner.checkpoint.stores.local import LocalStore
from sr_runner.checkpoint.stores.mlflow import MlflowStore
from sr_runner.checkpoint.stores.remote import RemoteStore

__all__ = ["LocalStore", "MlflowStore", "RemoteStore", "Store", "checkpoint_at", "store_at"]


_CHECKPOINT = re.compile(r"(?P<root>(?:mlflow:|(?!https?:)[a-z0-9]+://).+)/(?P<name>[^/]+/[^/]+/step-\d+)/?")


def checkpoint_at(url: str) -> tuple[Store, str] | None:
    """The store and the name in a checkpoint's URL, as `sr-run` prints it; None for any other text."""
    match = _CHECKPOINT.fullmatch(url)
    return (store_at(match["root"]), match["name"]) if match else None


def store_at(root: str) -> Store:
    """The store at a folder or URL; `mlflow:<tracking URI>#<experiment>` is that of an experiment's runs."""
    if root.startswith("mlflow:"):
        uri, _, experiment = root.removeprefix("mlflow:").partition("#")
        return MlflowStore(uri=uri or None, experiment=experiment or None)
    return RemoteStore(root) if "://" in root else LocalStore(root)
