"""What the Orchestrator adds to a hand-written PyTorch loop, per step.

    python benchmarks/step_overhead.py                       one convolution, where every microsecond shows
    python benchmarks/step_overhead.py --network edsr        EDSR 16x64 x2

Both loops draw the same batches from the same loader and use the same network, loss, fused Adam and schedule; blocks
of the two alternate in one process, and the figure is the median over the pairs of blocks. The Orchestrator logs to a
journal as it does in a real run (`--tracker none` leaves that out).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sr_runner.config.settings import TrainerSettings
from sr_runner.data import SampleData
from sr_runner.models import EDSR
from sr_runner.objectives import Learner, PixelObjective
from sr_runner.tracking import MlflowTracker, NoTracker, RunRecord
from sr_runner.training.device import resolve_device, resolve_precision
from sr_runner.training.orchestrator import Orchestrator


class OneConvolution(nn.Module):
    """The cheapest network there is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_shuffle(self.conv(lr), 2)


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return OneConvolution() if name == "conv" else EDSR(scale=2)


def parts(steps: int) -> tuple[partial, partial]:
    schedule = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[steps * 2], gamma=0.5)
    return partial(torch.optim.Adam, lr=1e-4, fused=True), schedule


def bare(name: str, data: SampleData, steps: int, device: torch.device, precision: str) -> float:
    model = network(name).to(device).to(memory_format=torch.channels_last).train()
    make_optimizer, make_schedule = parts(steps)
    optimizer = make_optimizer(model.parameters())
    scheduler, loss_of, losses = make_schedule(optimizer), nn.L1Loss(), []
    autocast = torch.bfloat16 if precision == "bf16" else None
    began = time.perf_counter()
    with data.stream(0, device=device) as loader:
        for step in range(1, steps + 1):
            lr, hr = next(loader)
            if autocast is None:
                loss = loss_of(model(lr), hr)
            else:
                with torch.autocast(device.type, autocast):
                    sr = model(lr)
                loss = loss_of(sr.float(), hr)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            losses.append(loss.detach())
            if step % 100 == 0:
                _ = torch.stack(losses).mean().item()
                losses = []
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def runner(
    name: str, data: SampleData, steps: int, device: torch.device, precision: str, tracker: object, folder: Path
) -> float:
    optimizer, scheduler = parts(steps)
    settings = TrainerSettings(steps=steps, eval_every=steps * 2, log_every=100)
    model = network(name).to(device).to(memory_format=torch.channels_last).train()
    learner = Learner(model, optimizer, scheduler, precision=precision)  # type: ignore[arg-type]
    orchestrator = Orchestrator(
        objective=PixelObjective({"pixel": nn.L1Loss()}),
        learners={"model": learner},
        data=data,
        tracker=tracker,  # type: ignore[arg-type]
        checkpoints=None,
        settings=settings,
        device=device,
    )
    folder.mkdir()
    record = RunRecord(run_dir=folder, attempt="benchmark/a0001-0000", run_name="benchmark", params={})
    tracker.start(record)  # type: ignore[attr-defined]
    tracker.start = lambda run: None  # type: ignore[attr-defined]  # its process starts outside the clock
    time.sleep(4 if isinstance(tracker, MlflowTracker) else 0)
    began = time.perf_counter()
    orchestrator.train(record)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / steps
    tracker.finish("FINISHED")  # type: ignore[attr-defined]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["conv", "edsr"], default="conv")
    parser.add_argument("--steps", type=int, default=None, help="per block (default: 2000, EDSR 40)")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tracker", choices=["mlflow", "none"], default="mlflow")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--patch-size", type=int, default=32)
    args = parser.parse_args()
    steps = args.steps or (2000 if args.network == "conv" else 40)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    precision = resolve_precision(args.precision, device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = SampleData(
            scale=2, patch_size=args.patch_size, batch_size=args.batch_size, seed=0, cache_dir=folder / "cache",
            valid_images=0,
        )  # fmt: skip
        data.prepare(progress=False)
        bare(args.network, data, max(steps // 10, 3), device, precision)
        pairs = []
        for block in range(args.blocks):
            tracker = MlflowTracker(outputs=folder, system_metrics=False) if args.tracker == "mlflow" else NoTracker()
            ours = runner(args.network, data, steps, device, precision, tracker, folder / f"run{block}")
            theirs = bare(args.network, data, steps, device, precision)
            pairs.append((theirs, ours))
            print(f"block {block}: bare {theirs * 1e3:.3f} ms, sr-run {ours * 1e3:.3f} ms a step", flush=True)
    added = statistics.median(ours - theirs for theirs, ours in pairs)
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    print(f"{args.network} on {device}, {precision}, {torch.get_num_threads()} threads: "
          f"sr-run adds {added * 1e6:+.0f} us a step, ratio {ratio:.4f} (medians of {args.blocks} pairs)")  # fmt: skip


if __name__ == "__main__":
    main()
