"""The Orchestrator from Python, from real parts and without Hydra."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from schedulefree import AdamWScheduleFree
from support import wait_until
from torch import nn

from sr_runner.checkpoint import CheckpointManager, LastN, LocalStore, TrainingState
from sr_runner.checkpoint.reader import read
from sr_runner.config.settings import TrainerSettings
from sr_runner.data import FolderData
from sr_runner.distributed.world import SingleProcess
from sr_runner.errors import RunError
from sr_runner.models import EDSR
from sr_runner.objectives import Learner, PixelObjective
from sr_runner.objectives.ema import Ema
from sr_runner.signals import Stopped, StopSignal
from sr_runner.tracking import NoTracker, RunRecord
from sr_runner.training.orchestrator import Orchestrator

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"


class Recorder(NoTracker):
    """A tracker of one's own: keeps what it is told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int, dict[str, float]]] = []
        self.synced = 0  # the number of points that were on the disk at the last `sync`

    def sync(self) -> None:
        self.synced = len(self.points)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.append((step, dict(metrics)))

    def of(self, key: str) -> dict[int, float]:
        return {step: metrics[key] for step, metrics in self.points if key in metrics}


class Bench:
    """Makes Orchestrators of one run, each as a new process would."""

    def __init__(self, folder: Path, photographs: Path):
        self.folder, self.photographs = folder, photographs
        self.store = LocalStore(folder / "checkpoints")

    def make(
        self,
        *,
        loss: nn.Module | None = None,
        stop: StopSignal | None = None,
        keep: int = 99,
        lr: float = 1e-3,
        precision: str = "fp32",
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        **settings: Any,
    ) -> Orchestrator:
        torch.manual_seed(0)
        network = EDSR(scale=2, num_filters=4, num_res_blocks=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        data = FolderData(
            train=str(self.photographs), valid=str(self.photographs), scale=2, patch_size=16, batch_size=2, seed=0,
            cache_dir=self.folder / "cache", workers=0, valid_images=1,
        )  # fmt: skip
        data.prepare(progress=False)
        known = TrainerSettings(**({"steps": 6, "eval_every": 3, "log_every": 2, "pictures": 0} | settings))
        learner = Learner(
            network.train(), partial(optimizer, lr=lr),
            partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[4], gamma=0.5),
            precision=precision, grad_clip=known.grad_clip, skip_non_finite=known.on_nan == "skip",
        )  # fmt: skip
        manager = CheckpointManager(self.store, ATTEMPT, keep=[LastN(keep)], scratch=self.folder / "scratch")
        return Orchestrator(
            objective=PixelObjective({"pixel": loss or nn.L1Loss()}), learners={"model": learner}, data=data,
            tracker=Recorder(), checkpoints=manager, settings=known, stop=stop,
        )  # fmt: skip

    def record(self) -> RunRecord:
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        return RunRecord(run_dir=folder, attempt=ATTEMPT, run_name="run", params={})

    def newest(self) -> TrainingState:
        state = CheckpointManager(self.store, ATTEMPT, scratch=self.folder / "scratch").restore()
        assert state is not None
        return state

    def files(self, step: int) -> dict[str, bytes]:
        """The files of a checkpoint that hold tensors."""
        folder = self.folder / "checkpoints" / ATTEMPT / f"step-{step:08d}"
        return {name: (folder / name).read_bytes() for name in ("model.safetensors", "training.safetensors")}


@pytest.fixture
def bench(tmp_path: Path, photographs: Path) -> Bench:
    return Bench(tmp_path, photographs)


@pytest.fixture
def second(tmp_path: Path, photographs: Path) -> Bench:
    (tmp_path / "second").mkdir()
    return Bench(tmp_path / "second", photographs)


def weights(orchestrator: Orchestrator) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in orchestrator.model.state_dict().items()}


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def recorder(orchestrator: Orchestrator) -> Recorder:
    assert isinstance(orchestrator.tracker, Recorder)
    return orchestrator.tracker


