"""The protocol of a checkpoint store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sr_runner.checkpoint.format import Blob, Name


class Store(Protocol):
    """Moves whole checkpoints in and out of one place, and knows nothing of tensors.

    Names are those of `checkpoint.format.Name`, as strings. So small because each verb has to be right under every
    fault of its medium: what a checkpoint means is the manager's business.
    """

    url: str
    """Where the store is, for people and for `trainer.resume`; without credentials."""

    def check(self) -> None:
        """Ask the medium whether it can be used. Raises `RequestError` where it says no, `OSError` if it is silent."""

    def put(self, name: str, files: Sequence[Blob]) -> None:
        """All or nothing: either `list` shows the name with every file complete and durable, or nothing changed.

        The last file is the manifest, whose arrival is the commit. A checkpoint that is there already under this name
        is replaced. Raises `OSError`.
        """

    def get(self, name: str, scratch: Path, only: Sequence[str] | None = None) -> Path:
        """A local folder with the files (or `only` some) of a checkpoint, fetched below `scratch` if need be."""

    def list(self, prefix: str = "") -> Sequence[str]:
        """The committed checkpoints whose name begins with `prefix` (whole parts: `identity/`), in no order."""

    def delete(self, name: str) -> None:
        """Remove a checkpoint; the manifest goes first, so that a half-deleted one is none."""

    def quarantine(self, name: str, reason: str) -> str:
        """Take a damaged checkpoint out of `list` without deleting it; returns where it is now."""

    def clean(self, attempt: str) -> None:
        """Remove what killed writes left below `<identity>/<attempt>`."""

    def read_lease(self, attempt: str) -> bytes | None:
        """The small record that says who writes to `<identity>/<attempt>` (see `lease`), None where nobody does."""

    def write_lease(self, attempt: str, record: bytes) -> None:
        """Put the record there, instead of the one before."""

    def drop_lease(self, attempt: str) -> None:
        """Remove the record, if there is one."""


def names_in(store: Store, prefix: str = "") -> list[Name]:
    """The committed checkpoints below `prefix` (`identity/`, `identity/attempt/`), by identity, attempt and step."""
    return sorted(name for text in store.list(prefix) if (name := Name.parse(text)) is not None)


def steps_of(store: Store, attempt: str) -> list[int]:
    """The steps that have a committed checkpoint of `attempt` (`<identity>/<attempt>`), ascending."""
    return [name.step for name in names_in(store, f"{attempt}/")]
