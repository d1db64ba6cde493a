"""Faults at single operations of the commit path, found by interposing on them in the process that carries them out.

Local: every write, flush, rename, folder and deletion below the checkpoints' root. Object storage and MLflow: every
request that the store sends, and the middle of every file on its way. Each has a label such as
`write: fsync model.safetensors`, whose first word is its phase; a strike is aimed at the n-th operation of a label.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKS = (".writing-", ".replaced-", ".deleted-", ".replacing-", "damaged-")
_STEP = re.compile(r"step-\d+[^/ ]*")
_PIECE = 5 << 20
"""What one request carries here, so that files of 6 MB are uploaded in parts as large ones are; S3 takes no less."""


@dataclass(frozen=True)
class Aim:
    """Where a strike falls: the `count`-th operation called `label`."""

    label: str
    count: int
    instant: str
    """before, middle (half of a write is done, or a request is on its way) or after."""

    @property
    def phase(self) -> str:
        return self.label.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.instant} {self.label} #{self.count}"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # SIGKILL does not return


class Watch:
    """Notes every operation in `journal`, one label a line, and strikes at `aim`."""

    def __init__(self, journal: Path, aim: Aim | None, strike: Callable[[], object] = die, delay: float = 0.0):
        """`delay`: seconds after which a strike in the middle of a request falls."""
        self._journal = os.open(journal, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._aim, self._strike, self._delay = aim, strike, delay
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.began_to_write = False

    def around(self, label: str, act: Callable[[bool], Any]) -> Any:
        """Do `act`, which is told whether to be cut in the middle: it has to call `cut` there."""
        with self._lock:
            self._counts[label] += 1
            mine = self._aim is not None and (self._aim.label, self._aim.count) == (label, self._counts[label])
            _WRITE(self._journal, f"{label}{' STRUCK' if mine else ''}\n".encode())
        instant = self._aim.instant if mine and self._aim else ""
        if instant == "before":
            self._strike()
        try:
            return act(instant == "middle")
        finally:  # some are expected to raise, such as making a folder that is there
            if instant == "after":
                self._strike()

    def cut(self) -> None:
        self._strike()

    def cut_soon(self) -> None:
        threading.Timer(self._delay, self._strike).start()


_WRITE = os.write


# -- a folder ----------------------------------------------------------------------------------------------------------


def watch_folder(watch: Watch, root: Path) -> None:
    """Interpose on everything that changes what is below `root`."""
    prefix = f"{root.absolute()}/"

    def below(path: Any, dir_fd: int | None = None) -> str | None:
        if isinstance(path, int):
            full = f"{Path(f'/proc/self/fd/{path}').readlink()}"
        elif dir_fd is not None:
            full = f"{Path(f'/proc/self/fd/{dir_fd}').readlink() / os.fsdecode(path)}"
        else:
            full = f"{Path(os.fsdecode(path)).absolute()}"
        return full.removeprefix(prefix) if full.startswith(prefix) else None

    def interpose(name: str) -> None:
        original = getattr(os, name)

        def watched(path: Any, *rest: Any, **named: Any) -> Any:
            place = below(path, named.get("dir_fd", named.get("src_dir_fd")))
            if place is None:
                return original(path, *rest, **named)
            target = below(rest[0], named.get("dst_dir_fd")) if name in ("rename", "replace", "link") else None
            label = _folder_label(watch, name, place, target)
            return watch.around(label, lambda _: original(path, *rest, **named))

        setattr(os, name, watched)

    for name in ("fsync", "rename", "replace", "link", "mkdir", "unlink", "remove", "rmdir", "truncate", "ftruncate"):
        interpose(name)

    def write(descriptor: int, data: Any) -> int:
        place = below(descriptor)
        if place is None:
            return _WRITE(descriptor, data)
        return _torn(watch, _folder_label(watch, "write", place, None), lambda part: _WRITE(descriptor, part), data)

    os.write = write

    class TornFile(io.FileIO):
        def write(self, data: Any) -> int:  # type: ignore[override]
            place = below(self.fileno())
            label = _folder_label(watch, "write", place or "", None)
            return _torn(watch, label, super().write, data)

    plain_open = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wxa+") or below(file) is None:
            return plain_open(file, mode, buffering, *rest, **named)
        raw = TornFile(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **named)

    io.open = builtins.open = opened  # type: ignore[assignment]


def _torn(watch: Watch, label: str, write: Callable[[Any], int | None], data: Any) -> int:
    """A write that can be cut in two."""
    view = memoryview(data).cast("B")

    def act(cut: bool) -> int:
        if not cut:
            return write(view) or 0
        done = write(view[: len(view) // 2]) or 0
        watch.cut()
        return done

    return watch.around(label, act)  # type: ignore[no-any-return]


def _folder_label(watch: Watch, operation: str, place: str, target: str | None) -> str:
    mark = next((mark.strip(".-") for mark in MARKS if mark in place), "")
    aim = next((mark.strip(".-") for mark in MARKS if target and mark in target), "place" if target else "")
    name = place.rpartition("/")[2]
    what = _STEP.sub("step", name) if "." in name.lstrip(".") else "folder"
    if aim:
        what = f"{mark or 'place'} to {aim}"
    if re.search(r"lease|lock", place):
        return f"lease: {operation} {re.sub(r'[0-9a-f]{8,}|[0-9]+', 'N', what)}"
    gone = operation in ("unlink", "remove", "rmdir")
    if mark == "damaged" or aim == "damaged":
        phase = "quarantine"
    elif (gone and not watch.began_to_write) or (mark == "replaced" and aim == "place"):
        phase = "clean"
    elif aim == "place" and mark == "writing":
        phase = "commit"
    elif mark == "replaced" or aim == "replaced":
        phase = "replace"
    elif mark == "deleted" or aim == "deleted":
        phase = "retention"
    elif mark == "writing":
        phase = "write"
        watch.began_to_write = True
    else:
        phase = "folder"
    return f"{phase}: {operation} {what}"


# -- requests ----------------------------------------------------------------------------------------------------------


def watch_requests(watch: Watch) -> None:
    """Interpose on all requests of a store, and on the files that it uploads."""
    from sr_runner.checkpoint.format import Blob
    from sr_runner.checkpoint.stores import remote
    from sr_runner.checkpoint.stores.requests import Requests

    remote._PIECE = _PIECE
    send = Requests.send

    def watched(self: Requests, what: str, request: Callable[[], Any], *, once: bool = False) -> Any:
        def attempt() -> Any:
            def act(cut: bool) -> Any:
                if cut:
                    watch.cut_soon()
                return request()

            return watch.around(_request_label(watch, what), act)

        return send(self, what, attempt, once=once)

    Requests.send = watched  # type: ignore[method-assign, assignment]
    plain = Blob.__getattribute__

    def chunks_of(blob: Blob, name: str) -> Any:
        value = plain(blob, name)
        return (lambda: _halved(watch, blob.name, value())) if name == "chunks" else value

    Blob.__getattribute__ = chunks_of  # type: ignore[method-assign]


def _halved(watch: Watch, name: str, chunks: Iterator[Any]) -> Iterator[Any]:
    for chunk in chunks:
        half = len(chunk) // 2
        yield chunk[:half]
        watch.around(f"blob: {name}", lambda cut: watch.cut() if cut else None)
        yield chunk[half:]


def _request_label(watch: Watch, what: str) -> str:
    verb = what.partition(" ")[0]
    file = re.search(r"[a-z]+\.(?:safetensors|json|yaml)", what)
    name = file[0] if file else "folder"
    if re.search(r"lease|lock", what):
        return f"lease: {verb}"
    if verb in ("uploading", "making"):
        watch.began_to_write = True
    if ".replacing-" in what:
        phase = "replace"
    elif "damaged-" in what or (verb == "copying"):
        phase = "quarantine"
    elif verb == "uploading":
        phase = "commit" if name == "manifest.json" else "write"
    elif verb == "deleting":
        phase = "retention" if watch.began_to_write else "clean"
    else:
        phase = {"listing": "list", "downloading": "restore", "giving": "clean"}.get(verb, "run")
    if "the uploads" in what:
        name = "uploads"
    return f"{phase}: {verb} {name}"


def stop_at_evaluation(step: int) -> None:
    """SIGTERM to this process as soon as it evaluates at `step`: it saves without the evaluation, and the resumed run
    saves that step again."""
    from sr_runner.training.orchestrator import Orchestrator

    evaluate = Orchestrator.evaluate

    def stopped(self: Orchestrator) -> Any:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    Orchestrator.evaluate = stopped  # type: ignore[method-assign]
