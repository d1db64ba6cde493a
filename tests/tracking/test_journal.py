"""The journal survives what happens to a process and to a disk."""

from __future__ import annotations

import json
import math
import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_runner.tracking.journal import JournalWriter, metrics_event, read_json, read_lines, write_json


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
    assert list(read_lines(path, lines[5].start, most=3)) == lines[5:8]


def test_lines_longer_than_a_block_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    JournalWriter(path).append({"event": "start", "params": {"long": "x" * 5_000_000}})
    (line,) = read_lines(path)
    assert line.event is not None
    assert len(line.event["params"]["long"]) == 5_000_000


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
    path.write_bytes(b'\0\0\0\0\n[1]\n{"time": 1}\n{"time": 1, "event": "metrics", "step": 3, "values": {}}\n')
    assert [line.event is None for line in read_lines(path)] == [True, True, True, False]


def test_a_damaged_or_missing_json_file_reads_as_empty(tmp_path: Path) -> None:
    assert read_json(tmp_path / "no.json") == {}
    (tmp_path / "bad.json").write_text('{"a": ')
    assert read_json(tmp_path / "bad.json") == {}
    write_json(tmp_path / "good.json", {"a": 1})
    assert read_json(tmp_path / "good.json") == {"a": 1}
    assert not list(tmp_path.glob("*.tmp"))
