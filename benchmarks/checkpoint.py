"""What a checkpoint of EDSR large (43 M parameters, Adam) costs, beside the bare alternatives in the same run.

    python benchmarks/checkpoint.py --rounds 10 --saves 100

In each round, one after the other: a bare copy of the state into host memory that was allocated before; a save of the
Checkpoint Manager (what the train step waits for, and the whole write up to the commit); `torch.save` and `fsync`;
`torch.distributed.checkpoint.async_save` (what it waits for). Then `--saves` saves in a row, and what the process's
memory did meanwhile. Medians are printed, and ratios of medians.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from sr_runner.checkpoint import CheckpointManager, LastN, LocalStore, TrainingState
from sr_runner.checkpoint.codec import flatten
from sr_runner.models import EDSR
from sr_runner.objectives import Learner


def training_state() -> TrainingState:
    """That of EDSR large after a step."""
    torch.manual_seed(0)
    network = EDSR(scale=4, num_filters=256, num_res_blocks=32, res_block_scaling=0.1)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner = Learner(network, partial(torch.optim.Adam, lr=1e-4), None)
    learner.backward(learner(torch.rand(1, 3, 8, 8)).mean())
    learner.step()
    training = {"step": 1, "learners": {"model": learner.state_dict()}}
    return TrainingState(1, network.state_dict(), training, "scale: 4\n", {}, {})


def tensors_of(state: TrainingState) -> dict[str, torch.Tensor]:
    return {f"model:{k}": v for k, v in state.model.items()} | dict(flatten(state.training)[0])


def at_step(state: TrainingState, step: int) -> TrainingState:
    return TrainingState(step, state.model, state.training, state.config)


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def resident_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def torch_save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())


def async_save(tensors: dict[str, torch.Tensor], place: Path) -> float:
    """Seconds until `async_save` lets its caller go on; returns when it is done."""
    from torch.distributed import checkpoint as dcp

    began = time.perf_counter()
    saving = dcp.async_save(tensors, checkpoint_id=str(place))
    waited = time.perf_counter() - began
    saving.result()  # type: ignore[union-attr]
    return waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--saves", type=int, default=100, help="saves in a row, for the memory")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()
    logging.getLogger("torch").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory(prefix="sr-run-bench-", dir=arguments.folder) as temporary:
        folder = Path(temporary)
        state = training_state()
        tensors = tensors_of(state)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        print(f"{len(tensors)} tensors, {size / 1e6:.0f} MB, {torch.get_num_threads()} threads")
        compare(state, tensors, folder, arguments.rounds)
        memory(state, size, folder, arguments.saves)


def compare(state: TrainingState, tensors: dict[str, torch.Tensor], folder: Path, rounds: int) -> None:
    manager = CheckpointManager(LocalStore(folder / "store"), "edsr-x4-0/a0001-0000", keep=[LastN(1)], scratch=folder)
    manager.prepare(state)
    buffers = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("copy", "stall", "write", "torch.save", "dcp")}

    def copy() -> None:
        for name, tensor in tensors.items():
            buffers[name].copy_(tensor)

    for turn in range(rounds + 1):
        here: dict[str, float] = {"copy": timed(copy)}
        here["stall"] = timed(lambda turn=turn: manager.save(at_step(state, turn + 1)))  # type: ignore[misc]
        here["write"] = timed(manager.wait)
        here["torch.save"] = timed(lambda: torch_save(tensors, folder / "state.pt"))
        place = folder / f"dcp-{turn}"
        here["dcp"] = async_save(tensors, place)
        shutil.rmtree(place)
        if turn == 0:
            print("first save: " + ", ".join(f"{name} {value:.3f} s" for name, value in here.items()))
            continue
        for name, value in here.items():
            seconds[name].append(value)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in middle.items():
        print(f"{name:<10}  {value:.4f} s  ({min(seconds[name]):.4f} to {max(seconds[name]):.4f})")
    stalls = [stall / copy for stall, copy in zip(seconds["stall"], seconds["copy"], strict=True)]
    writes = [write / saved for write, saved in zip(seconds["write"], seconds["torch.save"], strict=True)]
    print(f"stall / bare copy            {statistics.median(stalls):.2f}  (median of the rounds' ratios)")
    print(f"write / torch.save + fsync   {statistics.median(writes):.2f}")
    print(f"dcp.async_save / our stall   {middle['dcp'] / middle['stall']:.2f}")


def memory(state: TrainingState, size: int, folder: Path, saves: int) -> None:
    manager = CheckpointManager(LocalStore(folder / "many"), "edsr-x4-0/a0001-0000", keep=[LastN(1)], scratch=folder)
    before = resident_mib()
    manager.prepare(state)
    manager.save(at_step(state, 1), wait=True)
    first, peak = resident_mib(), 0.0
    for step in range(2, saves + 1):
        manager.save(at_step(state, step), wait=True)
        peak = max(peak, resident_mib())
    manager.close()
    print(
        f"memory: {first - before:+.0f} MiB for the snapshot ({size / 2**20:.0f} MiB of state), "
        f"then {resident_mib() - first:+.0f} MiB over {saves - 1} further saves (at most {peak - first:+.0f})"
    )


if __name__ == "__main__":
    main()
