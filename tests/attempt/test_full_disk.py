"""The real command, whose checkpoints are on a disk that is full for a while."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from processes import LONG, RUN, Start, saved, wait_for
from support import SrRun, command, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB: some ten checkpoints."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True
    ).returncode != 0:  # fmt: skip
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the space there is."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def failures(outputs: Path) -> list[float]:
    """The points of `checkpoint/failures` in MLflow, by step."""
    with closing(sqlite3.connect(outputs / "mlflow.db")) as database:
        rows = database.execute("select value from metrics where key = 'checkpoint/failures' order by step")
        return [value for (value,) in rows]


def test_training_goes_on_while_the_disk_is_full_and_saves_again_once_it_is_not(
    disk: Path, start: Start, sr_run: SrRun, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(*LONG, f"checkpoint.root={disk}", "checkpoint.max_failures=null", log=log)
    wait_for(lambda: len(saved(disk)) >= 3, process, log)
    filler = fill(disk)
    wait_for(lambda: "2 in a row. Training goes on, older checkpoints stay" in log.read_text(), process, log)
    assert "No space left on device" in log.read_text()
    kept = saved(disk)
    assert kept, "the older checkpoints are gone"
    filler.unlink()
    wait_for(lambda: max(saved(disk), default=0) > max(kept), process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM

    last = max(saved(disk))
    assert f"stopping on signal 15 at step {last}" in log.read_text()
    leftovers = [path.name for path in disk.glob("*/*/.*")]
    assert not leftovers, "half-written checkpoints were left"
    resumed = sr_run(*RUN, f"trainer.steps={last + 5}", f"checkpoint.root={disk}", "trainer.resume=true")
    assert f"resumed at step {last} of {last + 5}" in resumed.stderr
    assert failures(tmp_path / "outputs")[:2] == [1.0, 2.0]
    tensors = ("model.safetensors", "training.safetensors")
    sr_run(*RUN, f"trainer.steps={last + 5}", "outputs=unbroken", "tracker=none", timeout=280)
    (unbroken,) = (tmp_path / "unbroken" / "checkpoints").glob(f"*/*/step-{last + 5:08d}")
    (mine,) = disk.glob(f"*/*/step-{last + 5:08d}")
    assert [(mine / name).read_bytes() for name in tensors] == [(unbroken / name).read_bytes() for name in tensors]


def test_the_run_fails_after_so_many_failures_in_a_row_and_can_be_resumed(
    disk: Path, start: Start, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(*LONG, f"checkpoint.root={disk}", "checkpoint.max_failures=2", "tracker=none", log=log)
    wait_for(lambda: saved(disk), process, log)
    filler = fill(disk)
    assert process.wait(120) == 1
    text = log.read_text()
    assert "sr-run: 2 checkpoints in a row could not be written" in text and "No space left on device" in text
    assert "Traceback" not in text and saved(disk), "older checkpoints stay"
    filler.unlink()
    again = start(*LONG, f"checkpoint.root={disk}", "trainer.resume=true", "tracker=none", log=log)
    newest = max(saved(disk))
    wait_for(lambda: "resumed at step" in log.read_text(), again, log)
    said = re.search(r"resumed at step (\d+)", log.read_text())
    assert said is not None and int(said[1]) >= newest
    wait_for(lambda: max(saved(disk)) > newest, again, log)


def test_a_file_that_may_not_grow_any_further_is_a_failed_write_like_any_other(
    tmp_path: Path, image_cache: Path
) -> None:
    """Where nothing can be mounted: a limit of the process does what a full disk does, after 40 kB of a file."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    if not (image_cache / "warm").exists():
        (image_cache / "warm").mkdir()
        prepared = (*RUN, "trainer.steps=1", "tracker=none", "checkpoint=none", f"data.cache_dir={image_cache}")
        subprocess.run(command(*prepared), cwd=tmp_path, env=environment(), check=True, capture_output=True)
        shutil.rmtree(tmp_path / "outputs")
    done = subprocess.run(
        command(*RUN, "trainer.steps=50", "trainer.pictures=0", "tracker=none", f"data.cache_dir={image_cache}"),
        cwd=tmp_path, env=environment(), preexec_fn=limit, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"could not be written \(.*File too large\): 1 in a row. Training goes on", done.stderr)
    assert "sr-run: 3 checkpoints in a row could not be written" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "outputs" / "checkpoints").glob("*/*/step-*")), "half a checkpoint was committed"
