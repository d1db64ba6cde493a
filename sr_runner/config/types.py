"""Whether a plain value is of the type that an annotation asks for: one rule for config keys and for the tools."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null", list: "a list",
    dict: "a mapping, {key: value}",
}  # fmt: skip


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` (null, a bool, number, text, list or mapping) is of the type `hint`.

    An int is a float, a bool is neither; text is a path unless it is empty; a list is any sequence. What cannot be
    decided (`Any`, a class of anyone's) fits, unless the other members of its union can be. A mapping with `_target_`
    is an object to be made, which its class decides on.
    """
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    members = members_of(hint)
    decided = [member for member in members if _is_decided(member)]
    if decided == [NoneType] != members or not decided:
        return True
    return any(_fits(value, member) for member in decided)


def is_plain(value: Any) -> bool:
    """Whether a config can hold `value`."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, int | float | str | NoneType)


def expected(hint: Any) -> str:
    """What `hint` asks for, in words: `a whole number or null`."""
    members = [member for member in members_of(hint) if _is_decided(member)]
    words = [each for member in members for each in _words(member)]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "something else"


def choices(hint: Any) -> list[str]:
    """The texts of the `Literal`s in `hint`."""
    if get_origin(hint) is Literal:
        return [choice for choice in get_args(hint) if isinstance(choice, str)]
    return [choice for each in get_args(hint) for choice in choices(each)]


def members_of(hint: Any) -> list[Any]:
    """Those of a union, else `hint` itself; text that stands for a path beside `Path` counts as one."""
    if get_origin(hint) not in (Union, UnionType):
        return [NoneType if hint is None else hint]
    members = [inner for each in get_args(hint) for inner in members_of(each)]
    return [each for each in members if each is not str] if any(map(_is_path, members)) else members


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return any(value == each and type(value) is type(each) for each in get_args(hint))
    if kind is float:
        if isinstance(value, int):
            return not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return isinstance(value, float)
    if _is_path(kind):
        return isinstance(value, str) and value != ""
    if kind in (int, bool, str, NoneType):
        return type(value) is kind
    inner = get_args(hint)
    if _is_mapping(kind):
        return isinstance(value, Mapping) and (not inner or all(fits(each, inner[1]) for each in value.values()))
    if "__call__" in dir(kind) or not isinstance(value, list | tuple):
        return False
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return not inner or all(fits(each, inner[0]) for each in value)


def _is_decided(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind is Literal or kind in (int, float, bool, str, NoneType):
        return True
    # What can be called, as a network or a loss, is no plain value.
    return isinstance(kind, type) and (_is_path(kind) or _is_sequence(kind) or "__call__" in dir(kind))


def _is_path(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, os.PathLike)


def _is_mapping(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _is_sequence(kind: type) -> bool:
    return kind in (list, tuple, dict) or (kind.__module__ == "collections.abc" and issubclass(kind, Iterable))


def _words(hint: Any) -> list[str]:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return list(map(str, get_args(hint)))
    if _is_path(kind):
        return ["a path"]
    if hint in _WORDS:
        return [_WORDS[hint]]
    if _is_mapping(kind):
        inner = get_args(hint)
        words = expected(inner[1]) if inner and any(map(_is_decided, members_of(inner[1]))) else "value"
        return [f"a mapping, {{key: {words}}}"]
    if "__call__" in dir(kind):
        return ["{_target_: package.module.Class}"]
    inner = get_args(hint)
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return [f"a list of {len(inner)}, each {expected(inner[0])}"]
    return [f"a list, each {expected(inner[0])}" if inner and inner[0] is not Any else _WORDS[list]]
