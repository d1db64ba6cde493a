"""`hydra/sweeper=optuna`: a search instead of a grid. Its study is a file in the sweep's folder, every trial a job."""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from sr_runner.commands.finished_jobs import determining
from sr_runner.commands.sweep_board import Job, records
from sr_runner.config.overrides import parse
from sr_runner.errors import RequestError, RunError, check_choice
from sr_runner.evaluation.metrics import METRICS
from sr_runner.files import LinkError
from sr_runner.masking import MASK, cause, digested_overrides
from sr_runner.training.orchestrator import Judge

if TYPE_CHECKING:
    import optuna

    from sr_runner.commands.halving import Halving

STUDY = "study.db"
"""In the folder of the sweep."""
_NAME = "sr-run"
_OVERRIDES = "overrides"


class OptunaSweeper(Sweeper):
    """Asks Optuna for the values of each trial, runs it by Hydra's launcher, and tells Optuna what came of it.

    `n_trials` counts those of earlier starts; `n_jobs` run at a time, if the launcher runs jobs side by side.
    `sampler` and `pruner` name classes of Optuna's and their arguments. `metrics` are what is searched for, each with
    `maximize` or `minimize`: those of a run (`valid/psnr`), its `parameters` and its `seconds`.

    A repeated start goes on with the study as if it had not been interrupted: a trial that was running goes on from its
    checkpoint, and the values of trial N depend on the trials before it and on `sampler.seed`, not on when they are
    asked for.
    """

    def __init__(
        self, n_trials: int, n_jobs: int, sampler: DictConfig, pruner: DictConfig, metrics: DictConfig,
        params: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._n_trials, self._n_jobs = n_trials, n_jobs
        self._sampler, self._pruner = _plain(sampler), _plain(pruner)
        self._metrics: dict[str, str] = _plain(metrics)
        self._params = params or {}
        self._halving: Halving | None = None
        self._given: dict[str, str] = {}  # overrides of this command line, by what stands for them in files
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._folder = Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    @property
    def _directions(self) -> list[optuna.study.StudyDirection]:
        import optuna

        return [optuna.study.StudyDirection[each.upper()] for each in self._metrics.values()]

    def sweep(self, arguments: list[str]) -> None:
        import optuna

        from sr_runner.commands.halving import Halving, stage_of

        overrides = parse([*(f"{key}={value}" for key, value in self._params.items()), *arguments])
        space = _space(overrides)
        constant = self._shown(str(each.input_line) for each in overrides if not each.is_sweep_override())
        for each in overrides:
            if each.is_sweep_override() and each.is_discrete_sweep():
                self._shown(f"{each.get_key_element()}={text}" for text in each.sweep_string_iterator())
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = _made("pruner", self._pruner)
        study = optuna.create_study(
            storage=_storage(self._folder), study_name=_NAME, directions=self._directions, pruner=pruner,
            load_if_exists=True,
        )  # fmt: skip
        if study.directions != self._directions:
            raise RequestError(
                f"hydra.sweeper.metrics={self._metrics}: the study in {self._folder} was begun for others; "
                "trainer.resume=false begins a new one"
            )
        self._halving = pruner if isinstance(pruner, Halving) else None
        self._check(study)
        batch = max((stage_of(trial).batch for trial in study.trials), default=0)
        running = [trial.number for trial in study.trials if stage_of(trial).batch == batch]
        has_begun = any(self._has_begun(study.trials[number]) for number in running)
        while True:
            while not has_begun and len(running) < self._n_jobs:
                number = self._next(study, space, constant, batch)
                if number is None:
                    break
                running.append(number)
            if not running:
                return
            self._run(study, running)
            batch, running, has_begun = batch + 1, [], False

    def _check(self, study: optuna.Study) -> None:
        """Raises `RunError` where the study's file holds something that is not ours."""
        from sr_runner.commands.halving import stage_of

        try:
            for trial in study.trials:
                stage = stage_of(trial)
                given = trial.user_attrs[_OVERRIDES]
                is_ours = isinstance(stage.batch, int) and isinstance(stage.rung, int) and isinstance(given, list)
                if not is_ours or not all(isinstance(each, str) for each in given):
                    raise ValueError(f"trial {trial.number} is none of sr-run's")
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{self._folder / STUDY} is damaged ({error}); trainer.resume=false begins a new one"
            ) from error

    def _shown(self, overrides: Iterable[str]) -> list[str]:
        """`overrides` as they may stand in a file: a digest in the place of each secret."""
        given = list(overrides)
        shown = digested_overrides(given)
        self._given |= dict(zip(shown, given, strict=True))
        return shown

    def _real(self, trial: optuna.trial.FrozenTrial) -> list[str]:
        """The overrides of `trial`, with the secrets of this command line."""
        real = [self._given.get(each, each) for each in trial.user_attrs[_OVERRIDES]]
        if unknown := [each for each in real if MASK in each]:
            raise RequestError(
                f"{unknown[0].partition('=')[0]}: trial {trial.number} of the study in {self._folder} was begun with "
                "another secret; expected that one, or trainer.resume=false for a new study"
            )
        return real

    def _next(
        self, study: optuna.Study, space: Mapping[str, Any], constant: Sequence[str], batch: int
    ) -> int | None:  # fmt: skip
        """What `batch` is to run besides: a trial that goes on, or a new one; None: no more."""
        from sr_runner.commands.halving import STAGE, Stage, stage_of

        if self._halving is not None:
            paused = [trial for trial in study.trials if self._is_paused(trial)]
            is_last = len(study.trials) >= self._n_trials
            promoted = self._halving.promoted(study, paused, is_last=is_last)
            if promoted is not None:
                stage = Stage(batch, stage_of(promoted).rung + 1)
                study._storage.set_trial_user_attr(promoted._trial_id, STAGE, asdict(stage))
                return promoted.number
        return self._ask(study, space, constant, batch) if len(study.trials) < self._n_trials else None

    def _is_paused(self, trial: optuna.trial.FrozenTrial) -> bool:
        """It has done the steps of its rung, and may go on."""
        if trial.state != _state("RUNNING") or not self._is_at_limit(trial):
            return False
        job = _record_of(self._folder, trial.user_attrs[_OVERRIDES])
        return job is not None and job.status == "pruned"

    def _is_at_limit(self, trial: optuna.trial.FrozenTrial) -> bool:
        return self._halving is not None and self._halving.is_at_limit(trial)

    def _has_begun(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Its job was started in its batch."""
        job = _record_of(self._folder, trial.user_attrs[_OVERRIDES])
        return job is not None and (self._halving is None or job.status != "pruned" or self._is_at_limit(trial))

    def _ask(self, study: optuna.Study, space: Mapping[str, Any], constant: Sequence[str], batch: int) -> int:
        """Begin a trial. It is in the study's file whole or not at all, whenever this process is killed: the sampler
        works on a copy of it, in which paused trials are pruned ones."""
        import optuna

        from sr_runner.commands.halving import STAGE, Stage

        number = len(study.trials)
        scratch = optuna.create_study(directions=study.directions, sampler=_made("sampler", self._sampler, number))
        scratch.add_trials([self._as_pruned(trial) for trial in study.trials])
        try:
            scratch.ask(dict(space))
            asked = scratch.trials[-1]
            params = {key: _short(value, space[key]) for key, value in asked.params.items()}
            overrides = [*constant, *(f"{key}={value}" for key, value in params.items())]
            study.add_trial(
                optuna.trial.create_trial(
                    state=_state("RUNNING"), params=params, distributions=asked.distributions,
                    user_attrs={_OVERRIDES: overrides, STAGE: asdict(Stage(batch))},
                    system_attrs=asked.system_attrs,
                )
            )  # fmt: skip
        except ValueError as error:
            raise RequestError(
                f"hydra/sweeper=optuna: {error} The study in {self._folder} cannot take other choices; "
                "trainer.resume=false begins a new one"
            ) from error
        return number

    def _as_pruned(self, trial: optuna.trial.FrozenTrial) -> optuna.trial.FrozenTrial:
        if self._is_paused(trial):
            trial = copy.deepcopy(trial)
            trial.state, trial.datetime_complete = _state("PRUNED"), trial.datetime_start
        return trial

    def _run(self, study: optuna.Study, numbers: Sequence[int]) -> None:
        """Run these trials side by side, and tell the study. What had ended already is only told, and after all have
        ended: a pruner compares with trials that the study knows to have ended, and those of one batch never are."""
        left = [number for number in numbers if not self._has_ended(study.trials[number])]
        if left:
            from sr_runner.commands.halving import stage_of

            assert self.launcher is not None
            trials = [study.trials[number] for number in left]
            on = [["trainer.resume=true"] if self._halving and stage_of(trial).rung else [] for trial in trials]
            jobs = [[*self._real(trial), *more] for trial, more in zip(trials, on, strict=True)]
            self.launcher.launch(jobs, initial_job_idx=left[0])
        for number in numbers:
            self._tell(study, number)

    def _has_ended(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Nothing of its batch is left to do for it, by the record of its job."""
        if self._is_paused(trial) or trial.state.is_finished():
            return True
        job = _record_of(self._folder, trial.user_attrs[_OVERRIDES])
        return job is not None and job.status in ("finished", "pruned", "failed") and self._has_begun(trial)

    def _tell(self, study: optuna.Study, number: int) -> None:
        """Tell the study how trial `number` ended; one that did not come as far as a record has failed."""
        trial = study.trials[number]
        if self._is_paused(trial) or trial.state.is_finished():
            return
        job = _record_of(self._folder, trial.user_attrs[_OVERRIDES]) if self._has_ended(trial) else None
        values = [job.metrics.get(name, math.nan) for name in self._metrics] if job is not None else []
        if job is not None and job.status == "pruned":
            study.tell(number, state=_state("PRUNED"))
        elif job is not None and job.status == "finished" and all(map(math.isfinite, values)):
            study.tell(number, values)
        else:
            study.tell(number, state=_state("FAIL"))


def study_in(folder: Path, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
    """The study of the search in `folder`."""
    import optuna

    return optuna.load_study(storage=_storage(folder), study_name=_NAME, pruner=pruner)


def judge_of(folder: Path, pruner: Mapping[str, Any], metric: str, overrides: Sequence[str]) -> Judge:
    """What the trial whose overrides these are reports to, after each evaluation, for the study in `folder`."""
    import optuna

    study = study_in(folder, _made("pruner", pruner))
    wanted = determining(digested_overrides(overrides))
    trials = study.get_trials(deepcopy=False, states=[_state("RUNNING")])
    found = [trial for trial in trials if determining(trial.user_attrs.get(_OVERRIDES, ())) == wanted]
    if not found:
        return lambda step, metrics: False
    number, trial_id = found[0].number, found[0]._trial_id
    trial = optuna.Trial(study, trial_id)

    def judge(step: int, metrics: Mapping[str, float]) -> bool:
        if step not in study.trials[number].intermediate_values and metric in metrics:
            trial.report(metrics[metric], step)
        return trial.should_prune()

    return judge


def pruning(sweeper: DictConfig, overrides: Sequence[str]) -> tuple[dict[str, Any], str] | None:
    """The pruner that `hydra.sweeper` asks for and the metric that it looks at; None where there is none.

    Raises `RequestError` for values there, or ranges in `overrides`, that cannot be meant.
    """
    try:
        import optuna
    except ImportError as error:
        raise RequestError("hydra/sweeper=optuna: expected sr-run[optuna] to be installed") from error
    for key in ("sampler", "pruner", "metrics"):
        if not isinstance(value := _plain(getattr(sweeper, key)), dict):
            raise RequestError(f"hydra.sweeper.{key}={value}: expected a mapping, as in hydra/sweeper=optuna")
    metrics = _plain(sweeper.metrics)
    if not _space(parse(overrides)):
        raise RequestError(
            "hydra/sweeper=optuna: there is nothing to choose; expected a key with several values or a range, such as "
            "optimizer.lr='tag(log, interval(1e-5, 1e-2))'"
        )
    for name, direction in metrics.items():
        check_choice("hydra.sweeper.metrics", name, (*(f"valid/{each}" for each in METRICS), "parameters", "seconds"))
        if direction not in ("maximize", "minimize"):
            raise RequestError(f"hydra.sweeper.metrics.{name}={direction}: expected maximize or minimize")
    if not metrics:
        raise RequestError("hydra.sweeper.metrics={}: expected a metric, such as {valid/psnr: maximize}")
    for key, value in (("n_trials", sweeper.n_trials), ("n_jobs", sweeper.n_jobs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RequestError(f"hydra.sweeper.{key}={value}: expected a whole number above 0")
    _made("sampler", _plain(sweeper.sampler), 0)
    pruner = _made("pruner", _plain(sweeper.pruner))
    if isinstance(pruner, optuna.pruners.NopPruner):
        return None
    if len(metrics) > 1 or not next(iter(metrics)).startswith("valid/"):
        raise RequestError(
            "hydra.sweeper.pruner: expected hydra.sweeper.metrics to be one metric of the evaluations, such as "
            f"valid/psnr, not {', '.join(metrics)}"
        )
    return _plain(sweeper.pruner), next(iter(metrics))


def is_search(sweeper: DictConfig) -> bool:
    """Whether `hydra.sweeper` names the class of this module."""
    try:
        return get_object(sweeper._target_) is OptunaSweeper
    except Exception:  # whatever its module raises; Hydra says it
        return False


def _record_of(folder: Path, overrides: Sequence[str]) -> Job | None:
    wanted = determining(overrides)
    return next((job for job in records(folder) if determining(job.overrides) == wanted), None)


def _storage(folder: Path) -> optuna.storages.BaseStorage:
    import optuna

    path = folder / STUDY
    if path.is_symlink():
        raise LinkError(path)
    try:
        return optuna.storages.RDBStorage(f"sqlite:///{path}")
    except Exception as error:  # SQLAlchemy's, Alembic's, SQLite's
        raise RunError(f"{path} cannot be read: {cause(error)}") from error


def _state(name: str) -> optuna.trial.TrialState:
    import optuna

    return optuna.trial.TrialState[name]


def _made(part: Literal["sampler", "pruner"], config: Mapping[str, Any], number: int | None = None) -> Any:
    """The sampler or pruner of `config`; for trial `number` with a seed of its own."""
    import optuna

    kinds = {"sampler": optuna.samplers.BaseSampler, "pruner": optuna.pruners.BasePruner}
    arguments = dict(config)
    target = arguments.pop("_target_", None)
    try:
        kind = get_object(str(target))
        if not (isinstance(kind, type) and issubclass(kind, kinds[part])):
            raise TypeError("it is none")
        if number is not None and "seed" in inspect.signature(kind).parameters:
            digest = hashlib.sha256(f"{arguments.get('seed')}/{number}".encode()).digest()
            arguments["seed"] = int.from_bytes(digest[:4], "big")
        else:
            arguments.pop("seed", None)
        return kind(**arguments)
    except Exception as error:  # whatever that class raises
        if str(error).partition("=")[0] in arguments:
            raise RequestError(f"hydra.sweeper.{part}.{error}") from error
        shown = ", ".join(f"{key}={value}" for key, value in config.items() if key != "_target_")
        raise RequestError(
            f"hydra.sweeper.{part}._target_={target}: expected a {part} of Optuna's that takes "
            f"{shown or 'no arguments'} ({error})"
        ) from error


def _space(overrides: Sequence[Override]) -> dict[str, optuna.distributions.BaseDistribution]:
    return {each.get_key_element(): _distribution(each) for each in overrides if each.is_sweep_override()}


def _distribution(override: Override) -> optuna.distributions.BaseDistribution:
    """What Optuna samples from, for `key=a,b`, `choice()`, `range()`, `interval()` and `tag(log, interval())`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    log_scale = "log" in getattr(value, "tags", ())
    try:
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            if isinstance(low, int) and isinstance(high, int):  # type: ignore[unreachable]  # it is int(interval(...))
                return IntDistribution(low, high, log=log_scale)  # type: ignore[unreachable]
            return FloatDistribution(float(low or 0), float(high or 0), log=log_scale)
        texts = list(override.sweep_string_iterator()) if override.is_discrete_sweep() and not log_scale else []
        if texts and isinstance(value, RangeSweep):
            numbers, step = sorted(map(float, texts)), abs(float(value.step))
            if all(text.lstrip("-").isdigit() for text in texts):
                return IntDistribution(int(numbers[0]), int(numbers[-1]), step=int(step))
            return FloatDistribution(numbers[0], numbers[-1], step=step)
        if texts:
            key = override.get_key_element()
            shown = digested_overrides(f"{key}={text}" for text in texts)
            return CategoricalDistribution([each.removeprefix(f"{key}=") for each in shown])
    except ValueError as error:
        raise RequestError(f"{override.input_line}: {error}") from error
    raise RequestError(f"{override.input_line}: expected values, range(...), interval(...) or tag(log, interval(...))")


def _short(value: Any, distribution: optuna.distributions.BaseDistribution) -> Any:
    """A sampled number with four digits that count, as a person would write it."""
    if not isinstance(value, float) or getattr(distribution, "step", None) is not None:
        return value
    short = float(f"{value:.4g}")
    return short if distribution._contains(distribution.to_internal_repr(short)) else value


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
