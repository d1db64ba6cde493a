"""Whether a resume under an optimizer and a schedule would be exact, found out on a few small tensors."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from sr_runner.checkpoint import codec
from sr_runner.errors import RequestError
from sr_runner.objectives import optimizer_state

_STEPS = 11  # before the state is saved, and as many after it: some optimizers do something else every tenth
_LARGEST = 8  # of a dimension


def probe(
    optimizer: Callable[..., Any], scheduler: Callable[..., Any] | None, groups: Sequence[Mapping[str, Any]]
) -> set[str]:
    """Raises `RequestError` where `optimizer` cannot update with gradients only, or where it or `scheduler` keeps what
    its `state_dict` does not hold. `groups` are a network's parameters with their settings.

    Returns the settings that the optimizer asked its groups for. Draws from no random generator of the run.
    """
    read: set[str] = set()

    def trial() -> _Trial:
        return _Trial(optimizer, scheduler, groups, read)

    with _own_random_numbers(groups):
        whole, resumed = trial(), trial()
        whole.run(range(_STEPS))
        try:
            resumed.restore(whole.state())
        except Exception as error:
            name, said = type(whole.optimizer).__name__, str(error) if isinstance(error, TypeError) else repr(error)
            raise RequestError(f"optimizer: {name} has a state that cannot be saved and restored: {said}") from error
        for each in (whole, resumed):
            each.run(range(_STEPS, 2 * _STEPS))
        if resumed.equals(whole):
            return read
        again = trial()
        again.run(range(2 * _STEPS))
        if again.equals(whole):  # else two undisturbed runs differ, and nothing can be said
            raise RequestError(
                f"{resumed.differing(whole)} keeps what it needs outside of state_dict(), so no resume would be exact: "
                "not supported"
            )
    return read


class _Trial:
    """An optimizer and a schedule on small copies of some of a network's parameters."""

    def __init__(
        self, optimizer: Callable[..., Any], scheduler: Callable[..., Any] | None, groups: Sequence[Mapping[str, Any]],
        read: set[str],
    ):  # fmt: skip
        small = [_Watched(group | {"params": _small(group["params"])}, read) for group in map(dict, groups)]
        self.parameters = {f"{i}.{j}": p for i, group in enumerate(small) for j, p in enumerate(group["params"])}
        is_grouped = len(groups) > 1 or len(groups[0]) > 1
        self.optimizer = optimizer(small if is_grouped else small[0]["params"])
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        self.scheduler = scheduler(self.optimizer) if scheduler is not None else None

    def run(self, steps: range) -> None:
        """Update at each of `steps`."""
        for step in steps:
            _seed(step)
            numbers = torch.Generator().manual_seed(step)
            for parameter in self.parameters.values():
                gradient = torch.randn(parameter.shape, generator=numbers)
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            try:
                self.optimizer.step()
            except Exception as error:
                said = " ".join(str(error).split()).rstrip(".")
                advice = ". trainer.channels_last=false may help" if "stride" in said else ""
                raise RequestError(
                    f"optimizer: {type(self.optimizer).__name__} cannot update with gradients only: {said}{advice}"
                ) from error
            if self.scheduler is not None:
                with suppress(ValueError):  # how torch's say that they have ended
                    self.scheduler.step()

    def state(self) -> dict[str, Any]:
        """As a checkpoint gives it back."""
        state = optimizer_state.pack(self.optimizer, self.parameters)
        if self.scheduler is not None:
            state["scheduler"] = dict(self.scheduler.state_dict())
        state["parameters"] = {name: parameter.detach() for name, parameter in self.parameters.items()}
        tensors, rest = codec.flatten(state)
        return codec.unflatten(rest, {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()})

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in state["parameters"].items():
            self.parameters[name].copy_(value)
        optimizer_state.unpack(self.optimizer, self.parameters, state)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(state["scheduler"]))

    def equals(self, other: _Trial) -> bool:
        pairs = zip(self.parameters.values(), other.parameters.values(), strict=True)
        return all(torch.allclose(mine, theirs, rtol=0, atol=0, equal_nan=True) for mine, theirs in pairs)

    def differing(self, other: _Trial) -> str:
        """Which of the two it is that goes on differently."""
        rates = [[group["lr"] for group in each.optimizer.param_groups] for each in (self, other)]
        if self.scheduler is not None and rates[0] != rates[1]:
            return f"scheduler: {type(self.scheduler).__name__}"
        return f"optimizer: {type(self.optimizer).__name__}"


class _Watched(dict[str, Any]):
    """A group that notes what it is asked for."""

    def __init__(self, group: Mapping[str, Any], read: set[str]):
        super().__init__(group)
        self._read = read

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._read.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        return super().get(key, default)


def _small(parameters: Sequence[torch.Tensor]) -> list[nn.Parameter]:
    """The largest of each number of dimensions, cut down."""
    largest = {each.ndim: each for each in sorted(parameters, key=torch.Tensor.numel)}
    cut = [each.detach()[(slice(_LARGEST),) * each.ndim].clone() for each in largest.values()]
    return [nn.Parameter(each) for each in cut]


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed costs milliseconds where there is no GPU
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


@contextmanager
def _own_random_numbers(groups: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    devices = {each.device for group in groups for each in group["params"] if each.is_cuda}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
