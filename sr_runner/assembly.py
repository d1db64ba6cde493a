"""From a composed config to a run: the parts, the attempt it belongs to, and the record of it."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra.utils
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sr_runner import config as configs
from sr_runner import device as devices
from sr_runner.checkpoint import (
    BestN,
    CheckpointManager,
    EveryMinutes,
    EverySteps,
    LastN,
    Policy,
    Store,
    TrainingState,
)
from sr_runner.checkpoint.catalogue import RECORD, Attempt, Catalogue, difference
from sr_runner.checkpoint.stores import store_at
from sr_runner.errors import RequestError, nearest
from sr_runner.objectives import MODEL, Learner
from sr_runner.orchestrator import Orchestrator, Start
from sr_runner.settings import CheckpointSettings, TrainerSettings
from sr_runner.signals import StopSignal
from sr_runner.tracking import RunRecord, SweepParent

log = logging.getLogger(__name__)
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what it raises; once is enough


def build(node: DictConfig, key: str, /, **extra: Any) -> Any:
    """Make the object that `node._target_` names from the rest of `node`.

    Raises `RequestError` that names `key` and what is wrong: a class that is not there, an argument it does not take
    (with the nearest it does take), or what its constructor objects to.
    """
    target = _locate(node, key)
    _check_arguments(target, node, key, extra)
    try:
        return hydra.utils.instantiate(node, **extra, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, RequestError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | NotImplementedError):
            raise RequestError(f"{key}: {node._target_} refuses this: {cause}") from error
        raise


def _locate(node: DictConfig, key: str) -> Callable[..., Any]:
    name = node.get("_target_") if isinstance(node, DictConfig) else None
    if not name:
        raise RequestError(f"{key} names no class: {key}._target_=package.module.Class is needed")
    module_name, _, attribute = str(name).rpartition(".")
    try:
        return hydra.utils.get_object(name)  # type: ignore[no-any-return]
    except Exception as error:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as missing:
            raise RequestError(
                f"{key}._target_={name}: there is no module {missing.name!r} that can be imported from here "
                "(the current folder and the installed packages are searched)"
            ) from error
        except Exception as broken:
            raise RequestError(f"{key}._target_={name}: importing it fails: {broken!r}") from error
        guess = nearest(attribute, dir(module))
        raise RequestError(f"{key}._target_={name}: {module_name} has no {attribute!r}.{guess}") from error


def _check_arguments(target: Callable[..., Any], node: DictConfig, key: str, extra: Mapping[str, Any]) -> None:
    accepted = _accepted(target)
    if accepted is None:
        return
    for name in map(str, node):
        if not name.startswith("_") and name not in accepted:
            takes = f"it takes {', '.join(accepted)}" if accepted else "it takes no arguments"
            raise RequestError(
                f"{key}.{name}={node[name]}: {node._target_} has no such argument."
                f"{nearest(name, accepted)} {takes[0].upper()}{takes[1:]}"
            )


def _accepted(target: Callable[..., Any]) -> list[str] | None:
    """Names of the arguments of `target`; None where it takes any."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.name != "self"]


def build_model(node: DictConfig, asked: set[str]) -> nn.Module:
    """The network. Somebody's own class gets those keys of the group that it takes; `asked` are the keys that were
    asked for by hand (`model.num_filters`), which it has to take."""
    if not str(node.get("_target_", "")).startswith("sr_runner."):
        accepted = _accepted(_locate(node, "model"))
        if accepted is not None:
            values = {str(key): value for key, value in OmegaConf.to_container(node, resolve=True).items()}  # type: ignore[union-attr]
            spare = [k for k in values if not k.startswith("_") and k not in accepted and f"model.{k}" not in asked]
            node = OmegaConf.create({k: value for k, value in values.items() if k not in spare})
    network = build(node, "model")
    if not isinstance(network, nn.Module):
        raise RequestError(f"model._target_={node._target_} is a {type(network).__name__}, not a torch.nn.Module")
    return network


