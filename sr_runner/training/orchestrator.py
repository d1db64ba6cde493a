"""The Orchestrator: the loop that trains, logs, evaluates and saves."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sr_runner.checkpoint import CheckpointManager, Origin, RunState, SaveReport, TrainingState
from sr_runner.config.settings import Retention, TrainerSettings
from sr_runner.data import Data
from sr_runner.distributed.world import SingleProcess, World
from sr_runner.errors import RunError
from sr_runner.evaluation.named import Measure, measures
from sr_runner.evaluation.protocol import Evaluation
from sr_runner.objectives import Learner, MicroBatches, Objective
from sr_runner.objectives.base import LOSSES, MODEL
from sr_runner.objectives.ema import Ema
from sr_runner.signals import StopSignal
from sr_runner.tracking import RunRecord, Tracker
from sr_runner.training import device as devices
from sr_runner.training.progress import Progress
from sr_runner.training.result import Result
from sr_runner.training.validation import Scored, Validation
from sr_runner.training.window import Window
from sr_runner.weights import describe

log = logging.getLogger(__name__)

Judge = Callable[[int, Mapping[str, float]], bool]
"""Told of an evaluation, its step and `validation.metrics`; whether the training is to end there."""


class Orchestrator:
    """Trains one network from its parts.

    `train` restores, takes batches from the data at exactly that step, calls `train_step` on each, and on its
    cadence logs, evaluates and saves.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        learners: Mapping[str, Learner],
        data: Data,
        tracker: Tracker,
        checkpoints: CheckpointManager | None,
        settings: TrainerSettings,
        save_every: int | None = None,
        device: torch.device | None = None,
        stop: StopSignal | None = None,
        world: World | None = None,
        config: str = "",
        origin: Origin | None = None,
        judge: Judge | None = None,
        loaded: Mapping[str, Measure] | None = None,
        best_metric: str = Retention.best_metric,
    ):
        """`learners` are those of the objective's networks, on their device; the one of `MODEL` maps LR to SR batches
        in [0, 1]. `save_every` (steps; None: as often as an evaluation). `config` (YAML) and `origin` go into
        checkpoints. `judge` may end the training after an evaluation. `loaded` computes those of `settings.metrics`
        that are more than arithmetic; None: they are loaded here. `best_metric` is that of the best evaluation. In a
        run of several processes (`world`) only the main process has a tracker that records and a Checkpoint Manager.
        """
        self.device = device or torch.device("cpu")
        self.settings, self.data, self.tracker, self.checkpoints = settings, data, tracker, checkpoints
        self.objective, self.config, self.origin = objective, config, origin or Origin()
        self.stop, self.judge = stop or StopSignal(), judge
        self.save_every = save_every or settings.eval_every
        self.world: World = world or SingleProcess(self.stop)
        self.learners = dict(learners)
        self.model = self.learners[MODEL].network
        self.ema = Ema(self.learners[MODEL].evaluated(), settings.ema_decay) if settings.ema_decay else None
        self.step = 0
        self.recording = False
        if loaded is None:
            loaded = measures(settings.metrics, key="trainer.metrics", crop=data.scale, device=self.device)
        self.validation = Validation(
            data, tracker, device=self.device, last_step=settings.steps, pictures=settings.pictures,
            metrics=settings.metrics, measures=loaded, best_metric=best_metric, should_stop=self.world.stop_requested,
        )  # fmt: skip
        self._samples_per_step = data.batch_size * settings.accumulate
        self._samples = self._samples_per_step  # of the last step; data may have smaller batches at times
        self._window = Window()
        self._gathered: tuple[int, list[dict[str, Any]]] = -1, []  # the step of `_gather`, and what it brought together
        self._judged = 0
        self._saved: tuple[int, ...] = ()  # the version of the last checkpoint
        self._progress: Progress | None = None

    # -- the four verbs --------------------------------------------------------------------------------------------

    def train(self, run: RunRecord, state: TrainingState | None = None, *, fork: bool = False) -> Result:
        """Train up to `settings.steps`, from `state` on if there is one, and return the result.

        `fork`: `state` is another run's (see `restore`). Raises `Stopped` once it has stopped because of a signal.
        """
        settings = self.settings
        if state is not None:
            self.restore(state, fork=fork)
        self._begin_record(run, state if not fork else None)
        with self.stop.deferred(), self._open_stream() as batches:
            self._progress = Progress(
                total=settings.steps, step=self.step, bar=None if self.world.is_main else False,
            )  # fmt: skip
            try:
                self._begin_checkpoints()
                if self.step and self._is_due(settings.eval_every) and self.validation.is_lacking(self.step):
                    self.evaluate()  # a signal had cut it short
                    if self._is_due(self.save_every):
                        self.save()
                if self.world.should_stop(at_once=True):
                    self._stop()
                self._window.start_clock(batches.wait_seconds)
                while self.step < settings.steps and not self._is_over():
                    self.train_step(self._micro_batches(*next(batches)))
                    if self._is_due(settings.log_every):
                        self._log(batches.wait_seconds)
                    if self._is_due(settings.eval_every):
                        self.evaluate()
                    if self._is_due(self.save_every):
                        self.save()
                    self._progress.advance(self.step, self._samples)
                    pause = self._is_due(settings.eval_every) or self._is_due(self.save_every)
                    if self.world.should_stop(at_once=pause):
                        self._window.read_clock(batches.wait_seconds)
                        self._stop()
                self.validation.flush()
                if self.checkpoints is not None and not self.checkpoints.finish():
                    self._stop()
            finally:
                self._progress.close()
                self.validation.close()
                if self.checkpoints is not None:
                    self.checkpoints.close(self.stop.deadline)
        return self.result()

    def train_step(self, batches: MicroBatches) -> None:
        """One update of the weights, from float batches on the device."""
        self.step += 1
        measure = self._is_due(self.settings.log_every)
        terms = self.objective.train_step(self.learners, batches, measure=measure)
        if self.ema is not None:
            self.learners[MODEL].evaluated()  # what the average follows
            self.ema.update()
        self._window.add(terms)

    def restore(self, state: TrainingState, *, fork: bool = False) -> None:
        """Become what `state` says; with `fork`, take its weights and moments and keep this run's own settings.

        Raises `RunError` where it does not fit.
        """
        self.step = state.step
        try:
            run = RunState.of(state.training)
            self._load_networks(state, run, fork)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise RunError(
                f"the checkpoint of step {state.step} does not fit the networks and optimizers of this config: {error}"
            ) from error
        generators = [run.random, *run.others]
        if len(generators) == self.world.size or self.world.is_main:
            devices.restore_random_state(dict(generators[self.world.rank]))
        if fork:
            self.validation.last = Scored(self.step)
        else:
            self.validation.restore(
                evaluated_at=run.evaluated_at, best=run.best, scores=run.scores, bicubic=run.bicubic, final=run.final
            )
            self._window.restore(run.window)
            self._saved = self._version
        devices.warn_of_change(run.environment, self._environment)

    def save(self) -> None:
        """Hand the state to the Checkpoint Manager; returns after the snapshot."""
        self._gather()
        if self.checkpoints is not None and self._saved != self._version:
            self._raise_if_not_finite()
            if self.checkpoints.save(self._state()):
                self._saved = self._version

    # -- on the cadence --------------------------------------------------------------------------------------------

    def evaluate(self) -> Evaluation | None:
        """Score the validation images with the weights that are exported; None where a signal cut it short.

        Of several processes the main one does it, and its peers wait.
        """
        began = time.perf_counter()
        evaluation = self.validation.run(self.step, self._evaluated) if self.world.is_main else None
        if self.world.size > 1:
            self.validation.broadcast(self.world)
        seconds = time.perf_counter() - began
        self._window.exclude(seconds)
        if self._progress is not None:
            self._progress.pause(seconds)
            if evaluation is not None:
                self._progress.note(PSNR=f"{evaluation.mean['psnr']:.2f}")
        return evaluation

    def result(self) -> Result:
        validation, metrics = self.validation, self.validation.metrics
        last = validation.last
        if validation.final.step == last.step > 0:
            last = validation.final
            metrics |= validation.final_metrics
        return Result(self.step, metrics, last.scores, last.bicubic, validation.best)

    def _log(self, waited: float) -> None:
        """One point per metric: means and rates since the point before. The only place where the loop waits for the
        device."""
        self._window.read_clock(waited)
        if self.world.size > 1:
            self._window.average(self.world.all_reduce_mean)
        self._raise_if_not_finite()
        metrics = self._window.metrics(self._samples)
        metrics["train/lr"] = self.learners[MODEL].last_lr
        if self.settings.on_nan == "skip":
            first = self.step - len(self._window) + 1
            skipped = [first + position for position in self._window.not_finite()]
            metrics["train/skipped_steps"] = float(len(skipped))
            if skipped:
                log.warning("the loss was not finite at steps %s: no update there (trainer.on_nan=skip)", skipped)
        self.tracker.log(self.step, metrics)
        if self._progress is not None:
            self._progress.note(loss=f"{metrics['train/loss']:.4f}")
        if self.checkpoints is not None:
            self.checkpoints.check()
        if self.step % self.settings.log_every == 0:  # a last, partial window stays open: the run may be extended
            self._window.clear()

    def _is_over(self) -> bool:
        """Whether the judge ends the training here; what it ends has its checkpoint."""
        last = self.validation.last
        if self.judge is None or self._judged == self.step or last.step != self.step or not last.scores:
            return False
        self._judged = self.step
        if not self.judge(self.step, self.validation.metrics):
            return False
        log.info("ended at step %d: others were better by then", self.step)
        self.save()
        return True

    def _stop(self) -> None:
        """Save within the signal's grace and raise `Stopped`."""
        if not self.stop.requested:
            return
        log.warning("stopping on signal %d at step %d", self.stop.signum, self.step)
        if self.step > 0:
            self._gather()
            if self.checkpoints is not None:
                self._raise_if_not_finite()
                self.checkpoints.save_by(self._state(), self.stop.deadline, again=self._saved != self._version)
                self._saved = self._version
        self.stop.raise_if_requested()

    def _raise_if_not_finite(self) -> None:
        bad = self._window.not_finite() if self.settings.on_nan == "stop" else {}
        if not bad:
            return
        position, loss = next(iter(bad.items()))
        step, count = self.step - len(self._window) + 1 + position, self._samples_per_step
        terms = self._window.blamed(position)
        by = f", as {' and '.join(terms)} {'are' if len(terms) > 1 else 'is'} not finite" if terms else ""
        raise RunError(
            f"the loss is {loss} at step {step} (samples {(step - 1) * count} to {step * count - 1}){by}. "
            "Checkpoints before it stay. A smaller optimizer.lr, trainer.grad_clip or trainer.precision=fp32 may help, "
            "trainer.on_nan=skip leaves such updates out"
        )

    # -- called by the Checkpoint Manager, from its thread -----------------------------------------------------------

    def _on_saved(self, report: SaveReport) -> None:
        """Just before a commit: what belongs to that step is recorded by then."""
        self.validation.flush()
        if report.step % self.save_every == 0 or report.step == self.settings.steps:
            costs = {"stall_seconds": report.stall_seconds, "write_seconds": report.write_seconds}
            self.tracker.log(report.step, {f"checkpoint/{key}": value for key, value in costs.items()})
        self.tracker.sync()

    def _on_save_failed(self, step: int, in_a_row: int) -> None:
        self.tracker.log(step, {"checkpoint/failures": float(in_a_row)})

    # -- details ---------------------------------------------------------------------------------------------------

    def _begin_record(self, run: RunRecord, state: TrainingState | None) -> None:
        """Open the tracker's record, or go on with that of `state`."""
        own = dict(Origin.of(state.training).tracker) if state is not None else None
        self.tracker.start(dataclasses.replace(run, resumed_at=self.step if own is not None else 0, state=own))
        self.recording = True
        self.validation.begin(run.run_dir, self.step if not own else None)

    def _begin_checkpoints(self) -> None:
        self._gather()
        if self.checkpoints is not None:
            self.checkpoints.prepare(self._state(), on_saved=self._on_saved, on_failure=self._on_save_failed)

    def _open_stream(self) -> Any:
        count = self._samples_per_step
        return self.data.stream(
            self.step * count, count, device=self.device, channels_last=self.settings.channels_last, **self.world.shard
        )

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _micro_batches(self, lr: torch.Tensor, hr: torch.Tensor) -> MicroBatches:
        self._samples = len(lr) * self.world.size
        if self.settings.accumulate == 1:
            return ((lr, hr),)
        size = len(lr) // self.settings.accumulate
        return list(zip(torch.split(lr, size), torch.split(hr, size), strict=True))

    @property
    def _evaluated(self) -> nn.Module:
        """The network whose weights are evaluated and exported."""
        return self.ema.network if self.ema is not None else self.learners[MODEL].evaluated()

    @property
    def _environment(self) -> dict[str, Any]:
        return devices.environment(self.device, self.settings, processes=self.world.size)

    @property
    def _version(self) -> tuple[int, ...]:
        """What a checkpoint would differ in from the one before."""
        return self.step, *self.validation.version

    def _gather(self) -> None:
        """Bring together, from all processes, what only each of them knows and a checkpoint holds."""
        if self.world.size > 1 and self._gathered[0] != self.step:
            self._window.average(self.world.all_reduce_mean)
            self._gathered = self.step, self.world.all_gather(devices.random_state())

    def _state(self) -> TrainingState:
        networks = {name: learner.network.state_dict() for name, learner in self.learners.items()}
        evaluated = self._evaluated
        exported = networks.pop(MODEL) if evaluated is self.model else evaluated.state_dict()
        if changing := self.objective.losses.state():
            networks[LOSSES] = changing
        run = RunState(
            step=self.step,
            networks=networks,
            learners={name: learner.state_dict() for name, learner in self.learners.items()},
            random=devices.random_state(),
            others=self._gathered[1][1:],
            window=self._window.state(),
            environment=self._environment,
            origin=dataclasses.replace(self.origin, tracker=self.tracker.state()),
            **self.validation.state(),
        )
        metrics = self.validation.metrics if self.validation.last.step == self.step else {}
        return TrainingState(self.step, exported, run.tree(), self.config, describe(self.model), metrics)

    def _load_networks(self, state: TrainingState, run: RunState, fork: bool) -> None:
        if self.ema is not None:
            self.ema.network.load_state_dict(state.model)
        networks = {MODEL: state.model} | dict(run.networks)
        if not fork:
            self.objective.losses.restore(networks.pop(LOSSES, {}))
        for name, learner in self.learners.items():
            if fork and name not in networks:
                continue  # a network that the other run did not have
            learner.network.load_state_dict(networks[name])
            if fork:
                learner.load_moments(run.learners[name], self.step)
            else:
                learner.load_state_dict(run.learners[name])
