"""`hydra/sweeper=optuna`: what is sampled, how a study goes on, and what is refused."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from PIL import Image
from run_server import RunServer
from support import TINY, SrRun

from sr_runner.commands import search
from sr_runner.commands.search import OptunaSweeper, judge_of
from sr_runner.commands.search_plots import draw
from sr_runner.commands.sweep_board import Job, read_job, write_job
from sr_runner.config.overrides import parse
from sr_runner.errors import RequestError
from sr_runner.files import LinkError

SPACE = ["optimizer.lr=tag(log, interval(1e-5, 1e-2))", "model=edsr,wdsr_b", "trainer.steps=10"]
TPE = {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 3}
NOP = {"_target_": "optuna.pruners.NopPruner"}


class Killed(BaseException):
    """Ends the process, as it were."""


class Jobs(Launcher):
    """Jobs that only write their records: a PSNR by the values, a failure where the rate is large. `kill` is asked
    before and after each."""

    def __init__(self, folder: Path, kill: Callable[[], bool] = lambda: False) -> None:
        self.folder, self.kill, self.launched = folder, kill, list[int]()

    def setup(self, **_: Any) -> None: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            if self.kill():
                raise Killed
            self.launched.append(number)
            values = dict(each.split("=") for each in overrides)
            lr = float(values["optimizer.lr"])
            psnr = 30 - abs(math.log10(lr) + 3.3) + (values["model"] == "wdsr_b")
            folder = self.folder / f"{lr}-{values['model']}"
            folder.mkdir(exist_ok=True)
            job = Job(number, folder.name, values, list(overrides), "finished", psnr=psnr, metrics={"valid/psnr": psnr})
            write_job(folder, replace(job, status="failed", metrics={}) if lr > 5e-3 else job)
            if self.kill():
                raise Killed
        return []


def search_in(folder: Path, trials: int, kill: Callable[[], bool] = lambda: False, **options: Any) -> Jobs:
    folder.mkdir(exist_ok=True)
    space = options.pop("space", SPACE)
    settings = {"sampler": TPE, "pruner": NOP, "metrics": {"valid/psnr": "maximize"}, "n_jobs": 1, **options}
    sweeper = OptunaSweeper(n_trials=trials, **settings)  # type: ignore[arg-type]
    sweeper._folder, sweeper.launcher = folder, Jobs(folder, kill)
    sweeper.sweep(space)
    return sweeper.launcher


HALVING = {"_target_": "sr_runner.commands.halving.Halving", "min_steps": 10, "factor": 3}


class Steps(Jobs):
    """Jobs of 90 steps with an evaluation at every tenth, which may end them; they go on where they were."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        for overrides in job_overrides:
            values = dict(each.split("=") for each in overrides)
            folder, lr = self.folder / values["optimizer.lr"], float(values["optimizer.lr"])
            folder.mkdir(exist_ok=True)
            before = read_job(folder)
            done = before.seconds if before is not None else 0.0
            job = Job(initial_job_idx, folder.name, values, list(overrides), "running", seconds=done)
            write_job(folder, job)
            judge = judge_of(self.folder, HALVING, "valid/psnr", overrides)
            for step in range(int(done or 10), 100, 10):
                if self.kill():
                    raise Killed
                psnr = 30 - abs(math.log10(lr) + 3.3) + step / 100
                self.launched.append(step)
                job = replace(job, seconds=float(step), psnr=psnr, metrics={"valid/psnr": psnr})
                write_job(folder, job)
                if judge(step, {"valid/psnr": psnr}):
                    job = replace(job, status="pruned")
                    break
            if self.kill():
                raise Killed
            write_job(folder, job if job.status == "pruned" else replace(job, status="finished"))
        return []


def halved(folder: Path, trials: int, kill: Callable[[], bool] = lambda: False, n_jobs: int = 1) -> Steps:
    folder.mkdir(exist_ok=True)
    settings = {"sampler": TPE, "pruner": HALVING, "metrics": {"valid/psnr": "maximize"}, "n_jobs": n_jobs}
    sweeper = OptunaSweeper(n_trials=trials, **settings)  # type: ignore[arg-type]
    jobs = Steps(folder, kill)
    sweeper._folder, sweeper.launcher = folder, jobs
    sweeper.sweep(SPACE[:1])
    return jobs


def steps_of(folder: Path) -> list[tuple[float, int, str]]:
    """Of each trial its value, how many steps it took, and its state."""
    return [(each.params["optimizer.lr"], each.last_step or 0, each.state.name) for each in study_of(folder).trials]


