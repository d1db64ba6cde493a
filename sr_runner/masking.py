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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, quote_plus, unquote

from sr_runner.errors import printable

MASK = "*****"

Hide = Callable[[str], str]
"""From a secret, quotes around it included, to what stands in its place."""

_SECRET_KEY = re.compile(
    r"""(?x)
    # any word of a key, or its end
    _ [a-z]* (?: passwo?r?d | passphrase | passcode | secret | credential | authori[sz]ation | cookie ) s? \d* _
    # any word
    | _ (?: creds? | jwt | psk | t?otp | sas | connection_?string | conn_?str ) \d* _
    # two words, or one that is made of them
    | _ (?: api | access | account | kms | private | recovery | secret | sign | signing | ssh | gpg | pgp | ssl | tls
        | hmac | aes | rsa | auth | encrypt | encryption | decryption | cipher | crypto | master | root | admin | deploy
        | license | subscription | storage | service | client | server | host | hub | consumer | app | application
        | webhook | session | shared | user | bot | s3 | aws | azure | gcp | google | hf | openai | anthropic | wandb )
        _? keys? \d* _
    | _ (?: access | api | auth | bearer | refresh | security | session ) _? tokens? \d* _
    | _ auth _? (?: header | code ) s? _
    # the last word, or its end
    | _ (?: [a-z\d]* (?: token | signature | auth ) | sig | bearer | pat
        | (?: admin | db | ftp | http | key | mail | my | mysql | pg | proxy | redis | root | smtp | ssh | user )?
          (?: pass | pwd ) ) (?: _?v?\d+ )* _ $"""
)
"""Held against a key whose words stand between `_`: `hub_token_v2` is one, `token_mixer` and `num_tokens` are not."""
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
_LONGEST_KEY = 200
_NO_SECRET = re.compile(
    rf"(?i)['\"]?(?:{re.escape(MASK)}[0-9a-f]{{0,8}}|true|false|null|none|\?\?\?|\d{{1,3}}|\$\{{[\w.:]+\}}|)['\"]?[,;:.)\]}}`]*"
)
"""Under any key. `${oc.env:NAME}` names a secret and gives none away; a number below 1000 counts something."""
_MODEL_SIGNATURE = re.compile(r"[A-Za-z_][\w.]*\(.*|\{.*|\s*\n[ \t]+[\w.-]+:(?s:.*)")
"""`signature` is also MLflow's word for what goes into a model and comes out: a call or a mapping."""


