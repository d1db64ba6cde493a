"""The journal survives what happens to a process and to a disk."""

from __future__ import annotations

import json
import math
import os
import resource
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_runner.tracking.journal import JournalWriter, line_from, metrics_event, read_json, read_lines, write_json

GOOD = b'"at": 0, "time": 1, "event": "metrics", "step": 3, "values": {"loss": 1}}'
"""A line less its checksum."""


@given(st.dictionaries(st.text(min_size=1), st.floats()), st.integers(-(2**53), 2**53))
def test_every_float_comes_back_as_it_was(values: dict[str, float], step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.jsonl")
        JournalWriter(path).append(metrics_event(step, values))
        (line,) = read_lines(path)
    event = line.event
    assert event is not None
    assert event["step"] == line.step == step
    back = {key: float(value) for key, value in event["values"].items()}
    assert back.keys() == values.keys()
    assert all(back[key] == value or (math.isnan(value) and math.isnan(back[key])) for key, value in values.items())


def test_every_line_is_strict_json_that_other_programs_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    JournalWriter(path).append(metrics_event(1, {"loss": math.nan, "norm": math.inf, "low": -math.inf}))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    event = json.loads(path.read_text(), parse_constant=refuse)
    assert event["values"] == {"loss": "nan", "norm": "inf", "low": "-inf"}


@pytest.mark.parametrize("torn", [b"{", b'{"time": 1, "event": "metr', b"x" * 200_000])
def test_a_half_written_last_line_is_cut_off_and_the_others_stay(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path)
    writer.append(metrics_event(1, {"loss": 1.0}))
    writer.close()
    with path.open("ab") as file:
        file.write(torn)
    again = JournalWriter(path)
    again.append(metrics_event(2, {"loss": 2.0}))
    assert again.size == path.stat().st_size
    assert [line.step for line in read_lines(path)] == [1, 2]


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    JournalWriter(path).append(metrics_event(1, {"loss": 1.0}))
    with path.open("ab") as file:
        file.write(b'{"time": 1, "event": "metrics"')
    assert len(list(read_lines(path))) == 1


def test_offsets_lead_back_to_the_same_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path)
    for step in range(100):
        writer.append(metrics_event(step, {"valid/psnr · dB": step / 3, "filler": "x" * 0 or step}))
    lines = list(read_lines(path))
    assert lines[-1].end == writer.size
    for number in (0, 41, 99):
        assert list(read_lines(path, lines[number].start)) == lines[number:]


def test_lines_longer_than_a_block_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    JournalWriter(path).append({"event": "finish", "status": "FINISHED", "tags": {"long": "x" * 5_000_000}})
    (line,) = read_lines(path)
    assert line.event is not None
    assert len(line.event["tags"]["long"]) == 5_000_000


def test_what_a_full_disk_refused_is_written_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = JournalWriter(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
    try:
        writer.append(metrics_event(1, {"loss": 1.0}))
        for step in (2, 3):
            with pytest.raises(OSError, match="File too large"):
                writer.append(metrics_event(step, {"loss": 1.0}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [line.step for line in read_lines(path)] == [1]
    writer.append(metrics_event(4, {"loss": 1.0}))
    assert [line.step for line in read_lines(path)] == [1, 2, 3, 4]


def test_damaged_lines_have_no_event(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    good = b'{"crc": "%08x", ' + GOOD
    path.write_bytes(b'\0\0\0\0\n[1]\n{"time": 1}\n' + good % zlib.crc32(GOOD) + b"\n" + good % 7 + b"\n")
    assert [line.event is None for line in read_lines(path)] == [True, True, True, False, True]


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_a_line_with_any_other_bytes_in_it_has_no_event(position: int, other: bytes) -> None:
    raw = b'{"crc": "%08x", ' % zlib.crc32(GOOD) + GOOD
    position %= len(raw)
    changed = raw[:position] + other + raw[position + len(other) :]
    line = line_from(changed)
    assert (line.event is None, line.at, line.kind, line.step) == (True, None, "", None) or changed == raw


@pytest.mark.parametrize(
    "content",
    [
        *(GOOD.replace(b'"step": 3', b'"step": ' + step) for step in (b'"3"', b"null", b"1e3", b"9" * 19, b"9" * 5000)),
        *(GOOD.replace(b'{"loss": 1}', values) for values in (b"[]", b'{"a": null}', b'{"a": {}}', b'{"a": "x"}')),
        GOOD.replace(b'{"loss": 1}', b'{"a": 1' + b"0" * 400 + b"}"),
        GOOD.replace(b'{"loss": 1}', b"[" * 100_000),
        GOOD.replace(b'"loss"', b'"\xff"'),
        GOOD.replace(b"}}", b'}, "time": {}}'),
        GOOD.replace(b"metrics", b"unknown"),
        b'"at": 0, "time": 1, "event": "picture", "step": 3, "key": "a", "file": 4, "id": "x"}',
        b'"at": 0, "time": 1, "event": "artifact"}',
        b'"at": 0, "time": 1, "event": "finish", "status": "GOOD", "tags": {}}',
        b'"at": 0, "time": 1, "event": "start", "attempt": "a/1"}',
    ],
    ids=str,
)
def test_a_line_that_is_no_entry_has_no_event_though_its_checksum_fits(content: bytes) -> None:
    line = line_from(b'{"crc": "%08x", ' % zlib.crc32(content) + content)
    assert line.raw
    assert line.event is None


def test_a_line_without_end_is_passed_over_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    size = 200_000_000
    writer = JournalWriter(path)
    os.truncate(path, size)
    with path.open("ab") as file:
        file.write(b"\n")
    writer = JournalWriter(path)
    writer.append(metrics_event(1, {"loss": 1.0}))
    tracemalloc.start()
    damaged, whole = read_lines(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000
    assert (damaged.start, damaged.end, damaged.event) == (0, size + 1, None)
    assert whole.step == 1


def test_a_damaged_or_missing_json_file_reads_as_empty(tmp_path: Path) -> None:
    assert read_json(tmp_path / "no.json") == {}
    (tmp_path / "bad.json").write_text('{"a": ')
    assert read_json(tmp_path / "bad.json") == {}
    write_json(tmp_path / "good.json", {"a": 1})
    assert read_json(tmp_path / "good.json") == {"a": 1}
    assert not list(tmp_path.glob("*.tmp"))
