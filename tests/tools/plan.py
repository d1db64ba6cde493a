"""Which faults the trials bring about: spread over every kind of operation that a run was seen to carry out."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from interpose import Aim

STOP_AT = 4
"""An evaluated step that is saved."""


@dataclass(frozen=True)
class Stage:
    """One start of a run."""

    aim: Aim | None = None
    kills: bool = True
    """The aim is a kill of the run (and not of the server)."""
    seconds: float | None = None
    """Kill after this share of an unbroken run's time."""
    stop_at: int | None = None
    """SIGTERM amid the evaluation of this step."""
    damage: bool = False
    """Before it, a bit of the newest checkpoint is flipped."""
    delay: float = 0.0
    """Seconds into a request that is struck in its middle; an outage is a hundred times as long."""
    machine: bool = False
    """With the run, its sender dies: the machine, as it were."""

    def __str__(self) -> str:
        words = [str(self.aim)] if self.aim else []
        words += [f"at {self.seconds:.2f} of the time"] if self.seconds is not None else []
        words += [f"stopped at step {self.stop_at}"] if self.stop_at is not None else []
        words += ["with its sender"] if self.machine else []
        return ("after damage " if self.damage else "") + " ".join(words)


@dataclass(frozen=True)
class Trial:
    number: int
    variant: str
    stages: tuple[Stage, ...]
    real_sender: bool

    def __str__(self) -> str:
        return f"{self.number} {self.variant} [{' | '.join(map(str, self.stages))}]"


@dataclass(frozen=True)
class Cell:
    """A kind of operation, in a kind of run, and how often it happens there."""

    scenario: str
    label: str
    count: int
    instant: str

    @property
    def phase(self) -> str:
        return self.label.partition(":")[0]


def before(scenario: str, kind: str) -> list[Stage]:
    """The starts that lead to the one which is struck."""
    commit = "commit: rename writing to place" if kind == "local" else "commit: uploading manifest.json"
    upload = "write: uploading training.safetensors" if kind == "s3" else "blob: training.safetensors"
    return {
        "train": [],
        "resume": [Stage(Aim(commit, 3, "before"))],
        "abandoned": [Stage(Aim(upload, 3, "middle"))],
        "replace": [Stage(stop_at=STOP_AT)],
        "quarantine": [Stage(Aim(commit, 3, "after"))],
    }[scenario]


_PHASES = {
    "resume": ("clean", "restore", "list"),
    "abandoned": ("clean",),
    "replace": ("replace",),
    "quarantine": ("quarantine",),
}


def scouts(
    train: Counter[str], scout: Callable[[str, list[Stage]], Counter[str]], kind: str, fault: str, wanted: int
) -> list[Cell]:
    """All kinds of operation, found by running each scenario once: those of `train`, an unbroken run, and what others
    add to them. With fewer than 10 trials those of `train` alone."""
    found = {"train": train}
    for scenario in _PHASES if wanted >= 10 else ():
        if (fault == "outage" and scenario == "quarantine") or (kind == "local" and scenario == "abandoned"):
            continue
        last = Stage(damage=scenario == "quarantine")
        found[scenario] = scout(scenario, [*before(scenario, kind), last])
    cells = []
    for scenario, counts in found.items():
        phases = _PHASES.get(scenario)
        for label, count in sorted(counts.items()):
            if phases is None or label.partition(":")[0] in phases or label not in train:
                cells += [Cell(scenario, label, count, instant) for instant in _instants(kind, label)]
    return cells


def _instants(kind: str, label: str) -> tuple[str, ...]:
    if label.startswith("blob:"):
        return ("middle",)
    can_be_cut = kind != "local" or " write " in label
    return ("before", "middle", "after") if can_be_cut else ("before", "after")


def plan(
    cells: list[Cell], counts: Mapping[str, Counter[str]], trials: int, chance: random.Random, kind: str, fault: str,
    only: str,
) -> Iterator[Trial]:  # fmt: skip
    """`trials` trials over the variants in turn; `counts` are the operations of their unbroken runs, `only` a regular
    expression for labels."""
    variants = tuple(counts)
    cells = [cell for cell in cells if re.search(only, cell.label)]
    if not cells:
        raise SystemExit(f"no operation matches {only!r}")
    order = _spread(cells, chance)
    for number in range(trials):
        variant, real = variants[number % len(variants)], chance.random() < 0.1
        if fault == "kill" and number % 5 == 4 and not only:
            shares = [chance.uniform(0, 1) for _ in range(chance.randint(1, 3))]
            stages = [Stage(seconds=share, machine=chance.random() < 0.5) for share in shares]
            yield Trial(number, variant, tuple(stages), real)
            continue
        cell = next(order)
        if cell.scenario == "abandoned":
            variant = variants[0]  # its files are uploaded in parts
        stages = _aimed(cell, counts[variant], kind, chance, fault)
        if fault == "kill" and chance.random() < 0.3:
            again = chance.choice([cell for cell in cells if cell.scenario == "train"] or cells)
            stages += _aimed(again, counts[variant], kind, chance, fault)[-1:]
        yield Trial(number, variant, tuple(stages), real)


def _aimed(cell: Cell, counts: Mapping[str, int], kind: str, chance: random.Random, fault: str) -> list[Stage]:
    most = counts.get(cell.label, cell.count) if cell.scenario == "train" else cell.count
    last = Stage(
        Aim(cell.label, chance.randint(1, most), cell.instant), kills=fault == "kill",
        damage=cell.scenario == "quarantine", delay=chance.uniform(0, 0.03),
        machine=chance.random() < 0.5 and fault == "kill",
    )  # fmt: skip
    return [*before(cell.scenario, kind), last]


def _spread(cells: list[Cell], chance: random.Random) -> Iterator[Cell]:
    """One cell of each phase, then all the others, then all over again."""
    while True:
        mixed = chance.sample(cells, len(cells))
        firsts = list({cell.phase: cell for cell in mixed}.values())
        yield from firsts
        yield from (cell for cell in mixed if cell not in firsts)