@pytest.mark.parametrize("n_jobs", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_halving_trains_the_best_longest_and_goes_on_as_if_never_killed(tmp_path: Path, n_jobs: int) -> None:
    halved(tmp_path / "whole", 9, n_jobs=n_jobs)
    whole = steps_of(tmp_path / "whole")
    assert sorted({steps for _, steps, _ in whole}) == [10, 30, 90] and len(whole) == 9
    best = min(whole, key=lambda trial: abs(math.log10(trial[0]) + 3.3))
    assert best[1:] == (90, "COMPLETE") and sum(steps for _, steps, _ in whole) < 9 * 90 / 2
    chance, kills = random.Random(1), 0
    while True:
        try:
            halved(tmp_path / "killed", 9, lambda: chance.random() < 0.1, n_jobs)
            break
        except Killed:
            kills += 1
    assert kills > 3 and steps_of(tmp_path / "killed") == whole
    assert halved(tmp_path / "killed", 9, n_jobs=n_jobs).launched == []
    halved(tmp_path / "killed", 18, n_jobs=n_jobs)
    more = steps_of(tmp_path / "killed")
    assert len(more) == 18 and [trial[0] for trial in more[:9]] == [trial[0] for trial in whole]
    assert all(now[1] >= before[1] for now, before in zip(more, whole, strict=False))


def test_of_few_trials_the_best_is_trained_to_its_end(tmp_path: Path) -> None:
    halved(tmp_path, 2)
    (worse, better) = sorted(steps_of(tmp_path), key=lambda trial: trial[1])
    assert worse[1:] == (10, "RUNNING") and better[1:] == (90, "COMPLETE")


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(storage=f"sqlite:///{folder}/study.db", study_name="sr-run")


def trials_of(folder: Path) -> list[tuple[Any, ...]]:
    return [(each.state.name, each.params, each.values) for each in study_of(folder).trials]


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_study_that_is_killed_again_and_again_has_the_trials_of_one_that_was_not(tmp_path: Path, n_jobs: int) -> None:
    search_in(tmp_path / "whole", 10, n_jobs=n_jobs)
    whole = trials_of(tmp_path / "whole")
    assert len(whole) == 10 and {"COMPLETE"} <= {state for state, *_ in whole} <= {"COMPLETE", "FAIL"}
    chance, kills = random.Random(0), 0
    while True:
        try:
            search_in(tmp_path / "killed", 10, lambda: chance.random() < 0.4, n_jobs=n_jobs)
            break
        except Killed:
            kills += 1
    assert kills > 3 and trials_of(tmp_path / "killed") == whole
    assert search_in(tmp_path / "killed", 10, n_jobs=n_jobs).launched == []  # it has all its trials
    assert search_in(tmp_path / "killed", 12, n_jobs=n_jobs).launched == [10, 11]  # a total, not so many more
    assert all(f"{params['optimizer.lr']:.4g}" == f"{params['optimizer.lr']}" or params["optimizer.lr"] < 1e-4
               for _, params, _ in whole)  # fmt: skip


def test_a_pruner_sees_no_trial_of_the_same_batch_end_whether_or_not_the_search_was_killed_within_it(
    tmp_path: Path,
) -> None:
    asked = 0

    def kill() -> bool:  # after the second of three
        nonlocal asked
        asked += 1
        return asked == 4

    with pytest.raises(Killed):
        search_in(tmp_path, 3, kill, n_jobs=3)
    seen: list[str] = []

    def look() -> bool:
        seen.extend(state for state, *_ in trials_of(tmp_path))
        return False

    assert search_in(tmp_path, 3, look, n_jobs=3).launched == [2]
    assert set(seen) == {"RUNNING"}
    assert "RUNNING" not in {state for state, *_ in trials_of(tmp_path)}


def test_it_is_searched_for_and_found(tmp_path: Path) -> None:
    search_in(tmp_path, 30)
    best = study_of(tmp_path).best_trial
    assert best.params["model"] == "wdsr_b" and 10**-3.8 < best.params["optimizer.lr"] < 10**-2.8


def test_several_metrics_can_be_searched_for(tmp_path: Path) -> None:
    search_in(tmp_path, 4, metrics={"valid/psnr": "maximize", "parameters": "minimize"})
    assert [each.name for each in study_of(tmp_path).directions] == ["MAXIMIZE", "MINIMIZE"]
    assert {state for state, *_ in trials_of(tmp_path)} == {"FAIL"}  # these jobs have no `parameters`
    with pytest.raises(RequestError, match="was begun for others"):
        search_in(tmp_path, 5)


def test_the_choices_of_a_study_cannot_change(tmp_path: Path) -> None:
    search_in(tmp_path, 2)
    with pytest.raises(RequestError, match="cannot take other choices"):
        search_in(tmp_path, 3, space=[*SPACE[:1], "model=edsr,wdsr_b,srresnet"])


def test_a_link_in_the_place_of_the_study_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "study.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(LinkError):
        search_in(tmp_path, 1)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=1,2", optuna.distributions.CategoricalDistribution(["1", "2"])),
        ("a=choice(x,y)", optuna.distributions.CategoricalDistribution(["x", "y"])),
        ("a=range(1,8,2)", optuna.distributions.IntDistribution(1, 7, step=2)),
        ("a=range(5,1,-1)", optuna.distributions.IntDistribution(2, 5)),
        ("a=range(0,1,0.25)", optuna.distributions.FloatDistribution(0, 0.75, step=0.25)),
        ("a=interval(1,8)", optuna.distributions.FloatDistribution(1, 8)),
        ("a=int(interval(1,8))", optuna.distributions.IntDistribution(1, 8)),
        ("a=tag(log,int(interval(1,64)))", optuna.distributions.IntDistribution(1, 64, log=True)),
        ("a=tag(log,interval(1e-5,1e-2))", optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)),
    ],
)
def test_ranges_are_written_as_hydra_has_them(override: str, expected: object) -> None:
    assert search._distribution(parse([override])[0]) == expected


