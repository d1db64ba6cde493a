"""Damage the journal of a run at random, resume the run, and look into MLflow: nothing doubled, no loss unsaid.

    python tests/tools/journal_damage.py --trials 3000 --seed 0

Each trial is a short run with real trackers, whose journal is brought to one real SQLite database by the sender's own
code, in this process. The run is left at a random moment of its life (nothing sent, a part of it, a part of it without
a note of that, all of it), its journal, the notes beside it or both are harmed, and then it is resumed from a
checkpoint, with what that holds of the record or without, or started over, and goes on to its end. In MLflow then:

- no key has two points at one step, and every point has a value that the run computed;
- every point of a line that the harm left whole is there, and every one that the checkpoint holds;
- every step that was computed again is there;
- where a point is missing in the end, a warning was logged, unless all that is missing is an end of the journal, whole
  lines, that no note and no checkpoint knew of.

Exit status 0 if nothing was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sr_runner.masking import cause
from sr_runner.mlflow_server import Server, make_database
from sr_runner.tracking import MlflowTracker, RunRecord
from sr_runner.tracking.delivery import Delivery
from sr_runner.tracking.journal import IDS, JOURNAL, SENT
from sr_runner.tracking.sender import last_life
from sr_runner.tracking.sender_process import SenderProcess

EVERY = 4
"""Steps from one `valid/psnr` to the next."""

Points = set[tuple[str, int]]


def values(step: int) -> dict[str, float]:
    given = {"train/loss": float("nan") if step % 7 == 3 else 1 / (step + 1), "train/grad_norm": float(step)}
    return given | ({"valid/psnr": 20 + step / 8} if step % EVERY == 0 else {})


# -- what is done to files -----------------------------------------------------------------------------------------


def harm(data: bytes, chance: random.Random) -> tuple[bytes, str]:
    """`data` after one random damage, and which."""
    position = chance.randrange(len(data) + 1)
    size = chance.choice([1, 2, 20, 200, 2000])
    lines = data.splitlines(keepends=True)
    one, other = chance.randrange(len(lines) + 1), chance.randrange(len(lines) + 1)
    first, last = min(one, other), max(one, other)
    match chance.choice(list(HARMS)):
        case "flip" as kind:
            changed = bytearray(data)
            for _ in range(chance.choice([1, 1, 1, 3, 30])):
                if changed:
                    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            return bytes(changed), kind
        case "overwrite" as kind:
            return data[:position] + _garbage(size, chance) + data[position + size :], kind
        case "cut out" as kind:
            return data[:position] + data[position + size :], kind
        case "insert" as kind:
            return data[:position] + _garbage(size, chance) + data[position:], kind
        case "end lost" as kind:
            return data[:position], kind
        case "beginning lost" as kind:
            return data[position:], kind
        case "last lines lost" as kind:
            return b"".join(lines[:one]), kind
        case "lines removed" as kind:
            return b"".join(lines[:first] + lines[last:]), kind
        case "lines doubled" as kind:
            return b"".join(lines[:last] + lines[first:]), kind
        case "lines swapped" as kind:
            if first < last < len(lines):
                lines[first], lines[last] = lines[last], lines[first]
            return b"".join(lines), kind
        case "lines shuffled" as kind:
            chance.shuffle(lines)
            return b"".join(lines), kind
        case "line feeds lost" as kind:
            return data.replace(b"\n", b"", chance.randint(1, 3)), kind
        case "zeros" as kind:
            return bytes(len(data)), kind
        case "forged" as kind:
            lines[one:one] = [_forged(chance)]
            return b"".join(lines), kind
        case kind:
            return b"", kind


HARMS = (
    "flip", "flip", "flip", "overwrite", "cut out", "insert", "end lost", "beginning lost", "last lines lost",
    "lines removed", "lines doubled", "lines swapped", "lines shuffled", "line feeds lost", "zeros", "forged",
    "emptied",
)  # fmt: skip


def _garbage(size: int, chance: random.Random) -> bytes:
    return chance.choice([chance.randbytes(size), bytes(size), b"\n" * size, b"\xff" * size, b"[" * size])


def _forged(chance: random.Random) -> bytes:
    """A line with a right checksum that no writer wrote."""
    import zlib

    event = chance.choice([
        '"metrics", "step": "3", "values": {}}', '"metrics", "step": 3, "values": [1]}', '"metrics", "step": 3}',
        '"metrics", "step": 3, "values": {"a": null}}', '"metrics", "step": 3, "values": {"a": 1' + "0" * 400 + "}}",
        '"metrics", "step": 3, "values": ' + "[" * 50_000, '"start", "attempt": "x/1"}', '"start"}', '"finish"}',
        '"finish", "status": 3, "tags": {}}', '"artifact", "file": null}', '"artifact", "file": "\\u0000"}',
        '"picture", "step": 1, "key": 4}', '"unknown"}', '"metrics"} {}',
    ])  # fmt: skip
    content = b'"at": %d, "time": 1, "event": %b' % (chance.choice([0, 100, 10**14]), event.encode())
    return b'{"crc": "%08x", ' % zlib.crc32(content) + content + b"\n"


def harm_notes(run_dir: Path, chance: random.Random) -> str:
    """Damages or removes what the sender noted beside the journal."""
    path = run_dir / chance.choice([SENT, SENT, IDS])
    if not path.exists():
        return "no notes"
    data = path.read_bytes()
    match chance.choice(["gone", "harmed", "number", "types"]):
        case "gone":
            path.unlink()
        case "harmed":
            path.write_bytes(harm(data, chance)[0])
        case "number":
            notes = json.loads(data)
            key = chance.choice(sorted(key for key, value in notes.items() if isinstance(value, int)) or ["sent"])
            path.write_text(json.dumps({**notes, key: chance.choice([-1, 0, 7, 300, 1 << 40, 1 << 80])}))
        case "types":
            notes = json.loads(data)
            odd = chance.choice([None, "x", [], {}, [["journal.jsonl", -1]], [["../x", 0]], 1.5])
            path.write_text(json.dumps({**notes, chance.choice(sorted(notes)): odd}))
    return f"{path.name} too"


# -- a run ---------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    trials: int = 0
    harmed: int = 0
    lost: int = 0
    """Points that neither the journal's whole lines, nor the checkpoint, nor the server held any more."""
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.trials} trials, {self.harmed} with a harmed journal: {self.lost} points lost and warned of, "
            f"{len(self.faults)} faults"
        )


