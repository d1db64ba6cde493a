"""Random command lines: one message and status 2, or status 0; nothing is left outside their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_lines import search


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_any_command_line_ends_in_one_message_or_well(seed: int, tmp_path: Path) -> None:
    scratch = tmp_path / "below"
    scratch.mkdir()
    faults = {ascii(words): fault for words, fault in search(50, seed, scratch) if fault}
    assert not faults, "\n".join(f"{words}\n{fault}" for words, fault in faults.items())
    assert list(tmp_path.iterdir()) == [scratch] and not (scratch / "outputs" / "runs").exists()
