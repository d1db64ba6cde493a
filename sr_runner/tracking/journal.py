"""The journal of a run: what the tracking server has to record, one JSON object a line, only ever appended to.

    {"crc": "8f1c02d7", "at": 0, "time": 1763851000123, "event": "start", "attempt": "edsr-x2-3f9a12c40b1e/1", ...}
    {"crc": "…", "at": 512, "time": …, "event": "metrics", "step": 10, "values": {"train/loss": 0.0413, …}}
    {"crc": "…", "at": 655, "time": …, "event": "picture", "step": 100, "key": "valid/chelsea", "file": "…png", …}
    {"crc": "…", "at": 840, "time": …, "event": "artifact", "file": "run.log"}
    {"crc": "…", "at": 890, "time": …, "event": "tags", "tags": {…}}
    {"crc": "…", "at": 931, "time": …, "event": "finish", "status": "FINISHED", "tags": {…}}

`crc` is the CRC-32 of what follows it in the line: a line that it does not fit, or that is no entry of a journal, is
damaged, and whoever reads passes over it. `at` is the byte at which the line was written: where it is more than the
end of the line before, lines are missing. `time` is in milliseconds since 1970 and is the timestamp that MLflow gets,
so a line that is sent twice makes one point: MLflow's key of a point contains its timestamp and its value. Files are
relative to the run's folder, or absolute where they lie outside. NaN and the infinities, which JSON has no word for,
are the strings "nan", "inf" and "-inf". A run that is resumed has one `start` line per life.

Files beside it, all written by the sender: `tracker.json` (the server's ids), `system.jsonl` (system metrics, in the
same format), and `journal.sent`: the run of the server it is about, how many bytes of either journal that run has
(with their CRC-32, and the `at` of the next line), and the lines set aside for later (file and offset). Once a run is
complete, the same notes are a tag of it.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sr_runner.files import open_own, plain_json, read_file, write_file, written_anew

JOURNAL = "journal.jsonl"
SENT = "journal.sent"
IDS = "tracker.json"
LOCK = "journal.lock"
SYSTEM = "system.jsonl"

_READ = 1 << 20
_LONGEST = 1 << 24
"""Bytes of the longest line that is read. What goes on longer is damage, and is not kept in memory."""
_END = 1 << 16
"""Bytes at the end of a journal that the line of a run's end is looked for in."""
_MOST = 1 << 63
_SEAL = b'{"crc": "%08x", '
_SEALED = len(_SEAL % 0)
_HEAD = re.compile(rb'"at": (\d{1,15}), "time": \d{1,18}, "event": "(\w+)"(?:, "step": (-?\d{1,19})\b)?')
_encode = json.JSONEncoder(ensure_ascii=False).encode


