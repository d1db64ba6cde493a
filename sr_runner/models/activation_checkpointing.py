"""Activation checkpointing: less memory for more time, with the same gradients bit for bit.

What a chosen module computes on the way to its output is not kept for the backward pass, but computed anew there from
its input ("Training Deep Nets with Sublinear Memory Cost", Chen et al., 2016).
"""

from __future__ import annotations

import functools
import random
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sr_runner.errors import RequestError, nearest


def checkpoint_activations(network: nn.Module, pattern: str) -> list[str]:
    """Have the modules of `network` that `pattern` names computed anew in the backward pass; returns their names.

    `pattern` is the name of a module (`body.0`), with the wildcards of a shell (`body.*`); `|` stands between several.
    Of modules within one another the outermost counts, and a list of modules stands for its members. `network` stays
    what it is: its class, the names of its state, and what it computes.

    Raises:
        RequestError: a name fits no module.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    fitting: set[str] = set()
    for each in pattern.split("|"):
        found = {name for name in modules if fnmatchcase(name, each)}
        if not found:
            first = dict.fromkeys(name.split(".")[0] for name in modules)
            raise RequestError(
                f"trainer.checkpoint_activations={each}: this fits no module; expected the name of one, or a pattern"
                f" such as body.*.{nearest(each, [*first, *modules])} Names begin with {', '.join(first)}"
            )
        fitting |= found
    chosen: list[str] = []
    for name, module in modules.items():  # each comes after the one around it
        parent = name.rpartition(".")[0]
        if any(name.startswith(f"{outer}.") for outer in chosen) or not fitting & {name, parent}:
            continue
        if type(module).forward is nn.Module.forward:
            fitting |= {f"{name}.{child}" for child, _ in module.named_children()}
        elif name in fitting:
            chosen.append(name)
    for name in chosen:
        modules[name].forward = _Checkpointed(name, modules[name])
    return chosen


class _Checkpointed:
    """A module's `forward`, whose output is kept and the rest computed anew where gradients are asked for."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._module, self._forward = name, module, module.forward
        self._changing: list[tuple[nn.Module, str]] | None = None
        """Buffers that a forward pass changes; None: there was none yet. BatchNorm's do not tell."""

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():  # which keeps track of inputs and buffers itself
            anew = functools.partial(checkpoint, self._forward, use_reentrant=False)
            return (anew if torch.is_grad_enabled() else self._forward)(*inputs, **named)
        tensors = [each for each in (*inputs, *named.values()) if isinstance(each, Tensor)]
        versions = [each._version for each in tensors]
        made = (self._checkpointed if torch.is_grad_enabled() else self._forward)(*inputs, **named)
        if versions != [each._version for each in tensors]:
            raise RequestError(
                f"trainer.checkpoint_activations: {self._name} ({type(self._module).__name__}) changes its input in"
                " place, so that it cannot be computed anew; expected the module around it"
            )
        return made

    def _checkpointed(self, *inputs: Any, **named: Any) -> Any:
        changing = self._changing
        if changing is None:
            changing = [(m, name) for m in self._module.modules() for name, _ in m.named_buffers(recurse=False)]
        before = _Before(changing)
        made = checkpoint(
            self._forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), before), **named
        )
        if self._changing is None:
            self._changing = before.forget_what_is_the_same()
        return made


class _Before(AbstractContextManager[None]):
    """Within, what a forward pass changes beside its output is as it was when this was made, and what becomes of it
    does not count: buffers, and the generators of Python and NumPy. torch's own are `checkpoint`'s."""

    def __init__(self, buffers: list[tuple[nn.Module, str]]) -> None:
        self._values = {(module, name): module.get_buffer(name).clone() for module, name in buffers}
        self._generators = _generators()

    def forget_what_is_the_same(self) -> list[tuple[nn.Module, str]]:
        """The buffers that are not as they were; they remain known."""
        self._values = {(m, n): each for (m, n), each in self._values.items() if not torch.equal(each, m.get_buffer(n))}
        return list(self._values)

    def __enter__(self) -> None:
        self._now = _generators()
        self._buffers = {(module, name): module._buffers[name] for module, name in self._values}
        _set_generators(self._generators)
        for (module, name), value in self._values.items():
            module._buffers[name] = value.clone()

    def __exit__(self, *error: object) -> None:
        _set_generators(self._now)
        for (module, name), buffer in self._buffers.items():
            module._buffers[name] = buffer
        del self._now, self._buffers


def _generators() -> tuple[Any, Any]:
    """Python's and NumPy's, which some networks draw from for their stochastic depth."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def _set_generators(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
