"""Random damage to the files of a checkpoint is detected, or harmless: what is restored is identical.

In a process of its own, whose memory nothing else takes: a thread that an earlier test has left would count.
"""

from __future__ import annotations

from functools import partial

import damage
import pytest
from fork_server import ask


def fuzz_read(trials: int, **what: object) -> damage.Tally:
    return ask(partial(damage.fuzz_read, trials, **what))


def fuzz_restore(trials: int, **what: object) -> damage.Tally:
    return ask(partial(damage.fuzz_restore, trials, **what))


def check(tally: damage.Tally, trials: int) -> None:
    assert not tally.faults, f"{tally}\n" + "\n".join(tally.faults)
    assert tally.trials == trials and tally.detected > 0.8 * trials and 0 < tally.peak <= 2


def test_any_of_2000_damages_is_detected_or_harmless_within_twice_the_files_memory() -> None:
    check(fuzz_read(2000, seed=0), 2000)


def test_a_manifest_that_matches_its_checksum_and_is_wrong_is_detected() -> None:
    check(fuzz_read(200, seed=1, what="lie"), 200)


def test_content_that_no_release_wrote_is_refused_and_does_nothing_else() -> None:
    tally = fuzz_read(500, seed=2, what="forgery")
    assert not tally.faults, f"{tally}\n" + "\n".join(tally.faults)
    assert tally.detected > 200 and tally.peak <= 2


@pytest.mark.parametrize("kind", ["local", "memory", "file"])
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_older_one(kind: str) -> None:
    check(fuzz_restore(40, seed=3, kind=kind), 40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", ["damage", "lie"])
@pytest.mark.parametrize("kind", ["local", "memory", "file"])
def test_so_it_does_after_200_damages_of_every_kind(kind: str, what: str) -> None:
    check(fuzz_restore(200, seed=4, what=what, kind=kind), 200)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_damage_to_85_megabytes_is_found_in_hardly_more_memory_than_they_take() -> None:
    tally = fuzz_read(60, seed=5, width=512)
    check(tally, 60)
    assert tally.peak < 1.2  # but for a file that is twice as long, which its size gives away


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_forgeries_do_nothing_but_be_refused() -> None:
    tally = fuzz_read(10_000, seed=6, what="forgery")
    assert not tally.faults, f"{tally}\n" + "\n".join(tally.faults)