@pytest.mark.parametrize("override", ["a=tag(log,interval(0,1))", "a=interval(2,1)", "a=tag(log,range(1,9))"])
def test_a_range_that_cannot_be_is_refused(override: str) -> None:
    with pytest.raises(RequestError, match=re.escape(override)):
        search._distribution(parse([override])[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0: expected a whole number above 0"),
        ({"n_jobs": True}, "hydra.sweeper.n_jobs=True: expected a whole number"),
        ({"metrics": {"valid/psnr": "up"}}, "hydra.sweeper.metrics.valid/psnr=up: expected maximize or minimize"),
        ({"metrics": {}}, "expected a metric"),
        ({"metrics": {"valid/pnsr": "maximize"}}, "hydra.sweeper.metrics=valid/pnsr: expected valid/psnr"),
        ({"sampler": {"_target_": "os.system"}}, "sampler._target_=os.system: expected a sampler of Optuna's"),
        ({"sampler": {**TPE, "n": 1}}, "expected a sampler of Optuna's that takes seed=0, n_startup_trials=3, n=1"),
        ({"pruner": {"_target_": "optuna.pruners.MedianPrunner"}}, "expected a pruner of Optuna's"),
        ({"pruner": HALVING | {"factor": 1}}, "factor=1: expected a whole number of at least 2"),
        ({"pruner": HALVING | {"min_steps": 1.5}}, "min_steps=1.5: expected a whole number"),
        ({"pruner": {"_target_": "optuna.pruners.MedianPruner"}, "metrics": {"seconds": "minimize"}}, "evaluations"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    settings = {"n_trials": 2, "n_jobs": 1, "sampler": TPE, "pruner": NOP, "metrics": {"valid/psnr": "maximize"}}
    with pytest.raises(RequestError) as refused:
        search.pruning(SimpleNamespace(**(settings | change)), SPACE)  # type: ignore[arg-type]
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "message"), [("model=edsr", "there is nothing to choose"), ("a=interval(2,1)", "a=interval(2,1): ")]
)
def test_a_search_of_nothing_is_refused_before_anything_is_written(asked: str, message: str) -> None:
    settings = {"n_trials": 2, "n_jobs": 1, "sampler": TPE, "pruner": NOP, "metrics": {"valid/psnr": "maximize"}}
    with pytest.raises(RequestError) as refused:
        search.pruning(SimpleNamespace(**settings), [asked])  # type: ignore[arg-type]
    assert message in str(refused.value)


def test_a_trial_is_judged_by_those_before_it_once_per_step(tmp_path: Path) -> None:
    search_in(tmp_path, 1)
    study, pruner = study_of(tmp_path), {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1}
    space = study.trials[0].distributions
    good = optuna.trial.create_trial(
        value=30.0, intermediate_values={10: 28.0, 20: 29.0}, params=study.trials[0].params, distributions=space,
    )  # fmt: skip
    running = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, params=study.trials[0].params, distributions=space,
        user_attrs={"overrides": ["a=1", "b=2"]},
    )  # fmt: skip
    study.add_trials([good, good, running])
    judge = judge_of(tmp_path, pruner, "valid/psnr", ["b=2", "a=1", "trainer.resume=true"])
    assert not judge(10, {"valid/psnr": 28.5}) and judge(20, {"valid/psnr": 28.0})
    again = judge_of(tmp_path, pruner, "valid/psnr", ["b=2", "a=1"])
    assert again(20, {"valid/psnr": 99.0})  # as in its earlier life
    assert study_of(tmp_path).trials[-1].intermediate_values == {10: 28.5, 20: 28.0}
    unknown = judge_of(tmp_path, pruner, "valid/psnr", ["b=3"])
    assert not unknown(20, {"valid/psnr": 0.0})


