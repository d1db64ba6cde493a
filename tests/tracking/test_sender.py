"""The sender in this process: what it does with its life line, with a server that is away, and at its end."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sr_runner.tracking import sender as module
from sr_runner.tracking.journal import JOURNAL, JournalWriter, metrics_event
from sr_runner.tracking.sender import LifeLine, Sender, last_life, serve

NOBODY = "http://127.0.0.1:9"


class Clock:
    """A sleep takes no time, and moves it."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += max(seconds, 1e-3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    mine = SimpleNamespace(monotonic=lambda: made.now, sleep=made.sleep, time=lambda: made.now)
    monkeypatch.setattr(module, "time", mine)
    return made


Pipe = tuple[Callable[[], LifeLine], int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A maker of life lines, and the training process' end."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", 0) as stream:
        yield lambda: LifeLine(stream, 20), writing


def journal(folder: Path, *events: dict[str, Any]) -> Path:
    start = {
        "event": "start", "attempt": "tiny/1", "experiment": "tests", "run_name": "tiny", "resumed_at": 0,
        "run_id": None, "artifacts": str(folder / "artifacts"), "params": {}, "tags": {},
    }  # fmt: skip
    writer = JournalWriter(folder / "run" / JOURNAL)
    for event in (start, *events):
        writer.append(event)
    writer.close()
    return folder / "run"


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def teller(reports: io.StringIO) -> Callable[[dict[str, object]], None]:
    return lambda report: print(json.dumps(report), file=reports)


def sent(
    run_dir: Path, life: LifeLine, uri: str, *, finished: bool = False, system_metrics: bool = False
) -> tuple[bool, dict[str, Any], list[str]]:
    """Whether all was sent, the facts that were reported, and the messages."""
    reports = io.StringIO()
    sender = Sender(run_dir, uri, life, teller(reports), system_metrics=system_metrics, finished=finished)
    done = serve(life, {run_dir: sender}, lambda *_: sender)
    facts: dict[str, Any] = {}
    for line in reports.getvalue().splitlines():
        facts |= json.loads(line)
    return done, facts, [said for line in reports.getvalue().splitlines() if (said := json.loads(line).get("message"))]


def status(uri: str, run_id: str) -> str:
    from mlflow import MlflowClient

    found: str = MlflowClient(uri).get_run(run_id).info.status
    return found


FINISH = {"event": "finish", "status": "FINISHED", "tags": {}}


def test_what_is_said_may_come_in_parts(pipe: Pipe, clock: Clock) -> None:
    made, writing = pipe
    life = made()
    os.write(writing, b'{"begin": "/a"}\n{"en')
    assert life.wait(1) == [{"begin": "/a"}]
    os.write(writing, b'd": "/a"}\n')
    assert life.wait(1) == [{"end": "/a"}] and not life.closed and not life.overdue
    os.close(writing)
    assert life.wait(1) == [] and life.closed and life.deadline == clock.now + 20


def test_a_training_process_that_is_gone_has_died_and_the_sender_gives_up_in_time(pipe: Pipe, clock: Clock) -> None:
    made, writing = pipe
    life = made()
    os.close(writing)
    life.wait(1)
    assert life.closed and not life.overdue
    for _ in range(20):
        life.made_progress()
        assert not life.overdue
        life.wait(5)
    assert life.overdue and clock.slept == [1.0] * 20


def test_a_training_process_whose_child_keeps_the_pipe_open_has_died_as_well(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = pipe[0]()
    life.wait(0)
    assert not life.closed
    monkeypatch.setattr(os, "getppid", lambda: 1)
    life.wait(0)
    assert life.closed
    os.close(pipe[1])


def test_who_delivers_the_rest_gives_up_a_while_after_the_last_progress(clock: Clock) -> None:
    life = LifeLine(None, 60)
    assert life.closed and not life.overdue
    clock.now += 59
    life.made_progress()
    clock.now += 59
    assert not life.overdue
    clock.now += 1
    assert life.overdue


def test_all_is_sent_and_said_to_be(tmp_path: Path, uri: str, clock: Clock) -> None:
    run_dir = journal(tmp_path, metrics_event(1, {"loss": 0.5}), FINISH)
    done, facts, said = sent(run_dir, LifeLine(None, 60), uri, finished=True)
    assert done and facts["done"] is True and said == [] and status(uri, facts["run_id"]) == "FINISHED"


@pytest.mark.parametrize("finished", [False, True])
def test_the_run_of_a_process_that_died_is_killed_unless_it_had_finished(
    finished: bool, tmp_path: Path, uri: str, pipe: Pipe, clock: Clock
) -> None:
    made, writing = pipe
    life = made()
    os.close(writing)
    done, facts, _ = sent(journal(tmp_path, *([FINISH] if finished else [])), life, uri)
    assert done and facts["done"] is True and status(uri, facts["run_id"]) == ("FINISHED" if finished else "KILLED")


def test_a_server_that_stays_away_is_said_once_and_what_is_left_is_left(tmp_path: Path, clock: Clock) -> None:
    reports = io.StringIO()
    sender = Sender(journal(tmp_path), NOBODY, LifeLine(None, 60), teller(reports))
    for failures in range(1, 7):
        sender._trouble("no answer")
        assert sender._failures == failures
    assert reports.getvalue().count("cannot be reached") == 1 and '"trouble": "no answer"' in reports.getvalue()
    sender._recovered()
    assert sender._failures == 0 and reports.getvalue().count("takes points again") == 1
    assert reports.getvalue().count('"trouble": null') == 1
    sender._recovered()
    assert reports.getvalue().count('"trouble": null') == 1
    sender._trouble("no answer")
    sender._recovered()
    assert reports.getvalue().count("takes points again") == 1  # a single failure is not worth a word
    done, facts, said = sent(tmp_path / "run", LifeLine(None, 3), NOBODY)
    assert not done and facts["done"] is False and facts["trouble"]
    assert len([each for each in said if "cannot be reached" in each]) == 1


def test_pauses_grow_while_the_server_is_away_and_are_short_at_the_end(tmp_path: Path, pipe: Pipe) -> None:
    made, writing = pipe
    life = made()
    sender, pauses = Sender(tmp_path, NOBODY, life, teller(io.StringIO()), system_metrics=False), list[float]()
    assert sender._pause() == 5
    for _ in range(6):
        sender._trouble("no answer")
        pauses.append(sender._pause())
    assert pauses == [1, 2, 4, 8, 10, 10]
    sender.finished = True
    assert sender._pause() == 1
    os.close(writing)


def test_a_file_that_the_server_does_not_take_is_tried_again_and_leaves_the_rest_undone(
    tmp_path: Path, uri: str, clock: Clock
) -> None:
    (tmp_path / "artifacts").write_text("a file where the folder should be")
    run_dir = journal(tmp_path, {"event": "artifact", "file": "run.log"}, metrics_event(1, {"loss": 0.5}), FINISH)
    (run_dir / "run.log").write_text("log")
    done, facts, said = sent(run_dir, LifeLine(None, 600), uri, finished=True)
    assert not done and facts["trouble"] == "the server does not take some files" and not facts["done"]
    assert [each for each in said if "set aside for later" in each] and status(uri, facts["run_id"]) == "FINISHED"
    (tmp_path / "artifacts").unlink()
    assert sent(run_dir, LifeLine(None, 600), uri, finished=True)[0]


def test_a_journal_without_a_start_is_said(tmp_path: Path, clock: Clock) -> None:
    JournalWriter(tmp_path / JOURNAL).close()
    done, _, (said,) = sent(tmp_path, LifeLine(None, 60), NOBODY)
    assert not done and "has no start line" in said


def test_a_life_is_finished_by_the_word_that_follows_its_start(tmp_path: Path) -> None:
    run_dir = journal(tmp_path, FINISH)
    assert last_life(run_dir / JOURNAL)[1]
    journal(tmp_path)
    start, finished = last_life(run_dir / JOURNAL)
    assert start is not None and not finished


def test_a_run_that_is_gone_from_the_server_is_recorded_there_again(
    tmp_path: Path, uri: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sr_runner.tracking.delivery import Delivery
    from sr_runner.tracking.run_writer import RunGone

    work, works = Delivery.work, []

    def gone(delivery: Delivery) -> bool:
        works.append(delivery._writer)
        if len(works) == 2:
            raise RunGone("r1")
        return work(delivery)

    monkeypatch.setattr(Delivery, "work", gone)
    done, facts, said = sent(journal(tmp_path, FINISH), LifeLine(None, 60), uri, finished=True)
    assert done and works[2] is None and status(uri, facts["run_id"]) == "FINISHED"
    assert said == ["run r1 is no longer in MLflow; it is recorded there again, from its start"]


def test_an_end_that_the_server_does_not_take_is_left(
    tmp_path: Path, uri: str, clock: Clock, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sr_runner.mlflow_server import Unreachable
    from sr_runner.tracking.delivery import Delivery

    def away(*_: object) -> None:
        raise Unreachable("away")

    monkeypatch.setattr(Delivery, "kill", away)
    life = pipe[0]()
    os.close(pipe[1])
    done, facts, _ = sent(journal(tmp_path), life, uri)
    assert not done and facts["done"] is False


def test_system_metrics_go_on_after_the_servers_last_step_and_end_with_the_training(
    tmp_path: Path, uri: str, clock: Clock, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Path, int]] = []

    class Metrics:
        def __init__(self, path: Path, first_step: int) -> None:
            made.append((path, first_step))
            os.close(pipe[1])  # the training ends

        def stop(self) -> None:
            made.append((Path("stopped"), 0))

    monkeypatch.setattr("sr_runner.tracking.system_metrics.SystemMetrics", Metrics)
    run_dir = journal(tmp_path, metrics_event(8, {"system/cpu": 1.0}), FINISH)
    assert sent(run_dir, LifeLine(None, 60), uri, finished=True, system_metrics=True)[0] and made == []
    assert sent(run_dir, pipe[0](), uri, system_metrics=True)[0]
    assert made[0] == (run_dir / "system.jsonl", 9) and made[1][0] == Path("stopped")


def test_a_machine_whose_load_cannot_be_measured_is_said_once(
    tmp_path: Path, uri: str, clock: Clock, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ImportError("psutil is missing")

    monkeypatch.setattr("sr_runner.tracking.system_metrics.SystemMetrics", missing)
    life = pipe[0]()
    wait, waits = life.wait, []

    def waiting(seconds: float) -> list[dict[str, Any]]:
        waits.append(seconds)
        clock.now += seconds
        if len(waits) == 6:
            os.close(pipe[1])
        return wait(0)

    life.wait = waiting  # type: ignore[method-assign]
    done, _, said = sent(journal(tmp_path, FINISH), life, uri, system_metrics=True)
    assert done and said == ["no system metrics: psutil is missing"]


def test_a_run_whose_folder_cannot_be_used_any_more_ends_no_sender(
    tmp_path: Path, uri: str, clock: Clock, pipe: Pipe
) -> None:
    (tmp_path / "gone").write_text("")
    sender = Sender(tmp_path / "gone", uri, pipe[0](), teller(io.StringIO()), system_metrics=False)
    assert sender.step() is None and sender._failures == 1 and sender.due > clock.now
    os.close(pipe[1])


def test_one_sender_serves_many_runs_and_a_run_that_fails_holds_up_no_other(
    tmp_path: Path, uri: str, clock: Clock, pipe: Pipe
) -> None:
    made, writing = pipe
    life, reports = made(), io.StringIO()
    runs = [journal(tmp_path / name, metrics_event(1, {"loss": 0.5}), FINISH) for name in ("a", "b", "c", "d")]
    (runs[1] / JOURNAL).write_bytes(b"")  # nothing that could be sent
    words = [{"begin": str(run)} for run in runs] + [{"end": str(run)} for run in runs[:2]] + [{"drop": str(runs[3])}]
    os.write(writing, "".join(json.dumps(word) + "\n" for word in words).encode())
    wait = life.wait

    def waiting(seconds: float) -> list[dict[str, Any]]:
        clock.now += seconds
        if said_done() == {"a": True, "b": False} and not life.closed:
            os.close(writing)
        return wait(0)

    def said_done() -> dict[str, bool]:
        said = map(json.loads, reports.getvalue().splitlines())
        return {Path(each["run"]).parent.name: each["done"] for each in said if "done" in each}

    life.wait = waiting  # type: ignore[method-assign]
    make = lambda run, measures: Sender(run, uri, life, teller(reports), system_metrics=measures)  # noqa: E731
    assert not serve(life, {}, make)
    assert said_done() == {"a": True, "b": False, "c": True}
