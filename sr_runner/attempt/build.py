"""From a composed config to the parts of a run, or one sentence that says which of them cannot be."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import hydra.utils
import torch
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from sr_runner.checkpoint import BestN, CheckpointManager, EveryMinutes, EverySteps, LastN, Origin, Policy, Store
from sr_runner.config import schema as configs
from sr_runner.config import types
from sr_runner.config.fitting import fitted, located
from sr_runner.config.identity import identity_facts
from sr_runner.config.settings import CheckpointSettings, Retention, TermSettings, TrainerSettings
from sr_runner.config.targets import signature
from sr_runner.data import Data, checks
from sr_runner.distributed.world import SingleProcess, World
from sr_runner.errors import RequestError, RunError, check_choice, nearest
from sr_runner.evaluation.named import Measure, lower_is_better, measures
from sr_runner.models.activation_checkpointing import checkpoint_activations
from sr_runner.objectives import Learner, Losses, Objective, Precision, Term
from sr_runner.objectives.base import MODEL
from sr_runner.objectives.learner import autocast
from sr_runner.objectives.sharpening import sharpened
from sr_runner.signals import Stopped, StopSignal
from sr_runner.tracking import NoTracker, Tracker
from sr_runner.training import device as devices
from sr_runner.training.orchestrator import Judge, Orchestrator

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what it raises; once is enough


_HYDRAS = {
    "_recursive_": bool, "_partial_": bool, "_convert_": Literal["none", "partial", "object", "all"], "_args_": list,
}  # fmt: skip
"""What Hydra takes beside the arguments of a class."""

_OF_THE_RUN = ("scale", "seed", "outputs")


def build(node: DictConfig, key: str, kind: type | None = None, /, **extra: Any) -> Any:
    """Make the object that `node._target_` names from the rest of `node`.

    Raises `RequestError` that names `key` and what is wrong: a class that is not there, an argument it does not take
    (with the nearest it does take), what its constructor objects to, or what the object lacks of the Protocol `kind`.
    """
    _check_arguments(node, key, extra)
    try:
        part = hydra.utils.instantiate(node, **extra, _convert_="all")
    except Stopped:
        raise
    except (Exception, SystemExit) as error:
        raise refusal(f"{key}: {node._target_}", error) from error
    if kind is not None:
        # Not hasattr: a property such as `fingerprint` can be asked for only later.
        wanted = [name for name in {**inspect.get_annotations(kind), **vars(kind)} if name[0] != "_"]
        if lacking := [name for name in wanted if inspect.getattr_static(part, name, inspect) is inspect]:
            what = f"{kind.__module__}.{kind.__name__}"
            raise RequestError(f"{key}._target_={node._target_} has no {', '.join(lacking)}: expected a {what}")
    return part


def refusal(what: str, error: BaseException) -> Exception:
    """What to raise where making `what` ended in `error`: one sentence, with the place of a fault of a class's own."""
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    if isinstance(cause, RequestError | RunError):
        return cause
    reason = str(cause) if isinstance(cause, ValueError | TypeError | NotImplementedError | HydraException) else ""
    *_, place = traceback.extract_tb(cause.__traceback__)
    reason = reason.partition("\nfull_key")[0] or f"{cause!r} in {place.filename}, line {place.lineno}"
    return RequestError(f"{what} refuses this: {' '.join(reason.split())}")


def build_objective(node: DictConfig) -> Objective:
    """The objective; its `losses` are made first, since beside the arguments of their classes they have settings."""
    hints, takes_any = signature(located(node, "objective"))
    if "losses" not in node or not ("losses" in hints or takes_any):
        return build(node, "objective", Objective)  # type: ignore[no-any-return]
    _check_value("objective.losses", node.losses, Mapping, inspect.Parameter.empty)
    terms = {str(name): _term(node.losses[name], f"objective.losses.{name}") for name in node.losses}
    return build(_without(node, ["losses"]), "objective", Objective, losses=terms)  # type: ignore[no-any-return]


