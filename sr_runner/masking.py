"""Secrets out of whatever is written or printed.

A secret is known by its key (`model.api_key`, `?sig=`, `{password: ...}`), by its shape (user info in a URL, a bearer
token), and by its value: what stood under such a key in a config or in the environment is masked wherever this process
writes it later. Prose stays as it is: a key counts where a value is given to it, not where it is mentioned.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, quote_plus, unquote

from sr_runner.errors import printable

MASK = "*****"

Hide = Callable[[str], str]
"""From a secret to what stands in its place."""

_SECRET_KEY = re.compile(
    r"""(?x) passw(?:or)?d | passphrase | secret | credential | authorization | connection_?string
    | (?: api | access | account | private )_?key | (?: access | auth | security | session | refresh )_?token
    | (?: ^ | [_.] ) (?: pwd | token | sas | sig | signature | cookies? | bearer | auth ) (?: _?\d+ )? (?: \. | $ )"""
)
"""The last row counts as the last word of a key: `hub_token` is one, `token_mixer` and `num_tokens` are not."""
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9.]+")
_NO_SECRET = re.compile(
    rf"(?i)['\"]?(?:{re.escape(MASK)}.*|true|false|null|none|\?\?\?|\$\{{[\w.:]+\}}|)['\"]?", re.DOTALL
)
"""Under any key. `${oc.env:NAME}` names a secret and gives none away."""

_CLOSED = r"""'(?:\\.|[^'\\])*'?|"(?:\\.|[^"\\])*"?|\{[^}]*\}?|\[[^\]]*\]?"""
_GIVEN = (
    # key=value in an override, a query, a connection string; %3D in one that is quoted
    re.compile(
        r"(?:(?<![\w.%-])|(?<=%[0-9A-Fa-f]{2}))(?P<key>[\w.-]+)(?:[ \t]+=(?![=~])[ \t]*|=[ \t]*|%3[Dd])"
        rf"""(?=(?P<value>{_CLOSED}|(?:\\.?|[^\s&'"\\]|['"](?=[^\s,)}}\]:;]))+))"""
    ),
    # a mapping on one line, of YAML, JSON or Python
    re.compile(
        rf"""(?<=[{{,])\s*(?P<quote>['"]?)(?P<key>[\w.-]+)(?P=quote)\s*:\s*(?=(?P<value>{_CLOSED}|[^\s,}}\]][^,}}\]]*))"""
    ),
    # a line of YAML, and the list or mapping below it
    re.compile(
        r"(?m)^(?=[ \t]|- )(?P<in>[ \t]*)(?P<dash>- )?(?P<key>[\w.-]+):(?= |$) ?"
        r"(?=(?P<value>.*(?:\n(?P=in)(?(dash)(?:   |  - )|(?: |- )).*)*))"
    ),
    # in the first column, where prose begins as well: one word with a digit in it
    re.compile(r"(?m)^(?P<key>[\w.-]+): +(?=(?P<value>(?=\S*\d)\S+)$)"),
)
"""A key and, ahead of it, the value that it is given. The value is not consumed: it may hold pairs itself."""
_OVERRIDE = re.compile(r"(?P<key>[\w.+~@/-]+)=(?P<value>.*)", re.DOTALL)
_IN_BRACES = _GIVEN[1]
_USER_INFO = re.compile(r"""(?<=://)(?P<value>(?:[^\s/?#'"<>]|['"](?=\w))*|[^\s/@:'"]*:(?!\d+[/?#])[^\s'"]*)@""")
"""Up to the last @ of the authority; a `/` may stand in a password, but not after a port."""
_SHAPES = (
    _USER_INFO,
    re.compile(
        r"""(?i)(?:authorization\W{1,4}(?:basic|bearer|digest|token)\s+|cookie:\s+(?=\S+=))(?P<value>[^\s'"]+)"""
    ),
    re.compile(r"""\b(?:(?i:bearer)|Basic)\s+(?P<value>(?=\S*\d)[^\s'"]{12,})"""),
)

_known: frozenset[str] = frozenset()


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether what stands under `key` is a secret; of a dotted key each part counts."""
    return _SECRET_KEY.search(_WORD_ENDS.sub("_", key.strip()).strip("_").lower()) is not None


def masked(value: Any, key: str = "") -> Any:
    """`value`, a plain tree or an override (`key=value`), with every secret in it replaced by `MASK`.

    Remembers them for `masked_text`.
    """
    learn(value, key)
    return _hidden(value, is_secret(key), _mask, _known)


def masked_text(text: str) -> str:
    """Any text without secrets."""
    return _hidden_in_text(text, _mask, _known)


def digested(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`masked`, but a digest follows each mask, so that other secrets are other facts.

    The digest has 32 bits and a key that stands in this file: it keeps a secret from being read, and a guess from being
    certain, but whoever guesses among few secrets finds out which of them it can be. What is masked does not depend on
    what this process has seen before, only on `facts` and the environment.
    """

    def hide(secret: str) -> str:
        return MASK + hmac.new(b"sr-run: facts", secret.encode(errors="replace"), hashlib.sha256).hexdigest()[:8]

    return dict(_hidden(facts, False, hide, _spellings(_secrets(os.environ, False))))