def test_the_loop_computes_what_a_hand_written_one_does(bench: Bench) -> None:
    orchestrator = bench.make(grad_clip=0.1)
    orchestrator.train(bench.record())

    other = bench.make()
    network = other.model
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[4], gamma=0.5)
    with other.data.stream(0, device=torch.device("cpu")) as batches:
        for _ in range(6):
            lr, hr = next(batches)
            nn.functional.l1_loss(network(lr), hr).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    assert equal(weights(orchestrator), dict(network.state_dict()))
    assert recorder(orchestrator).of("train/lr") == {2: 1e-3, 4: 1e-3, 6: 5e-4}, "the rate of each update"


def test_the_averaged_weights_of_a_schedule_free_optimizer_are_evaluated_and_exported(
    bench: Bench, second: Bench
) -> None:
    orchestrator = bench.make(optimizer=AdamWScheduleFree, lr=1e-2)
    followed = second.make(optimizer=AdamWScheduleFree, lr=1e-2, ema_decay=0.5, eval_every=2)
    orchestrator.train(bench.record())
    followed.train(second.record())

    other = bench.make()
    network = other.model
    ema = Ema(network, 0.5)
    optimizer = AdamWScheduleFree(network.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[4], gamma=0.5)
    optimizer.train()
    with other.data.stream(0, device=torch.device("cpu")) as batches:
        for _ in range(6):
            lr, hr = next(batches)
            nn.functional.l1_loss(network(lr), hr).backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            in_training = copy.deepcopy(network.state_dict())
            optimizer.eval()
            ema.update()
            averaged = copy.deepcopy(network.state_dict())
            network.load_state_dict(in_training)
            for group in optimizer.param_groups:
                group["train_mode"] = True
    assert equal(weights(orchestrator), in_training) and not equal(averaged, in_training)
    assert equal(bench.newest().model, averaged)
    assert equal(second.newest().model, dict(ema.network.state_dict()))
    network.load_state_dict(averaged)
    assert other.evaluate() is not None
    assert bench.newest().metrics["valid/psnr"] == recorder(other).of("valid/psnr")[0]
    assert equal(weights(orchestrator), weights(followed)), "no evaluation leaves a trace"


@pytest.mark.parametrize(
    ("cut", "precision", "options"),
    [
        *itertools.product([1, 3, 4], ["fp32", "bf16"], [{}, {"ema_decay": 0.9}, {"accumulate": 2}]),
        (4, "fp32", {"optimizer": AdamWScheduleFree}),
        (3, "bf16", {"optimizer": AdamWScheduleFree, "ema_decay": 0.9, "grad_clip": 0.1, "on_nan": "skip"}),
    ],
    ids=str,
)
def test_a_run_that_goes_on_ends_with_the_bytes_and_points_of_one_that_was_never_stopped(
    cut: int, precision: str, options: dict[str, Any], bench: Bench, second: Bench
) -> None:
    unbroken = bench.make(precision=precision, **options)
    unbroken.train(bench.record())

    first = second.make(precision=precision, **options)
    first.settings.steps = 6
    stop = first.stop
    original = first.train_step

    def step(batches: Any) -> None:
        original(batches)
        if first.step == cut:
            stop.note(signal.SIGTERM)

    first.train_step = step  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        first.train(second.record())
    resumed = second.make(precision=precision, **options)
    resumed.train(second.record(), second.newest())

    assert second.files(6)["model.safetensors"] == bench.files(6)["model.safetensors"]
    for key in ("train/loss", "train/lr", "valid/psnr"):
        assert recorder(first).of(key) | recorder(resumed).of(key) == recorder(unbroken).of(key), key
        assert not recorder(first).of(key).keys() & recorder(resumed).of(key).keys(), key


def test_a_finished_run_that_is_extended_has_the_points_of_one_that_was_longer_from_the_start(
    bench: Bench, second: Bench
) -> None:
    longer = bench.make(steps=9, log_every=4, eval_every=9)
    longer.train(bench.record())
    first = second.make(steps=6, log_every=4, eval_every=9)
    first.train(second.record())
    extended = second.make(steps=9, log_every=4, eval_every=9)
    extended.train(second.record(), second.newest())
    assert recorder(extended).of("train/loss")[8] == recorder(longer).of("train/loss")[8]
    assert second.files(9)["model.safetensors"] == bench.files(9)["model.safetensors"]


