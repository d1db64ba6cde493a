"""A journal that is harmed at random; `tests/tools/journal_damage.py --trials 3000` does the same at length."""

from __future__ import annotations

from pathlib import Path

import journal_damage


def test_no_damage_of_a_journal_doubles_a_point_or_loses_one_without_a_warning(empty_database: Path) -> None:
    tally = journal_damage.fuzz(24, seed=3, empty=empty_database)
    assert tally.faults == []
    assert tally.trials == 24
    assert tally.harmed > 18
    assert tally.lost > 0
