"""Overrides, `key=value` in Hydra's grammar: reading and writing them, and what those of a sweep describe."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import OverrideParseException

from sr_runner.errors import RequestError

LONGEST_NAME = 200
"""In characters: a file system has no room for longer ones."""
_GRAMMAR = "https://hydra.cc/docs/advanced/override_grammar/basic"
_MOST_CHECKED = 20
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
"""Text that Hydra's grammar reads as it is, but for a few words."""


def normalised(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra wants them: `experiment` is in the defaults list, but people write `+experiment=x` too."""
    return [re.sub(r"^\+experiment=", "experiment=", override) for override in overrides]


def as_override(key: str, value: Any, sign: str = "") -> str:
    """`key=value` in Hydra's grammar, for a value of a config: null, a bool, number, text, list or mapping.

    Raises `RequestError` for a key that has no place in it.
    """
    override = f"{sign}{key}={_quoted(value)}"
    parse([override])
    return override


def _quoted(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_quoted(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_quoted, value)) + "]"
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    if not isinstance(value, str):
        return repr(value)
    if _PLAIN.fullmatch(value) and value.casefold() not in ("null", "true", "false", "nan", "inf"):
        return value
    # Backslashes are themselves but before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def refuse_sweep(overrides: Sequence[str]) -> None:
    """Raises `RequestError` where `overrides` describe more than one run."""
    for override in parse(overrides):
        if override.is_sweep_override():
            raise RequestError(f"{override.input_line}: several values are a sweep: sr-run -m {' '.join(overrides)}")


def parse(overrides: Sequence[str]) -> list[Override]:
    """Raises `RequestError` where an override is not in Hydra's grammar."""
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise RequestError(f"{error.override}: {_expected(str(error.override), str(error))}") from error
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise RequestError(f"{max(overrides, key=len)}: expected a number that can be read ({error})") from error


def _expected(override: str, reason: str) -> str:
    """What Hydra's grammar has in the place of `override`, for which it gives `reason`."""
    key, _, value = override.partition("=")
    if not re.fullmatch(r"[+~]*[\w./@-]+", key) or "=" not in override:
        return f"not of the form key=value; see {_GRAMMAR}"
    if value[:1] == "{" and re.search(r"""[{,]\s*(['"])[^'"]*\1\s*:""", value):
        return "its value cannot be read; expected {key: value} with keys without quotes"
    found = re.search("at input '(.*)'", reason)
    where = f" behind {found[1]}" if found and value[:1] in "[{" else ""
    text = f"{key}={_quoted(value)}"
    in_shell = shlex.quote(text) if set(text) & set('"$`!') else f'"{text}"'  # the same quote again is hard to read
    advice = "" if value[:1] in "[{" or "${" in value else f"; as text it is {in_shell}"
    return f"its value cannot be read{where}{advice}; see {_GRAMMAR}"


def jobs_to_check(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Jobs of a sweep in which each value occurs, beside the first of all the others: the first job, then one for
    every further value, at most 20 in all, so that a sweep of many jobs begins at once."""
    values = [found for override in parse(overrides) if (found := _values(override))]
    first = [options[0] for options in values]
    others = (
        [*first[:position], option, *first[position + 1 :]]
        for position, options in enumerate(values)
        for option in options[1:]
    )
    return itertools.islice(itertools.chain([first], others), _MOST_CHECKED)


def swept_values(overrides: Sequence[str], most: int) -> dict[str, list[str]]:
    """What is swept: per key its values, as a job is given them; none where they are not known beforehand, or more than
    `most`."""
    swept: dict[str, list[str]] = {}
    for override in parse(overrides):
        if override.is_sweep_override():
            found = [each.partition("=")[2].strip("'\"") for each in _values(override, most + 1)]
            if not found and override.is_range_sweep():
                raise RequestError(f"{override.input_line}: expected at least one value")
            if len(set(found)) < len(found):
                raise RequestError(f"{override.input_line}: expected each value once")
            swept[override.key_or_group] = found if len(found) <= most else []
    return swept


def _values(override: Override, most: int = _MOST_CHECKED) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        return []  # Hydra's sweeper looks up the options that fit
    key = override.get_key_element()
    if not (override.is_discrete_sweep() and (override.is_choice_sweep() or override.is_range_sweep())):
        return []  # an interval: whoever samples it decides
    values: Iterator[str] = override.sweep_string_iterator()
    return [f"{key}={value}" for value in itertools.islice(values, most)]
