"""Messages: one line each, whatever they quote."""

from __future__ import annotations

import pytest

from sr_runner.errors import RequestError, RunError, check_choice, nearest, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 4, 漢字", "größe 4, 漢字"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("abc\u202egpj", "abc\\u202egpj"),
    ],
)
def test_what_is_no_visible_character_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("kind", [RequestError, RunError])
def test_each_argument_is_a_line_and_a_long_one_is_cut_in_its_middle(kind: type[Exception]) -> None:
    assert str(kind("key=1\nforged", "second")) == "key=1\\nforged\nsecond"
    long = str(kind("a" * 400 + "b" * 5000 + "c" * 500))
    assert long == "a" * 400 + " ... " + "c" * 500


def test_a_request_error_is_the_value_error_that_parts_may_raise() -> None:
    assert issubclass(RequestError, ValueError) and not issubclass(RunError, ValueError)


def test_the_nearest_name_is_offered_and_a_far_one_is_not() -> None:
    assert nearest("widht", ["height", "width"]) == " Did you mean 'width'?"
    assert nearest("L1", ["mse", "l1"]) == " Did you mean 'l1'?"
    assert nearest("x", ["height", "width"]) == "" and nearest("x", []) == ""


def test_a_choice_is_one_of_those_listed() -> None:
    check_choice("layout", "b", ("a", "b", "c"))
    with pytest.raises(RequestError, match=r"^layout=aa: expected a, aab or c\. Did you mean 'aab'\?$"):
        check_choice("layout", "aa", ("a", "aab", "c"))