def learn(value: Any, key: str = "") -> None:
    """Masks the secrets in `value`, a plain tree, wherever they turn up in text from now on."""
    global _known
    _known |= _spellings(_secrets(value, is_secret(key)))


def cause(error: BaseException) -> str:
    """What went wrong in one line without secrets: the messages of MLflow and of clouds run over several."""
    if isinstance(error, OSError) and error.strerror:
        return masked_text(error.strerror)
    text = masked_text(str(error))
    if found := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
        return found[1].strip()
    if "timed out" in text or "timeout" in text.lower():
        return "no answer within the time limit"
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 300 else line[:299] + "…"


@contextmanager
def masked_output() -> Iterator[None]:
    """Within, what this process logs and prints has no secrets in it, nor has the traceback that may end it."""
    mask_logs()
    sys.excepthook = _print_masked
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = MaskedStream(sys.stdout), MaskedStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def mask_logs() -> None:
    """From now on every log line of this process is without secrets, whatever handler writes it."""
    learn(dict(os.environ))
    logging.setLogRecordFactory(_MaskedRecord)


def _print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(masked_text("".join(traceback.format_exception(kind, error, trace))))


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What no text of ours has, and a terminal may obey. Line ends and tabs are ours, a carriage return is a progress
bar's."""


class MaskedStream:
    """A text stream that masks what is written to it, and gives a terminal nothing to obey."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(_CONTROL.sub(lambda found: printable(found[0]), masked_text(text)))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _MaskedRecord(logging.LogRecord):
    def getMessage(self) -> str:
        if self.exc_info and not self.exc_text:  # formatters take it as it is
            self.exc_text = masked_text("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))
        if self.name.partition(".")[0] == "sr_runner" and isinstance(self.args, tuple):
            self.args = tuple(printable(str(each)) if isinstance(each, str | Path) else each for each in self.args)
        return _CONTROL.sub(lambda found: printable(found[0]), masked_text(super().getMessage()))


def _mask(secret: str) -> str:
    return MASK


def _hidden(value: Any, secret: bool, hide: Hide, known: Iterable[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(inner, secret or is_secret(str(key)), hide, known) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(inner, secret, hide, known) for inner in value]
    if secret and not _NO_SECRET.fullmatch(str(value)):
        return hide(str(value))
    if not isinstance(value, str):
        return value
    if (given := _OVERRIDE.fullmatch(value)) and is_secret(given["key"]):
        return f"{given['key']}={_hidden(given['value'], True, hide, known)}"
    return _hidden_in_text(value, hide, known)


def _hidden_in_text(text: str, hide: Hide, known: Iterable[str]) -> str:
    for value in sorted((value for value in known if value in text), key=len, reverse=True):
        text = text.replace(value, hide(value))
    for pattern in _SHAPES:
        text = _replaced(text, pattern.finditer(text), hide)
    brace = text.find("{") if "{" in text else len(text)
    for pattern in _GIVEN:
        start = brace if pattern is _IN_BRACES else 0
        text = _replaced(text, (found for found in pattern.finditer(text, start) if _is_given(found)), hide)
    return text


def _replaced(text: str, found: Iterable[re.Match[str]], hide: Hide) -> str:
    """`text` with the group `value` of each match hidden, its quotes included, unless it is no secret."""
    parts, end = [], 0
    for match in found:
        start, stop = match.span("value")
        bare = text[start:stop].strip().strip("'\"")
        if start >= end and not _NO_SECRET.fullmatch(bare):
            parts += [text[end:start], hide(bare)]
            end = stop
    return "".join([*parts, text[end:]])


def _is_given(found: re.Match[str]) -> bool:
    key = found["key"]
    return is_secret(key) or (key == "key" and found.string[: found.start()].endswith(("?", "&")))


def _secrets(value: Any, secret: bool) -> Iterator[str]:
    """The secrets in a plain tree: what stands under a secret key, and what URLs and queries hold."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(inner, secret or is_secret(str(key)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets(inner, secret)
    elif secret:
        yield str(value)
    elif isinstance(value, str):
        for found in _USER_INFO.finditer(value):
            yield found["value"].partition(":")[2] or found["value"]
        if (given := _OVERRIDE.fullmatch(value)) and is_secret(given["key"]):
            yield given["value"].strip("'\"")
        yield from (found["value"].strip("'\"") for found in _GIVEN[0].finditer(value) if _is_given(found))


def _spellings(secrets: Iterable[str]) -> frozenset[str]:
    """The secrets as they may stand in text: quoted for a URL, escaped in JSON and Python. Short ones and plain words
    are left out, since they stand in other text as well, and so are files."""
    return frozenset(
        spelling
        for secret in secrets
        if len(secret) >= 8 and (not secret.isalpha() or len(secret) >= 20) and not _NO_SECRET.fullmatch(secret)
        if not (secret.startswith(("/", "~")) and Path(secret).expanduser().exists())
        for plain in {secret, unquote(secret)}
        for spelling in {
            plain,
            quote(plain),
            quote(plain, safe=""),
            quote_plus(plain),
            json.dumps(plain)[1:-1],
            repr(plain)[1:-1],
        }
    )
