"""Damage the files of a checkpoint at random: every damage is detected, or what is restored is identical.

    python tests/tools/damage.py --trials 2000 --seed 0
    python tests/tools/damage.py --trials 200 --through manager --store memory
    python tests/tools/damage.py --trials 2000 --what forgery

`--through read` damages a folder and reads it, `--through manager` restores a run whose newest checkpoint is damaged:
what is damaged has to be set aside, and the older checkpoint to come back. `--what damage` is what disks, networks and
people do; `lie` a manifest that matches its own checksum and states what is not so; `forgery` files with a matching
manifest whose content no release wrote (nothing can tell that a weight was altered then: it must be refused, or give
some state, and nothing else may happen). Peak memory: at most two times the sizes of the files.

Exit status 0 if nothing was found.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import random
import shutil
import signal
import struct
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from sr_runner.checkpoint import CheckpointManager, DamagedError, LocalStore, TrainingState
from sr_runner.checkpoint.format import FILES, MANIFEST, MODEL, STATE, TRAINING, Blob
from sr_runner.checkpoint.reader import read
from sr_runner.checkpoint.stores import RemoteStore

Files = dict[str, bytes]

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"
OLDER, NEWER = 3, 5
SECONDS = 60
"""A trial takes milliseconds; one that takes so long hangs."""


def state(step: int, width: int = 24) -> TrainingState:
    """A training state of all kinds of values, some 324 * width^2 bytes in all."""
    generator = torch.Generator().manual_seed(step)
    weights = {f"layer{i}.weight": torch.randn(width, width, 3, 3, generator=generator) for i in range(3)}
    training = {
        "step": step, "moments": {name: weight * 2 for name, weight in weights.items()},
        "rng": torch.arange(100, dtype=torch.uint8), "half": torch.randn(3, generator=generator).bfloat16(),
        "best": {"psnr": 30.5, "worst": float("-inf")}, "pair": (1, 2.5), "milestones": Counter({200: 1}),
        "seen": {"a", "b"}, "by_number": {1: [None, True]},
    }  # fmt: skip
    return TrainingState(
        step, weights, training, "model: edsr\n", {"format": "pt", "sr_run": "{}"}, {"valid/psnr": 30.5}
    )


def checkpoint(step: int, width: int = 24) -> Files:
    """The files of a good checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        manager = CheckpointManager(LocalStore(folder), ATTEMPT, keep=[], scratch=Path(folder))
        manager.save(state(step, width), wait=True)
        manager.close()
        return {path.name: path.read_bytes() for path in Path(folder, ATTEMPT, f"step-{step:08d}").iterdir()}


# -- what is done to files -----------------------------------------------------------------------------------------


