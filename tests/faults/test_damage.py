"""Random damage to the files of a checkpoint is detected, or harmless: what is restored is identical."""

from __future__ import annotations

import random
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

from sr_runner.checkpoint import CheckpointManager, DamagedError, LocalStore, TrainingState
from sr_runner.checkpoint.format import FILES, MANIFEST
from sr_runner.checkpoint.manager import read

TRIALS = 2000
SEED = 0


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(8, 8, 3, 3, generator=generator) for i in range(3)}
    training = {
        "step": 5, "moments": {name: weight * 2 for name, weight in weights.items()},
        "rng": torch.arange(100, dtype=torch.uint8), "best": {"psnr": 30.5}, "pair": (1, 2.5),
    }  # fmt: skip
    manager = CheckpointManager(LocalStore(root), "edsr-x2-0123456789ab/a0001-00ff", keep=[], scratch=root)
    manager.save(
        TrainingState(5, weights, training, "model: edsr\n", {"sr_run": "{}"}, {"valid/psnr": 30.5}), wait=True
    )
    return root / "edsr-x2-0123456789ab/a0001-00ff/step-00000005"


def harm(folder: Path, chance: random.Random) -> str:
    """One random damage; what it was."""
    path = folder / chance.choice([*FILES, MANIFEST, MANIFEST])
    data = bytearray(path.read_bytes())
    kind = chance.choice(["flip", "flip", "cut", "delete", "swap", "insert", "zero", "extra", "empty", "double"])
    position = chance.randrange(len(data))
    match kind:
        case "flip":
            data[position] ^= 1 << chance.randrange(8)
        case "cut":
            del data[position:]
        case "insert":
            data[position:position] = chance.randbytes(chance.randint(1, 64))
        case "zero":
            data[position : position + 512] = bytes(len(data[position : position + 512]))
        case "empty":
            data.clear()
        case "double":
            data.extend(bytes(data))
        case "delete":
            path.unlink()
            return f"{kind} {path.name}"
        case "swap":
            other = folder / chance.choice([*FILES, MANIFEST])
            there = other.read_bytes()
            other.write_bytes(data)
            data = bytearray(there)
        case "extra":
            path = folder / "extra.bin"
    path.write_bytes(data)
    return f"{kind} {path.name} at {position}"


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def test_any_damage_is_detected_or_harmless_in_bounded_memory(good: Path, tmp_path: Path) -> None:
    chance, expected = random.Random(SEED), read(good, 5)
    size = sum(path.stat().st_size for path in good.iterdir())
    detected = 0
    tracemalloc.start()
    for trial in range(TRIALS):
        folder = tmp_path / f"trial-{trial}"
        shutil.copytree(good, folder)
        what = harm(folder, chance)
        tracemalloc.reset_peak()
        try:
            found = read(folder, 5)
        except DamagedError:
            detected += 1
        else:
            for part in ("step", "model", "training", "config", "metadata"):
                assert same(getattr(found, part), getattr(expected, part)), f"{what}: {part} differs unnoticed"
        # What is damaged may be up to twice as long as it was, which its size alone gives away.
        assert tracemalloc.get_traced_memory()[1] < 4 * size + (1 << 20), what
        shutil.rmtree(folder)
    tracemalloc.stop()
    assert detected > TRIALS * 0.9
