"""What a run says of itself before its first step."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from sr_runner.attempt.base import names_code, reads_environment
from sr_runner.attempt.build import Parts
from sr_runner.attempt.resume import Chosen
from sr_runner.checkpoint import RunState
from sr_runner.config.compose import Request
from sr_runner.config.overrides import as_override, parse
from sr_runner.data.base import Pair
from sr_runner.objectives import Learner
from sr_runner.objectives.base import MODEL
from sr_runner.training.device import device_name

log = logging.getLogger(__name__)

_MOST_NAMED = 6  # images
_MOST_INITIAL = 0.05


def announce(parts: Parts, chosen: Chosen, folder: Path) -> None:
    """Log the block of lines that says what is trained, how, on what, and where it starts."""
    log.info("run %s", chosen.attempt)
    for name, text in _lines(parts, folder):
        log.info("  %-10s %s", name, text)
    if chosen.state is not None:
        step, steps = chosen.state.step, parts.trainer.steps
        if chosen.parent:
            log.info("starts at step %d of %d from %s", step, steps, chosen.parent)
        elif step >= steps:
            log.info("complete already: step %d of %d", step, steps)
        else:
            log.info("resumed at step %d of %d", step, steps)
        if step < steps:
            _say_rates(parts, chosen, step)


def going_on(parts: Parts, chosen: Chosen, request: Request) -> str:
    """The command that goes on with the run, as a shell takes it."""
    given = parse(request.overrides)
    code = dict.fromkeys([*names_code(given), *reads_environment(given)])
    outputs = Path(parts.config.outputs)
    where = [] if outputs == Path.cwd() / "outputs" else [as_override("outputs", str(outputs))]
    overrides = [*code, *where, f"trainer.resume={chosen.attempt}"]
    return Request(overrides, request.config_name, request.config_path, request.config_dir).command()


def _lines(parts: Parts, folder: Path) -> Iterator[tuple[str, str]]:
    trainer, data, learner = parts.trainer, parts.data, parts.learners[MODEL]
    for name, each in parts.learners.items():
        size = sum(parameter.numel() for parameter in each.network.parameters())
        yield name if name != MODEL else "network", f"{type(each.network).__name__}, {size:,} parameters"
    where = f"cpu, {torch.get_num_threads()} threads" if parts.device.type == "cpu" else device_name(parts.device)
    why = " (auto: fast here)" if learner.precision == "bf16" else " (auto: bf16 is not fast here)"
    yield "device", f"{where}, {learner.precision}{why if trainer.precision == 'auto' else ''}"
    count = trainer.accumulate
    pieces = f" ({count} batches of {data.batch_size})" if count > 1 else ""
    pieces += f" in {parts.world.size} processes" if parts.world.size > 1 else ""
    yield "step", f"{data.batch_size * count} samples of {data.patch_size} x {data.patch_size} HR pixels{pieces}"
    for phase in getattr(data, "phases", ())[1:]:
        late = f"{phase.batch_size * count} of {phase.patch_size} x {phase.patch_size}"
        yield "", f"after {phase.after:,} steps {late}"
    yield "loss", str(parts.objective.losses) or type(parts.objective).__name__
    yield "optimizer", _optimizer(learner)
    yield "schedule", _schedule(learner, trainer.steps)
    if trainer.ema_decay:
        yield "EMA", f"{trainer.ema_decay}: the averaged weights are evaluated and exported"
        share, fitting = trainer.ema_decay**trainer.steps, 1 - 10.0 ** -math.floor(math.log10(trainer.steps / 5))
        if share > _MOST_INITIAL and 0 < fitting < trainer.ema_decay:
            log.warning(
                "trainer.ema_decay=%g averages over more than trainer.steps=%d: at the end, %.0f %% of the average are "
                "the initial weights; %g fits so few steps", trainer.ema_decay, trainer.steps, 100 * share,
                fitting,
            )  # fmt: skip
    summary = dict(data.summary())
    yield "data", ", ".join(f"{key} {value}" for key, value in summary.items())
    yield "held out", _names(data.valid)
    yield "writes", ", ".join([str(folder), *([parts.store.url] if parts.store is not None else ["no checkpoints"])])


def _optimizer(learner: Learner) -> str:
    """Its settings, and which of them only some of the tensors have."""
    groups, defaults = learner.optimizer.param_groups, learner.optimizer.defaults
    total = sum(1 for _ in learner.network.parameters())
    trained = sum(len(group["params"]) for group in groups)
    said = [f"{type(learner.optimizer).__name__} lr {defaults.get('lr', '-')}"]
    for key in ("betas", "momentum", "weight_decay"):
        by_value: dict[str, int] = {}
        for group in groups:
            if key in group:
                by_value[str(group[key])] = by_value.get(str(group[key]), 0) + len(group["params"])
        said += [
            f"{key} {value}{f' on {count} of {trained} tensors' if count < trained else ''}"
            for value, count in by_value.items()
        ]
    rates = [(group.get("max_lr", group.get("initial_lr", group["lr"])), len(group["params"])) for group in groups]
    if len({rate for rate, _ in rates}) > 1:
        said += [f"lr {rate:.2g} on {count} of {trained} tensors" for rate, count in rates]
    if trained < total:
        said.append(f"{total - trained} of {total} tensors frozen")
    return ", ".join(said)


def _schedule(learner: Learner, steps: int) -> str:
    name = type(learner.scheduler).__name__ if learner.scheduler is not None else "constant"
    rates = learner.rates(steps)
    if rates is None:
        return f"{name}: rate {learner.lr:.2g} at first"
    first, peak, last = rates
    own = " (first group)" if len({group["lr"] for group in learner.optimizer.param_groups}) > 1 else ""
    return f"{name}: rate {first:.2g} at first, at most {peak:.2g}, {last:.2g} at step {steps}{own}"


def _say_rates(parts: Parts, chosen: Chosen, step: int) -> None:
    """What becomes of the learning rate, where a run goes on under another schedule."""
    assert chosen.state is not None
    learner, steps = parts.learners[MODEL], parts.trainer.steps
    saved = None
    with suppress(KeyError, ValueError):  # what does not fit, the Orchestrator refuses
        saved = RunState.of(chosen.state.training).learners.get(MODEL)
    rates = learner.rates(steps, step + 1)
    if not chosen.parent or not saved or rates is None:
        return
    before = saved["groups"][0]["lr"]
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):  # another kind of schedule
        before = (learner.rates(step, step, saved) or [before])[0]
    log.info(
        "learning rate: was %.2g at step %d, is %.2g from here on, will be %.2g at step %d",
        before, step, rates[0], rates[2], steps,
    )  # fmt: skip


def _names(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "nothing: there is no evaluation"
    more = f" and {len(pairs) - _MOST_NAMED} more" if len(pairs) > _MOST_NAMED else ""
    return f"{', '.join(pair.name for pair in pairs[:_MOST_NAMED])}{more}"