def damage(files: Files, chance: random.Random) -> tuple[Files, str]:
    """One random damage; what it was."""
    name = chance.choice([*FILES, MANIFEST])
    data = bytearray(files[name])
    # In a long file most of what can go wrong goes wrong at its beginning, which is looked at first.
    position = min(int(len(data) * chance.random() ** chance.choice([1, 6])), len(data) - 1)
    kind = chance.choice(
        ["flip", "flip", "cut", "delete", "swap", "insert", "zero", "blocks", "extra", "empty", "double"]
    )
    match kind:
        case "flip":
            data[position] ^= 1 << chance.randrange(8)
        case "cut":
            del data[position:]
        case "insert":
            data[position:position] = chance.randbytes(chance.randint(1, 64))
        case "zero":
            data[position : position + 512] = bytes(len(data[position : position + 512]))
        case "blocks":
            size = chance.randint(1, max(1, len(data) // 2))
            data = data[size:] + data[:size]
        case "empty":
            data.clear()
        case "double":
            data.extend(bytes(data))
        case "delete":
            return {each: content for each, content in files.items() if each != name}, f"delete {name}"
        case "swap":
            other = chance.choice([*FILES, MANIFEST])
            return files | {name: files[other], other: files[name]}, f"swap {name} and {other}"
        case "extra":
            extra = chance.choice(["extra.bin", "model.safetensors.part", "state.pkl", ".hidden"])
            return files | {extra: bytes(data)}, f"extra {extra}"
    return files | {name: bytes(data)}, f"{kind} {name} at {position}"


def lie(files: Files, chance: random.Random) -> tuple[Files, str]:
    """A manifest that is intact and wrong."""
    body = json.loads(files[MANIFEST])
    name = chance.choice(FILES)
    entry = body["files"][name]
    kind = chance.choice(["size", "hash", "version", "step", "names", "types", "huge"])
    match kind:
        case "size":
            entry["size"] = chance.choice([0, -1, entry["size"] - 1, entry["size"] + 1, 1 << 40, 1 << 70])
        case "hash":
            entry["sha256"] = chance.choice(["", "0" * 64, entry["sha256"][::-1], entry["sha256"].upper()])
        case "version":
            body["version"] = chance.choice([0, 2, 99, "1", None])
        case "step":
            body["step"] = chance.choice([body["step"] + 1, -1, 0, 1 << 70])
        case "names":
            new = chance.choice(["../../escape", "/etc/passwd", "extra.bin", ""])
            body["files"][new] = body["files"].pop(name) if chance.random() < 0.5 else entry
        case "types":
            key = chance.choice(["step", "created", "metrics", "files"])
            body[key] = chance.choice([None, [], "x", {"a": "b"}, {"a": None}, {name: 1}])
        case "huge":
            body[chance.choice(["created", "step"])] = 10**400
    return files | {MANIFEST: _sealed(body)}, f"lie about {kind} ({name})"


def forgery(files: Files, chance: random.Random) -> tuple[Files, str]:
    """Content that no release wrote, under a manifest that matches it."""
    name = chance.choice([MODEL, TRAINING, STATE, STATE])
    if name == STATE:
        document = json.loads(files[name])
        what = _mutate(document, chance)
        content = _dumped(document, chance)
    else:
        (length,) = struct.unpack_from("<Q", files[name])
        header = json.loads(files[name][8 : 8 + length])
        what = _mutate(header, chance)
        text = _dumped(header, chance)
        stated = chance.choice([len(text)] * 8 + [1 << 40, (1 << 64) - 1, 0, len(text) + 1])
        content = struct.pack("<Q", stated) + text + files[name][8 + length :]
    body = json.loads(files[MANIFEST])
    body["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return files | {name: content, MANIFEST: _sealed(body)}, f"forged {name}: {what}"


KINDS: Mapping[str, Callable[[Files, random.Random], tuple[Files, str]]] = {
    "damage": damage, "lie": lie, "forgery": forgery,
}  # fmt: skip

_ODD: list[Any] = [
    None, True, -1, 0, 1 << 70, 10**400, 1e308, "", "x", "F32", "BF16", "I64", "../x", [], {}, [1, 2, 3], [0, 0], [[]],
    [-1], [1 << 40, 1 << 40], {"__sr_run__": "tensor"}, {"__sr_run__": "tensor", "at": []},
    {"__sr_run__": "float", "is": 10**400}, {"__sr_run__": "float", "is": None}, {"__sr_run__": "set", "is": [[1]]},
    {"__sr_run__": "counter", "is": [1]}, {"__sr_run__": "mapping", "is": [[[], 1]]}, {"__sr_run__": []},
    {"__sr_run__": "array", "at": "half"}, {"__sr_run__": "tuple", "is": 3}, {"__sr_run__": "pickle", "is": "x"},
]  # fmt: skip


def _mutate(document: Any, chance: random.Random) -> str:
    """Replace, remove or add one value anywhere in `document`."""
    places = list(_places(document, ""))
    holder, key, path = chance.choice(places)
    match chance.choice(["replace", "replace", "replace", "remove", "add", "move"]):
        case "replace":
            holder[key] = copy.deepcopy(chance.choice(_ODD))
            return f"{path} is {str(holder[key])[:40]}"
        case "remove":
            del holder[key]
            return f"no {path}"
        case "add" if isinstance(holder, dict):
            holder[chance.choice(["__sr_run__", "__metadata__", "extra"])] = copy.deepcopy(chance.choice(_ODD))
            return f"something beside {path}"
        case _:
            other, there, where = chance.choice(places)
            holder[key] = copy.deepcopy(other[there])
            return f"{path} is that of {where}"


def _places(document: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(items):
        yield document, key, f"{path}/{key}"
        if isinstance(value, dict | list):
            yield from _places(value, f"{path}/{key}")


def _dumped(document: Any, chance: random.Random) -> bytes:
    if chance.random() < 0.05:
        return b"[" * 50_000 + b"]" * 50_000
    if chance.random() < 0.05:
        document = chance.choice(_ODD)
    return json.dumps(document).encode()


def _sealed(body: dict[str, Any]) -> bytes:
    body.pop("sha256", None)
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps(body | {"sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1).encode()


# -- what comes of it ----------------------------------------------------------------------------------------------


@dataclass
class Tally:
    trials: int = 0
    detected: int = 0
    harmless: int = 0
    peak: float = 0.0
    """The largest peak of memory where damage was found (or anything was restored), in sizes of the files."""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.trials} trials: {self.detected} detected, {self.harmless} harmless, {len(self.faults)} faults; "
            f"peak memory at most {self.peak:.2f} times the files"
        )


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and type(a) is type(b) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def same_state(a: TrainingState, b: TrainingState) -> bool:
    return all(same(getattr(a, part), getattr(b, part)) for part in ("step", "model", "training", "config", "metadata"))


@contextmanager
def watched(tally: Tally, files: Files, whole: Files) -> Iterator[None]:
    """Fails where it takes too long or more memory than two times the files, or than two times the undamaged ones."""

    def ring(signum: int, frame: object) -> None:
        raise AssertionError(f"it took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1] / max(_size(files), _size(whole))
        tracemalloc.stop()
        signal.alarm(0)
        tally.peak = max(tally.peak, peak)
        assert peak <= 2, f"peak memory of {peak:.2f} times the files"


def _size(files: Files) -> int:
    return sum(map(len, files.values()))


def fuzz_read(trials: int, seed: int, what: str = "damage", width: int = 24) -> Tally:
    """Read a folder whose files were harmed."""
    chance, tally, whole = random.Random(seed), Tally(), checkpoint(NEWER, width)
    expected = state(NEWER, width)
    with tempfile.TemporaryDirectory() as temporary:
        for trial in range(trials):
            files, how = KINDS[what](whole, chance)
            folder = Path(temporary, f"trial-{trial}")
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            with _trial(tally, f"trial {trial}, {how}"):
                before = tally.peak
                try:
                    with watched(tally, files, whole):
                        found = read(folder, NEWER)
                except DamagedError:
                    tally.detected += 1
                else:
                    tally.harmless += 1
                    tally.peak = before  # what is whole is parsed as well, which takes more than to find damage
                    assert what == "forgery" or same_state(found, expected), "restored what differs, unnoticed"
            shutil.rmtree(folder)
    return tally


def fuzz_restore(trials: int, seed: int, what: str = "damage", kind: str = "local", width: int = 100) -> Tally:
    """Restore a run with an older, good checkpoint, and a newer one that was harmed."""
    chance, tally = random.Random(seed), Tally()
    older, newer = checkpoint(OLDER, width), checkpoint(NEWER, width)
    with tempfile.TemporaryDirectory() as temporary:
        for trial in range(trials):
            files, how = KINDS[what](newer, chance)
            place = Path(temporary, f"trial-{trial}")
            store = _store(kind, place)
            for step, content in ((OLDER, older), (NEWER, files)):
                for name, data in content.items():
                    _put(store, f"{ATTEMPT}/step-{step:08d}/{name}", data)
            with _trial(tally, f"trial {trial} of {kind}, {how}"), _unheard():
                _restore(store, place / "scratch", files, newer, tally)
            shutil.rmtree(place, ignore_errors=True)
            if kind == "memory":
                store._objects._fs.store.clear()
    return tally


def _restore(store: Any, scratch: Path, files: Files, whole: Files, tally: Tally) -> None:
    manager = CheckpointManager(store, ATTEMPT, keep=[], scratch=scratch)
    with watched(tally, files, whole):
        found = manager.restore()
    assert found is not None
    damaged = {key.split("/")[2] for key in _keys(store) if key.split("/")[2].startswith("damaged-")}
    if found.step == NEWER:
        tally.harmless += 1
        assert same_state(found, state(NEWER, found.model["layer0.weight"].shape[0])), (
            "restored what differs, unnoticed"
        )
        assert not damaged and manager.steps() == [OLDER, NEWER]
        return
    tally.detected += 1
    assert same_state(found, state(OLDER, found.model["layer0.weight"].shape[0])), "the older state differs"
    assert manager.steps() == [OLDER]
    if MANIFEST not in files:  # a write that was never finished
        assert not damaged
        return
    (aside,) = damaged
    kept = {key.rpartition("/")[2]: _get(store, key) for key in _keys(store) if f"/{aside}/" in key}
    reason = json.loads(kept.pop("why.json"))
    assert kept == files, "what was damaged is not kept as it was"
    assert reason["name"] == f"{ATTEMPT}/step-{NEWER:08d}" and reason["reason"]


@contextmanager
def _trial(tally: Tally, what: str) -> Iterator[None]:
    tally.trials += 1
    try:
        yield
    except Exception as error:
        tally.faults.append(f"{what}: {type(error).__name__}: {error}")


@contextmanager
def _unheard() -> Iterator[None]:
    """Without a line in the log for each damage. Who collects log records, as pytest does, keeps the exceptions in them
    alive, and what those had read."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _store(kind: str, place: Path) -> Any:
    place.mkdir()
    if kind == "local":
        return LocalStore(place / "store")
    return RemoteStore("memory://damage/checkpoints" if kind == "memory" else f"file://{place}/store")


def _put(store: Any, key: str, data: bytes) -> None:
    if isinstance(store, LocalStore):
        path = store.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    else:
        store._objects.write(key, Blob.of(key.rpartition("/")[2], data))


def _get(store: Any, key: str) -> bytes:
    found: bytes = (
        (store.root / key).read_bytes() if isinstance(store, LocalStore) else store._objects.peek(key, 1 << 40)
    )
    return found


def _keys(store: Any) -> list[str]:
    if isinstance(store, LocalStore):
        return [str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()]
    return list(store._objects.keys(""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", choices=tuple(KINDS), default="damage")
    parser.add_argument("--through", choices=("read", "manager"), default="read")
    parser.add_argument("--store", choices=("local", "memory", "file"), default="local")
    parser.add_argument("--width", type=int, default=None,
                        help="of layers: 24 (default to read) makes 0.2 MB, 100 (to restore) 3, 512 85")  # fmt: skip
    args = parser.parse_args()
    width = {} if args.width is None else {"width": args.width}
    if args.through == "read":
        tally = fuzz_read(args.trials, args.seed, args.what, **width)
    else:
        tally = fuzz_restore(args.trials, args.seed, args.what, args.store, **width)
    print("\n".join(tally.faults))
    print(f"{args.what}, {args.through} ({args.store}), seed {args.seed}: {tally}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
