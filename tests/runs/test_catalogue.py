"""Which attempts there are, and what they are known by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saved_runs import FACTS, IDENTITY, save

from sr_runner.checkpoint import LocalStore
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Attempt, Catalogue, difference


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "runs", LocalStore(tmp_path / "checkpoints"), tmp_path / "scratch", lambda run_id: None)


def begin(catalogue: Catalogue, attempt: Attempt, **facts: object) -> None:
    files.begin(catalogue.folder(attempt), FACTS | facts, "", {})


def test_attempts_are_numbered_on_from_the_newest_folder_or_checkpoint(catalogue: Catalogue) -> None:
    assert catalogue.named(IDENTITY) is None
    first = catalogue.open_new(IDENTITY)
    assert first.name.startswith("a0001-") and catalogue.folder(first).is_dir()
    assert catalogue.store is not None
    save(catalogue.store, f"{IDENTITY}/a0007-cccc", 10)
    assert [each.name for each in catalogue.attempts(IDENTITY)] == [first.name, "a0007-cccc"]
    assert catalogue.open_new(IDENTITY).name.startswith("a0008-")
    assert catalogue.identities() == {IDENTITY}


def test_what_is_no_attempt_is_passed_over(catalogue: Catalogue, tmp_path: Path) -> None:
    for name in ("a1-ffff", "a0001-xyz", "backup", "a0002-ffff/x"):
        (catalogue.runs / IDENTITY / name).mkdir(parents=True)
    (catalogue.runs / IDENTITY / "a0003-ffff").symlink_to(tmp_path)
    (catalogue.runs / IDENTITY / "a0004-ffff").write_text("")
    assert [each.name for each in catalogue.attempts(IDENTITY)] == ["a0002-ffff"]
    assert catalogue.named("../runs") is None and catalogue.named(IDENTITY, "a0009-ffff") is None


def test_an_id_of_mlflow_is_found_in_folders_then_at_the_server_then_in_checkpoints(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    assert catalogue.store is not None
    save(catalogue.store, f"{IDENTITY}/a0001-aaaa", 10, tracker={"run_id": "c" * 32})
    folder = catalogue.folder(Attempt(IDENTITY, "a0002-bbbb"))
    folder.mkdir(parents=True)
    (folder / files.TRACKER).write_text(json.dumps({"run_id": "f" * 32}))
    asked = Catalogue(catalogue.runs, None, tmp_path, {"5" * 32: f"{IDENTITY}/a0003-dddd"}.get)
    assert catalogue.of_run_id("f" * 32) == Attempt(IDENTITY, "a0002-bbbb")
    assert asked.of_run_id("5" * 32) == Attempt(IDENTITY, "a0003-dddd")
    assert catalogue.of_run_id("c" * 32) == Attempt(IDENTITY, "a0001-aaaa")
    assert catalogue.of_run_id("0" * 32) is None


def test_near_misses_are_the_runs_that_differ_in_the_fewest_keys(catalogue: Catalogue) -> None:
    begin(catalogue, Attempt("near-x2-000000000001", "a0001-aaaa"), seed=1)
    begin(catalogue, Attempt("nearer-x2-000000000002", "a0001-aaaa"), seed=2)
    begin(catalogue, Attempt("near-x2-000000000001", "a0002-aaaa"), seed=1, extra=3)
    begin(catalogue, Attempt("far-x2-000000000003", "a0001-aaaa"), a=1, b=2, c=3, d=4, e=5)
    begin(catalogue, Attempt("same-x2-000000000004", "a0001-aaaa"))
    misses = catalogue.near_misses(FACTS, IDENTITY)
    assert misses == [
        ("nearer-x2-000000000002", {"seed": (0, 2)}),
        ("near-x2-000000000001", {"extra": (None, 3), "seed": (0, 1)}),
    ]


def test_facts_come_from_the_folder_or_from_the_newest_checkpoint(catalogue: Catalogue) -> None:
    assert catalogue.store is not None
    attempt = Attempt(IDENTITY, "a0001-aaaa")
    assert catalogue.facts(attempt) is None
    save(catalogue.store, str(attempt), 10)
    assert catalogue.facts(attempt) == FACTS
    begin(catalogue, attempt, seed=5)
    assert catalogue.facts(attempt) == FACTS | {"seed": 5}
    assert difference({"a": 1, "b": 2}, {"b": 3, "c": None}) == {"a": (1, None), "b": (2, 3)}
