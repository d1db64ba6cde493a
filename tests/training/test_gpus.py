"""A GPU of its own for each job: which one it gets, and that it is given back. Names stand for GPUs here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support import TINY

from sr_runner.commands.run import main
from sr_runner.training import gpus


class Job:
    """A process that holds a GPU of `uuids` until it is killed."""

    def __init__(self, folder: Path, *uuids: str) -> None:
        self._said, saying = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            with gpus.own_gpu(folder, uuids) as index:
                os.write(saying, f"{index}".encode())
                signal.pause()
        os.close(saying)

    def index(self) -> int:
        return int(os.read(self._said, 9))

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._said)


def test_jobs_side_by_side_get_different_gpus_and_a_killed_one_gives_its_own_to_the_job_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_LOOK_EVERY", 0.01)
    first = Job(tmp_path, "a", "b")
    assert first.index() == 0
    second = Job(tmp_path, "a", "b")
    assert second.index() == 1
    others = Job(tmp_path, "b", "c")  # CUDA_VISIBLE_DEVICES of another sweep: its first is taken
    assert others.index() == 1
    third = Job(tmp_path, "a", "b")
    os.set_blocking(third._said, False)
    with pytest.raises(BlockingIOError):
        third.index()
    os.set_blocking(third._said, True)
    second.kill()
    assert third.index() == 1
    for job in (first, others, third):
        job.kill()
    for _ in range(2):  # a process that does one job after another
        with gpus.own_gpu(tmp_path, ["a", "b"]) as index:
            assert index == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [([], "sweep.gpu_per_job=true: this machine has no CUDA device"), (["trainer.device=cpu"], "trainer.device=cpu: ")],
)
def test_a_sweep_that_cannot_have_a_gpu_per_job_is_refused_before_it_begins(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["-m", *TINY, "seed=0,1", "sweep.gpu_per_job=true", *given]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