class JournalWriter:
    """Appends events to one journal, each with a single unbuffered write: what was written survives a SIGKILL.

    A last line that an earlier life of the run left half written is cut off. Where somebody deletes the file meanwhile,
    it is written anew, with all that it held. Not safe for use by several threads.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        found = os.fstat(self._file).st_size
        self.size = _cut_torn_line(self._file)
        self.cut = found - self.size
        """Bytes of the half written line that was cut off."""
        self._unwritten: deque[bytes] = deque()

    @property
    def unwritten(self) -> list[bytes]:
        """The lines that wait in memory for room on the disk."""
        return [_sealed(content, self.size) for content in self._unwritten]

    def append(self, event: Mapping[str, Any]) -> None:
        """Adds one event, stamped with the present time unless it has one (milliseconds). Raises OSError while the disk
        is full; the line is then kept in memory and written before the next."""
        self._unwritten.append(_content(event))
        self._keep()
        while self._unwritten:
            self._write(_sealed(self._unwritten[0], self.size))
            self._unwritten.popleft()

    def holds(self, line: Line) -> bool:
        """Whether `line`, which is not the first, stands where it was written."""
        whole = b"\n%b\n" % line.raw
        at = line.at or 0
        return at > 0 and os.pread(self._file, len(whole), at - 1) == whole

    def sync(self) -> None:
        """Returns when all lines are on the disk, not only in the system's memory."""
        self._keep()
        os.fsync(self._file)

    def _keep(self) -> None:
        if not self.path.exists():
            self._file = written_anew(self.path, self._file)

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
    """The line without its line feed; empty where its checksum does not fit."""

    @cached_property
    def _head(self) -> re.Match[bytes] | None:
        return _HEAD.match(self.raw, _SEALED)

    @property
    def at(self) -> int | None:
        """The offset at which it was written; None where the line is damaged."""
        return int(self._head[1]) if self._head else None

    @property
    def kind(self) -> str:
        """`start`, `metrics`, ...: the event's name, found without parsing the line; "" where the line is damaged."""
        return self._head[2].decode() if self._head else ""

    @property
    def step(self) -> int | None:
        """The step of a metrics or picture line, found without parsing the line; None for other lines."""
        return int(self._head[3]) if self._head and self._head[3] else None

    @cached_property
    def event(self) -> dict[str, Any] | None:
        """The event, with all that its kind has to have; None where the line is damaged."""
        if self._head is None:
            return None
        try:
            event = json.loads(self.raw.decode())
            in_range = all(-_MOST < event.get(key, 0) < _MOST for key in ("time", "step"))
            return event if in_range and _is_event(event) else None
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    @property
    def damage(self) -> str:
        """What is wrong with a line that has no event."""
        return "it is not an entry of a journal" if self.raw else "its checksum does not fit"


def line_from(raw: bytes, start: int = 0) -> Line:
    """The line `raw`, without its line feed, read at the offset `start`."""
    fits = raw.startswith(_SEAL % zlib.crc32(raw[_SEALED:]))
    return Line(start, start + len(raw) + 1, raw if fits else b"")


