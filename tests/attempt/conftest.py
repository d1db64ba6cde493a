from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from processes import Start
from support import command, environment


@pytest.fixture
def start(tmp_path: Path, image_cache: Path) -> Iterator[Start]:
    """`start("key=value", ..., log=path)`: the real `sr-run` in `tmp_path`, killed when the test ends."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, log: Path, also: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            process = subprocess.Popen(
                command(*arguments, f"data.cache_dir={image_cache}"), cwd=tmp_path, stdout=file, stderr=file,
                env=environment() | dict(also or {}), stdin=subprocess.DEVNULL,
            )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