def test_a_resume_under_another_cadence_has_the_same_weights_and_other_running_means(
    bench: Bench, second: Bench
) -> None:
    bench.make(steps=8, log_every=6, eval_every=6).train(bench.record())
    second.make(steps=4, log_every=6, eval_every=6).train(second.record())
    second.make(steps=8, log_every=5, eval_every=3).train(second.record(), second.newest())
    mine, whole = second.files(8), bench.files(8)
    assert mine["model.safetensors"] == whole["model.safetensors"]
    assert mine["training.safetensors"] != whole["training.safetensors"]


def test_a_checkpoint_is_committed_after_the_points_of_its_step_are_on_the_disk(bench: Bench) -> None:
    orchestrator = bench.make()
    commits: dict[int, list[str]] = {}
    put = bench.store.put

    def watched(name: str, files: Any) -> None:
        put(name, files)
        step = int(name.rpartition("-")[2])
        on_disk = recorder(orchestrator).points[: recorder(orchestrator).synced]
        commits[step] = [key for at, metrics in on_disk if at == step for key in metrics]

    save = orchestrator.save

    def at_once() -> None:
        """What would be logged after it would be missing."""
        save()
        assert orchestrator.checkpoints is not None
        orchestrator.checkpoints.wait()

    bench.store.put = watched  # type: ignore[method-assign]
    orchestrator.save = at_once  # type: ignore[method-assign]
    orchestrator.train(bench.record())
    assert commits.keys() == {3, 6}
    for keys in commits.values():
        assert "valid/psnr" in keys and "checkpoint/stall_seconds" in keys
    assert "train/loss" in commits[6]


def test_a_stop_before_the_first_step_saves_nothing(bench: Bench) -> None:
    orchestrator = bench.make()
    orchestrator.stop.note(signal.SIGTERM)
    with pytest.raises(Stopped):
        orchestrator.train(bench.record())
    assert orchestrator.step == 0 and bench.store.list() == []


class NanAt(nn.Module):
    """L1, but not a number at one call."""

    def __init__(self, call: int):
        super().__init__()
        self.calls, self.call = 0, call

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        loss = nn.functional.l1_loss(sr, hr)
        return loss * math.nan if self.calls == self.call else loss


class Noisy(nn.Module):
    """L1 against noisy pictures: draws from the global generator."""

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        return nn.functional.l1_loss(sr + torch.rand_like(sr), hr)


def test_what_a_loss_draws_goes_on_after_a_resume_as_if_it_had_not_been_stopped(bench: Bench, second: Bench) -> None:
    bench.make(loss=Noisy()).train(bench.record())
    second.make(loss=Noisy(), steps=3).train(second.record())
    second.make(loss=Noisy()).train(second.record(), second.newest())
    assert second.files(6)["model.safetensors"] == bench.files(6)["model.safetensors"]


