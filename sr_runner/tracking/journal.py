"""The journal of a run: what the tracking server has to be told, one JSON object a line, only ever appended to.

    {"time": 1763851000123, "event": "start", "attempt": "edsr-x2-3f9a12c40b1e/1", "resumed_at": 0, ...}
    {"time": 1763851004518, "event": "metrics", "step": 10, "values": {"train/loss": 0.0413, "train/lr": 0.0001}}
    {"time": 1763851020004, "event": "picture", "step": 100, "key": "valid/chelsea", "file": "pictures/...png", ...}
    {"time": 1763851020139, "event": "artifact", "file": "run.log"}
    {"time": 1763851030992, "event": "finish", "status": "FINISHED", "tags": {...}}

`time` is in milliseconds since 1970 and is the timestamp that MLflow gets, so a line that is sent twice makes one
point: MLflow's key of a point contains its timestamp and its value. Files are relative to the run's folder, or
absolute where they lie outside. NaN and the infinities, which JSON has no word for, are the strings "nan", "inf" and
"-inf". A run that is resumed has one `start` line per life.

Files beside it, all written by the sender: `tracker.json` (the server's ids), `system.jsonl` (system metrics, in the
same format), and `journal.sent`: the run of the server it is about, how many bytes of either journal that run has,
the lines set aside for later (file and offset), and from which step on the run may have points that the journal lacks
(because it is a new one on another machine, or lost its end in a crash).
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.files import open_own, read_file, write_file

JOURNAL = "journal.jsonl"
SENT = "journal.sent"
IDS = "tracker.json"
LOCK = "journal.lock"
SYSTEM = "system.jsonl"

_READ = 1 << 20
_MOST_UNWRITTEN = 100_000
_KIND = re.compile(rb'"event": "(\w+)"')
_STEP = re.compile(rb'"event": "(?:metrics|picture)", "step": (-?\d+)')
_encode = json.JSONEncoder(ensure_ascii=False).encode


class JournalWriter:
    """Appends events to one journal, each with a single unbuffered write: what was written survives a SIGKILL.

    A last line that an earlier life of the run left half written is cut off. Not safe for use by several threads.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.size = _cut_torn_line(self._file)
        self._unwritten: deque[bytes] = deque(maxlen=_MOST_UNWRITTEN)

    def append(self, event: Mapping[str, Any]) -> None:
        """Adds one event, stamped with the present time. Raises OSError while the disk is full; the line is then kept
        in memory and written before the next one."""
        self.append_line(line_of(event))

    def append_line(self, line: bytes) -> None:
        """`append` for a line that is a journal line already, its time included."""
        self._unwritten.append(line)
        while self._unwritten:
            self._write(self._unwritten[0])
            self._unwritten.popleft()

    def sync(self) -> None:
        """Returns when all lines are on the disk, not only in the system's memory."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(line)


@dataclass(frozen=True)
class Line:
    """One whole line of a journal."""

    start: int
    """Offset of its first byte."""
    end: int
    """Offset after its line feed."""
    raw: bytes

    @property
    def event(self) -> dict[str, Any] | None:
        """The event; None where the line is damaged."""
        try:
            event = json.loads(self.raw)
        except ValueError:
            return None
        return event if isinstance(event, dict) and "event" in event and "time" in event else None

    @property
    def kind(self) -> str:
        """`start`, `metrics`, ...: the event's name, found without parsing the line; "" where the line is damaged."""
        found = _KIND.search(self.raw, 0, 60)
        return found[1].decode() if found else ""

    @property
    def step(self) -> int | None:
        """The step of a metrics or picture line, found without parsing the line; None for other lines."""
        found = _STEP.search(self.raw, 0, 120)
        return int(found[1]) if found else None


def line_of(event: Mapping[str, Any], now: int | None = None) -> bytes:
    """The journal line of `event`; `now` is the time in milliseconds, the present one unless given."""
    stamped = {"time": time.time_ns() // 1_000_000 if now is None else now, **event}
    return _encode(stamped).encode() + b"\n"


def metrics_event(step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """The event that records one value per key at `step`."""
    values = {key: number if math.isfinite(number := float(value)) else str(number) for key, value in metrics.items()}
    return {"event": "metrics", "step": int(step), "values": values}


def read_lines(path: Path, offset: int = 0, most: int | None = None) -> Iterator[Line]:
    """The whole lines from byte `offset` on, `most` of them at most. A line still being written is left out."""
    try:
        file = os.fdopen(open_own(path, os.O_RDONLY), "rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        rest = b""
        while block := file.read(_READ):
            *whole, rest = (rest + block).split(b"\n")
            for raw in whole:
                if most is not None and most <= 0:
                    return
                yield Line(offset, offset + len(raw) + 1, raw)
                offset += len(raw) + 1
                most = None if most is None else most - 1


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where the file is missing or damaged."""
    try:
        found = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces `path` in one step: a reader sees the old content or the new one."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _cut_torn_line(file: int) -> int:
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
    return end