def test_a_search_prunes_what_is_worse(sr_run: SrRun, tmp_path: Path) -> None:
    command = (
        "-m", *TINY, "hydra/sweeper=optuna", "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner",
        "+hydra.sweeper.pruner.lower=17", "trainer.steps=8", "trainer.eval_every=4", "checkpoint.every=4",
        "optimizer.lr=1e-7,3e-3", "hydra.sweeper.sampler._target_=optuna.samplers.BruteForceSampler", "tracker=none",
    )  # fmt: skip
    done = sr_run(*command, "hydra.sweeper.n_trials=2", "trainer.resume=true")
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    jobs = {path.name: job for path in sweep.iterdir() if (job := read_job(path)) is not None}
    assert len(jobs) == 2 == len(study_of(sweep).trials) and "job 2 of 2: lr=" in done.stderr
    states = {job.values["optimizer.lr"]: job.status for job in jobs.values()}
    results = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/*/*/result.json")]
    by_step = sorted(result["step"] for result in results)
    assert by_step == [4, 8] and sorted(states.values()) == ["finished", "pruned"], states


@pytest.mark.slow
def test_a_search_over_secrets_writes_none_and_takes_no_trial_for_another(sr_run: SrRun, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from sr_runner.models import EDSR\n"
        "class Net(EDSR):\n"
        "    def __init__(self, scale, token='', password=''):\n"
        "        super().__init__(scale=scale, num_filters=int(token[-1]), num_res_blocks=1)\n"
    )
    tiny = [each for each in TINY if not each.startswith("model.")]
    command = (
        "-m", *tiny, "hydra/sweeper=optuna", "trainer.steps=4", "model._target_=mine.Net", "+model.password=S3CRET-abc",
        "+model.token=S3CRET-xyz4,S3CRET-xyz8", "tracker=none", "trainer.resume=true",
        "hydra.sweeper.sampler._target_=optuna.samplers.BruteForceSampler",
    )  # fmt: skip
    sr_run(*command, "hydra.sweeper.n_trials=1")
    done = sr_run(*command, "hydra.sweeper.n_trials=2")
    assert "2 of 2 jobs finished" in done.stdout
    assert len(list(tmp_path.glob("outputs/runs/*/*/result.json"))) == 2
    written = (path for path in tmp_path.glob("outputs/**/*") if path.is_file() and path.suffix != ".diff")
    assert not [path for path in written if b"S3CRET" in path.read_bytes()]
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    grid = [each for each in command if "sweeper" not in each] + ["outputs=grid"]
    sizes = []
    for _ in range(2):
        assert "2 of 2 jobs finished" in sr_run(*grid).stdout
        sizes.append([path.stat().st_size for path in sorted(tmp_path.glob("grid/sweeps/*/*/job.log"))])
    assert len(sizes[0]) == 2 and sizes[0] == sizes[1], "finished jobs are known again, secrets or not"
    again = [each.replace("xyz4", "other4").replace("xyz8", "other8") for each in command]
    place = f"hydra.sweep.dir={sweep}"
    assert "cannot take other choices" in sr_run(*again, place, "hydra.sweeper.n_trials=3", code=2).stderr
    shutil.rmtree(sweep / "search", ignore_errors=True)
    (sweep / "sweep.failed").mkdir()
    said = sr_run(*command, "hydra.sweeper.n_trials=2", code=1).stderr
    assert "Traceback" not in said and "sweep.failed: the sweep cannot write its file there (Is a directory)" in said


def size_of(path: Path) -> tuple[int, int]:
    """Of a picture on which something is drawn."""
    with Image.open(path) as image:
        assert len(image.convert("L").getcolors(256) or ()) > 20, path
        return image.size