def _term(node: DictConfig, key: str) -> Term:
    _check_value(key, node, Term, inspect.Parameter.empty)
    hints, _ = signature(TermSettings)
    given = {name: node[name] for name in hints if name in node}
    for name, value in given.items():
        _check_value(f"{key}.{name}", value, *hints[name])
    try:
        settings = TermSettings(**given)
    except RequestError as error:
        raise RequestError(f"{key}.{error}") from error
    try:
        loss = build(_without(node, given), key)
    except RequestError as error:  # a loss names its arguments, and does not know what it is called here
        raise error if str(error).startswith(key) else RequestError(f"{key}.{error}") from error
    if not callable(loss):
        raise RequestError(f"{key}._target_={node._target_} makes a {type(loss).__name__}: expected a torch.nn.Module")
    return Term(loss, settings)


def _without(node: DictConfig, keys: Collection[str]) -> DictConfig:
    rest = copy.deepcopy(node)
    OmegaConf.set_struct(rest, False)
    for key in keys:
        del rest[key]
    return rest


def _check_arguments(node: DictConfig, key: str, extra: Collection[str] = ()) -> None:
    """Names and types of the arguments of `node`, and of the parts within, against the signature of its class, which
    is given `extra` as well."""
    target = located(node, key)
    hints, takes_any = signature(target)
    for name, hint in _HYDRAS.items():
        if name in node:
            _check_value(f"{key}.{name}", node[name], hint, inspect.Parameter.empty)
    for name in (str(each) for each in node if str(each)[0] != "_"):
        if name not in hints and not takes_any:
            takes = f"It takes {', '.join(hints)}" if hints else "It takes no arguments"
            raise RequestError(
                f"{key}.{name}={node[name]}: {node._target_} has no such argument.{nearest(name, hints)} {takes}"
            )
        _check_parts(node[name], f"{key}.{name}")
        if name in hints:
            _check_value(f"{key}.{name}", node[name], *hints[name])
    if "_partial_" in extra or node.get("_partial_") or "_args_" in node:
        return  # the rest comes later, or by its place
    for name, (_, default) in hints.items():
        if default is inspect.Parameter.empty and name not in node and name not in extra:
            value = f"${{{name}}}" if name in _OF_THE_RUN else "VALUE"
            raise RequestError(
                f"{key}.{name} is missing, and {node._target_} has no default for it: expected +{key}.{name}={value}, "
                f"or the line '{name}: {value}' in the option's file"
            )


def _check_value(key: str, given: Any, hint: Any, default: Any) -> None:
    value: Any = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    # A default is what its class takes, whatever the annotation is.
    if types.fits(value, hint) or (value == default and type(value) is type(default)):
        return
    shown = value or "''" if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str):
        advice = nearest(value, types.choices(hint))
    else:
        advice = f" In quotes it is text: {key}=\"'{shown}'\"" if types.fits(shown, hint) else ""
    raise RequestError(f"{key}={shown}: expected {types.expected(hint)}.{advice}")


def _check_parts(value: Any, key: str) -> None:
    """The arguments of every part in a value of a config."""
    if isinstance(value, DictConfig) and "_target_" in value:
        _check_arguments(value, key)
    elif isinstance(value, DictConfig):
        for name in value:
            _check_parts(value[name], f"{key}.{name!s}")
    elif isinstance(value, ListConfig):
        for place, inner in enumerate(value):
            _check_parts(inner, f"{key}[{place}]")


@torch.no_grad()
def check_model(model: nn.Module, lr: torch.Tensor, *, scale: int, precision: Precision) -> None:
    """Raises `RequestError` unless `model` makes an SR batch of the right size of `lr`, before a run is started for
    nothing.

    `lr` is on the run's device, as some networks work on no other; `precision` is that of a step, fp32 that of an
    evaluation.
    """
    training, name, shape = model.training, type(model).__name__, " x ".join(map(str, lr.shape))
    expected = (*lr.shape[:2], lr.shape[2] * scale, lr.shape[3] * scale)
    model.eval()
    try:
        for each in dict.fromkeys((precision, "fp32")):
            try:
                with autocast(lr.device.type, each):
                    made = tuple(model(lr).shape)
            except RequestError:
                raise
            except Exception as error:
                where = f"{lr.device}, {each}{', as in an evaluation' if each != precision else ''}"
                raise RequestError(f"model: {name} fails on an LR batch of {shape} ({where}): {error!r}") from error
            if made != expected:
                raise RequestError(
                    f"model: {name} makes {made} of an LR batch of {shape}; scale={scale} asks for {expected}"
                )
    finally:
        model.train(training)


