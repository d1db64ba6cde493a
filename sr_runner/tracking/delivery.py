"""Brings the journals of one run to MLflow: finds or makes the run there, and remembers how far the server has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from sr_runner.masking import masked_text
from sr_runner.mlflow_server import ATTEMPT_TAG, Refused, Server, Unreachable
from sr_runner.tracking.journal import (
    IDS,
    JOURNAL,
    SENT,
    SYSTEM,
    Line,
    crc_of,
    fits_journals,
    read_json,
    read_lines,
    read_sent,
    sent_of,
    write_json,
)  # fmt: skip
from sr_runner.tracking.run_writer import Report, RunWriter

_MOST_METRICS = 1000
_WINDOW = 2000
_PATIENCE = 6
"""Failures in a row after which one line is set aside if the server answers otherwise (its file store may not)."""


_SENT_TAG = "sr_run.journal"
"""On a run that is complete: the notes of how far the server has the journals, for whoever comes without them."""


class NotYet(Unreachable):
    """The server answers, but has not got what comes first."""


class Delivery:
    """The state of bringing `run_dir/journal.jsonl` (and `system.jsonl`) to `server`; `start` is its last start line.

    All it knows is on the disk after each part, in `notes` (the run's folder): the server's ids in `tracker.json`, how
    far it got in `journal.sent`.
    """

    def __init__(
        self, run_dir: Path, server: Server, start: dict[str, Any], report: Report, *, notes: Path | None = None
    ) -> None:  # fmt: skip
        self._run_dir = run_dir
        self._notes = notes or run_dir
        self._server = server
        self._start = start
        self._report = report
        self._writer: RunWriter | None = None
        self._experiment_id = ""
        self._progress: dict[str, Any] = {}
        self._most = _MOST_METRICS
        self._failures = 0
        self.has_sent = False
        """Something was not there yet."""

    def work(self) -> bool:
        """Sends the next part of what is not sent; False where there was none. Raises `Unreachable` and `RunGone`."""
        if self._writer is None:
            self._open()
        return self._advance("sent", JOURNAL) or self._advance("system", SYSTEM)

    def forget(self) -> None:
        """The server lost the run: the next `work` finds or makes it anew and sends everything again."""
        self._writer = None

    def retry_left_over(self) -> int:
        """Tries the lines that were set aside once more; how many are still left."""
        for place in list(self._progress.get("left_over", [])):
            name, offset = place
            line = next(read_lines(self._run_dir / name, offset), None)
            try:
                if line is not None and line.event is not None:
                    self._send([line])
            except Unreachable:
                continue
            self._progress["left_over"].remove(place)
            self._save()
        return len(self._progress.get("left_over", []))

    def kill(self, time: int) -> None:
        """Records that the training process died at `time` (milliseconds)."""
        if self._writer is not None:
            self._writer.finish("KILLED", time, {})

    def mark(self) -> None:
        """Writes on the run how far the server has it: another copy of the run's folder is not sent again."""
        assert self._writer is not None
        with suppress(Unreachable, Refused):  # then it is, and nothing doubles
            self._server.mark(self._writer.run_id, _SENT_TAG, json.dumps(self._progress))

    def next_system_step(self) -> int:
        """The step after the last one of system metrics that the server has."""
        assert self._writer is not None
        points = self._writer.run().data._metric_objs
        return max((point.step + 1 for point in points if point.key.startswith("system/")), default=0)

    def _open(self) -> None:
        """Finds the run on the server by the id of an earlier life, or by its tag; makes it where there is none."""
        start = self._start
        run = self._server.run(start["run_id"]) if start.get("run_id") else None
        owner = run.data.tags.get(ATTEMPT_TAG) if run is not None else None
        if run is not None and owner not in (None, start["attempt"]):
            self._report(f"MLflow's run {start['run_id']} is {owner}; this one is recorded by itself", level="warning")
            run = None
        if run is not None:
            self._experiment_id = run.info.experiment_id
            if owner is None:  # made by somebody else, for this one
                self._server.mark(run.info.run_id, ATTEMPT_TAG, start["attempt"])
        else:
            self._experiment_id = self._given_experiment() or self._server.experiment_id(start["experiment"])
            run = self._server.tagged_run(
                self._experiment_id,
                ATTEMPT_TAG,
                start["attempt"],
                name=start["run_name"],
                start_time=start["time"],
                tags=start["tags"],
            )
            if start.get("run_id"):
                self._report(f"MLflow has no run {start['run_id']} any more; it is recorded anew, as {run.info.run_id}")
        self._server.restore(run)
        while self._server.restored:
            self._report(f"{self._server.restored.pop(0)} was deleted in MLflow, and is restored")
        self._remember(run.info.run_id, run.data.tags.get(_SENT_TAG, ""))

    def _given_experiment(self) -> str | None:
        given = self._start.get("experiment_id")
        if given is not None and not self._server.has_experiment(given):
            name = self._start["experiment"]
            self._report(f"MLflow has no experiment $MLFLOW_EXPERIMENT_ID={given}: {name} is taken", level="warning")
            return None
        return str(given) if given is not None else None

    def _remember(self, run_id: str, mark: str) -> None:
        ids = {
            "tracking_uri": masked_text(self._server.uri),
            "experiment": self._start["experiment"],
            "experiment_id": self._experiment_id,
            "run_id": run_id,
        }
        write_json(self._notes / IDS, ids)
        sent = read_sent(self._notes)
        if sent and sent["run_id"] == run_id and not fits_journals(sent, self._run_dir):
            reason = "is not what it was when it was sent, or has lost its end; all that it holds is sent again"
            self._report(f"{JOURNAL} {reason}", level="warning")
            sent = {}
        if not sent or sent["run_id"] != run_id:
            sent = _marked(mark)
        if not sent or sent["run_id"] != run_id or not fits_journals(sent, self._run_dir):
            nothing = {kind + what: 0 for kind in ("sent", "system") for what in ("", "_crc", "_next")}
            sent = {"run_id": run_id, "left_over": [], **nothing}
        self._progress = sent
        self._writer = RunWriter(self._server, run_id, self._run_dir, self._report)
        self._report(run_id=run_id, experiment_id=self._experiment_id)

    def _advance(self, kind: str, name: str) -> bool:
        lines = list(islice(read_lines(self._run_dir / name, self._progress[kind]), _WINDOW))
        if not lines:
            return False
        group = self._next_group(lines)
        try:
            self._send(group)
        except NotYet:  # no entry goes before that by which the job is one of its sweep
            raise
        except Unreachable:
            self._failures += 1
            self._most = max(1, self._most // 8)
            if self._failures < _PATIENCE or len(group) > 1 or not self._answers():
                raise
            self._progress["left_over"].append([name, group[0].start])
            self._report("one entry is set aside for later: the server takes others", level="warning")
        self._failures = 0
        self.has_sent = True
        self._most = min(_MOST_METRICS, self._most * 2)
        self._report_losses(kind, name, group)
        start, end = self._progress[kind], group[-1].end
        self._progress[f"{kind}_crc"] = crc_of(self._run_dir / name, start, end, self._progress[f"{kind}_crc"]) or 0
        self._progress[kind] = end
        self._save()
        return True

    def _report_losses(self, kind: str, name: str, group: Sequence[Line]) -> None:
        """Names the damaged lines of `group`, and the places where lines are missing."""
        damaged = [line for line in group if line.event is None]
        if damaged:
            count = f"{len(damaged)} damaged lines" if len(damaged) > 1 else "a damaged line"
            reason = f"at byte {damaged[0].start}, {damaged[0].damage}"
            self._report(f"{count} of {name} passed over ({reason})", level="warning")
        expected = self._progress[f"{kind}_next"]
        for line in group:
            at = expected if line.event is None or line.at is None else line.at
            if at > expected:
                reason = f"{at - expected} bytes of entries are missing before byte {line.start}, or stand elsewhere"
                self._report(f"{name} has lost lines: {reason}", level="warning")
            expected = at + line.end - line.start
        self._progress[f"{kind}_next"] = expected

    def _next_group(self, lines: Sequence[Line]) -> list[Line]:
        """The metrics lines that go in one request, damaged ones among them, or the one other line that is first."""
        group: list[Line] = []
        points = 0
        for line in lines:
            event = line.event
            if event is not None and event["event"] != "metrics":
                return group or [line]
            points += len(event["values"]) if event else 0
            if group and points > self._most:
                return group
            group.append(line)
        return group

    def _send(self, group: Sequence[Line]) -> None:
        """Sends one group; what is refused is reported and left, so that it does not hold up the rest."""
        assert self._writer is not None
        events = [event for line in group if (event := line.event) is not None]
        if not events:
            return
        writer, first = self._writer, events[0]
        try:
            match first["event"]:
                case "metrics":
                    writer.metrics(events)
                case "start":
                    writer.start(first, self._parent_id(first))
                case "picture":
                    writer.picture(first)
                case "tags":
                    writer.tags(first["tags"])
                case "artifact":
                    writer.artifact(first)
                case "finish":
                    self._server.delete_doubles(self._experiment_id, ATTEMPT_TAG, self._start["attempt"], writer.run_id)
                    writer.finish(first["status"], first["time"], first["tags"])
        except Refused as refusal:
            self._report(f"MLflow refuses {_name(first)}: {refusal}", level="warning")

    def _parent_id(self, start: dict[str, Any]) -> str | None:
        """The id of the sweep's run, which the sweep's own sender makes."""
        if start.get("below") is None:
            return None
        notes = Path(start["below"], self._notes.relative_to(self._run_dir))
        run_id = read_json(notes / IDS).get("run_id")
        if not isinstance(run_id, str):
            raise NotYet("the run of the sweep is not in MLflow yet")
        return run_id

    def _answers(self) -> bool:
        assert self._writer is not None
        try:
            self._writer.run()
        except Unreachable:
            return False
        return True

    def _save(self) -> None:
        write_json(self._notes / SENT, self._progress)


def _marked(tag: str) -> dict[str, Any]:
    """The notes in a `_SENT_TAG`; empty where there are none."""
    try:
        notes = json.loads(tag)
    except (ValueError, RecursionError):
        return {}
    return sent_of(notes) if isinstance(notes, dict) else {}


def _name(event: dict[str, Any]) -> str:
    match event["event"]:
        case "picture":
            return f"picture {event['key']!r} of step {event['step']}"
        case "artifact":
            return f"artifact {event['file']}"
        case other:
            return f"an entry ({other})"
