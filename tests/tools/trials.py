"""Kill sr-run at every kind of operation of its commit path, resume it, and compare with a run that was never touched.

    python tests/tools/trials.py --store local --trials 200 --seed 0
    python tests/tools/trials.py --store s3 --trials 50
    python tests/tools/trials.py --store mlflow --trials 50
    python tests/tools/trials.py --store s3 --trials 10 --fault outage

The operations of an unbroken run, and of runs that replace a checkpoint, clear what a kill has left, or set a damaged
checkpoint aside, are found by interposing on them (`interpose`). The trials are spread over all their kinds, and over
the runs of `variants`: SIGKILL before, amid or after one, for every other run together with its sender. Every fifth
trial kills at random instants instead. With `--fault outage` it is the store's server that is killed there, and started
again, and with `--fault sender` only the sender; the run has to come through without a resume.

A resumed run has to find the newest checkpoint that there was when its predecessor was killed ("lost" otherwise), and
that one has to be whole. A finished run has to equal an unbroken one: `model.safetensors` and `training.safetensors`
byte for byte, one attempt, one MLflow run with the same points, none twice, and nothing left in the store.

Exit status 0 if nothing was found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fork_server
from benches import Bench, Points, bench
from interpose import Watch, die, stop_at_evaluation
from kill_and_resume import differences, spawn
from plan import Stage, Trial, plan, scouts
from variants import COMPILED, VARIANTS

SIZE = (
    "data.batch_size=2", "data.patch_size=32", "data.valid_images=1", "trainer.threads=1", "trainer.log_every=3",
    "trainer.eval_every=4", "trainer.steps=8", "trainer.pictures=1", "tracker.system_metrics=false",
    "checkpoint.every=2", "checkpoint.keep_last=2", "checkpoint.keep_best=1",
)  # fmt: skip
WIDE = {"s3": ("model.num_filters=96",)}
"""Large enough for an upload in parts: of the first variant."""
ANNOUNCED = re.compile(r"(?:resumed at step|complete already: step) (\d+)")
STOPPED = 128 + 15
_SENDER_KILLED = "The sender was killed.\n"


@dataclass
class Verdict:
    """What came of one trial."""

    kills: list[str] = field(default_factory=list)
    senders: int = 0
    """Senders that were killed while they lived."""
    missed: int = 0
    lost: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        return [*self.lost, *self.unreadable, *self.differing, *self.faults]


@dataclass
class Seen:
    """The committed checkpoints of a trial, as another process finds them."""

    steps: list[int] = field(default_factory=list)
    newest: str = ""
    damage: str = ""
    """Why the newest cannot be read."""
    fallback: int | None = None
    """The newest that can."""


@dataclass
class End:
    """What a finished run has left."""

    tensors: dict[str, str]
    leftovers: list[str]
    attempts: set[str]
    points: Points


class Workshop:
    """Runs trials against one store."""

    def __init__(self, place: Bench, folder: Path, fault: str, variants: Sequence[str]):
        self.bench, self.folder, self.fault, self.variants = place, folder, fault, variants
        self.references: dict[str, End] = {}
        self.operations: dict[str, Counter[str]] = {}
        self.seconds: dict[str, float] = {}
        self._template = folder / "template.db"
        fork_server.ask(partial(_make_database, self._template))

    # -- one run ---------------------------------------------------------------------------------------------------

    def start(
        self, outputs: Path, variant: str, stage: Stage, number: int, resume: bool, real_sender: bool = False
    ) -> tuple[fork_server.Child, dict[int, Any]]:
        log, journal = outputs / f"start-{number}.log", outputs / f"journal-{number}"
        outputs.mkdir(exist_ok=True)
        (outputs / "tmp").mkdir(exist_ok=True)
        serve: dict[int, Any] = {}
        strike: Any = _kill_with_sender if stage.machine else die
        if stage.aim is not None and not stage.kills:
            strike, serve = self._outage(stage) if self.fault == "outage" else (_kill_sender, {})
        watch = partial(Watch, journal, stage.aim, strike, stage.delay)

        def arm() -> None:
            self.bench.interpose(outputs, watch())()
            if stage.stop_at is not None:
                stop_at_evaluation(stage.stop_at)

        child = fork_server.start(
            self.arguments(variant, outputs, resume, stage.seconds is None), log,
            environment={**self.bench.environment, "TMPDIR": str(outputs / "tmp")}, arm=arm, real_sender=real_sender,
        )  # fmt: skip
        return child, serve

    def arguments(self, variant: str, outputs: Path, resume: bool, shared_cache: bool) -> list[str]:
        cache = [f"data.cache_dir={self.folder / 'cache'}"] if shared_cache else []
        again = ["trainer.resume=true"] if resume else []
        wide = WIDE.get(self.bench.kind, ()) if variant == self.variants[0] else ()
        return [*SIZE, *(VARIANTS | COMPILED)[variant], *wide, *self.bench.overrides(outputs), *cache, *again]

    def _outage(self, stage: Stage) -> tuple[Any, dict[int, Any]]:
        """A strike that has this process kill the server, and start it again some moments later."""
        called, call = os.pipe()
        answered, answer = os.pipe()

        def strike() -> None:
            os.write(call, b"x")
            os.read(answered, 1)

        def serve() -> None:
            os.read(called, 1)
            assert self.bench.server is not None
            self.bench.server.kill()
            os.write(answer, b"x")
            time.sleep(stage.delay * 100)
            self.bench.server.start()

        return strike, {called: serve}

    # -- what there is ---------------------------------------------------------------------------------------------

    def ask(self, question: Any, outputs: Path) -> Any:
        return fork_server.ask(partial(question, self.bench, outputs), self.bench.environment)

    def reference(self, variant: str) -> End:
        """An unbroken run."""
        if variant not in self.references:
            outputs = self.folder / f"reference-{variant.replace('_', '-')}"
            began = time.monotonic()
            self._finish(outputs, variant, Stage(), 0)
            self.seconds[variant] = time.monotonic() - began
            self.operations[variant] = _labels(outputs / "journal-0")
            self.references[variant] = self.ask(_end, outputs)
        return self.references[variant]

    def scout(self, name: str, stages: list[Stage], variant: str) -> Counter[str]:
        """The operations of the last of `stages`."""
        outputs = self.folder / f"scout-{name}"
        for number, stage in enumerate(stages):
            if stage.damage:
                self.ask(_damage, outputs)
            child, _ = self.start(outputs, variant, stage, number, resume=number > 0)
            code = child.wait(120)
            assert code in (0, STOPPED, -9), f"{code}: {child.log.read_text()}"
        self.end_orphans(10)
        return _labels(outputs / f"journal-{len(stages) - 1}")

    def _finish(self, outputs: Path, variant: str, stage: Stage, number: int) -> None:
        self._prepare(outputs)
        child, serve = self.start(outputs, variant, stage, number, resume=number > 0)
        code = child.wait(180, serve)
        if code is None:
            child.kill()
        assert code == 0, f"exit status {code}: {child.log.read_text()[-1500:]}"
        self.end_orphans(30)

    def _prepare(self, outputs: Path) -> None:
        outputs.mkdir(exist_ok=True)
        if not (outputs / "mlflow.db").exists():
            shutil.copy(self._template, outputs / "mlflow.db")

    def end_orphans(self, patience: float) -> None:
        server = self.bench.server.process if self.bench.server else None
        fork_server.end_orphans(patience, () if server is None else (server.pid,))

    # -- one trial -------------------------------------------------------------------------------------------------

    def run(self, trial: Trial) -> Verdict:
        verdict = Verdict()
        outputs = self.folder / f"trial-{trial.number:03d}"
        expected = self.reference(trial.variant)
        try:
            seen = Seen()
            for number, stage in enumerate(trial.stages):
                seen = self._stage(trial, number, stage, outputs, seen, verdict)
            last = len(trial.stages)
            self._finish(outputs, trial.variant, Stage(), last)
            _check_resumed(outputs / f"start-{last}.log", seen, verdict)
            self._compare(trial.variant, expected, self.ask(_end, outputs), verdict)
        except (AssertionError, OSError) as error:
            verdict.faults.append(f"{error}" or traceback.format_exc())
        if not verdict.wrong:
            shutil.rmtree(outputs)
        return verdict

    def _stage(self, trial: Trial, number: int, stage: Stage, outputs: Path, seen: Seen, verdict: Verdict) -> Seen:
        if stage.damage:
            if len(seen.steps) < 2:
                return seen
            self.ask(_damage, outputs)
            seen = self.ask(_look, outputs)
        if stage.seconds is None:
            self._prepare(outputs)
        child, serve = self.start(outputs, trial.variant, stage, number, number > 0, trial.real_sender)
        code = child.wait(
            self.seconds[trial.variant] * 1.1 * stage.seconds if stage.seconds is not None else 180, serve
        )
        if code is None:
            verdict.senders += fork_server.kill_senders(child.pid) if stage.machine else 0
            child.kill()
        if stage.seconds is not None:
            verdict.kills += ["random"] if code is None else []
        elif stage.aim is not None:
            struck = code == -9 or (not stage.kills and " STRUCK" in (outputs / f"journal-{number}").read_text())
            verdict.senders += child.log.read_text().count(_SENDER_KILLED)
            verdict.kills += [stage.aim.phase] if struck else []
            verdict.missed += not struck
        if code not in (0, -9, STOPPED) and not (code is None and stage.seconds is not None):
            verdict.faults.append(f"start {number}: exit status {code}: {child.log.read_text()[-1500:]}")
        if number:
            _check_resumed(child.log, seen, verdict)
        if stage.machine:  # all of it dies, as it were
            self.end_orphans(0)
        found: Seen = self.ask(_look, outputs)
        if found.damage and found.fallback is None:
            verdict.unreadable.append(f"step {max(found.steps)}: {found.damage}")
        elif found.damage and not (stage.damage or any(each.damage for each in trial.stages[: number + 1])):
            verdict.faults.append(f"start {number} left step {max(found.steps)} damaged: {found.damage}")
        return found

    @staticmethod
    def _compare(variant: str, expected: End, found: End, verdict: Verdict) -> None:
        verdict.differing += [
            f"{file} differs" for file in expected.tensors if found.tensors.get(file) != expected.tensors[file]
        ]
        verdict.faults += [f"left behind: {file}" for file in found.leftovers]
        verdict.faults += [] if len(found.attempts) == 1 else [f"attempts {sorted(found.attempts)}"]
        verdict.faults += [] if found.points[0] == 1 else [f"{found.points[0]} MLflow runs"]
        verdict.faults += differences(expected.points[1], found.points[1], variant)

    def compare_plain(self, variant: str) -> list[str]:
        """What differs between a forked run and one in a fresh process."""
        outputs = self.folder / f"plain-{variant}"
        self._prepare(outputs)
        arguments = self.arguments(variant, outputs, False, True)
        os.environ |= self.bench.environment
        code = spawn([sys.executable, "-m", "sr_runner.commands.run", *arguments], outputs / "start-0.log").wait(180)
        assert code == 0, (outputs / "start-0.log").read_text()
        verdict = Verdict()
        self._compare(variant, self.reference(variant), self.ask(_end, outputs), verdict)
        return verdict.wrong


# -- done by a forked child ----------------------------------------------------------------------------------------


def _kill_sender() -> None:
    if fork_server.kill_senders(os.getpid()):
        os.write(2, _SENDER_KILLED.encode())


def _kill_with_sender() -> None:
    _kill_sender()
    die()


def _make_database(file: Path) -> None:
    from sr_runner.mlflow_server import make_database

    make_database(file, file.parent / "artifacts")


def _names(place: Bench, outputs: Path) -> list[str]:
    return sorted(place.open(outputs).list(), key=lambda name: name.rpartition("-")[2])


def _look(place: Bench, outputs: Path) -> Seen:
    from sr_runner.checkpoint.format import DamagedError
    from sr_runner.checkpoint.reader import read

    names = _names(place, outputs)
    seen = Seen([int(name.rpartition("-")[2]) for name in names], names[-1] if names else "")
    with tempfile.TemporaryDirectory() as scratch:
        for name, step in zip(names[::-1], seen.steps[::-1], strict=True):
            try:
                read(place.open(outputs).get(name, Path(scratch)), step)
            except DamagedError as damage:
                seen.damage = seen.damage or f"{damage}"
            else:
                seen.fallback = step
                break
    return seen


def _damage(place: Bench, outputs: Path) -> None:
    place.flip(outputs, _names(place, outputs)[-1])


def _end(place: Bench, outputs: Path) -> End:
    from sr_runner.checkpoint.format import MODEL, TRAINING

    names, files = _names(place, outputs), place.files(outputs)
    with tempfile.TemporaryDirectory() as scratch:
        newest = place.open(outputs).get(names[-1], Path(scratch))
        step = names[-1].rpartition("/")[2]
        tensors = {f"{step}/{f}": hashlib.sha256((newest / f).read_bytes()).hexdigest() for f in (MODEL, TRAINING)}
    kept = {f"{name}/" for name in names}

    def is_left(file: str) -> bool:
        return not (file.startswith(tuple(kept)) or "/damaged-" in file or "lease" in file) or file.endswith(")")

    attempts = {"/".join(file.split("/")[:2]) for file in files if "/step-" in file}
    attempts |= {f"{run.parent.name}/{run.name}" for run in (outputs / "runs").glob("*/*")}
    return End(tensors, [file for file in files if is_left(file)], attempts, place.points(outputs))


def _check_resumed(log: Path, before: Seen, verdict: Verdict) -> None:
    """A run that says where it begins begins with the newest good checkpoint there was."""
    text = log.read_text()
    wanted = before.fallback if before.damage else max(before.steps, default=None)
    if wanted is None:
        return
    if said := ANNOUNCED.search(text):
        if int(said[1]) < wanted:
            verdict.lost.append(f"{log.stem} resumed at step {said[1]}, step {wanted} was committed")
    elif re.search(r"starts at step 0|nothing to resume|Step \d+ of", text):
        verdict.lost.append(f"{log.stem} began anew, step {wanted} was committed")


def _labels(journal: Path) -> Counter[str]:
    return Counter(line.removesuffix(" STRUCK") for line in journal.read_text().splitlines())


# -- all trials ----------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    store: str
    seed: int
    fault: str
    trials: int = 0
    missed: int = 0
    senders: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    verdicts: list[Verdict] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        self.trials += 1
        self.missed += verdict.missed
        self.senders += verdict.senders
        self.kills.update(verdict.kills)
        self.verdicts.append(verdict)

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {count}" for phase, count in sorted(self.kills.items()))
        word = "outages" if self.fault == "outage" else "kills"
        return (
            f"{self.store}: {self.trials} trials (seed {self.seed}), {sum(self.kills.values())} {word} ({phases}), "
            f"{self.senders} senders killed, {self.missed} not reached, "
            f"{sum(bool(v.lost) for v in self.verdicts)} lost runs, "
            f"{sum(bool(v.differing) for v in self.verdicts)} with differing bytes, "
            f"{sum(len(v.unreadable) for v in self.verdicts)} unreadable newest checkpoints without fall-back, "
            f"{sum(len(v.faults) for v in self.verdicts)} other faults"
        )


def run(
    place: Bench, folder: Path, variants: Sequence[str], trials: int, seed: int, fault: str, plain: bool, only: str = ""
) -> Tally:
    tally, chance = Tally(place.kind, seed, fault), random.Random(seed)
    workshop, first = Workshop(place, folder, fault, variants), variants[0]
    for variant in variants[: max(trials, 1)]:
        workshop.reference(variant)
        wrong = workshop.compare_plain(variant) if plain else []
        tally.verdicts += [Verdict(faults=wrong)] if wrong else []
        if plain:
            print(f"{variant}, forked and in a fresh process: {'; '.join(wrong) or 'identical'}", flush=True)
    cells = scouts(workshop.operations[first], partial(workshop.scout, variant=first), place.kind, fault, trials)
    for trial in plan(cells, workshop.operations, trials, chance, place.kind, fault, only):
        verdict = workshop.run(trial)
        tally.add(verdict)
        print(f"trial {trial}: {len(verdict.kills)} struck, {'; '.join(verdict.wrong) or 'identical'}", flush=True)
    return tally


def at(kind: str, folder: Path, args: argparse.Namespace) -> Tally:
    """The trials against one store, whose server runs meanwhile."""
    place = bench(kind, folder)
    try:
        if kind == "s3":
            fork_server.ask(place.server.make_bucket)  # type: ignore[union-attr]
        return run(place, folder, args.variant, args.trials, args.seed, args.fault, args.plain, args.only)
    finally:
        place.close()
        fork_server.end_orphans(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("local", "s3", "mlflow"), nargs="+", default=["local"])
    parser.add_argument("--variant", choices=VARIANTS | COMPILED, nargs="+", default=list(VARIANTS))
    parser.add_argument("--trials", type=int, default=20, help="for each store, over the variants in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", choices=("kill", "outage", "sender"), default="kill")
    parser.add_argument("--only", default="", help="a regular expression that the operation's label has to match")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True,
                        help="compare unbroken runs, forked and in a fresh process, first")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=None, help="where to work; failed trials stay there")
    args = parser.parse_args()
    if args.fault == "outage" and "local" in args.store:
        parser.error("--fault outage: a folder has no server")
    fork_server.warm_up()
    failed = False
    for kind in args.store:
        folder = Path(tempfile.mkdtemp(prefix="sr-run-faults-", dir=args.folder))
        tally = at(kind, folder, args)
        print(tally, flush=True)
        wrong = any(verdict.wrong for verdict in tally.verdicts)
        failed |= wrong
        if args.folder is None or not wrong:
            shutil.rmtree(folder, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