def check_losses(losses: Losses, *, patch: int, device: torch.device, precision: Precision) -> None:
    """Raises `RequestError` unless each term makes a number of SR and HR batches in training, on `device`."""
    shape = (2, 3, patch, patch)
    sr, hr = torch.full(shape, 0.5, device=device, requires_grad=True), torch.zeros(shape, device=device)
    batch = " x ".join(map(str, shape))
    before = copy.deepcopy(losses.state())
    for key, term in losses.terms.items():
        name = f"objective.losses.{key}: {type(term.loss).__name__}"
        try:
            with autocast(device.type, precision) if term.settings.autocast else nullcontext():
                value = term.of(sr, sharpened(hr) if term.settings.sharpen else hr)
        except Stopped:
            raise
        except Exception as error:
            raise RequestError(f"{name} fails on two batches of {batch}: {error!r}") from error
        if not isinstance(value, torch.Tensor) or value.numel() not in (1, len(sr)):
            found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise RequestError(
                f"{name} makes {found} of two batches of {batch}; expected one number, or one for each image"
            )
        if not value.requires_grad and term.settings.weight:
            raise RequestError(
                f"{name} makes a number that has no gradient; expected one to train by, or "
                f"objective.losses.{key}.weight=0, which only measures"
            )
    losses.restore(before)


def _check_patch_sizes(networks: Mapping[str, nn.Module], sizes: Sequence[int]) -> None:
    """Raises `RequestError` for a network that was built for one size of HR patches where there are others."""
    for name, network in networks.items():
        if name == MODEL or len(sizes) == 1:
            continue
        training = network.training
        network.eval()
        try:
            for size in sizes:
                network(torch.zeros(1, 3, size, size))
        except Exception as error:
            raise RequestError(f"data.patch_schedule: the {name} cannot take patches of {size}: {error}") from error
        finally:
            network.train(training)


@dataclass
class Parts:
    """What a config says, built. Nothing has been written yet."""

    config: DictConfig
    trainer: TrainerSettings
    checkpoint: CheckpointSettings
    device: torch.device
    model: nn.Module
    objective: Objective
    data: Data
    tracker: Tracker
    store: Store | None
    learners: dict[str, Learner]
    """By network: the objective's own, on their device."""
    world: World
    keep: list[Policy]
    """Which checkpoints stay."""
    overrides: Sequence[str] = ()
    """What the config was composed from."""

    @cached_property
    def yaml(self) -> str:
        """The config without secrets."""
        return configs.as_yaml(self.config)

    @property
    def parameters(self) -> int:
        return sum(each.numel() for each in self.model.parameters())

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """What computes those of `trainer.metrics` that are more than arithmetic, loaded when it is first asked for."""
        trainer, main = self.trainer, self.world.is_main
        return measures(
            trainer.metrics if main else (), key="trainer.metrics", crop=self.config.scale, device=self.device
        )

    def identity_facts(self, init_from: str | None = None) -> dict[str, Any]:
        """What determines the weights; `data` are prepared by now. `init_from`: digest of the pre-trained weights."""
        own = self.learners[MODEL]
        parts = {"model": self.model, "objective": self.objective, "data": self.data, "optimizer": own.optimizer}
        parts["scheduler"] = own.scheduler
        return identity_facts(self.config, parts, self.data.fingerprint, init_from)

    def orchestrator(
        self, stop: StopSignal, checkpoints: CheckpointManager | None = None, origin: Origin | None = None,
        judge: Judge | None = None,
    ) -> Orchestrator:  # fmt: skip
        """The Orchestrator of these parts; of several processes only the main one has `checkpoints`."""
        return Orchestrator(
            objective=self.objective, learners=self.learners, data=self.data, tracker=self.tracker,
            checkpoints=checkpoints, settings=self.trainer, save_every=self.checkpoint.every, device=self.device,
            stop=stop, world=self.world, config=self.yaml, origin=origin, judge=judge,
            loaded=self.measures, best_metric=self.checkpoint.best_metric,
        )  # fmt: skip


