"""Checks of arguments that the data parts share; all raise `RequestError` in the words of the config."""

from __future__ import annotations

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


def patch_size(value: object, *, scale: int) -> int:
    """`value` where it is a positive multiple of `scale`, at most 4096: a network's memory grows with its square."""
    patch = whole_number("data.patch_size", value, at_least=1, at_most=4096)
    if patch % scale:
        fitting = _multiples(patch, scale)
        raise RequestError(f"data.patch_size={patch} is not a multiple of scale={scale}; expected {fitting}.")
    return patch


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
