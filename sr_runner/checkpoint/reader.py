"""From a store to a training state: the newest that is intact."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from sr_runner.checkpoint import codec, format, tensors
from sr_runner.checkpoint.format import DamagedError, Manifest, Name
from sr_runner.checkpoint.state import TrainingState
from sr_runner.checkpoint.stores import Store, steps_of
from sr_runner.errors import RunError

log = logging.getLogger(__name__)


def read(folder: Path, step: int | None = None) -> TrainingState:
    """The state in a checkpoint's folder. Raises `DamagedError` (see `format.load`)."""
    manifest, data = format.load(folder, expected_step=step)
    parsed: dict[str, dict[str, torch.Tensor]] = {}
    metadata: dict[str, str] = {}
    for file in (format.MODEL, format.TRAINING):
        try:
            parsed[file], meta = tensors.parse(data.pop(file))
        except tensors.TensorFileError as error:
            raise DamagedError(f"{file}: {error}") from error
        metadata |= meta if file == format.MODEL else {}
    try:
        state = codec.unflatten(json.loads(data[format.STATE]), parsed[format.TRAINING])
        config = data[format.CONFIG].decode()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{format.STATE} does not fit the other files: {error}") from error
    return TrainingState(manifest.step, parsed[format.MODEL], state, config, metadata, manifest.metrics)


def read_manifest(store: Store, name: str, scratch: Path) -> Manifest:
    return Manifest.read(store.get(name, scratch, only=[format.MANIFEST]))


class Reader:
    """Restores the checkpoints of one attempt (`<identity>/<attempt>`) from its store, or from the spool."""

    def __init__(self, store: Store, attempt: str, scratch: Path, spool: Store | None = None):
        """`scratch` is a local folder for downloads."""
        self._store, self._attempt, self._scratch, self._spool = store, attempt, scratch, spool

    def steps(self) -> list[int]:
        """The steps that have a committed checkpoint in the store, ascending."""
        return steps_of(self._store, self._attempt)

    def restore(self, step: int | None = None, *, own: bool = True) -> TrainingState | None:
        """The newest good state (or exactly that of `step`), or None where no checkpoint was ever committed.

        A damaged checkpoint is logged with the file and the reason, and quarantined, unless the attempt is not `own`:
        its owner may be writing there. Raises `RunError` where there are checkpoints and none is intact: starting from
        scratch would hide the loss.
        """
        try:
            candidates = self._candidates(step)
            for candidate, store in candidates:
                name = str(Name.of(self._attempt, candidate))
                try:
                    return read(store.get(name, self._scratch), candidate)
                except DamagedError as damage:
                    kept = f" It is kept as {store.quarantine(name, str(damage))}" if own else ""
                    log.error("checkpoint %s is damaged: %s.%s", name, damage, kept)
                except FileNotFoundError:
                    if own:
                        raise
                    log.warning("checkpoint %s has just been deleted by its own run", name)
        except OSError as error:
            raise RunError(f"{self._store.url} cannot be read: {error}. Nothing was started") from error
        if not candidates:
            return None
        none = (
            f"none of the {len(candidates)} checkpoints of {self._attempt} in {self._store.url} is intact (see above)"
        )
        if not own:
            raise RunError(none)
        raise RunError(
            f"{none}. Nothing was started. They are kept there as damaged-*; trainer.resume=false starts a fresh "
            "attempt, trainer.resume=<id or path> takes another run"
        )

    def _candidates(self, step: int | None) -> list[tuple[int, Store]]:
        """Steps and where they are, newest first. The store's copy of a step counts before the spool's."""
        stored = dict.fromkeys(self.steps(), self._store)
        spooled = dict.fromkeys(steps_of(self._spool, self._attempt), self._spool) if self._spool is not None else {}
        everywhere = spooled | stored
        if step is not None:
            return [(step, everywhere.get(step, self._store))]
        found = sorted(everywhere.items(), reverse=True)
        if found and found[0][0] not in stored:
            log.warning("the newest checkpoint of %s is still in the spool: %s", self._attempt, found[0][1].url)
        return found