class Run:
    """One run in a folder of its own, in a database that all share."""

    def __init__(self, folder: Path, server: Server, attempt: str) -> None:
        self.folder = folder
        self.server = server
        self.attempt = attempt
        self.said: list[str] = []
        self.run_id = ""

    def train(self, steps: range, state: dict[str, Any] | None) -> MlflowTracker:
        """One life of the run, whose sender is this process: it sends when `deliver` is called."""
        tracker = MlflowTracker(
            uri=self.server.uri, outputs=self.folder.parent, experiment="tests", system_metrics=False
        )
        record = RunRecord(self.folder, self.attempt, "tiny", {"a": "1"}, resumed_at=steps.start - 1, state=state)
        tracker.start(record)
        for step in steps:
            tracker.log(step, values(step))
        return tracker

    def deliver(self, parts: int | None = None, noted: bool = True) -> None:
        """Sends `parts` of what is not sent; with the last note of it lost unless `noted`."""
        start, _ = last_life(self.folder / JOURNAL)
        assert start is not None
        delivery = Delivery(self.folder, self.server, start, self._report)
        sent = self.folder / SENT
        before = None
        while parts is None or parts > 0:
            before = sent.read_bytes() if sent.exists() else None
            delivery._most = 1000 if parts is None else 8
            if not delivery.work():
                break
            parts = None if parts is None else parts - 1
        if not noted and before is not None:
            sent.write_bytes(before)

    def points(self) -> Counter[tuple[str, int, float]]:
        """What MLflow's database holds of the run."""
        import sqlite3

        with sqlite3.connect(self.server.uri.removeprefix("sqlite:///")) as database:
            query = "SELECT key, step, CASE WHEN is_nan THEN 'nan' ELSE value END FROM metrics WHERE run_uuid = ?"
            return Counter((key, step, float(value)) for key, step, value in database.execute(query, [self.run_id]))

    def _report(self, message: str | None = None, *, level: str = "info", **facts: object) -> None:
        if message and level == "warning":
            self.said.append(message)
        self.run_id = str(facts.get("run_id", self.run_id))


