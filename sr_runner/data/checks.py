"""Checks of arguments that the data parts share; all raise `RequestError` in the words of the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sr_runner.data.degradations import Degradation
from sr_runner.errors import RequestError


def whole_number(key: str, value: object, *, at_least: int, at_most: int = 2**31 - 1) -> int:
    """`value` where it is an int in that range."""
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        limit = "or more" if isinstance(value, int) and value < at_least else f"to {at_most}"
        raise RequestError(f"{key}={value!r}: expected a whole number, {at_least} {limit}.")
    return value


def divisible(key: str, value: int, parts: int) -> None:
    """Raises unless `value` can be shared equally among `parts` processes."""
    if value % parts:
        raise RequestError(f"{key}={value} cannot be shared by {parts} processes; expected {_multiples(value, parts)}.")


def fraction(key: str, value: object) -> float:
    """`value` where it is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise RequestError(f"{key}={value!r}: expected a number from 0 up to, but not including, 1.")
    return float(value)


def patch_size(value: object, *, scale: int, key: str = "data.patch_size") -> int:
    """`value` where it is a positive multiple of `scale`, at most 4096: a network's memory grows with its square."""
    patch = whole_number(key, value, at_least=1, at_most=4096)
    if patch % scale:
        fitting = _multiples(patch, scale)
        raise RequestError(f"{key}={patch} is not a multiple of scale={scale}; expected {fitting}.")
    return patch


class Phase(NamedTuple):
    """Sizes of the steps that come after so many."""

    after: int
    patch_size: int
    batch_size: int


def phases(
    schedule: Mapping[int, Mapping[str, int]] | None, first_patch: int, first_batch: int, *, scale: int
) -> list[Phase]:
    """The sizes of a run in order: the first ones, then those of `data.patch_schedule`."""
    found = [Phase(0, first_patch, first_batch)]
    for after in sorted(schedule or {}, key=lambda step: (str(type(step)), step)):
        key, given = f"data.patch_schedule.{after}", (schedule or {})[after]
        if isinstance(after, bool) or not isinstance(after, int) or after < 1:
            raise RequestError(f"{key}: expected the number of a step, 1 or more, from which on other sizes are taken.")
        if not isinstance(given, Mapping) or not given or not {*given} <= {"patch_size", "batch_size"}:
            raise RequestError(f"{key}={given!r}: expected {{patch_size: 128, batch_size: 8}}, or one of the two.")
        patch = patch_size(given.get("patch_size", found[-1].patch_size), scale=scale, key=f"{key}.patch_size")
        batch = whole_number(
            f"{key}.batch_size", given.get("batch_size", found[-1].batch_size), at_least=1, at_most=first_batch
        )
        found.append(Phase(after, patch, batch))
    return found


def _multiples(value: int, of: int) -> str:
    """Those next to `value`."""
    below = value // of * of
    return f"{below} or {below + of}" if below else f"{of}"


def degradation(value: Degradation | str) -> Degradation | None:
    """The pipeline, or None for MATLAB's bicubic."""
    if isinstance(value, Degradation):
        return value
    if value != "bicubic":
        raise RequestError(
            f"data.degradation={value!r}: expected bicubic, or a pipeline chosen by data/degradation=NAME "
            "(only DIV2K has images of other official degradations)."
        )
    return None
