"""What becomes of a journal in MLflow, on a real SQLite database."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sr_runner.mlflow_server import Unreachable
from sr_runner.tracking import SWEEP_TAG, journal
from sr_runner.tracking.journal import IDS, JOURNAL, SENT, JournalWriter, metrics_event, read_json, write_json


@dataclass
class House:
    """An outputs folder with MLflow's database in it, and the journal of one run."""

    folder: Path
    uri: str
    said: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run_dir = self.folder / "run"
        self.writer = JournalWriter(self.run_dir / JOURNAL)

    def start(self, **changes: Any) -> None:
        event = {
            "event": "start",
            "attempt": "tiny/1",
            "experiment": "tests",
            "run_name": "tiny",
            "resumed_at": 0,
            "run_id": None,
            "artifacts": str(self.folder / "artifacts"),
            "params": {"optimizer.lr": "0.0001"},
            "tags": {"identity": "tiny"},
        }
        self.writer.append({**event, **changes})

    def report(self, message: str | None = None, *, level: str = "info", **facts: object) -> None:
        self.facts |= facts
        if message:
            self.said.append(message)

    def delivery(self) -> Any:
        from sr_runner.mlflow_server import Server
        from sr_runner.tracking.delivery import Delivery
        from sr_runner.tracking.sender import last_life

        start, _ = last_life(self.run_dir / JOURNAL)
        return Delivery(self.run_dir, Server(self.uri, self.folder / "artifacts"), start, self.report)

    def deliver(self) -> Any:
        delivery = self.delivery()
        while delivery.work():
            pass
        return delivery

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    @property
    def run(self) -> Any:
        return self.client.get_run(self.facts["run_id"])

    def history(self, key: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.client.get_metric_history(self.facts["run_id"], key)]