def trial(run: Run, chance: random.Random, tally: Tally) -> str:
    """One run, harmed once; what was done."""
    steps = chance.randint(4, 20)
    saved = chance.randint(0, steps)
    tracker = run.train(range(1, saved + 1), None)
    moment = chance.choice(["unsent", "unsent", "part", "part unnoted", "all"])
    if moment != "unsent":
        run.deliver(None if moment == "all" else chance.randint(1, 6), noted=moment != "part unnoted")
        tracker._ids = {**tracker._ids, "run_id": run.run_id}
    state = json.loads(json.dumps(tracker.state()))
    for step in range(saved + 1, steps + 1):
        tracker.log(step, values(step))
    if moment == "part" and chance.random() < 0.5:
        run.deliver(chance.randint(1, 4), noted=chance.random() < 0.5)
    tracker._started().close()

    journal = run.folder / JOURNAL
    before = journal.read_bytes()
    after, how = harm(before, chance)
    times = chance.choice([1, 1, 1, 2, 3])
    for _ in range(times - 1):
        after = harm(after, chance)[0]
    journal.write_bytes(after)
    if not after and chance.random() < 0.5:
        journal.unlink()
    if chance.random() < 0.15:
        how += f", {harm_notes(run.folder, chance)}"
    tally.kinds[how.partition(",")[0]] += 1
    tally.harmed += after != before

    had = {(key, step) for key, step, _ in run.points()} if run.run_id else set()
    kept = _points(before) & _points(after)
    life = chance.choice(["resumed", "resumed", "resumed", "resumed without its record", "started over"])
    carried = life == "resumed"
    resumed = 0 if life == "started over" else saved
    held = {(k, s) for raw in state["pending"] for s in [json.loads(raw)["step"]] for k in json.loads(raw)["values"]}
    again = run.train(range(resumed + 1, steps + 3), state if carried else None)
    again.finish("FINISHED", wait=0)
    run.deliver()

    unknowable = not carried and before.startswith(after[: after.rfind(b"\n") + 1])
    _judge(run, steps + 2, had | kept | (held if carried else set()), resumed, tally, unknowable)
    return f"{how} x{times}, sent: {moment}, {life} at {resumed} of {steps}"


def _points(content: bytes) -> Points:
    """The points of the whole lines of a journal, by means of this program's own."""
    found: Points = set()
    for raw in content.split(b"\n")[:-1]:
        if _is_whole(raw) and b'"event": "metrics"' in raw[:100]:
            event = json.loads(raw)
            found |= {(key, event["step"]) for key in event["values"]}
    return found


def _is_whole(raw: bytes) -> bool:
    import zlib

    head, _, content = raw.partition(b'", ')
    return head == b'{"crc": "%08x' % zlib.crc32(content) and b'"time": 1,' not in raw


def _judge(run: Run, steps: int, certain: Points, resumed: int, tally: Tally, unknowable: bool) -> None:
    found = run.points()
    there = Counter((key, step) for key, step, _ in found.elements())
    doubled = sorted(point for point, count in there.items() if count > 1)
    assert not doubled, f"doubled: {doubled[:4]}"
    for key, step, value in found:
        expected = values(step)[key]
        assert value == expected or value != value != expected, f"{key} of step {step} is {value}"
    everything = {(key, step) for step in range(1, steps + 1) for key in values(step)}
    certain = certain | {(key, step) for key, step in everything if step > resumed}
    missing = sorted(certain - there.keys())
    assert not missing, f"lost, though held: {missing[:4]}"
    lost = everything - there.keys()
    tally.lost += len(lost)
    assert not lost or run.said or unknowable, f"lost without a word: {sorted(lost)[:4]}"


class _Warnings(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        if "not in MLflow yet" not in record.getMessage():  # said by each life, since its sender is this process
            self._said.append(record.getMessage())


@contextmanager
def _heard(said: list[str]) -> Iterator[None]:
    logger = logging.getLogger("sr_runner.tracking")
    handler = _Warnings(said)
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def fuzz(
    trials: int, seed: int, empty: Path | None = None, progress: Callable[[Tally], object] = lambda tally: None
) -> Tally:
    """So many trials, each with a chance of its own, so that one can be repeated. `empty` is an empty database."""
    tally = Tally()
    memory = Path("/dev/shm")  # a disk's flushes take most of the time, and are not what is tried here
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as temporary,
        patch.multiple(SenderProcess, _start=lambda self: None, settle=lambda *_, **__: False),
    ):
        root = Path(temporary)
        if empty is None:
            make_database(root / "mlflow.db", root / "artifacts")
        else:
            shutil.copyfile(empty, root / "mlflow.db")
        server = Server(f"sqlite:///{root}/mlflow.db", root / "artifacts")
        for number in range(trials):
            run = Run(root / f"run-{number}", server, f"tiny-x2-0123456789ab/{number}")
            tally.trials += 1
            what = ""
            try:
                with _heard(run.said):
                    what = trial(run, random.Random(f"{seed} {number}"), tally)
            except Exception as error:
                tally.faults.append(f"trial {number} {what}: {type(error).__name__}: {cause(error)}")
            shutil.rmtree(run.folder, ignore_errors=True)
            progress(tally)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tally = fuzz(args.trials, args.seed, progress=lambda now: now.trials % 50 or print(now, flush=True))
    print("\n".join(tally.faults))
    print(", ".join(f"{kind} {count}" for kind, count in tally.kinds.most_common()))
    print(f"seed {args.seed}: {tally}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
