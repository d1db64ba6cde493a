"""What a job of a sweep costs beside its training, whether that grows with their number, and what skipping them costs.

    python benchmarks/sweep_cost.py --jobs 1000                       on SQLite
    python benchmarks/sweep_cost.py --jobs 1000 --tracker postgres    on a PostgreSQL server that is started for it
    python benchmarks/sweep_cost.py --jobs 1000 --tracker none        or the URI of a server

`sr-run -m` runs jobs of one step and one evaluation in this process. A hundred times, spread evenly over them, a bare
script does the same: it builds the network and the data, takes the step, validates and saves. The own cost of a job is
what it takes beyond that. At the end the same command, in a process of its own, has nothing left to do.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import torch
from hydra.experimental.callback import Callback

from sr_runner.commands.run import main as sr_run
from sr_runner.data import SampleData
from sr_runner.evaluation.protocol import evaluate
from sr_runner.models import EDSR

TESTS = Path(__file__).parents[1] / "tests"
JOB = [
    "model.num_filters=4", "model.num_res_blocks=1", "data.batch_size=1", "data.patch_size=16", "data.valid_images=2",
    "trainer.steps=1", "trainer.eval_every=1", "trainer.log_every=1", "trainer.pictures=0", "trainer.threads=1",
]  # fmt: skip


def bare(outputs: Path, seed: int) -> None:
    """What each job asks for, by hand."""
    torch.manual_seed(seed)
    model = EDSR(scale=2, num_filters=4, num_res_blocks=1)
    data = SampleData(scale=2, batch_size=1, patch_size=16, valid_images=2, seed=seed, cache_dir=outputs / "cache")
    data.prepare(progress=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with data.stream(0, 1) as batches:
        lr, hr = next(batches)
        torch.nn.functional.l1_loss(model(lr), hr).backward()
        optimizer.step()
    evaluate(model.eval(), data.valid, crop=2, device="cpu")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, outputs / "bare.pt")


class Clock(Callback):
    """Hydra tells it of the end of each job."""

    jobs: ClassVar[list[tuple[float, float]]] = []  # seconds, and those of them that this process computed
    bares: ClassVar[dict[int, tuple[float, float]]] = {}  # after which job

    def __init__(self, count: int, outputs: str) -> None:
        self._count, self._outputs, self._now = count, Path(outputs), now()

    def on_job_end(self, **_: Any) -> None:
        self.jobs.append(since(self._now))
        number = len(self.jobs)
        if number % max(1, self._count // 100) == 0:
            began = now()
            bare(self._outputs, number)
            self.bares[number] = since(began)
            took = statistics.median(wall for wall, _ in self.jobs[-10:])
            print(f"  job {number} of {self._count}: {took:.3f} s", file=sys.__stderr__, flush=True)
        self._now = now()


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - began[0], time.process_time() - began[1]


def postgres() -> Any:
    sys.path += [str(TESTS), str(TESTS / "tools")]
    from postgres_server import postgres

    return postgres()


def report(count: int, jobs: list[tuple[float, float]], bares: dict[int, tuple[float, float]]) -> None:
    tenth = max(1, count // 10)
    print(f"{'':20}{'job':>10}{'bare':>10}{'own cost':>10}   seconds, mean (and of this process's CPU time)")
    parts = {"first tenth": (2, tenth + 1), "last tenth": (count - tenth + 1, count), "all": (2, count)}
    for name, (first, last) in parts.items():  # the first job of all imports what there is to import
        job = [statistics.mean(column) for column in zip(*jobs[first - 1 : last], strict=True)]
        by_hand = [each for number, each in bares.items() if first <= number <= last] or list(bares.values())
        other = [statistics.mean(column) for column in zip(*by_hand, strict=True)]
        for position, text in enumerate((name, "  CPU")):
            a, b = job[position], other[position]
            print(f"{text:20}{a:>10.3f}{b:>10.3f}{a - b:>10.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--tracker", default="sqlite", help="sqlite, postgres, none, or a URI")
    parser.add_argument("--outputs", type=Path, help="a folder to be left there; by default one that is deleted")
    options = parser.parse_args()
    with ExitStack() as stack:
        outputs = options.outputs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        outputs.mkdir(parents=True, exist_ok=True)
        words = ["-m", *JOB, f"seed=range({options.jobs})", f"outputs={outputs.absolute()}", "trainer.resume=true"]
        if options.tracker == "none":
            words.append("tracker=none")
        elif options.tracker != "sqlite":
            uri = stack.enter_context(postgres()) if options.tracker == "postgres" else options.tracker
            words.append(f"tracker.uri={uri}")
        clock = f"_target_: sweep_cost.Clock, count: {options.jobs}, outputs: '{outputs.absolute()}'"
        print(f"{options.jobs} jobs on {options.tracker}, log in {outputs}/sweep.log", file=sys.stderr)
        with (outputs / "sweep.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
            began = time.perf_counter()
            status = sr_run([*words, f"+hydra.callbacks.clock={{{clock}}}"])
            took = time.perf_counter() - began
        from sweep_cost import Clock as heard  # Hydra has imported this file under its name

        if status or len(heard.jobs) != options.jobs or not heard.bares:
            sys.exit((outputs / "sweep.log").read_text()[-3000:])
        report(options.jobs, heard.jobs, heard.bares)
        spent = sum(wall for wall, _ in [*heard.jobs, *heard.bares.values()])
        print(f"in all {took:.0f} s, {took - spent:.1f} s of them before the first job and after the last")
        began = time.perf_counter()
        with (outputs / "again.log").open("w") as log:
            subprocess.run([sys.executable, "-m", "sr_runner.commands.run", *words], stdout=log, stderr=log, check=True)
        took = time.perf_counter() - began
        print(f"once more: {took:.1f} s for {options.jobs} finished jobs, {took / options.jobs:.3f} s each")


if __name__ == "__main__":
    main()
