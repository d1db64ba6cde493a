"""Where checkpoints live: one protocol, one file per medium."""

from sr_runner.checkpoint.stores.base import Store, names_in, steps_of
from sr_runner.checkpoint.stores.local import LocalStore
from sr_runner.checkpoint.stores.mlflow import MlflowStore
from sr_runner.checkpoint.stores.remote import RemoteStore

__all__ = ["LocalStore", "MlflowStore", "RemoteStore", "Store", "names_in", "steps_of", "store_at"]


def store_at(root: str) -> Store:
    """The store at a folder or URL; `mlflow:<tracking URI>#<experiment>` is that of an experiment's runs."""
    if root.startswith("mlflow:"):
        uri, _, experiment = root.removeprefix("mlflow:").partition("#")
        return MlflowStore(uri=uri or None, experiment=experiment) if experiment else MlflowStore(uri=uri or None)
    return RemoteStore(root) if "://" in root else LocalStore(root)
