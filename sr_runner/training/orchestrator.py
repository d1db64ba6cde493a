"""The Orchestrator: the loop that trains, logs, evaluates and saves."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sr_runner.checkpoint import CheckpointManager, SaveReport, TrainingState
from sr_runner.config.settings import TrainerSettings
from sr_runner.data import Pair, PairData
from sr_runner.distributed.world import SingleProcess, World
from sr_runner.errors import RunError
from sr_runner.evaluation import Evaluation, Score, picture_strip
from sr_runner.evaluation.protocol import OnImage
from sr_runner.objectives import Learner, MicroBatches, Objective
from sr_runner.objectives.base import MODEL
from sr_runner.objectives.ema import Ema
from sr_runner.signals import StopSignal
from sr_runner.tracking import RunRecord, Tracker
from sr_runner.training import device as devices
from sr_runner.training.progress import Progress
from sr_runner.training.validation import Final, rows, score_bicubic, score_network, scores_of
from sr_runner.training.window import Window
from sr_runner.weights import describe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    state: TrainingState | None = None
    fork: bool = False
    """`state` is another run's: take weights and moments, keep this run's own settings and schedule."""


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last evaluation's means, `valid/psnr` and so on; `final/psnr` where there are more images than in that."""
    scores: tuple[Score, ...] = ()
    """The last evaluation, image by image: at the end of training on all validation images."""
    bicubic: tuple[Score, ...] = ()
    """The same images enlarged by MATLAB bicubic."""


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
        data: PairData,
        tracker: Tracker,
        checkpoints: CheckpointManager | None,
        settings: TrainerSettings,
        save_every: int | None = None,
        device: torch.device | None = None,
        stop: StopSignal | None = None,
        world: World | None = None,
        config: str = "",
        facts: Mapping[str, Any] | None = None,
    ):
        """`learners` are those of the objective's networks, on their device; the one of `MODEL` maps LR to SR batches
        in [0, 1]. `config` (YAML) and `facts` (plain data) go into checkpoints. Of several processes (`world`), the
        first alone has a tracker that records and a Checkpoint Manager.
        """
        self.device = device or torch.device("cpu")
        self.settings, self.data, self.tracker, self.checkpoints = settings, data, tracker, checkpoints
        self.objective, self.stop, self.config, self.facts = objective, stop or StopSignal(), config, dict(facts or {})
        self.save_every = save_every or settings.eval_every
        self.world: World = world or SingleProcess(self.stop)
        self.learners = dict(learners)
        self.model = self.learners[MODEL].network
        self.ema = Ema(self.model, settings.ema_decay) if settings.ema_decay else None
        self.step = 0
        self.recording = False
        self.evaluated_at = 0
        self.best: dict[str, float] = {}
        self.scores: tuple[Score, ...] = ()
        self.bicubic: tuple[Score, ...] = ()
        self.final = Final()
        self._window = Window()
        self._met = -1  # the step at which the processes brought together what a checkpoint holds
        self._random: list[dict[str, Any]] = []
        self._saved = (0, 0, 0)  # step, and those of the evaluations that came with it
        self._mark = time.perf_counter(), 0.0
        self._progress: Progress | None = None
        self._background = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._drawing: list[Future[None]] = []

    # -- the four verbs --------------------------------------------------------------------------------------------

    def train(self, run: RunRecord, start: Start | None = None) -> Result:
        """Train up to `settings.steps` and return the result. Raises `Stopped` after a stopping signal was heeded."""
        settings, count = self.settings, self.data.batch_size * self.settings.accumulate
        start = start or Start()
        if start.state is not None:
            self.restore(start.state, fork=start.fork)
        own = start.state.training.get("tracker") if start.state is not None and not start.fork else None
        self._run_dir = run.run_dir
        self.tracker.start(dataclasses.replace(run, resumed_at=self.step if own is not None else 0, state=own))
        self.recording = True
        with (
            self.stop.deferred(),
            self.data.stream(
                self.step * count, count, device=self.device, channels_last=settings.channels_last, **self.world.shard
            ) as loader,
        ):
            bar = None if self.world.is_main else False
            self._progress = Progress(total=settings.steps, step=self.step, batch_size=count, bar=bar)
            try:
                self._meet()
                if self.checkpoints is not None:
                    self.checkpoints.prepare(self._state())
                if self.step and self._due(settings.eval_every) and self._lacks_evaluation:
                    self.evaluate()  # a signal had cut it short
                    if self._due(self.save_every):
                        self.save()
                if self.world.should_stop(at_once=True):
                    self._stop_if_asked()
                self._mark = time.perf_counter(), loader.wait_seconds
                while self.step < settings.steps:
                    lr, hr = next(loader)
                    self.train_step(self._micro_batches(lr, hr))
                    if self._due(settings.log_every):
                        self._log(loader.wait_seconds)
                    if self._due(settings.eval_every):
                        self.evaluate()
                    if self._due(self.save_every):
                        self.save()
                    self._progress.advance(self.step)
                    if self.world.should_stop(at_once=self._due(settings.eval_every) or self._due(self.save_every)):
                        self._take_time(loader.wait_seconds)
                        self._stop_if_asked()
                self._flush_pictures()
                if self.checkpoints is not None and not self.checkpoints.finish():
                    self._stop_if_asked()
            finally:
                self._progress.close()
                self._background.shutdown(wait=True)
                if self.checkpoints is not None:
                    self.checkpoints.close(self.stop.deadline)
        return self.result()

    def train_step(self, batches: MicroBatches) -> None:
        """One update of the weights, from float batches on the device."""
        self.step += 1
        measure = self._due(self.settings.log_every)
        terms = self.objective.train_step(self.learners, batches, measure=measure)
        if self.ema is not None:
            self.ema.update()
        self._window.losses.append(terms)

    def restore(self, state: TrainingState, *, fork: bool = False) -> None:
        """Become what `state` says; with `fork`, take its weights and moments and keep this run's own settings."""
        training = state.training
        self.step = state.step
        try:
            self._load_weights(state, fork)
        except (RuntimeError, KeyError, ValueError) as error:
            raise RunError(
                f"the checkpoint of step {state.step} does not fit the networks and optimizers of this config: {error}"
            ) from error
        everyones = [training["random"], *training.get("others", ())]
        if len(everyones) == self.world.size or self.world.is_main:
            devices.restore_random_state(everyones[self.world.rank])
        self.evaluated_at = self.step if fork else training["evaluated_at"]
        if not fork:
            self.best = dict(training["best"])
            self.scores, self.bicubic = scores_of(training["scores"]), scores_of(training["bicubic"])
            self.final = Final.of(training.get("final", {}))
            self._window = Window.of(training["window"])
            self._saved = self._version
        devices.warn_of_change(training.get("environment", {}), self._environment())

    def save(self, *, wait: bool = False) -> None:
        """Hand the state to the Checkpoint Manager; returns after the snapshot, or with `wait` after the commit."""
        self._meet()
        if self.checkpoints is None:
            return
        if self._saved != self._version:
            self._raise_if_not_finite()
            if self.checkpoints.save(self._state()):
                self._saved = self._version
        if wait:
            self.checkpoints.wait()

    # -- on the cadence --------------------------------------------------------------------------------------------

    def evaluate(self) -> Evaluation | None:
        """Score the validation images with the weights that are exported; None where a signal cut it short.

        Of several processes the first does it, and the others wait.
        """
        evaluation = self._evaluate() if self.world.is_main else None
        if evaluation is not None and self._lacks_evaluation:
            self._evaluate_all()
        if self.world.size > 1:
            known = {"evaluated_at": self.evaluated_at, "scores": rows(self.scores), "final": self.final.state()}
            told = self.world.broadcast(known)
            self.evaluated_at, self.scores = told["evaluated_at"], scores_of(told["scores"])
            self.final = Final.of(told["final"])
        return evaluation

    @property
    def _lacks_evaluation(self) -> bool:
        """Whether the images of the evaluations, or at the end of training all of them, are still to be scored."""
        at_end = self.step == self.settings.steps and len(self.data.valid_all) > len(self.data.valid)
        return self.evaluated_at != self.step or (at_end and self.final.step != self.step)

    def _evaluate(self) -> Evaluation | None:
        pairs = self.data.valid
        if not len(pairs):
            self.evaluated_at = self.step
            return None
        began = time.perf_counter()
        drawn = {pair.name for pair in pairs[: self.settings.pictures]}
        strips: list[Callable[[], None]] = []

        def keep(pair: Any, sr: np.ndarray, score: Score) -> None:
            if pair.name in drawn:
                strips.append(partial(self._draw, self.step, pair, sr))

        evaluation = self._score(pairs, keep)
        if evaluation is None:
            return None
        if len(self.bicubic) != len(pairs):
            self.bicubic = score_bicubic(pairs, self.data.scale)
        self.scores, self.evaluated_at = tuple(evaluation.scores), self.step
        metrics = self._evaluation_metrics()
        self.tracker.log(self.step, metrics)
        self._drawing += [self._background.submit(strip) for strip in strips]
        if metrics["valid/psnr"] > self.best.get("valid/psnr", -math.inf):
            self.best = metrics | {"step": float(self.step)}
        if self._progress is not None:
            self._progress.note(PSNR=f"{metrics['valid/psnr']:.2f}")
        self._tell("step %d", metrics, len(pairs), began)
        return evaluation

    def _evaluate_all(self) -> None:
        """At the end of training: score every validation image, which the evaluations on the way may not."""
        began, pairs = time.perf_counter(), self.data.valid_all
        evaluation = self._score(pairs)
        if evaluation is None:
            return
        self.final = Final(self.step, tuple(evaluation.scores), score_bicubic(pairs, self.data.scale))
        self.tracker.log(self.step, self.final.metrics)
        self._tell("at the end, step %d", self.final.metrics, len(pairs), began)

    def _score(self, pairs: Sequence[Pair], on_image: OnImage | None = None) -> Evaluation | None:
        """Score `pairs` with the weights that are exported; None where a signal cut it short."""
        network = self.ema.network if self.ema is not None else self.model
        return score_network(
            network, pairs, scale=self.data.scale, device=self.device, should_stop=self.world.stop_requested,
            on_image=on_image,
        )  # fmt: skip

    def _tell(self, when: str, metrics: Mapping[str, float], count: int, began: float) -> None:
        """Log an evaluation, and leave its time out of the training's rates."""
        seconds = time.perf_counter() - began
        text = f"{when}: PSNR %.3f dB, SSIM %.4f (Y: %.3f dB, %.4f) on %d images, in %.1f s"
        log.info(text, self.step, *metrics.values(), count, seconds)
        if self._progress is not None:
            self._progress.pause(seconds)
        self._mark = self._mark[0] + seconds, self._mark[1]

    def result(self) -> Result:
        metrics = self._evaluation_metrics() if self.scores else {}
        if self.final.step and self.final.step == self.evaluated_at:
            return Result(self.step, metrics | self.final.metrics, self.final.scores, self.final.bicubic)
        return Result(self.step, metrics, self.scores, self.bicubic)

    def save_failed(self, step: int, in_a_row: int) -> None:
        """Called by the Checkpoint Manager when a write failed; training goes on."""
        self.tracker.log(step, {"checkpoint/failures": float(in_a_row)})

    def saved(self, report: SaveReport) -> None:
        """Called by the Checkpoint Manager just before a commit: what belongs to that step is recorded by then."""
        self._flush_pictures()
        if report.step % self.save_every == 0 or report.step == self.settings.steps:
            costs = {"stall_seconds": report.stall_seconds, "write_seconds": report.write_seconds}
            self.tracker.log(report.step, {f"checkpoint/{key}": value for key, value in costs.items()})
        self.tracker.sync()

    def _load_weights(self, state: TrainingState, fork: bool) -> None:
        raw = dict(state.training["networks"])
        if self.ema is not None:
            self.ema.network.load_state_dict(state.model)
        raw.setdefault(MODEL, state.model)
        for name, learner in self.learners.items():
            if fork and name not in raw:
                continue  # a network that the other run did not have
            learner.network.load_state_dict(raw[name])
            if fork:
                learner.load_moments(state.training["learners"][name], self.step)
            else:
                learner.load_state_dict(state.training["learners"][name])

    # -- details ---------------------------------------------------------------------------------------------------

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _micro_batches(self, lr: torch.Tensor, hr: torch.Tensor) -> MicroBatches:
        if self.settings.accumulate == 1:
            return ((lr, hr),)
        size = self.data.batch_size // self.world.size
        return list(zip(torch.split(lr, size), torch.split(hr, size), strict=True))

    def _log(self, waited: float) -> None:
        """One point per metric: means and rates since the point before. The only place where the loop waits for the
        device."""
        self._take_time(waited)
        self._share_losses()
        self._raise_if_not_finite()
        window, count = self._window, self.data.batch_size * self.settings.accumulate
        columns = {name: window.column(name).tolist() for name in window.names}
        metrics = {f"train/{name}": _mean(values) for name, values in columns.items()}
        if self.settings.on_nan == "skip":
            metrics["train/skipped_steps"] = float(self._warn_of_skipped(columns["loss"]))
        metrics["train/lr"] = self._lr
        if "grad_norm" in window.losses[-1]:
            metrics["train/grad_norm"] = float(window.losses[-1]["grad_norm"])
        metrics["train/images_per_second"] = count * len(window.losses) / max(window.seconds, 1e-9)
        metrics["train/data_wait"] = min(1.0, window.waited / max(window.seconds, 1e-9))
        self.tracker.log(self.step, metrics)
        if self._progress is not None:
            self._progress.note(loss=f"{metrics['train/loss']:.4f}")
        if self.checkpoints is not None:
            self.checkpoints.check()
        if self.step % self.settings.log_every == 0:  # a last, partial window stays open: the run may be extended
            self._window = Window()

    def _take_time(self, waited: float) -> None:
        now = time.perf_counter()
        self._window.seconds += now - self._mark[0]
        self._window.waited += waited - self._mark[1]
        self._mark = now, waited

    def _warn_of_skipped(self, losses: list[float]) -> int:
        first = self.step - len(losses) + 1
        skipped = [first + index for index, loss in enumerate(losses) if not math.isfinite(loss)]
        if skipped:
            log.warning("the loss was not finite at steps %s: no update there (trainer.on_nan=skip)", skipped)
        return len(skipped)

    def _raise_if_not_finite(self) -> None:
        if not self._window.losses or self.settings.on_nan == "skip":
            return
        losses = self._window.column("loss")
        if bool(torch.isfinite(losses).all()):
            return
        index = int((~torch.isfinite(losses)).nonzero()[0])
        step, count = self.step - len(losses) + 1 + index, self.data.batch_size * self.settings.accumulate
        raise RunError(
            f"the loss is {float(losses[index])} at step {step} (samples {(step - 1) * count} to {step * count - 1}). "
            "Checkpoints before it stay. A smaller optimizer.lr, trainer.grad_clip or trainer.precision=fp32 may help, "
            "trainer.on_nan=skip leaves such updates out"
        )

    def _stop_if_asked(self) -> None:
        if self.stop.requested:
            log.warning("stopping on signal %d at step %d", self.stop.signum, self.step)
            if self.step > 0:
                self._save_in_time()
            self.stop.raise_if_requested()

    def _save_in_time(self) -> None:
        """The last checkpoint before a stop."""
        self._meet()
        if self.checkpoints is None:
            return
        self._raise_if_not_finite()
        again = self._saved != self._version
        self.checkpoints.save_by(self._state(), self.stop.deadline, again=again)
        self._saved = self._version

    @property
    def _version(self) -> tuple[int, int, int]:
        """What a checkpoint would differ in from the one before."""
        return self.step, self.evaluated_at, self.final.step

    @property
    def _lr(self) -> float:
        """The rate that the next step takes."""
        return self.learners[MODEL].lr

    def _evaluation_metrics(self) -> dict[str, float]:
        return {f"valid/{name}": value for name, value in Evaluation(list(self.scores)).mean.items()}

    def _state(self) -> TrainingState:
        networks = {name: learner.network.state_dict() for name, learner in self.learners.items()}
        raw = networks.pop(MODEL)
        if self.ema is not None:
            networks[MODEL] = raw
            raw = self.ema.network.state_dict()
        training = {
            "step": self.step,
            "networks": networks,
            "learners": {name: learner.state_dict() for name, learner in self.learners.items()},
            "random": devices.random_state(),
            "window": self._window.state(),
            "evaluated_at": self.evaluated_at,
            "best": self.best,
            "scores": rows(self.scores),
            "bicubic": rows(self.bicubic),
            "final": self.final.state(),
            "tracker": self.tracker.state(),
            "environment": self._environment(),
        }
        if self.world.size > 1:
            training["others"] = self._random[1:]
        metrics = self._evaluation_metrics() if self.evaluated_at == self.step and self.scores else {}
        return TrainingState(self.step, raw, training | self.facts, self.config, describe(self.model), metrics)

    def _share_losses(self) -> None:
        if self.world.size > 1:
            self._window.share(self.world.all_reduce_mean)

    def _meet(self) -> None:
        """Bring together, from all processes, what only each of them knows and a checkpoint holds."""
        if self.world.size > 1 and self._met != self.step:
            self._share_losses()
            self._random = self.world.all_gather(devices.random_state())
            self._met = self.step

    def _draw(self, step: int, pair: Any, sr: np.ndarray) -> None:
        try:
            folder = self._run_dir / "pictures"
            folder.mkdir(exist_ok=True)
            path = folder / f"step-{step:08d}-{Path(pair.name).stem}.png"
            picture_strip(pair.lr, sr, pair.hr, scale=self.data.scale).save(path)
            self.tracker.picture(step, f"valid/{Path(pair.name).stem}", path)
        except OSError as error:
            log.warning("the picture of %s at step %d could not be written: %s", pair.name, step, error)

    def _flush_pictures(self) -> None:
        while self._drawing:
            self._drawing.pop(0).result()

    def _environment(self) -> dict[str, Any]:
        return {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "compile": self.settings.compile,
            "channels_last": self.settings.channels_last,
            "processes": self.world.size,
        }


def _mean(values: list[float]) -> float:
    """Of those that are finite, if any: a skipped step says nothing about the others."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