@pytest.mark.slow
def test_of_several_metrics_each_is_drawn_and_the_compromises(tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/study.db", study_name="sr-run", directions=["maximize", "minimize"]
    )
    space = {"optimizer.lr": optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)}
    metrics = ["valid/psnr", "parameters"]
    for number, rate in enumerate((1e-5, 1e-4, 1e-3, 1e-2)):
        study.add_trial(
            optuna.trial.create_trial(
                values=[30.0 + number, 1e6 * number], params={"optimizer.lr": rate}, distributions=space
            )
        )
        drawn = draw(tmp_path, metrics) if number in (0, 3) else []
        assert bool(drawn) == (number == 3), "of one trial there is no picture"
    kinds = ("optimization-history", "parameter-importances", "parallel-coordinates")
    names = {f"{kind}-{metric}" for kind in kinds for metric in ("valid-psnr", "parameters")} | {"pareto-front"}
    assert {path.stem for path in drawn} == names and {path.parent for path in drawn} == {tmp_path / "search"}
    assert all(min(size_of(path)) > 400 for path in drawn)


@pytest.mark.slow
def test_a_promoted_trial_ends_with_the_weights_of_a_run_that_was_never_paused(sr_run: SrRun, tmp_path: Path) -> None:
    tiny = (*TINY, "trainer.steps=12", "trainer.eval_every=2", "checkpoint.every=2")
    rates = "optimizer.lr=1e-7,1e-6,3e-3"
    brute = "hydra.sweeper.sampler._target_=optuna.samplers.BruteForceSampler"
    command = ("-m", *tiny, "hydra/sweeper=asha", "hydra.sweeper.pruner.min_steps=4", rates, brute)
    done = sr_run(*command, "hydra.sweeper.n_trials=3", "trainer.resume=true")
    assert "1 of 3 jobs finished, 2 pruned" in done.stdout
    steps = sorted(json.loads(path.read_text())["step"] for path in tmp_path.glob("outputs/runs/*/*/result.json"))
    assert steps == [4, 4, 12]
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    run_id = json.loads((sweep / "tracker.json").read_text())["run_id"]
    assert [path.name for path in (sweep / "search").iterdir()] == ["intermediate-values.png"]
    (there,) = tmp_path.glob(f"outputs/artifacts/{run_id}/artifacts/search/*")
    assert size_of(there) == size_of(sweep / "search" / there.name)
    sr_run(*tiny, "optimizer.lr=3e-3", "tracker=none", "outputs=plain")
    (plain,) = tmp_path.glob("plain/checkpoints/*/*/step-00000012")
    halved_to = tmp_path / "outputs" / "checkpoints" / plain.parents[1].name
    (there,) = halved_to.glob("*/step-00000012")
    for name in ("model.safetensors", "training.safetensors"):
        assert (there / name).read_bytes() == (plain / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_search_that_is_killed_at_random_instants_ends_like_one_that_was_not(
    run_server: RunServer, tmp_path: Path, image_cache: Path
) -> None:
    command = (
        "-m", *TINY, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=12", "trainer.steps=60", "trainer.eval_every=10",
        "checkpoint.every=10", "trainer.log_every=10", "hydra.sweeper.pruner._target_=optuna.pruners.MedianPruner",
        "+hydra.sweeper.pruner.n_startup_trials=3", "optimizer=sgd",
        "trainer.grad_clip=null", "optimizer.lr=1e-3,1e-2,3e-2,1000", "model=edsr,wdsr_b",
        "seed=range(0,3)", f"data.cache_dir={image_cache}", "trainer.resume=true",
    )  # fmt: skip

    def started(outputs: str, patience: float | None = None) -> int | None:
        said = [tmp_path / f"{outputs}-{stream}" for stream in ("report", "said")]
        return run_server.start([*command, f"outputs={outputs}"], tmp_path, *said).wait(*filter(None, [patience]))

    def trials(outputs: str) -> list[tuple[Any, ...]]:
        (sweep,) = (tmp_path / outputs / "sweeps").iterdir()
        return [
            (each.state.name, each.params, each.values, each.intermediate_values) for each in study_of(sweep).trials
        ]

    generator, kills = random.Random(3), 0
    while kills < 10 and started("killed", generator.uniform(3, 12)) is None:
        kills += 1
    assert kills >= 3
    assert [started("killed"), started("whole")] == [0, 0]
    assert trials("killed") == trials("whole") and len(trials("whole")) == 12
    assert {"COMPLETE", "PRUNED", "FAIL"} == {state for state, *_ in trials("whole")}
