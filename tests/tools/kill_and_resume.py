"""Kill sr-run at random instants, resume it, and compare what comes out with a run that was never touched.

    python tests/tools/kill_and_resume.py --trials 20 --seed 0

Every trial starts the same training in a folder of its own, kills it (SIGKILL) at random instants between the first
moment of start-up and its end, resumes until it is complete, and then compares, with an uninterrupted reference:

- `model.safetensors` and `training.safetensors`, byte by byte;
- the metric points in MLflow: exactly one per key and step, none missing, and equal where they do not measure time;
- that there is one MLflow run and one attempt.

Exit status 0 if nothing differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from variants import COMPILED, VARIANTS

OF_CHECKPOINTS = ("checkpoint/stall_seconds", "checkpoint/write_seconds")
TIMED = ("train/images_per_second", "train/data_wait", *OF_CHECKPOINTS)
SMALL = (
    "data.batch_size=2", "data.patch_size=32", "data.valid_images=1", "trainer.threads=1", "trainer.log_every=3",
    "trainer.eval_every=12", "checkpoint.every=5", "trainer.steps=36", "tracker.system_metrics=false",
    "trainer.pictures=1",
)  # fmt: skip


@dataclass
class Tally:
    trials: int = 0
    kills: int = 0
    faults: list[str] = field(default_factory=list)


def command(overrides: tuple[str, ...], outputs: Path, resume: bool) -> list[str]:
    run = [sys.executable, "-m", "sr_runner.commands.run", *overrides, f"outputs={outputs}"]
    return [*run, "trainer.resume=true"] if resume else run


def spawn(args: list[str], log: Path) -> subprocess.Popen[bytes]:
    tools = Path(__file__).resolve().parent
    paths = (str(tools.parents[1]), str(tools), os.environ.get("PYTHONPATH"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with log.open("ab") as file:
        return subprocess.Popen(args, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)


def senders_of(outputs: Path) -> list[int]:
    """Processes of the tracker that work below `outputs`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"sr_runner.tracking.sender" in words and any(str(outputs).encode() in word for word in words):
            found.append(int(entry.name))
    return found


def final_files(outputs: Path) -> dict[str, bytes]:
    """The tensors of the newest checkpoint. Raises where there is not exactly one attempt."""
    (attempt,) = (outputs / "checkpoints").glob("*/*")
    newest = max(attempt.glob("step-*"))
    names = ("model.safetensors", "training.safetensors")
    return {f"{newest.name}/{name}": (newest / name).read_bytes() for name in names}


def points(
    outputs: Path, uri: str | None = None, name: str | None = None
) -> tuple[int, dict[str, list[tuple[int, float]]]]:
    """How many MLflow runs there are (in the experiment `name`, or in any), and all metric points of the first."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{outputs / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments() if name in (None, each.name)]
    runs = client.search_runs(experiments)
    run = runs[0]
    keys = [key for key in run.data.metrics if not key.startswith("system/")]
    history = {key: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)) for key in keys}
    if run.info.status != "FINISHED":
        raise AssertionError(f"the MLflow run is {run.info.status}")
    return len(runs), history


def differences(
    reference: dict[str, list[tuple[int, float]]], mine: dict[str, list[tuple[int, float]]], variant: str = ""
) -> list[str]:
    """What is wrong with the points of one trial."""
    by_chance = OF_CHECKPOINTS if variant == "replace" else ()  # which checkpoints are replaced is a matter of time
    wrong = [f"metric {key} is missing" for key in reference.keys() - mine.keys()]
    wrong += [f"metric {key} is new" for key in mine.keys() - reference.keys()]
    for key in reference.keys() & mine.keys():
        doubled = [step for step, count in Counter(step for step, _ in mine[key]).items() if count > 1]
        missing = {step for step, _ in reference[key]} - {step for step, _ in mine[key]}
        added = {step for step, _ in mine[key]} - {step for step, _ in reference[key]}
        faults = {"points twice": set(doubled)}
        faults |= {} if key in by_chance else {"points missing": missing, "points added": added}
        wrong += [f"{key}: {what} at steps {sorted(steps)}" for what, steps in faults.items() if steps]
        equal = str(mine[key]) == str(reference[key])  # a NaN is no other
        if key not in TIMED and not (doubled or missing or added or equal):
            wrong.append(f"{key}: values differ")
    return wrong


def finish(args: list[str], log: Path) -> None:
    process = spawn(args, log)
    try:
        code = process.wait(timeout=600)
    finally:
        process.kill()
    if code != 0:
        raise AssertionError(f"exit status {code}: {log.read_text()[-1500:]}")


def trial(overrides: tuple[str, ...], outputs: Path, chance: random.Random, duration: float) -> int:
    """Kill and resume until the run is complete; the number of kills."""
    kills, log = 0, outputs.with_suffix(".log")
    for start in range(chance.randint(1, 3)):
        process = spawn(command(overrides, outputs, resume=start > 0), log)
        try:
            process.wait(timeout=chance.uniform(0, duration))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            if chance.random() < 0.5:  # the whole machine, as it were
                for pid in senders_of(outputs):
                    os.kill(pid, signal.SIGKILL)
    finish(command(overrides, outputs, resume=True), log)
    return kills


def run(trials: int, seed: int, variants: Sequence[str], folder: Path, say: bool = True) -> Tally:
    """`trials` trials over `variants` in turn."""
    chance, tally = random.Random(seed), Tally()
    for number in range(trials):
        name = variants[number % len(variants)]
        overrides = (*SMALL, *(VARIANTS | COMPILED)[name])
        reference = folder / f"reference-{name}"
        if not reference.exists():
            finish(command(overrides, reference, resume=False), reference.with_suffix(".log"))
        began = time.monotonic()
        if number < len(variants):  # how long an unbroken run takes once the image cache is there, twice to be fair
            finish(command(overrides, folder / f"timing-{name}", resume=False), folder / f"timing-{name}.log")
            durations[name] = time.monotonic() - began
        outputs = folder / f"trial-{number:03d}"
        wrong: list[str] = []
        try:
            kills = trial(overrides, outputs, chance, durations[name] * 1.1)
            tally.kills += kills
            expected, found = final_files(reference), final_files(outputs)
            wrong += [f"{file} differs" for file in expected if found.get(file) != expected[file]]
            runs, mine = points(outputs)
            wrong += [f"{runs} MLflow runs"] if runs != 1 else []
            wrong += differences(points(reference)[1], mine, name)
        except (AssertionError, ValueError, OSError, subprocess.TimeoutExpired) as error:
            kills = -1
            wrong.append(repr(error))
        tally.trials += 1
        tally.faults += [f"trial {number} ({name}): {fault}" for fault in wrong]
        if say:
            print(f"trial {number} {name}: {kills} kills, {'; '.join(wrong) or 'identical'}", flush=True)
    return tally


durations: dict[str, float] = {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", choices=VARIANTS | COMPILED, nargs="+", default=list(VARIANTS))
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sr-run-kill-") as temporary:
        tally = run(args.trials, args.seed, args.variant, args.folder or Path(temporary))
    print(f"{tally.trials} trials, {tally.kills} kills, {len(tally.faults)} faults")
    print("\n".join(tally.faults))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
