"""What the folder of a run says of it."""

from __future__ import annotations

from pathlib import Path

from sr_runner.runs import folder as files


def test_a_run_took_as_long_as_the_starts_that_trained_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "edsr-x2-000000000000" / "a0001-00aa"
    assert files.seconds(run, 60) is None

    def start(step: int, seconds: float | None) -> None:
        files.begin(run, {}, "", {"step": step})
        if seconds is not None:
            files.end(run, "stopped", seconds)

    start(0, 5.25)
    start(20, None)  # killed
    assert files.seconds(run, 20) == 5.25
    start(40, 3)
    start(60, 2)  # it was done already, and only looked at again
    assert files.seconds(run, 60) == 8.25
    (run / files.STARTS).write_text('{"end": 1, "seconds": "x"}\n{"step": []}\n{"end": 1, "seconds": 1}\n')
    assert files.seconds(run, 60) is None