def metrics_event(step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """The event that records one value per key at `step`."""
    values = {key: number if math.isfinite(number := float(value)) else str(number) for key, value in metrics.items()}
    return {"event": "metrics", "step": int(step), "values": values}


def read_lines(path: Path, offset: int = 0) -> Iterator[Line]:
    """The whole lines from byte `offset` on. A line still being written is left out."""
    try:
        file = os.fdopen(open_own(path, os.O_RDONLY), "rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        while part := file.readline(_LONGEST):
            line = line_from(part.removesuffix(b"\n"), offset)
            while not part.endswith(b"\n"):
                if not (part := file.readline(_LONGEST)):
                    return
                line = Line(offset, file.tell(), b"")
            yield line
            offset = line.end


def points(run_dir: Path, key: str) -> list[tuple[int, float]]:
    """The points of the metric `key` in the journal of `run_dir`, in order; none where there is no journal."""
    name = _encode(key).encode()  # looked for first: most lines need not be parsed
    events = (line.event for line in read_lines(run_dir / JOURNAL) if line.kind == "metrics" and name in line.raw)
    found = {event["step"]: float(event["values"][key]) for event in events if event and key in event["values"]}
    return sorted(found.items())


def finished_at(journal: Path) -> int | None:
    """When the run finished (ms), by the journal's last line; None where that says something else."""
    try:
        with os.fdopen(open_own(journal, os.O_RDONLY), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
            *_, last = file.read().split(b"\n")[:-1] or [b""]
    except OSError:
        return None
    event = line_from(last).event
    return event["time"] if event is not None and event["event"] == "finish" and event["status"] == "FINISHED" else None


def is_delivered(run_dir: Path) -> bool:
    """Whether the server has all of the journal in `run_dir`; true where there is none."""
    try:
        size = (run_dir / JOURNAL).stat().st_size
    except OSError:
        return True
    sent = read_sent(run_dir)
    return bool(sent) and sent["sent"] == size and not sent["left_over"]


def read_sent(run_dir: Path) -> dict[str, Any]:
    """The sender's notes in `journal.sent`; empty where they are missing or damaged."""
    return sent_of(read_json(run_dir / SENT))


def sent_of(notes: dict[str, Any]) -> dict[str, Any]:
    """`notes`, if they say how far a run of the server has the journals; else nothing."""
    match notes:
        case {"run_id": str(), "left_over": list(places)}:
            numbers = [notes.get(kind + what) for kind in ("sent", "system") for what in ("", "_crc", "_next")]
            offsets = [place[1] for place in places if isinstance(place, list) and place[:-1] in ([JOURNAL], [SYSTEM])]
            if len(offsets) == len(places) and all(isinstance(n, int) and 0 <= n < _MOST for n in numbers + offsets):
                return notes
    return {}


def fits_journals(notes: Mapping[str, Any], run_dir: Path) -> bool:
    """Whether what `notes` call sent is what the journals still begin with."""
    return all(
        crc_of(run_dir / name, 0, notes[kind]) == notes[f"{kind}_crc"]
        for kind, name in (("sent", JOURNAL), ("system", SYSTEM))
    )


def crc_of(path: Path, start: int, end: int, crc: int = 0) -> int | None:
    """The CRC-32 of the bytes from `start` to `end`, going on from `crc`; None where the file is shorter."""
    if start == end:
        return crc
    try:
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            file.seek(start)
            while start < end:
                block = file.read(min(_READ, end - start))
                if not block:
                    return None
                crc = zlib.crc32(block, crc)
                start += len(block)
    except FileNotFoundError:
        return None
    return crc


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where the file is missing or damaged."""
    try:
        found = plain_json(read_file(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces `path` in one step: a reader sees the old content or the new one."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _cut_torn_line(file: int) -> int:
    size = end = os.fstat(file).st_size
    found = -1
    while end > 0 and found < 0:
        start = max(0, end - 65536)
        found = os.pread(file, end - start, start).rfind(b"\n")
        end = start + found + 1
    if end < size:
        os.ftruncate(file, end)
    return end


def _content(event: Mapping[str, Any]) -> bytes:
    """The part of the line that does not depend on where it stands: `"time": ..., "event": ...}`."""
    stamp = event.get("time", time.time_ns() // 1_000_000)
    others = {key: value for key, value in event.items() if key not in ("crc", "at", "time")}
    return _encode({"time": stamp, **others}).encode()[1:]


def _sealed(content: bytes, at: int) -> bytes:
    content = b'"at": %d, %b' % (at, content)
    return _SEAL % zlib.crc32(content) + content + b"\n"


def _is_event(event: Mapping[str, Any]) -> bool:
    """Whether it has what its kind has to have. Raises ValueError, TypeError or OverflowError for what is no number."""
    match {"dataset": None, "below": None, **event}:
        case {"event": "metrics", "step": int(), "values": dict(values)}:
            for value in values.values():
                float(value)
            return True
        case {"event": "picture", "step": int(), "key": str(), "file": str(), "id": str()}:
            return True
        case {"event": "artifact", "file": str()}:
            return True
        case {"event": "tags", "tags": dict(tags)}:
            return _are_texts(tags)
        case {"event": "finish", "status": "FINISHED" | "FAILED" | "KILLED", "tags": dict(tags)}:
            return _are_texts(tags)
        case {
            "event": "start", "attempt": str(), "experiment": str(), "run_name": str(), "resumed_at": int(),
            "run_id": str() | None, "artifacts": str(), "params": dict(params), "tags": dict(tags),
            "dataset": None | {"name": str(), "digest": str()}, "below": None | str(),
        }:  # fmt: skip
            return _are_texts(params) and _are_texts(tags)
    return False


def _are_texts(texts: Mapping[str, Any]) -> bool:
    return all(isinstance(text, str) for text in texts.values())
