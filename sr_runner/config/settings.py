"""The runner's own keys, as plain dataclasses: type, default, explanation and check of each stand here only.

They are the schema that every config begins with, and what the parts are built from; `sr-run --help` prints them. No
Hydra, no OmegaConf in here. Making one raises `RequestError` for a value out of range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sr_runner.errors import RequestError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SCALES = (2, 3, 4, 8)
LONGEST = 10**7
"""Seconds or minutes of any time limit: some months."""


def config_dir() -> Path:
    """The config tree: inside the installed package, or beside it in a checkout of the repository."""
    package = Path(__file__).parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@dataclass(kw_only=True)
class RunSettings:
    """The keys that belong to no group."""

    scale: int = 2
    """2, 3, 4 or 8, where model and data allow it."""
    seed: int = 0
    """Everything random follows from it."""
    outputs: str = "outputs"
    """Folder for all that a run writes."""

    def __post_init__(self) -> None:
        _check("scale", self.scale, self.scale in SCALES, f"one of {', '.join(map(str, SCALES))}")
        _check("outputs", self.outputs, self.outputs != "", "a folder")
        _check("seed", self.seed, 0 <= self.seed < 2**63, "a whole number from 0 to 2^63 - 1")


@dataclass(kw_only=True)
class SweepSettings:
    """`sweep.*`: of `sr-run -m`; a single run has no use for them."""

    name: str | None = None
    """Sweeps of this name are one, which grows by other values, keys and settings; null: known by what it sweeps."""
    on_failure: str = "continue"
    """continue: a job that fails does not stop the others. stop: no further job starts."""
    gpu_per_job: bool = False
    """Each of the jobs that run side by side on a machine takes the first GPU that no other one of `outputs` has."""

    def __post_init__(self) -> None:
        is_name = self.name is None or re.fullmatch(r"\w[\w.-]{0,99}", self.name) is not None
        _check("sweep.name", self.name, is_name, "a name of letters, digits, _, - and .")
        _check("sweep.on_failure", self.on_failure, self.on_failure in ("continue", "stop"), "continue or stop")


@dataclass(kw_only=True)
class TrainerSettings:
    """`trainer.*`: how long, how often, on what."""

    steps: int = 300_000
    """Updates of the weights in all, those before a resume included."""
    eval_every: int = 1000
    """Steps between evaluations on the validation images; the last step is always evaluated."""
    log_every: int = 100
    """Steps between points of `train/*`; each is the mean (loss) or rate since the point before."""
    resume: Any = False
    """false: a fresh attempt. true: go on with the newest attempt of this config. An id or path: exactly that run."""
    allow_changes: bool = False
    """With `resume=<id or path>`: take its state although keys that matter differ, as a fork with its own identity."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: str = "auto"
    """auto (bf16 where the device is fast at it, else fp32), fp32, bf16, or fp16 with a loss scaler (GPU)."""
    channels_last: bool = True
    """Memory format of weights and batches; faster nearly everywhere."""
    compile: bool = False
    """torch.compile the networks."""
    deterministic: bool = False
    """On a GPU: only algorithms that repeat themselves bit by bit. A CPU always does."""
    threads: int | None = None
    """CPU threads of PyTorch; null: all cores. Bitwise equality holds for equal numbers."""
    accumulate: int = 1
    """Batches per step whose gradients are averaged before the update; each has data.batch_size samples."""
    grad_clip: float | None = None
    """Largest norm of the gradients; null: no clipping."""
    on_nan: str = "stop"
    """A loss or gradient that is not finite: stop the run, or skip the update (waits for the device at every step)."""
    parameters: Any = None
    """Parameters that are frozen or have settings of their own, by the names of modules or parameters, wildcards
    included: {head|tail: {lr: 1e-5}, *.bias: {weight_decay: 0}, body: {freeze: true}}. The first that fits counts; the
    rest follows `optimizer`."""
    checkpoint_activations: str | None = None
    """Modules of the network that keep only their output, and are computed anew for the gradients: less memory for more
    time, with the same bits. Names with wildcards, `|` between several: body.*; null: none."""
    ema_decay: float | None = None
    """Average the weights with this decay (0.999) and evaluate and export the average; null: off."""
    grace_seconds: float | None = 30.0
    """After a stopping signal the process is gone within this time, with a checkpoint; null: whenever it is ready."""
    metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim", "psnr_y", "ssim_y"])
    """What the evaluations measure: psnr (always), ssim, psnr_y, ssim_y, lpips, dists, one of pyiqa's by its name, such
    as niqe, or package.Class."""
    pictures: int = 4
    """Validation images whose bicubic | SR | HR strips go to the tracker at every evaluation."""

    def __post_init__(self) -> None:
        for key in ("steps", "eval_every", "log_every", "accumulate", "threads"):
            value = getattr(self, key)
            _check(f"trainer.{key}", value, value is None or value >= 1, "a whole number of at least 1")
        grace, clip, decay = self.grace_seconds, self.grad_clip, self.ema_decay
        _check("trainer.threads", self.threads, (self.threads or 0) <= 4096, "at most 4096")
        _check("trainer.on_nan", self.on_nan, self.on_nan in ("stop", "skip"), "stop or skip")
        _check("trainer.pictures", self.pictures, self.pictures >= 0, "0 (none) or more")
        _check("trainer.precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        check_device("trainer.device", self.device)
        _check("trainer.accumulate", self.accumulate, self.accumulate <= 65536, "at most 65536")
        _check(
            "trainer.grace_seconds",
            grace,
            grace is None or 0 < grace <= LONGEST,
            f"a number above 0 and at most {LONGEST}, or null",
        )
        _check("trainer.grad_clip", clip, clip is None or clip > 0, "a number above 0, or null")
        once = len({*self.metrics}) == len(self.metrics)
        expected = "names of metrics, each once, psnr among them, which the gain over bicubic is of"
        _check("trainer.metrics", self.metrics, once and "psnr" in self.metrics, expected)
        names = self.checkpoint_activations
        is_pattern = names is None or re.fullmatch(r"[\w.*?!|\[\]-]+", names) is not None
        _check("trainer.checkpoint_activations", names, is_pattern, "names of modules, such as body.*, or null")
        _check("trainer.ema_decay", decay, decay is None or 0 < decay < 1, "a number between 0 and 1, or null")


@dataclass(kw_only=True)
class TermSettings:
    """`objective.losses.TERM.*`, beside `_target_` and the arguments of that class."""

    weight: float = 1.0
    """Its factor in the loss. 0: measured, but not trained by. Below 0: for what is better the larger it is."""
    range: tuple[float, float] = (0.0, 1.0)
    """What black and white are to it, such as [-1,1]."""
    autocast: bool = False
    """Computed in trainer.precision, as the network is, and not in fp32."""
    sharpen: bool = False
    """SR is compared with a sharpened HR patch, as in Real-ESRGAN; patches have more than 25 pixels then."""

    def __post_init__(self) -> None:
        black, white = self.range
        _check("range", list(self.range), black < white, "[black, white], the smaller number first")


@dataclass(kw_only=True)
class Retention:
    """Which checkpoints stay: those of a run, and those that `sr-ckpt prune` leaves."""

    group: ClassVar[str] = ""  # stands before the keys in messages

    keep_last: int = 3
    """The newest N stay (at least one always does)."""
    keep_best: int = 1
    """The best N by `best_metric` stay as well."""
    best_metric: str = "valid/psnr"
    """A metric of the evaluations, `valid/` and one of trainer.metrics; lower is better where that is in its nature."""
    keep_every: int | None = None
    """Those at multiples of N steps stay as well."""
    keep_minutes: float | None = None
    """The first of every N minutes stays as well."""

    def __post_init__(self) -> None:
        for key, least in (("keep_every", 1), ("keep_last", 0), ("keep_best", 0)):
            value = getattr(self, key)
            _check(f"{self.group}{key}", value, value is None or value >= least, f"a whole number of at least {least}")
        minutes = self.keep_minutes
        in_range = minutes is None or 0 < minutes <= LONGEST
        _check(f"{self.group}keep_minutes", minutes, in_range, f"a number above 0 and at most {LONGEST}, or null")


@dataclass(kw_only=True)
class CheckpointSettings(Retention):
    """`checkpoint.*`: where checkpoints live, how often, which stay."""

    group: ClassVar[str] = "checkpoint."

    store: Any = None
    """What keeps them (`_target_`); null: no checkpoints."""
    root: str | None = None
    """A folder or URL."""
    every: int | None = None
    """Steps between checkpoints; null: as often as `trainer.eval_every`. The last step is always kept."""
    max_failures: int | None = 3
    """Failed writes in a row that end the run; null: none do."""
    when_busy: str = "wait"
    """A checkpoint that is due while an earlier one is still being written: wait for that one (train step included),
    or replace: take a second snapshot to be written next, unless a still newer one replaces it."""
    lease_seconds: float | None = 60.0
    """A process that has not renewed its lease for this long counts as dead for one on another machine that resumes its
    run; null: nobody is asked."""
    init_from: str | None = None
    """Pre-trained weights to start from: a weights file, a checkpoint, a run id or a URL."""
    init_rule: str = "strict"
    """strict: they must fit tensor for tensor. body: all but the upsampler (from one scale to another). matching: every
    tensor of the same name and shape."""
    init_options: Any = None
    """What the file of `init_from` does not state, such as {res_block_scaling: 0.1}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("every", "max_failures"):
            value = getattr(self, key)
            _check(f"checkpoint.{key}", value, value is None or value >= 1, "a whole number of at least 1")
        for key in ("root", "init_from"):
            _check(f"checkpoint.{key}", getattr(self, key), getattr(self, key) != "", "a path, or null")
        lease, rule = self.lease_seconds, self.init_rule
        _check("checkpoint.when_busy", self.when_busy, self.when_busy in ("wait", "replace"), "wait or replace")
        _check("checkpoint.lease_seconds", lease, lease is None or 1 <= lease <= LONGEST, f"1 to {LONGEST}, or null")
        _check("checkpoint.init_rule", rule, rule in ("strict", "body", "matching"), "one of strict, body, matching")
        by_name = self.init_options is None or isinstance(self.init_options, Mapping)
        expected = "arguments by name, such as {res_block_scaling: 0.1}"
        _check("checkpoint.init_options", self.init_options, by_name, expected)


def check_device(key: str, device: str) -> None:
    """Whether it is there is found out where it is needed."""
    is_device = re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device) is not None
    _check(key, device, is_device, "auto, cpu, cuda or cuda:N")


def _check(key: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise RequestError(f"{key}={value}: expected {expected}")