def build_parts(config: DictConfig, overrides: Sequence[str], world: World | None = None) -> Parts:
    """Every part of a run, from the config that `overrides` compose. Raises `RequestError` for whatever cannot be.

    Of several processes only the first gets the tracker and the store that the config names.
    """
    world, config = world or SingleProcess(), fitted(config, overrides)
    trainer: TrainerSettings = configs.settings(config, "trainer", TrainerSettings)
    checkpoint: CheckpointSettings = configs.settings(config, "checkpoint", CheckpointSettings)
    for name in trainer.metrics:
        lower_is_better(name, "trainer.metrics")  # refuses one that is not there
    check_choice("checkpoint.best_metric", checkpoint.best_metric, [f"valid/{name}" for name in trainer.metrics])
    keep = policies(checkpoint)
    device = devices.resolve_device(trainer.device)
    precision = devices.resolve_precision(trainer.precision, device)
    devices.configure(device, deterministic=trainer.deterministic, threads=trainer.threads)
    devices.seed_everything(config.seed)
    model: nn.Module = build(config.model, "model")
    if not isinstance(model, nn.Module):
        raise RequestError(f"model._target_ makes a {type(model).__name__}: expected a torch.nn.Module")
    objective = build_objective(config.objective)
    # Called later, with what the config cannot know.
    optimizer = build(config.optimizer, "optimizer", _partial_=True)
    scheduler = build(config.scheduler, "scheduler", _partial_=True)
    data: Data = build(config.data, "data", Data)
    checks.divisible("data.batch_size", data.batch_size, world.size)
    patch_sizes = sorted(getattr(data, "patch_sizes", {data.patch_size}))
    memory_format = torch.channels_last if trainer.channels_last else torch.contiguous_format
    objective.losses.to(device).to(memory_format=memory_format)
    for patch in patch_sizes:
        check_losses(objective.losses, patch=patch, device=device, precision=precision)

    def learner(name: str, network: nn.Module) -> Learner:
        own = objective.trained_by(name)
        placed = network.to(device).to(memory_format=memory_format).train()
        if name == MODEL and trainer.checkpoint_activations is not None:
            checkpoint_activations(placed, trainer.checkpoint_activations)
        return Learner(
            placed, own.optimizer or optimizer, own.scheduler or scheduler,
            rules=trainer.parameters if name == MODEL else None,
            precision=precision, grad_clip=trainer.grad_clip, skip_non_finite=trainer.on_nan == "skip",
            compile=trainer.compile, gradient_average=world.gradient_average,
        )  # fmt: skip

    networks = objective.networks(model, patch_size=data.patch_size)
    _check_patch_sizes(networks, patch_sizes)
    try:
        learners = {name: learner(name, network) for name, network in networks.items()}
        for each in learners.values():
            each.rates(trainer.steps)  # a schedule that ends before the run raises
    except Stopped:
        raise
    except (Exception, SystemExit) as error:
        raise refusal(f"{config.optimizer._target_} or {config.scheduler._target_}", error) from error
    for patch in patch_sizes:
        side = max(patch // config.scale, 1)
        lr = torch.zeros(1, 3, side, side, device=device).to(memory_format=memory_format)
        check_model(model, lr, scale=config.scale, precision=precision)
    tracker: Tracker = build(config.tracker, "tracker", Tracker) if world.is_main else NoTracker()
    store = build_store(config) if world.is_main else None
    return Parts(
        config, trainer, checkpoint, device, model, objective, data, tracker, store, learners, world, keep, overrides
    )


def build_store(config: DictConfig) -> Store | None:
    """The store of checkpoints; None where none are stored."""
    where = config.checkpoint
    return build(where.store, "checkpoint.store", Store, root=where.root) if where.store else None


def policies(settings: Retention) -> list[Policy]:
    """The retention that `checkpoint.keep_*` ask for."""
    keep: list[Policy] = [LastN(settings.keep_last)]
    if settings.keep_best:
        name = settings.best_metric.removeprefix("valid/")
        keep.append(
            BestN(settings.keep_best, settings.best_metric, lower_is_better(name, f"{settings.group}best_metric"))
        )
    if settings.keep_every is not None:
        keep.append(EverySteps(settings.keep_every))
    if settings.keep_minutes is not None:
        keep.append(EveryMinutes(settings.keep_minutes))
    return keep
