"""Which plain values an annotation takes, and how a message says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from sr_runner.config.types import choices, expected, fits, is_plain


class Anyones:
    """No plain value."""


TYPES: dict[Any, tuple[list[object], list[object], str]] = {
    int: ([1, -1], [True, 1.0, "1", None], "a whole number"),
    float: ([1, 1.5], [True, "1"], "a number"),
    bool: ([True], [1, 0, "true"], "true or false"),
    str: (["", "a"], [1, None], "text"),
    Path: (["a"], ["", 1], "a path"),
    str | Path: (["a"], ["", 1], "a path"),
    int | None: ([1, None], [1.5, "x"], "a whole number or null"),
    Literal["a", "b"]: (["a"], ["c", 1], "a or b"),
    Literal[1, "b"]: ([1, "b"], [True, 1.0], "1 or b"),
    Sequence[float]: ([[], [1, 2.5]], [1, "ab", ["a"], {"a": 1}], "a list, each a number"),
    tuple[float, float]: ([[1, 2]], [[1], [1, 2, 3], "ab"], "a list of 2, each a number"),
    tuple[int, ...]: ([[], [1, 2]], [["a"], 1], "a list, each a whole number"),
    Mapping[str, int]: ([{}, {"a": 1}], [{"a": "b"}, [1], 1], "a mapping, {key: a whole number}"),
    list[str] | bool: ([["a"], True], [1, "a"], "a list, each text or true or false"),
    nn.Module: ([{"_target_": "torch.nn.L1Loss"}], [5, "L1"], "{_target_: package.module.Class}"),
    Callable[[int], int]: ([{"_target_": "torch.nn.L1Loss"}], [5, None], "{_target_: package.module.Class}"),
    Any: ([1, None, "a", [1]], [], "something else"),
    Anyones: ([1, "a"], [], "something else"),
}


@pytest.mark.parametrize("hint", TYPES, ids=str)
def test_what_fits_a_type_and_what_does_not(hint: Any) -> None:
    fitting, others, words = TYPES[hint]
    assert [value for value in fitting if not fits(value, hint)] == []
    assert [value for value in others if fits(value, hint)] == []
    assert expected(hint) == words


def test_a_class_of_anyones_beside_null_leaves_open_what_fits() -> None:
    assert fits(5, Anyones | None) and fits(None, Anyones | None)
    assert not fits("a", Anyones | int)  # the other member can be decided


def test_the_texts_of_literals_are_found_wherever_they_stand() -> None:
    assert choices(list[Literal["a", "b"]] | Literal["c", 1] | None) == ["a", "b", "c"]


def test_a_config_can_hold_numbers_text_and_lists_of_them() -> None:
    assert all(map(is_plain, [None, True, 1, 1.5, "a", (1, [2, "b"])]))
    assert not any(map(is_plain, [object(), {"a": 1}, [nn.ReLU]]))