@pytest.fixture
def house(tmp_path: Path, empty_database: Path) -> Iterator[House]:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    yield House(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")


def test_a_journal_becomes_a_run_with_params_tags_dataset_and_points(house: House) -> None:
    data = {"name": "sample", "source": "scikit-image", "digest": "5" * 64, "train_images": 12}
    house.start(dataset=data, time=1_700_000_000_000)
    house.writer.append(metrics_event(1, {"train/loss": 0.5}))
    house.writer.append({"event": "finish", "status": "FINISHED", "tags": {"status": "finished"}})
    house.deliver()
    run = house.run
    assert run.info.run_name == "tiny"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == 1_700_000_000_000
    assert run.data.params == {"optimizer.lr": "0.0001"}
    assert run.data.tags["identity"] == "tiny"
    assert run.data.tags["status"] == "finished"
    assert run.data.tags["sr_run.attempt"] == "tiny/1"
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("sample", "5" * 36)
    assert json.loads(given.dataset.profile) == {"train_images": 12}
    assert run.info.artifact_uri.startswith(f"{house.folder.as_uri()}/artifacts/")
    assert read_json(house.run_dir / IDS)["run_id"] == run.info.run_id


def test_a_journal_sent_twice_makes_every_point_once(house: House) -> None:
    house.start()
    for step in range(1500):
        house.writer.append(metrics_event(step, {"loss": 1 / (step + 1), "nan": math.nan, "inf": math.inf}))
    house.deliver()
    progress = read_json(house.run_dir / SENT)
    assert progress["sent"] == house.writer.size
    write_json(house.run_dir / SENT, {**progress, "sent": 0})
    house.deliver()
    assert house.history("loss") == [(step, 1 / (step + 1)) for step in range(1500)]
    assert len(house.history("nan")) == len(house.history("inf")) == 1500


def test_a_sender_that_lost_all_its_notes_finds_the_run_by_its_tag(house: House) -> None:
    house.start()
    house.writer.append(metrics_event(1, {"loss": 0.5}))
    house.deliver()
    first = house.facts["run_id"]
    for name in (SENT, IDS):
        (house.run_dir / name).unlink()
    house.writer.append(metrics_event(2, {"loss": 0.25}))
    house.deliver()
    assert house.facts["run_id"] == first
    assert house.history("loss") == [(1, 0.5), (2, 0.25)]


def test_the_second_run_that_a_hanging_server_made_is_deleted(house: House) -> None:
    house.start()
    house.deliver()
    run = house.run
    double = house.client.create_run(run.info.experiment_id, tags={"sr_run.attempt": "tiny/1"})
    house.writer.append({"event": "finish", "status": "FINISHED", "tags": {}})
    house.deliver()
    assert house.client.get_run(double.info.run_id).info.lifecycle_stage == "deleted"
    assert house.run.info.lifecycle_stage == "active"


def test_what_mlflow_refuses_is_reported_once_and_holds_up_nothing(house: House) -> None:
    house.start(params={"a//b": "1", "good": "2", "we[i]rd": "3"}, tags={"//": "x", "fine": "y" * 9000})
    for step in range(20):
        house.writer.append(metrics_event(step, {"../up": 1.0, "loss": float(step), "l[0]": 2.0}))
    house.deliver()
    assert house.history("loss") == [(step, float(step)) for step in range(20)]
    assert house.history("l_0_") == [(step, 2.0) for step in range(20)]
    assert house.run.data.params == {"good": "2", "we_i_rd": "3"}
    assert house.run.data.tags["fine"] == "y" * 7999 + "…"
    refused = [message for message in house.said if "refuses" in message]
    assert len([message for message in refused if "'../up'" in message]) == 1
    assert len(refused) == 3


def test_a_param_that_differs_stays_what_it_was_and_new_ones_are_added(house: House) -> None:
    house.start(params={"trainer.steps": "100", "long": "x" * 7000})
    house.start(params={"trainer.steps": "200", "long": "x" * 7000, "new": "1"})
    house.deliver()
    params = house.run.data.params
    assert (params["trainer.steps"], params["new"]) == ("100", "1")
    assert params["long"] == "x" * 5999 + "…"
    assert house.said == ["params cannot be changed in MLflow and stay what they were: trainer.steps"]


def test_a_resumed_run_is_running_again(house: House) -> None:
    house.start()
    house.writer.append({"event": "finish", "status": "FAILED", "tags": {}})
    house.deliver()
    assert house.run.info.status == "FAILED"
    house.start(resumed_at=10)
    house.deliver()
    assert house.run.info.status == "RUNNING"


def test_pictures_are_named_as_mlflows_own_are_and_keep_their_names(house: House) -> None:
    Image.new("RGB", (600, 200), "red").save(house.folder / "run/strip.png")
    house.start()
    picture = {"event": "picture", "step": 100, "key": "valid/chelsea", "file": "strip.png", "id": "0-1-2"}
    house.writer.append(picture)
    house.deliver()
    write_json(house.run_dir / SENT, {**read_json(house.run_dir / SENT), "sent": 0})
    house.deliver()
    ours = sorted(entry.path for entry in house.client.list_artifacts(house.facts["run_id"], "images"))
    reference = house.client.create_run(house.run.info.experiment_id).info.run_id
    house.client.log_image(reference, Image.new("RGB", (600, 200)), key="valid/chelsea", step=100, timestamp=1)
    theirs = sorted(entry.path for entry in house.client.list_artifacts(reference, "images"))
    assert len(ours) == len(theirs) == 2

    def shape(path: str) -> str:
        return re.sub(r"timestamp\+\d+\+[0-9a-f-]+", "timestamp+T+ID", path)

    assert [shape(path) for path in ours] == [shape(path) for path in theirs]
    assert house.run.data.tags["mlflow.loggedImages"] == "True"
    place = house.client.download_artifacts(house.facts["run_id"], next(path for path in ours if "webp" in path))
    assert max(Image.open(place).size) == 256


def test_a_picture_or_artifact_that_is_gone_is_said_and_passed_over(house: House) -> None:
    house.start()
    house.writer.append({"event": "picture", "step": 1, "key": "a", "file": "gone.png", "id": "1"})
    house.writer.append({"event": "artifact", "file": "gone.log"})
    house.writer.append(metrics_event(1, {"loss": 0.5}))
    house.deliver()
    assert house.history("loss") == [(1, 0.5)]
    assert len(house.said) == 2
    assert "gone.png" in house.said[0]
    assert "gone.log" in house.said[1]


def test_an_artifact_given_again_has_its_newest_content(house: House) -> None:
    log = house.run_dir / "run.log"
    house.start()
    for line in range(5):
        with log.open("a") as file:
            file.write(f"{line}\n")
        house.writer.append({"event": "artifact", "file": "run.log"})
    house.deliver()
    assert Path(house.client.download_artifacts(house.facts["run_id"], "run.log")).read_text() == "0\n1\n2\n3\n4\n"


def test_an_artifact_keeps_the_folder_that_it_has_below_that_of_the_run(house: House) -> None:
    house.start()
    elsewhere = house.folder / "elsewhere" / "there.txt"
    for path in (house.run_dir / "drawn" / "a" / "here.txt", elsewhere, house.run_dir / "top.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    for file in ("drawn/a/here.txt", str(elsewhere), "../elsewhere/there.txt", "top.txt"):
        house.writer.append({"event": "artifact", "file": file})
    house.deliver()
    place = Path(house.run.info.artifact_uri.removeprefix("file://"))
    found = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert found == {"drawn/a/here.txt", "there.txt", "top.txt"}


def test_a_file_store_that_fails_holds_up_no_points_and_gets_its_files_later(house: House) -> None:
    from sr_runner.mlflow_server import Unreachable

    (house.folder / "artifacts").write_text("a file where the folder should be")
    (house.run_dir / "run.log").write_text("log")
    house.start()
    house.deliver()
    house.writer.append({"event": "artifact", "file": "run.log"})
    house.writer.append(metrics_event(1, {"loss": 0.5}))
    delivery = house.delivery()
    failures = 0
    busy = True
    while busy:
        try:
            busy = delivery.work()
        except Unreachable:
            failures += 1
            assert failures < 10
    assert failures == 5, "it is the sixth in a row that sets an entry aside"
    assert house.said == ["one entry is set aside for later: the server takes others"]
    assert house.history("loss") == [(1, 0.5)]
    assert delivery.retry_left_over() == 1
    (house.folder / "artifacts").unlink()
    again = house.deliver()
    assert again.retry_left_over() == 0
    assert Path(house.client.download_artifacts(house.facts["run_id"], "run.log")).read_text() == "log"


def test_a_run_in_the_bin_is_waited_for_and_taken_out_at_the_next_resume(house: House) -> None:
    from sr_runner.mlflow_server import Unreachable

    house.start()
    delivery = house.deliver()
    house.client.delete_run(house.facts["run_id"])
    house.writer.append(metrics_event(1, {"loss": 0.5}))
    with pytest.raises(Unreachable, match="was deleted in MLflow"):
        delivery.work()
    house.start(resumed_at=1)
    house.deliver()
    assert house.run.info.lifecycle_stage == "active"
    assert house.said == [f"run {house.facts['run_id']} was deleted in MLflow, and is restored"]
    assert house.history("loss") == [(1, 0.5)]


def test_a_run_that_the_server_has_no_more_is_recorded_anew(house: House, empty_database: Path) -> None:
    house.start()
    house.deliver()
    old = house.facts["run_id"]
    shutil.copyfile(empty_database, house.folder / "mlflow.db")
    house.start(resumed_at=1, run_id=old)
    house.deliver()
    new = house.facts["run_id"]
    assert house.said == [f"MLflow has no run {old} any more; it is recorded anew, as {new}"] and new != old


def test_an_experiment_in_the_bin_is_taken_out(house: House) -> None:
    experiment = house.client.create_experiment("tests")
    house.client.delete_experiment(experiment)
    house.start()
    house.deliver()
    assert house.client.get_experiment(experiment).lifecycle_stage == "active"
    assert house.said == ["experiment 'tests' with its runs was deleted in MLflow, and is restored"]


def test_a_run_is_taken_out_of_the_bin_together_with_its_experiment(house: House) -> None:
    house.start()
    house.deliver()
    experiment = house.run.info.experiment_id
    house.client.delete_experiment(experiment)
    house.start(resumed_at=1)
    house.deliver()
    assert house.run.info.lifecycle_stage == "active"
    assert house.client.get_experiment(experiment).lifecycle_stage == "active"


def test_another_server_gets_the_whole_journal(house: House, empty_database: Path) -> None:
    house.start()
    house.writer.append(metrics_event(1, {"loss": 0.5}))
    house.deliver()
    shutil.copyfile(empty_database, house.folder / "other.db")
    house.uri = f"sqlite:///{house.folder}/other.db"
    house.start(resumed_at=1)
    house.writer.append(metrics_event(2, {"loss": 0.25}))
    house.deliver()
    assert house.history("loss") == [(1, 0.5), (2, 0.25)]


def test_a_database_that_is_deleted_meanwhile_gets_everything_anew(house: House, empty_database: Path) -> None:
    from sr_runner.tracking.run_writer import RunGone

    house.start()
    house.writer.append(metrics_event(1, {"loss": 0.5}))
    delivery = house.deliver()
    (house.folder / "mlflow.db").unlink()
    shutil.copyfile(empty_database, house.folder / "mlflow.db")
    house.writer.append(metrics_event(2, {"loss": 0.25}))
    with pytest.raises(RunGone):
        delivery.work()
    delivery.forget()
    while delivery.work():
        pass
    with sqlite3.connect(house.folder / "mlflow.db") as database:
        assert database.execute("select step, value from metrics order by step").fetchall() == [(1, 0.5), (2, 0.25)]


def test_damaged_lines_are_said_and_passed_over(house: House) -> None:
    house.start()
    house.writer.append(metrics_event(1, {"loss": 0.5}))
    at = house.writer.size
    house.writer.append(metrics_event(2, {"loss": 0.3}))
    house.writer.append(metrics_event(3, {"loss": 0.25}))
    with (house.run_dir / JOURNAL).open("r+b") as file:
        file.seek(at + 70)
        file.write(b"\xff")
    house.deliver()
    assert house.history("loss") == [(1, 0.5), (3, 0.25)]
    assert house.said == [f"a damaged line of journal.jsonl passed over (at byte {at}, its checksum does not fit)"]


def test_damaged_lines_among_other_entries_than_metrics_are_passed_over(house: House) -> None:
    house.start()
    with (house.run_dir / JOURNAL).open("ab") as file:
        file.write(b"damaged\n" * 2)
    house.writer = JournalWriter(house.run_dir / JOURNAL)
    house.writer.append({"event": "finish", "status": "FINISHED", "tags": {}})
    house.deliver()
    assert house.run.info.status == "FINISHED" and len(house.said) == 1 and "2 damaged lines of" in house.said[0]


def test_a_whole_line_that_is_no_entry_is_not_believed_where_it_stood(house: House) -> None:
    house.start()
    at = house.writer.size
    with (house.run_dir / JOURNAL).open("ab") as file:
        file.write(journal._sealed(b'"time": 1, "event": "metrics", "step": 1, "values": 7}', at + 1000))
    house.writer = JournalWriter(house.run_dir / JOURNAL)
    house.writer.append(metrics_event(2, {"loss": 0.25}))
    house.deliver()
    assert house.history("loss") == [(2, 0.25)]
    assert house.said == [
        f"a damaged line of journal.jsonl passed over (at byte {at}, it is not an entry of a journal)"
    ]


def test_nothing_is_set_aside_while_the_server_answers_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from sr_runner.mlflow_server import Unreachable

    def away(*_: object, **__: object) -> None:
        raise Unreachable("away")

    house.start()
    house.writer.append(metrics_event(1, {"loss": 0.5}))
    delivery = house.delivery()
    assert delivery.work()
    with monkeypatch.context() as patch:
        for method in ("run", "_ask"):
            patch.setattr(delivery._writer, method, away)
        for _ in range(9):
            with pytest.raises(Unreachable):
                delivery.work()
    assert read_json(house.run_dir / SENT)["left_over"] == []
    assert delivery.work() and not delivery.work() and house.history("loss") == [(1, 0.5)]


def test_lines_that_are_missing_are_said_at_each_place(house: House) -> None:
    house.start()
    at = house.writer.size
    for step in range(7):
        house.writer.append(metrics_event(step, {"loss": 0.5}))
    content = (house.run_dir / JOURNAL).read_bytes()
    lines = content.splitlines(keepends=True)
    (house.run_dir / JOURNAL).write_bytes(b"".join([lines[0], *lines[3:6], lines[7]]))
    house.deliver()
    assert [step for step, _ in house.history("loss")] == [2, 3, 4, 6]
    places = ((lines[1:3], at), (lines[6:7], at + len(b"".join(lines[3:6]))))
    assert house.said == [
        f"journal.jsonl has lost lines: {len(b''.join(lost))} bytes of entries are missing before byte {place}, "
        "or stand elsewhere"
        for lost, place in places
    ]


@pytest.mark.parametrize("damage", ["line_removed", "lines_swapped", "notes_flipped", "older_copy"])
def test_a_journal_that_is_not_what_was_sent_is_sent_again_without_doubling(house: House, damage: str) -> None:
    house.start()
    for step in range(4):
        house.writer.append(metrics_event(step, {"loss": 1 / (step + 1)}))
    house.deliver()
    house.writer.append(metrics_event(4, {"loss": 1 / 5}))
    path = house.run_dir / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    match damage:
        case "line_removed":
            del lines[2]
        case "lines_swapped":
            lines[1], lines[5] = lines[5], lines[1]
        case "notes_flipped":
            notes = read_json(house.run_dir / SENT)
            write_json(house.run_dir / SENT, {**notes, "sent": notes["sent"] + len(lines[5])})
        case "older_copy":
            lines = lines[:2]
    path.write_bytes(b"".join(lines))
    JournalWriter(path).append(metrics_event(5, {"loss": 1 / 6}))
    house.deliver()
    steps = [0, 1, 2, 3, 5] if damage == "older_copy" else range(6)
    assert sorted(house.history("loss")) == [(step, 1 / (step + 1)) for step in steps]
    assert [message for message in house.said if "journal.jsonl is not what it was when it was sent" in message]


@pytest.mark.parametrize("ended", [True, False])
def test_a_journal_without_the_end_of_its_run_is_said_when_it_is_delivered(house: House, ended: bool) -> None:
    from sr_runner.tracking.sender import LifeLine, Sender, serve

    house.start()
    house.writer.append({"event": "finish", "status": "FINISHED", "tags": {}})
    if not ended:
        os.truncate(house.run_dir / JOURNAL, house.writer.size - 3)
    said = io.StringIO()
    life = LifeLine(None, 60)
    tell = lambda report: print(json.dumps(report), file=said)  # noqa: E731
    sender = Sender(house.run_dir, house.uri, life, tell, finished=True)
    assert serve(life, {house.run_dir: sender}, lambda *_: sender)
    assert ("journal.jsonl has no entry of the run's end" in said.getvalue()) == (not ended)


def test_a_job_stands_below_the_run_of_its_sweep_once_that_is_there(house: House) -> None:
    sweep, job = House(house.folder / "sweep", house.uri), House(house.folder / "job", house.uri)
    job.start(attempt="tiny/1", below=str(sweep.run_dir))
    delivery = job.delivery()
    for _ in range(10):  # however long that takes, it is not set aside for later
        with pytest.raises(Unreachable, match="the run of the sweep is not in MLflow yet"):
            delivery.work()
    sweep.start(attempt="sweep/1")
    sweep.deliver()
    job.deliver()
    assert job.run.data.tags["mlflow.parentRunId"] == sweep.run.info.run_id


def test_tags_are_replaced_and_a_job_of_two_sweeps_has_both(house: House) -> None:
    for name in ("first", "second", "first"):
        house.start(tags={SWEEP_TAG: name})
        house.writer.append({"event": "tags", "tags": {"mlflow.note.content": f"of {name}"}})
    house.deliver()
    assert house.run.data.tags[SWEEP_TAG] == "first second"
    assert house.run.data.tags["mlflow.note.content"] == "of first"


def test_lines_keep_the_time_they_were_made_with(house: House) -> None:
    house.start()
    house.writer.append({**metrics_event(1, {"loss": 0.5}), "time": 1_700_000_000_123})
    house.deliver()
    (point,) = house.client.get_metric_history(house.facts["run_id"], "loss")
    assert point.timestamp == 1_700_000_000_123