@torch.no_grad()
def check_model(model: nn.Module, *, scale: int, lr_patch: int) -> None:
    """Raises `RequestError` unless `model` makes an SR batch of the right size, before a run is started for nothing."""
    training = model.training
    model.eval()
    try:
        made = tuple(model(torch.zeros(1, 3, lr_patch, lr_patch)).shape)
    except Exception as error:
        raise RequestError(
            f"model: {type(model).__name__} fails on an LR batch of 1 x 3 x {lr_patch} x {lr_patch}: {error!r}"
        ) from error
    finally:
        model.train(training)
    expected = (1, 3, lr_patch * scale, lr_patch * scale)
    if made != expected:
        raise RequestError(
            f"model: {type(model).__name__} makes {made} of an LR batch of 1 x 3 x {lr_patch} x {lr_patch}; "
            f"scale={scale} asks for {expected}"
        )


@dataclass
class Parts:
    """What a config says, built. Nothing has been written yet."""

    config: DictConfig
    trainer: TrainerSettings
    checkpoint: CheckpointSettings
    device: torch.device
    model: nn.Module
    objective: Any
    data: Any
    tracker: Any
    store: Store | None
    make_learner: Callable[[str, nn.Module], Learner]


def build_parts(config: DictConfig, asked: set[str]) -> Parts:
    """Every part of a run. Raises `RequestError` for whatever in the config cannot be."""
    trainer: TrainerSettings = configs.settings(config, "trainer", TrainerSettings)
    checkpoint: CheckpointSettings = configs.settings(config, "checkpoint", CheckpointSettings)
    device = devices.resolve_device(trainer.device)
    precision = devices.resolve_precision(trainer.precision, device)
    devices.configure(device, deterministic=trainer.deterministic, threads=trainer.threads)
    devices.seed_everything(config.seed)
    model = build_model(config.model, asked)
    objective = build(config.objective, "objective")
    optimizer = build(_partial(config.optimizer), "optimizer")
    scheduler = build(_partial(config.scheduler), "scheduler") if config.scheduler is not None else None

    def make_learner(name: str, network: nn.Module) -> Learner:
        own = objective.trained_by(name)
        try:
            return Learner(
                network, own.optimizer or optimizer, own.scheduler or scheduler,
                rules=trainer.parameters if name == MODEL else None,
                precision=precision, grad_clip=trainer.grad_clip, skip_non_finite=trainer.on_nan == "skip",
                compile=trainer.compile,
            )  # fmt: skip
        except RequestError:
            raise
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise RequestError(f"optimizer or scheduler: {error}") from error

    data = build(config.data, "data")
    check_model(model, scale=config.scale, lr_patch=max(data.patch_size // config.scale, 1))
    tracker = build(config.tracker, "tracker")
    store = build(config.checkpoint.store, "checkpoint.store", root=checkpoint.root) if checkpoint.store else None
    return Parts(config, trainer, checkpoint, device, model, objective, data, tracker, store, make_learner)


def _partial(node: DictConfig) -> DictConfig:
    """The node of a class that is called later, with what the config cannot know."""
    return OmegaConf.merge(node, {"_partial_": True})  # type: ignore[return-value]


def policies(settings: CheckpointSettings) -> list[Policy]:
    """The retention that `checkpoint.keep_*` ask for."""
    keep: list[Policy] = [LastN(settings.keep_last)]
    if settings.keep_best:
        keep.append(BestN(settings.keep_best, settings.best_metric, "min" if settings.best_mode == "min" else "max"))
    if settings.keep_every is not None:
        keep.append(EverySteps(settings.keep_every))
    if settings.keep_minutes is not None:
        keep.append(EveryMinutes(settings.keep_minutes))
    return keep


# -- which attempt -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The attempt that this process works on, and the state it starts from, if any."""

    attempt: Attempt
    state: TrainingState | None = None
    parent: str | None = None
    """The checkpoint that a fork takes its state from."""


def choose(parts: Parts, catalogue: Catalogue, identity: str, facts: dict[str, Any], scratch: Path) -> Chosen:
    """What `trainer.resume` means here. Raises `RequestError` where it cannot be had."""
    wanted = parts.trainer.resume
    if wanted is False or wanted is None:
        return Chosen(catalogue.open_new(identity))
    if parts.store is None:
        raise RequestError(f"trainer.resume={wanted}: checkpoint=none keeps nothing to resume from")
    if wanted is True:
        return _newest(parts.store, catalogue, identity, facts, scratch, parts.trainer.steps)
    return _exactly(str(wanted), parts, catalogue, identity, facts, scratch)


def _newest(
    store: Store, catalogue: Catalogue, identity: str, facts: dict[str, Any], scratch: Path, steps: int
) -> Chosen:
    attempt = catalogue.newest(identity)
    if attempt is not None:
        state = _manager(store, attempt, scratch).restore()
        if state is None:
            older = [a for a in catalogue.attempts(identity)[:-1] if _manager(store, a, scratch).steps()]
            hint = f"; an older attempt has some: trainer.resume={older[-1]}" if older else ""
            log.warning("%s has no checkpoint yet: it starts at step 0%s", attempt, hint)
        return Chosen(attempt, state)
    log.warning("nothing to resume for %s: starting a first attempt", identity)
    for other, differing in catalogue.near_misses(facts, identity):
        keys = ", ".join(f"{key}={here} (there {there})" for key, (here, there) in differing.items())
        stretched = all(key.startswith("scheduler.") and here == steps for key, (here, _) in differing.items())
        why = " (the schedule is stretched over trainer.steps, so the length matters)" if stretched else ""
        log.warning(
            "  near miss: %s differs in %s%s. trainer.resume=%s trainer.allow_changes=true goes on from it, as a fork",
            other,
            keys,
            why,
            other,
        )
    return Chosen(catalogue.open_new(identity))


def _exactly(
    wanted: str, parts: Parts, catalogue: Catalogue, identity: str, facts: dict[str, Any], scratch: Path
) -> Chosen:
    store = parts.store
    assert store is not None
    found = _foreign(wanted, store)
    if found is None:
        try:
            found = store, catalogue.find(wanted)
        except RequestError as error:
            raise RequestError(f"trainer.resume={error}. true takes the newest attempt of this config") from error
    source, attempt = found
    differing = difference(facts, _facts_of(source, attempt, catalogue, scratch))
    if differing and not parts.trainer.allow_changes:
        keys = "\n".join(f"  {key}: {here} here, {there} there" for key, (here, there) in differing.items())
        raise RequestError(
            f"trainer.resume={wanted}: that run has another config in keys that matter:\n{keys}\n"
            "The same values resume it; trainer.allow_changes=true forks it under a new identity"
        )
    state = _manager(source, attempt, scratch).restore(attempt.step)
    if not differing and source is store and attempt.step is None:
        return Chosen(attempt, state)
    if state is None:
        raise RequestError(f"trainer.resume={wanted}: {attempt} has no checkpoint to start from")
    newest = max(_manager(source, attempt, scratch).steps())
    if not differing and source is store and state.step == newest:
        return Chosen(attempt, state)
    # Other settings, an older step, or a checkpoint from elsewhere: the attempt it belongs to stays as it is.
    return Chosen(catalogue.open_new(identity), state, parent=f"{attempt}/step-{state.step:08d}")


def _foreign(wanted: str, store: Store) -> tuple[Store, Attempt] | None:
    """A checkpoint by its path or URL that is not in the configured store."""
    place = wanted if "://" in wanted else str(Path(wanted).expanduser().absolute())
    match = re.fullmatch(r"(?P<root>.+)/(?P<identity>[^/]+)/(?P<attempt>[^/]+)/step-(?P<step>\d+)/?", place)
    if not match or match["root"] == store.url.rstrip("/"):
        return None
    if "://" not in wanted and not (Path(place) / "manifest.json").is_file():
        return None
    return store_at(match["root"]), Attempt(match["identity"], match["attempt"], int(match["step"]))


def _facts_of(store: Store, attempt: Attempt, catalogue: Catalogue, scratch: Path) -> dict[str, Any]:
    known = Catalogue(catalogue.runs if store.url == getattr(catalogue.store, "url", None) else scratch, store, scratch)
    facts = known.facts(attempt)
    if facts is None:
        raise RequestError(f"trainer.resume={attempt}: nothing is known of it in {store.url}")
    return facts


def _manager(store: Store, attempt: Attempt, scratch: Path) -> CheckpointManager:
    return CheckpointManager(store, str(attempt), keep=(), scratch=scratch)


# -- the record of it --------------------------------------------------------------------------------------------------


def record(
    parts: Parts, chosen: Chosen, folder: Path, facts: dict[str, Any], overrides: list[str], sweep: SweepParent | None
) -> RunRecord:
    """Write `run.json`, `config.yaml` and `overrides.txt` into the run's folder; what the tracker is told."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [configs.masked_override(override) for override in overrides]
    (folder / RECORD).write_text(json.dumps({"facts": facts, "overrides": shown, "parent": chosen.parent}, indent=1))
    (folder / "config.yaml").write_text(configs.as_yaml(parts.config))
    (folder / "overrides.txt").write_text("".join(f"{override}\n" for override in shown))
    plain = OmegaConf.to_container(parts.config, resolve=True)
    params = {key: str(value) for key, value in configs.flatten(configs.masked(plain)).items()}
    device = torch.cuda.get_device_name(parts.device) if parts.device.type == "cuda" else "cpu"
    tags = {
        "sr_run.identity": chosen.attempt.identity,
        "sr_run.host": platform.node(),
        "sr_run.device": device,
        "sr_run.status": "running",
    } | _git_tags()
    if chosen.parent:
        tags["sr_run.forked_from"] = chosen.parent
    return RunRecord(
        run_dir=folder,
        attempt=str(chosen.attempt),
        run_name=parts.config.tracker.get("run_name") or str(chosen.attempt.identity),
        params=params,
        tags=tags,
        dataset=dict(parts.data.summary()) | {"digest": parts.data.fingerprint},
        parent=sweep,
    )


def _git_tags() -> dict[str, str]:
    """The commit of the code in the current folder, where it is a repository."""
    git = partial(subprocess.run, capture_output=True, text=True, timeout=10, check=True)
    try:
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = bool(git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "sr_run.git_commit": commit + ("+changes" if dirty else "")}


def orchestrate(
    parts: Parts, chosen: Chosen, facts: dict[str, Any], scratch: Path, stop: StopSignal
) -> tuple[Orchestrator, Start]:
    """The Orchestrator, ready to train, and where it starts."""
    manager = None
    if parts.store is not None:
        manager = CheckpointManager(
            parts.store,
            str(chosen.attempt),
            keep=policies(parts.checkpoint),
            scratch=scratch,
            max_failures=parts.checkpoint.max_failures,
            on_saved=lambda report: orchestrator.saved(report),
            on_failure=lambda step, in_a_row: orchestrator.save_failed(step, in_a_row),
        )
    orchestrator = Orchestrator(
        model=parts.model,
        objective=parts.objective,
        learner=parts.make_learner,
        data=parts.data,
        tracker=parts.tracker,
        checkpoints=manager,
        settings=parts.trainer,
        save_every=parts.checkpoint.every,
        device=parts.device,
        stop=stop,
        config=configs.as_yaml(parts.config),
        facts={"facts": facts, "attempt": str(chosen.attempt), "parent": chosen.parent},
    )
    return orchestrator, Start(chosen.state, fork=chosen.parent is not None)
