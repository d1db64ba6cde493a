"""Where checkpoints live: one protocol, one file per medium."""

from sr_runner.checkpoint.stores.base import Store
from sr_runner.checkpoint.stores.local import LocalStore

__all__ = ["LocalStore", "Store"]
