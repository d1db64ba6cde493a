"""Command lines of the small tools: sources as they are, options as `key=value`, read strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sr_runner.errors import RequestError, nearest

_OPTION = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Arguments:
    """What was asked for: `sources`, and the options by key.

    `keys` are the options there are; a key in `open_groups` ("model.") may be followed by any name.
    Raises `RequestError` for an option that does not exist, for one that is given twice, and for `--key` notation.
    """

    def __init__(self, argv: Sequence[str], keys: Iterable[str], open_groups: Iterable[str] = ()) -> None:
        self.sources: list[str] = []
        self._values: dict[str, str] = {}
        self._keys, self._open_groups = tuple(keys), tuple(open_groups)
        for word in argv:
            self._take(word)

    def text(self, key: str, default: str) -> str:
        """The value as it was written."""
        return self._values.get(key, default)

    def words(self, key: str) -> list[str]:
        """The values of a list, `a,b,c`."""
        return [word.strip() for word in self._values.get(key, "").split(",") if word.strip()]

    def flag(self, key: str) -> bool:
        """true or false; false where it was not given."""
        value = self._values.get(key, "false").lower()
        if value not in _TRUE + _FALSE:
            raise RequestError(f"{key}={self._values[key]}: true or false is needed.")
        return value in _TRUE

    def integer(self, key: str, default: int, least: int) -> int:
        """A whole number of at least `least`."""
        value = self.optional_integer(key, least)
        return default if value is None else value

    def optional_integer(self, key: str, least: int) -> int | None:
        """As `integer`, None where it was not given."""
        text = self._values.get(key)
        if text is None:
            return None
        if not re.fullmatch(r"-?\d+", text) or int(text) < least:
            raise RequestError(f"{key}={text}: a whole number of at least {least} is needed.")
        return int(text)

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of `choices`; the first where it was not given."""
        value = self._values.get(key, choices[0])
        if value not in choices:
            raise RequestError(f"{key}={value}: one of {', '.join(choices)} is needed.{nearest(value, choices)}")
        return value

    def choices(self, key: str, choices: Sequence[str]) -> list[str]:
        """Some of `choices`, `a,b`; none where it was not given."""
        words = self.words(key)
        for word in words:
            if word not in choices:
                raise RequestError(f"{key}={word}: of {', '.join(choices)} some are needed.{nearest(word, choices)}")
        return words

    def group(self, prefix: str) -> Mapping[str, int | float | str]:
        """The options that begin with `prefix`, without it; numbers as numbers."""
        return {k.removeprefix(prefix): _number(v) for k, v in self._values.items() if k.startswith(prefix)}

    def _take(self, word: str) -> None:
        option = _OPTION.fullmatch(word)
        if option is None or (option[1] not in self._keys and Path(word).exists()):
            if word.startswith("-") and not Path(word).exists():
                written = word.lstrip("-").partition("=")[0].replace("-", "_")
                raise RequestError(f"{word}: options are written key=value.{nearest(written, self._keys)}")
            self.sources.append(word)
            return
        key, value = option[1], option[2]
        if key not in self._keys and not key.startswith(self._open_groups or ("\0",)):
            hint = nearest(key, self._keys) or f" Options: {', '.join(self._keys)}."
            raise RequestError(f"{key}={value}: there is no option '{key}'.{hint}")
        if key in self._values:
            raise RequestError(f"{key} is given twice: {self._values[key]} and {value}.")
        if value == "":
            raise RequestError(f"{key}=: a value is needed.")
        self._values[key] = value


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