def _pair(key: str, value: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds a key, and what takes its value as well: values of keys that are no secrets are never read, so that
    the time is linear in the length of a text."""
    return re.compile(key), re.compile(f"{key}(?P<value>{value})")


# In the text of a JSON string the quotes have a backslash, in one within that three.
_QUOTED = r"""(?s:(?P<slashes>\\{0,7})(?P<mark>['"]).*?(?:(?<!\\)(?:\\\\(?P=slashes){2})*(?P=slashes)(?P=mark)|\Z))"""
_NESTED = r"[^{}\[\]]"
for _ in range(3):
    _NESTED = rf"(?:[^{{}}\[\]]|\{{{_NESTED}*+\}}|\[{_NESTED}*+\])"
_CLOSED = rf"{_QUOTED}|\{{{_NESTED}*+\}}|\[{_NESTED}*+\]|[{{\[](?s:.*)"
_CALL = r"""[A-Za-z_][\w.]*+\([^()'"\n]*\)(?=[\s,;)\]}]|$)"""
_STRINGS = r"""(?:'[^'\n]*'|"[^"\n]*")(?:\s*+[,:]\s*+(?:'[^'\n]*'|"[^"\n]*"))*+\s*+,?\s*+"""
_TUPLE = rf"\(\s*+{_STRINGS}\)"
_TEXT = r"""(?s:(?P<three>\"{3}|'{3}).*?(?:(?P=three)|\Z))"""
_GIVEN = (
    # key=value in an override, a query, a connection string; %3D in one that is quoted
    _pair(
        r"""(?x:(?:(?<![\w.%/-])|(?<=%[0-9A-Fa-f]{2}))(?P<key>[\w.-]++)(?:\\{0,7}['"]\]?)?
        (?::[ \t]*[\w.\[\],|\ ]{1,60}(?=[ \t]=))? (?:[ \t]+:?=(?![=~])[ \t]*|:?=[ \t]*|%3[Dd]))""",
        rf"""{_TEXT}|{_CLOSED}|{_CALL}|{_TUPLE}|(?:\\.?|[^\s&'"\\]|['"](?=[^\s,)}}\]:;]))*""",
    ),
    # a mapping on one line, of YAML, JSON or Python
    _pair(
        r"""(?<=[{,])(?:\s|\\+[nt])*(?P<quote>\\{0,7}['"]|)(?P<key>[\w.-]+)(?P=quote)\s*:\s*""",
        rf"{_CLOSED}|[^,}}\]]*",
    ),
    # a line amid a mapping of JSON
    _pair(r"""(?m)^[ \t]*(?P<quote>['"])(?P<key>[\w.-]+)(?P=quote)[ \t]*:[ \t]*""", rf"{_CLOSED}|[^,}}\]\n]*"),
    # a line of YAML, and the list or mapping below it
    _pair(
        r"(?m)^(?=[ \t]|- )(?P<in>[ \t]*)(?P<dash>- )?(?P<key>[\w.-]+):(?= |$) ?",
        r".*(?:(?:\n[ \t]*+(?=\n))*+\n(?P=in)(?(dash)(?:   |  - )|(?: |- )).*)*",
    ),
    # in the first column, where prose begins as well: a mapping or text below, one long word or one with a digit
    _pair(
        r"(?m)^(?P<key>[\w.-]+)[ \t]*:(?:(?=\n)|[ \t]*(?=\S+$))",
        r"(?:[|>][-+\d]*+(?=\n)|(?=\n[ \t]+[\w.-]++:[ \n]))(?:(?:\n[ \t]*+(?=\n))*+\n[ \t].*)*"
        r"|(?=[^\s\d]*\d|\S{16})\S*|",
    ),
    # an option of somebody's command, and the next word: prose has only lower-case words there
    _pair(
        r"(?<![\w-])--(?P<key>[\w.-]++)[ \t]+",
        r"""['"][^'"\n]*['"]?|(?=\S*[^\sa-z.,;:)'"`])[^\s'",)]+|""",
    ),
    _pair(
        r"""(?<![\w-])--(?P<key>[\w.-]++)['"],(?:[^\n()]{0,200}?\bdefault=|[ \t]+)(?=['"])""",
        r"""['"][^'"\n]*['"]?""",
    ),
    # a name, and beside or below it a value: `setdefault("TOKEN", "...")`, `name: TOKEN` and `value: ...`
    _pair(
        r"""\([ \t]*(?P<slash>\\{0,7})(?P<quote>['"])(?P<key>\w[\w.-]*+)(?P=slash)(?P=quote),\s*(?=\\{0,7}['"])""",
        _QUOTED.replace("slashes", "more"),
    ),
    _pair(
        r"""\b(?i:name|key)\b(?:\\{0,7}['"])?[ \t]*[:=][ \t]*(?:\\{0,7}['"])?(?P<key>\w[\w.-]*+)(?:\\{0,7}['"])?,?\s+"""
        r"""(?:\\{0,7}['"])?(?i:value)(?:\\{0,7}['"])?[ \t]*[:=][ \t]*""",
        rf"""{_CLOSED}|[^\s,}}]*""",
    ),
    # an argument of a call, an element of XML, a line of netrc, of a Dockerfile, of a batch file
    _pair(r"""(?<![\w.])(?P<key>[\w.]++)\(\s*(?!['"][A-Za-z]*['"])""", rf"{_TEXT}|{_QUOTED}|"),
    _pair(r"<(?P<key>[\w.:-]++)(?:\s[^<>]*)?>(?![A-Za-z\s]*<)", r"[^<>]*(?=</)|"),
    _pair(r"(?:(?i:\blogin)[ \t\n]+\S+[ \t\n]+|\b(?:ENV|ARG|setx)[ \t]+(?=[A-Z]))(?P<key>\w++)[ \t]+(?!=)", r"\S+"),
    # a header of HTTP
    _pair(
        r"(?<![\w./-])(?=\w++-)(?P<key>[\w-]++):[ \t]*",
        r"""(?:(?i:apikey|basic|bearer|digest|token)[ \t]+)?[^\s'"\\]*""",
    ),
)
"""A key, and the value that it is given."""
_IN_BRACES = _GIVEN[1]
_LITERAL = re.compile(rf"""\s*(?:\w{{0,2}}\\{{0,7}}['"]|[(\[{{]\s*+{_STRINGS}[)\]}}])""")
_OVERRIDE = re.compile(r"(?P<key>[\w.+~@/-]+)=(?P<value>.*)", re.DOTALL)
_BARE = r"""(?:[^\s'">]|['">](?![\s,)\]};:]|$))"""
"""What user info may hold: a quotation mark only where it does not end the URL."""
_USER_INFO = re.compile(
    rf"""(?mx)(?:(?<=://)|(?<=:\\/\\/))(?P<value>
    [^\s/?\#@:'"<>\[]* : (?!\d+(?:[/?\#]|\\/) | \d*(?:[\s'",;)\]}}]|$))
        (?: (?:(?!://){_BARE})* (?=@) (?: @ (?:(?![/?\#\n]){_BARE}|[ ])* (?=@) )?
        |   (?:(?!://){_BARE}|[ ])* )
    | (?!git@)(?:(?![/?\#]){_BARE})* )@"""
)
"""Up to the last @ of the authority; a `/` or a space may stand in a password, but not after a port."""
_SHAPES = (
    _USER_INFO,
    re.compile(r"""(?i)(?<=%3a%2f%2f)(?P<value>(?:(?!%2f)[^\s&'"<>])*)%40"""),
    re.compile(
        r"""(?i)authorization\W{1,4}(?:apikey|basic|bearer|digest|negotiate|ntlm|token)\s+(?P<value>[^\s'"\\]+)"""
    ),
    re.compile(
        r"""(?i)cookie:\s+(?P<value>[^\s;='"]+=(?:"[^"\n]*"|[^\s;'"\\]*)(?:;\s*[^\s;='"]+(?:=(?:"[^"\n]*"|[^\s;'"\\]*))?)*)"""
    ),
    re.compile(r"""\b(?:(?i:bearer)|Basic)\s+(?P<value>(?=\S*\d)[^\s'"\\]{12,})"""),
    # user and password beside a host, without a scheme; and as curl takes them
    re.compile(
        r"""(?<![\w/@.:-])[\w.-]+:(?P<value>[^\s@/:'"]+(?=@[\w.-]+:\d{1,5}/)|(?=[^\s@/:'"]*\d)[^\s@/:'"]+)@[\w.-]+(?::\d{1,5})?/"""
    ),
    re.compile(r"""\blogin\((?P<value>['"][^'"\n]*['"](?:,\s*['"][^'"\n]*['"]){0,2})\)"""),
    re.compile(r"""\bcurl\b[^\n]{0,200}?\s(?:-u|--user|--proxy-user)[ \t=]+['"]?[^\s:'"]+:(?P<value>[^\s'"]+)"""),
    # what its issuer marks as a secret
    re.compile(
        r"""(?x)(?<![A-Za-z\d]) (?P<value> gh[opsur]_[A-Za-z\d]{16,} | github_pat_\w{16,} | glpat-[\w-]{16,}
        | hf_[A-Za-z\d]{16,} | npm_[A-Za-z\d]{16,} | pypi-[\w-]{16,} | A[KS]IA[A-Z\d]{12,} | AIza[\w-]{30,}
        | ya29\.[\w-]{16,} | xox[a-z]-[\w-]{8,} | [prs]k_(?:live|test)_\w{10,} | SG\.[\w-]{16,}\.[\w-]{16,}
        | sk-(?:[a-z\d]{1,10}-){0,3}\w{16,} | (?<![\w-])eyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)*
        | -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY(?s:.*?)(?:-----END[A-Z\ ]*-----|\Z) )"""
    ),
)

_known: frozenset[str] = frozenset()


def is_secret(key: str) -> bool:
    """Whether what stands under `key` is a secret; of a dotted key each part counts."""
    return _is_secret(key[-_LONGEST_KEY:])


@lru_cache(maxsize=4096)
def _is_secret(key: str) -> bool:
    return any(_SECRET_KEY.search(_WORD_ENDS.sub("_", f"_{part}_").lower()) for part in key.split("."))


def masked(value: Any, key: str = "") -> Any:
    """`value`, a plain tree or an override (`key=value`), with every secret in it replaced by `MASK`.

    Remembers them for `masked_text`.
    """
    learn(value, key)
    return _hidden(value, is_secret(key), _mask, _known)


def masked_text(text: str) -> str:
    """Any text without secrets."""
    return _hidden_in_text(text, _mask, _known)


def masked_lines(text: str, *, is_code: bool = False) -> str:
    """`masked_text` with as many lines as `text`: a secret of several lines leaves as many masks. In code a key names a
    variable: only a text in quotes is a secret, `cls_token = Parameter(size)` is none."""
    return _hidden_in_text(text, lambda secret: "\n".join([MASK] * (secret.count("\n") + 1)), _known, is_code=is_code)


def digested(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`masked`, but a digest follows each mask, so that other secrets are other facts.

    The digest has 32 bits and a key that stands in this file: it keeps a secret from being read, and a guess from being
    certain, but whoever guesses among few secrets finds out which of them it can be. What is masked does not depend on
    what this process has seen before, only on `facts` and the environment.
    """

    def hide(secret: str) -> str:
        secret = secret.strip().strip("'\"")
        return MASK + hmac.new(b"sr-run: facts", secret.encode(errors="replace"), hashlib.sha256).hexdigest()[:8]

    return dict(_hidden(facts, False, hide, _of_environment(tuple(os.environ.items()))))


@lru_cache(maxsize=1)
def _of_environment(variables: tuple[tuple[str, str], ...]) -> frozenset[str]:
    return _spellings(_secrets(dict(variables), False))


def digested_overrides(overrides: Iterable[str]) -> list[str]:
    """`digested`, of overrides."""
    return list(digested({str(number): override for number, override in enumerate(overrides)}).values())


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
        return [_hidden(inner, secret or named, hide, known) for named, inner in _words(value)]
    if secret and not _NO_SECRET.fullmatch(str(value)):
        return hide(str(value))
    if not isinstance(value, str):
        return value
    if (given := _OVERRIDE.fullmatch(value)) and is_secret(given["key"]):
        return f"{given['key']}={_hidden(given['value'], True, hide, known)}"
    return _hidden_in_text(value, hide, known)


def _hidden_in_text(text: str, hide: Hide, known: Iterable[str], *, is_code: bool = False) -> str:
    for value in sorted((value for value in known if value in text), key=len, reverse=True):
        text = text.replace(value, hide(value))
    for shape in _SHAPES:
        text = _replaced(text, (found.span("value") for found in shape.finditer(text)), hide)
    for pair in _GIVEN:
        spans = (span for span in _values(text, pair) if not is_code or _LITERAL.match(text, *span))
        text = _replaced(text, spans, hide)
    return text


def _values(text: str, pair: tuple[re.Pattern[str], re.Pattern[str]]) -> Iterator[tuple[int, int]]:
    """Where the values stand that `text` gives to secret keys in the form of `pair`."""
    keys, whole = pair
    position = text.find("{") if pair is _IN_BRACES else 0
    if position < 0:
        return
    while found := keys.search(text, position):
        position = found.end()
        key = found["key"]
        if is_secret(key) or (key in ("key", "code") and text[: found.start()].endswith(("?", "&"))):
            given = whole.match(text, found.start())
            assert given, "a value may be empty"
            value = given["value"]
            is_placeholder = value.rstrip("]") == key.replace("-", "_").upper()  # `--api-key API_KEY`
            if not is_placeholder and not (key == "signature" and _MODEL_SIGNATURE.fullmatch(value)):
                yield given.span("value")
            position = given.end()


def _replaced(text: str, spans: Iterable[tuple[int, int]], hide: Hide) -> str:
    """`text` with each of `spans` hidden, its quotes included, unless it is no secret."""
    parts, end = [], 0
    for start, stop in spans:
        bare = text[start:stop].strip()
        if not _NO_SECRET.fullmatch(bare):
            parts += [text[end:start], hide(text[start:stop])]
            end = stop
    return "".join([*parts, text[end:]])


def _secrets(value: Any, secret: bool) -> Iterator[str]:
    """The secrets in a plain tree: what stands under a secret key, and what URLs and queries hold."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(inner, secret or is_secret(str(key)))
    elif isinstance(value, list | tuple):
        for named, inner in _words(value):
            yield from _secrets(inner, secret or named)
    elif secret:
        yield str(value)
    elif isinstance(value, str):
        for found in _USER_INFO.finditer(value):
            yield found["value"].partition(":")[2] or found["value"]
        if (given := _OVERRIDE.fullmatch(value)) and is_secret(given["key"]):
            yield given["value"].strip("'\"")
        for pair in _GIVEN:
            yield from (value[start:stop].strip().strip("'\"") for start, stop in _values(value, pair))


def _words(values: Sequence[Any]) -> Iterator[tuple[bool, Any]]:
    """Each value, and whether the one before is an option whose word it is: `[--token, ...]`."""
    for before, value in pairwise([None, *values]):
        is_option = isinstance(before, str) and re.fullmatch(r"--?[\w.-]+", before)
        yield bool(is_option and is_secret(str(before).lstrip("-"))), value


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
