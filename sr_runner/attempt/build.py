"""From a composed config to the parts of a run, or one sentence that says which of them cannot be."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import hydra.utils
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sr_runner.checkpoint import BestN, EveryMinutes, EverySteps, LastN, Policy, Store
from sr_runner.config import schema as configs
from sr_runner.config.settings import CheckpointSettings, TrainerSettings
from sr_runner.data import checks
from sr_runner.distributed.world import SingleProcess, World
from sr_runner.errors import RequestError, nearest
from sr_runner.objectives import Learner
from sr_runner.objectives.base import MODEL
from sr_runner.tracking import NoTracker
from sr_runner.training import device as devices

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
    learners: dict[str, Learner]
    """By network: the objective's own, on their device."""
    world: World


def build_parts(config: DictConfig, asked: set[str], world: World | None = None) -> Parts:
    """Every part of a run. Raises `RequestError` for whatever in the config cannot be.

    Of several processes only the first gets the tracker and the store that the config names.
    """
    world = world or SingleProcess()
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

    data = build(config.data, "data")
    checks.divisible("data.batch_size", data.batch_size, world.size)
    check_model(model, scale=config.scale, lr_patch=max(data.patch_size // config.scale, 1))
    memory_format = torch.channels_last if trainer.channels_last else torch.contiguous_format

    def learner(name: str, network: nn.Module) -> Learner:
        own = objective.trained_by(name)
        placed = network.to(device).to(memory_format=memory_format).train()
        return Learner(
            placed, own.optimizer or optimizer, own.scheduler or scheduler,
            rules=trainer.parameters if name == MODEL else None,
            precision=precision, grad_clip=trainer.grad_clip, skip_non_finite=trainer.on_nan == "skip",
            compile=trainer.compile, together=world.gradient_average,
        )  # fmt: skip

    networks = objective.networks(model, patch_size=data.patch_size)
    try:
        learners = {name: learner(name, network) for name, network in networks.items()}
    except RequestError:
        raise
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise RequestError(f"optimizer or scheduler: {error}") from error
    if not world.is_main:
        return Parts(config, trainer, checkpoint, device, model, objective, data, NoTracker(), None, learners, world)
    tracker = build(config.tracker, "tracker")
    store = build(config.checkpoint.store, "checkpoint.store", root=checkpoint.root) if checkpoint.store else None
    return Parts(config, trainer, checkpoint, device, model, objective, data, tracker, store, learners, world)


def file_contents(parts: Parts) -> dict[str, str | None]:
    """What stands in a run's identity for the files that `model` and `objective` name by their place: key -> digest."""
    groups = (("model", parts.model), ("objective", parts.objective))
    return {
        f"{group}.{key}": digest
        for group, part in groups
        for key, digest in getattr(part, "file_contents", {}).items()  # anyone's class may be without
    }


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
