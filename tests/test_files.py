"""Scratch folders: one for each process, removed with it or after it; and what is no folder at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import environment

from sr_runner.commands.run import main
from sr_runner.files import draft_of, scratch_folder, write_file

HOLDER = """
import sys
from pathlib import Path
from sr_runner.files import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "checkpoint").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(),
        )
        for _ in range(2)
    ]  # fmt: skip
    killed, living = (Path((holder.stdout or sys.stdin).readline().strip()) for holder in holders)
    holders[0].kill()
    holders[0].wait()
    assert killed.is_dir() and living.is_dir()
    with scratch_folder(tmp_path) as mine:
        assert mine.is_dir() and (living / "checkpoint").is_dir() and not killed.exists()
    holders[1].communicate("")
    assert list(tmp_path.iterdir()) == [], "the folder of scratch folders stays"


def test_a_process_may_have_several(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        assert first.is_dir() and second.is_dir() and first != second


def test_where_nothing_can_be_written_the_systems_own_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("missing", "file"):
        with scratch_folder(tmp_path / place) as folder:
            assert folder.is_dir() and [path.name for path in tmp_path.iterdir()] == ["file"]
        assert not folder.exists()


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_file(path, "before")
    with pytest.raises(ZeroDivisionError), draft_of(path) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["checkpoint.root=s3://bucket/x"], "checkpoint.root"),
        (["outputs=gs://bucket/x"], "outputs"),
        (["data.cache_dir=https://host/x"], "data.cache_dir"),
        (["data=div2k", "data.root=file:///x"], "data.root"),
        (["hydra.run.dir=s3://bucket/x"], "hydra.run.dir"),
        (["-m", "seed=0", "hydra.sweep.dir=s3://bucket/x"], "hydra.sweep.dir"),
    ],
)
def test_a_url_where_a_folder_is_expected_is_refused_and_makes_none(
    words: list[str], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    value = words[-1].partition("=")[2]
    assert main(["tracker=none", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sr-run: {key}={value}: expected a folder, not a URL") and said.count("\n") == 1, said
    assert ("add checkpoint=s3" in said) == (key == "checkpoint.root")
    assert list(tmp_path.iterdir()) == []


def test_where_no_folder_can_be_made_the_systems_own_serves() -> None:
    """`/proc` says that it can be written."""
    with scratch_folder(Path("/proc")) as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()