class Harder(nn.Module):
    """L1 times the number of calls, which is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.calls * nn.functional.l1_loss(sr, hr)


def test_what_a_loss_keeps_in_buffers_goes_on_after_a_resume_and_starts_afresh_in_a_fork(
    bench: Bench, second: Bench
) -> None:
    bench.make(loss=Harder()).train(bench.record())
    second.make(loss=Harder(), steps=3).train(second.record())
    resumed = second.make(loss=Harder())
    resumed.train(second.record(), second.newest())
    assert second.files(6) == bench.files(6) and resumed.objective.losses.state() == {"pixel.loss.calls": 6}
    fork = second.make(loss=Harder(), steps=9)
    fork.restore(second.newest(), fork=True)
    assert fork.objective.losses.state() == {"pixel.loss.calls": 0}
    with pytest.raises(RunError, match=r"does not fit .* state of other losses: pixel\.loss\.calls$"):
        second.make().restore(second.newest())


def test_metrics_that_draw_change_no_weights_and_go_on_with_the_same_points(bench: Bench, second: Bench) -> None:
    plain = bench.make(loss=Noisy())
    plain.train(bench.record())
    own: dict[str, Any] = {"loss": Noisy(), "metrics": ["psnr", "own_metrics.Drawing"]}
    unbroken = second.make(**own)
    unbroken.train(second.record())
    assert equal(weights(unbroken), weights(plain))
    measured = recorder(unbroken).of("valid/own_metrics.Drawing")
    assert measured.keys() == {3, 6} and not recorder(unbroken).of("valid/ssim")

    (second.folder / "third").mkdir()
    third = Bench(second.folder / "third", second.photographs)
    third.make(steps=3, **own).train(third.record())
    resumed = third.make(**own)
    resumed.train(third.record(), third.newest())
    assert third.files(6) == second.files(6)
    assert recorder(resumed).of("valid/own_metrics.Drawing") == {6: measured[6]}


def test_the_average_of_the_weights_is_what_is_evaluated_and_exported(bench: Bench) -> None:
    orchestrator = bench.make(ema_decay=0.5, steps=3)
    average = weights(orchestrator)
    original = orchestrator.train_step

    def step(batches: Any) -> None:
        original(batches)
        for name, tensor in orchestrator.model.state_dict().items():
            average[name].lerp_(tensor, 0.5)

    orchestrator.train_step = step  # type: ignore[method-assign]
    orchestrator.train(bench.record())
    exported = bench.newest().model
    assert all(torch.allclose(exported[name], average[name], atol=1e-7) for name in average)
    assert not equal(exported, weights(orchestrator))
    assert orchestrator.ema is not None
    network, orchestrator.ema = orchestrator.ema.network, None
    raw = orchestrator.evaluate()
    assert raw is not None and raw.mean["psnr"] != bench.newest().metrics["valid/psnr"]
    orchestrator.learners["model"].network = network
    averaged = orchestrator.evaluate()
    assert averaged is not None and averaged.mean["psnr"] == bench.newest().metrics["valid/psnr"]


def test_a_loss_that_is_not_a_number_ends_the_run_with_its_step_and_samples_before_anything_is_saved(
    bench: Bench,
) -> None:
    orchestrator = bench.make(loss=NanAt(3), log_every=100, eval_every=3)
    with pytest.raises(RunError, match=r"the loss is nan at step 3 \(samples 4 to 5\), as pixel is not finite\."):
        orchestrator.train(bench.record())
    assert bench.store.list() == []


def test_save_itself_refuses_a_state_after_a_loss_that_is_not_a_number(bench: Bench) -> None:
    orchestrator = bench.make(loss=NanAt(1))
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    orchestrator.train_step([(lr, hr)])
    with pytest.raises(RunError, match="the loss is nan at step 1"):
        orchestrator.save()
    assert bench.store.list() == []


def test_with_on_nan_skip_the_update_is_left_out_and_the_step_is_named(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    orchestrator = bench.make(loss=NanAt(3), on_nan="skip")
    orchestrator.train(bench.record())
    skipped = recorder(orchestrator).of("train/skipped_steps")
    assert skipped == {2: 0.0, 4: 1.0, 6: 0.0}
    assert all(math.isfinite(loss) for loss in recorder(orchestrator).of("train/loss").values())
    assert "not finite at steps [3]" in caplog.text
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(orchestrator).values())


def test_the_best_evaluation_is_kept_when_a_later_one_is_worse(bench: Bench) -> None:
    orchestrator = bench.make(lr=1e-3, steps=6, eval_every=3)
    original = orchestrator.train_step

    def spoilt(batches: Any) -> None:
        original(batches)
        if orchestrator.step == 6:
            with torch.no_grad():
                for parameter in orchestrator.model.parameters():
                    parameter.add_(1.0)

    orchestrator.train_step = spoilt  # type: ignore[method-assign]
    result = orchestrator.train(bench.record())
    psnr = recorder(orchestrator).of("valid/psnr")
    assert psnr[6] < psnr[3]
    assert result.best["step"] == 3 and result.best["valid/psnr"] == psnr[3]
    restored = bench.make(steps=9)
    restored.restore(bench.newest())
    assert restored.result().best == result.best


def test_a_fork_takes_weights_and_moments_and_keeps_its_own_rate(bench: Bench, second: Bench) -> None:
    bench.make().train(bench.record())
    fork = second.make(steps=8, lr=1e-5)
    fork.restore(bench.newest(), fork=True)
    assert fork.step == 6 and fork.learners["model"].lr == 1e-5 / 2  # its own schedule, at this step
    assert equal(weights(fork), bench.newest().model)
    moments = fork.learners["model"].optimizer.state_dict()["state"]
    assert moments and all(bool(state["exp_avg"].any()) for state in moments.values())


def test_a_checkpoint_of_another_network_is_refused_in_one_sentence(bench: Bench, second: Bench) -> None:
    bench.make().train(bench.record())
    other = second.make()
    other.learners["model"].network = EDSR(scale=2, num_filters=5, num_res_blocks=1)
    with pytest.raises(RunError, match="the checkpoint of step 6 does not fit"):
        other.restore(bench.newest())


def test_an_evaluation_leaves_the_mode_of_the_network_and_of_cudnn_as_they_were(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrator, seen = bench.make(), []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    orchestrator.model.register_forward_hook(
        lambda model, *_: seen.append((model.training, torch.backends.cudnn.benchmark))
    )
    orchestrator.evaluate()
    assert seen and set(seen) == {(False, False)}
    assert orchestrator.model.training and torch.backends.cudnn.benchmark
    orchestrator.model.eval()
    orchestrator.evaluate()
    assert not orchestrator.model.training


def test_a_run_of_one_step_has_the_scores_of_all_images(bench: Bench) -> None:
    result = bench.make(steps=1).train(bench.record())
    assert len(result.scores) == len(result.bicubic) == 3
    assert bench.make(steps=1).result().metrics == {}


def test_where_there_is_no_terminal_the_log_says_the_step_the_loss_and_the_score(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("_FIRST_LINE", "_LINE_EVERY"):
        monkeypatch.setattr(f"sr_runner.training.progress.{name}", 0.0)
    with caplog.at_level(logging.INFO):
        bench.make(steps=4, log_every=1, eval_every=2).train(bench.record())
    lines = [line for line in caplog.messages if line.startswith("step ") and " of 4: " in line]
    assert [line.partition(" of ")[0] for line in lines] == [f"step {step}" for step in (1, 2, 3, 4)]
    assert all("loss 0." in line for line in lines) and "PSNR" in lines[2] and "PSNR" not in lines[0]


def test_a_signal_while_the_last_checkpoint_is_waited_for_stops_the_run(bench: Bench) -> None:
    orchestrator = bench.make(steps=2)
    assert orchestrator.checkpoints is not None

    def finish() -> bool:
        orchestrator.stop.note(signal.SIGTERM)
        return False

    orchestrator.checkpoints.finish = finish  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        orchestrator.train(bench.record())
    assert bench.newest().step == 2


def test_checkpoints_that_fail_are_counted_at_their_steps(bench: Bench) -> None:
    orchestrator, put = bench.make(), bench.store.put

    def failing(name: str, files: Any) -> None:
        if name.endswith("3"):
            raise OSError("no room")
        put(name, files)

    bench.store.put = failing  # type: ignore[method-assign]
    orchestrator.train(bench.record())
    assert recorder(orchestrator).of("checkpoint/failures") == {3: 1.0}


def test_a_run_that_can_save_nothing_more_ends_at_its_next_point_and_not_at_its_next_checkpoint(bench: Bench) -> None:
    orchestrator = bench.make(log_every=1, eval_every=3)

    def broken(name: str, files: Any) -> None:
        raise ValueError("no fault of the store")

    class Waits(Recorder):
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            if step == 4:
                wait_until(lambda: orchestrator.checkpoints._fatal)  # type: ignore[union-attr]

    bench.store.put, orchestrator.tracker = broken, Waits()  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no fault of the store"):
        orchestrator.train(bench.record())
    assert orchestrator.step == 4


def test_a_network_that_the_other_run_did_not_have_starts_afresh_in_a_fork_and_is_refused_in_a_resume(
    bench: Bench,
) -> None:
    bench.make(steps=1).train(bench.record())
    for fork in (True, False):
        other = bench.make(steps=2)
        judge = nn.Conv2d(3, 1, 3)
        before = judge.weight.detach().clone()
        other.learners["judge"] = Learner(judge, partial(torch.optim.SGD, lr=1.0), None)
        if fork:
            other.restore(bench.newest(), fork=True)
            assert other.step == 1 and torch.equal(judge.weight, before)
        else:
            with pytest.raises(RunError, match="does not fit"):
                other.restore(bench.newest())


def test_without_validation_images_a_run_has_no_scores_and_ends_well(bench: Bench) -> None:
    orchestrator = bench.make(steps=2, eval_every=1)
    orchestrator.validation._data = SimpleNamespace(valid=[], valid_all=[], scale=2)  # type: ignore[assignment]
    result = orchestrator.train(bench.record())
    assert result.step == 2 and result.metrics == {} and result.scores == () and result.best == {}
    assert not orchestrator.validation.is_lacking(2)


def test_a_picture_that_cannot_be_written_is_said_and_stops_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    run = bench.record()
    (run.run_dir / "pictures").write_text("a file where the folder should be")
    assert bench.make(steps=1, pictures=1).train(run).step == 1
    assert "the picture of 0 at step 1 could not be written" in caplog.text


def test_of_several_processes_the_main_one_scores_and_its_peers_know_of_it(bench: Bench) -> None:
    told: list[Mapping[str, Any]] = []

    class OneOfTwo(SingleProcess):
        size = 2

        def __init__(self, stop: StopSignal, is_main: bool):
            super().__init__(stop)
            self.is_main = is_main

        def broadcast(self, tree: Mapping[str, Any] | None = None) -> dict[str, Any]:
            if self.is_main:
                assert tree is not None
                told.append(tree)
            return dict(told[-1])

    evaluations = []
    for is_main in (True, False):
        orchestrator = bench.make()
        orchestrator.world = OneOfTwo(orchestrator.stop, is_main)
        evaluations.append(orchestrator.evaluate())
        assert orchestrator.result().scores and orchestrator.validation.state() == told[0]
    assert evaluations[0] is not None and evaluations[1] is None and len(told) == 1


def test_a_loss_that_is_not_a_number_is_found_at_the_next_point_however_far_the_next_checkpoint_is(
    bench: Bench,
) -> None:
    orchestrator = bench.make(loss=NanAt(2), log_every=3, eval_every=6)
    with pytest.raises(RunError, match=r"the loss is nan at step 2 "):
        orchestrator.train(bench.record())
    assert orchestrator.step == 3 and all(
        key == "best/psnr" for _, values in recorder(orchestrator).points for key in values
    )


def test_evaluate_scores_again_whenever_it_is_asked(bench: Bench) -> None:
    orchestrator = bench.make()
    orchestrator.train(bench.record())
    again = orchestrator.evaluate()
    assert again is not None
    assert again.mean["psnr"] == orchestrator.validation.metrics["valid/psnr"]


def test_a_checkpoint_says_which_torch_and_how_many_threads_it_was_made_with_and_a_change_is_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.make().train(bench.record())
    state = bench.newest()
    assert state.training["environment"]["torch"] == torch.__version__
    state.training["environment"]["threads"] = 999  # type: ignore[index]
    with caplog.at_level(logging.WARNING):
        bench.make().restore(state)
    assert "threads 999 -> " in caplog.text


def test_what_a_checkpoint_holds_is_read_from_its_folder(bench: Bench) -> None:
    bench.make().train(bench.record())
    state = read(bench.folder / "checkpoints" / ATTEMPT / "step-00000006")
    assert state.step == 6 and state.metrics["valid/psnr"] > 0
