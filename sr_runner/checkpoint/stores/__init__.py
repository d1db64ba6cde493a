"""Where checkpoints live: one protocol, one file per medium."""

from sr_runner.checkpoint.stores.base import Store
from sr_runner.checkpoint.stores.local import LocalStore
from sr_runner.checkpoint.stores.mlflow import MlflowStore
from sr_runner.checkpoint.stores.remote import RemoteStore

__all__ = ["LocalStore", "MlflowStore", "RemoteStore", "Store"]


def store_at(root: str) -> Store:
    """The store at a folder or URL."""
    return RemoteStore(root) if "://" in root else LocalStore(root)
