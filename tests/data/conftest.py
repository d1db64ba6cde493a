"""A server of DIV2K's archives, and where they are downloaded to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from div2k_server import Server, serving

from sr_runner.data import download as downloads


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that downloads would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(downloads, "sleep", slept.append)
    return slept


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "div2k"
