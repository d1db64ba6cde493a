"""Command lines of the small tools: sources as they are, options as `key=value` in Hydra's grammar.

The options of a command are a keyword-only dataclass: the annotation of a field is the type that its value must have,
the docstring below it is its line on the help page. Hydra's own parser reads the values. (OmegaConf 2.3 could check
them, but knows no `Literal` and has no room for `checkpoint=s3` beside `checkpoint.root=...`.)
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from sr_runner.config.types import choices, expected, fits
from sr_runner.errors import RequestError, nearest

Options = TypeVar("Options")

_OPTION = re.compile(r"\+{0,2}([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
_WIDTH = 120


def option(default: Any, *, key: str = "", least: int | None = None) -> Any:
    """A field of options whose key on the command line is not its name, or whose number is at least `least`."""
    return field(default=default, metadata={"key": key, "least": least})


def parse(words: Sequence[str], kind: type[Options]) -> tuple[list[str], Options]:
    """The sources among `words`, and the options as a `kind`. A field that is a dict takes `field.ANY=value`.

    As with Hydra, the last value of a key counts, and `${oc.env:NAME}` is a variable of the environment. Raises
    `RequestError` for an option that does not exist or has a value of the wrong type, and for `--key`. `+key=value` and
    `++key=value`, with which Hydra adds keys, are read as `key=value`.
    """
    sources: list[str] = []
    given: dict[str, Any] = {}
    options, hints = _options(kind), get_type_hints(kind)
    for word in words:
        match = _OPTION.fullmatch(word)
        if match is None or (match[1] not in options and Path(word).exists()):
            if word.startswith(("-", "~")) and not Path(word).exists():
                guess = nearest(word.lstrip("-~").partition("=")[0].replace("-", "_"), options)
                raise RequestError(f"{word}: options are written key=value.{guess}")
            sources.append(word)
            continue
        key, text = match[1], match[2]
        group, _, rest = key.partition(".")
        if key in options:
            name, into = options[key].name, given
            value = _value(word, text, hints[name], options[key].metadata.get("least"))
        elif rest and get_origin(hints.get(group)) is dict:
            name, into = rest, given.setdefault(group, {})
            value = _read(word, text)
        else:
            guess = (
                nearest(key, options) or nearest(key.rpartition(".")[2], options) or f" Options: {', '.join(options)}."
            )
            raise RequestError(f"{word}: there is no option '{key}'.{guess}")
        into[name] = value
    return sources, kind(**given)


@dataclass(frozen=True)
class Verb(Generic[Options]):
    """A command of a tool: the options that it takes, and how many names at least and at most."""

    options: type[Options]
    least: int
    most: int | None


def take_verb(words: list[str], verbs: Mapping[str, Verb[Any]]) -> str:
    """Takes the first word that is not `key=value` or a condition out of `words`: the command. Raises `RequestError`
    where it is none of `verbs`."""
    verb = next((word for word in words if not set(word) & set("=<>")), "")
    if verb not in verbs:
        raise RequestError(f"{verb or 'no command'}: expected one of {', '.join(verbs)}.{nearest(verb, verbs)}")
    words.remove(verb)
    return verb


def names_and_options(
    words: Sequence[str], verb: str, verbs: Mapping[str, Verb[Options]], page: str
) -> tuple[list[str], Options]:
    """The names and the options of a command. Raises `RequestError` where they are too few or too many: the line for it
    in `page`, the tool's help, says what was expected."""
    names, options = parse(words, verbs[verb].options)
    most = verbs[verb].most
    if len(names) < verbs[verb].least or (most is not None and len(names) > most):
        usage = re.search(rf"^  (\S+ {verb}( \S+)*)", page, re.MULTILINE)
        assert usage, "every command has its line"
        raise RequestError(f"{verb} {' '.join(names)}: expected {usage[1]}")
    return names, options


def options_help(kind: type[Any], but: type[Any] = object, *, prefix: str = "", indent: int = 28) -> str:
    """The lines of a help page about the options of `kind`, its own first; without those of its base `but`.

    `prefix` (`trainer.`) stands before each key; the explanations begin in column `indent`.
    """
    hints, keys = get_type_hints(kind), {each.name: key for key, each in _options(kind).items()}
    lines = []
    for name, doc in _docstrings(kind).items():
        if name in vars(but).get("__dataclass_fields__", {}):
            continue
        default = next(_written(each) for each in fields(kind) if each.name == name)
        left = prefix + (f"{keys[name]}.KEY=VALUE" if get_origin(hints[name]) is dict else f"{keys[name]}={default}")
        listed = " | ".join(choices(hints[name]))
        text = f"{doc} ({listed})" if listed else doc
        first = f"  {left:<{indent - 4}}  "
        lines.append(textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=" " * indent))
    return "\n".join(lines)


def keys_of(kind: type[Any]) -> set[str]:
    """What the options of `kind` are called on the command line."""
    return set(_options(kind))


def _options(kind: type[Any]) -> dict[str, Field[Any]]:
    return {each.metadata.get("key") or each.name: each for each in fields(kind)}


def _value(word: str, text: str, hint: Any, least: int | None) -> Any:
    """`text` as a value of the type `hint`."""
    kinds = get_args(hint) if NoneType in get_args(hint) else (hint,)
    is_list = get_origin(hint) is list
    value = _read(word, f"[{text}]" if is_list and text[:1] != "[" else text)
    if is_list:
        value = [str(each) for each in value] if isinstance(value, list) else re.split(r"\s*,\s*", text)
    elif str in kinds and not isinstance(value, str | None) and "${" not in text:
        value = text
    too_small = least is not None and isinstance(value, int) and value < least
    if text == "" or too_small or not fits(value, hint):
        words = [f"one of {', '.join(choices(each))}" if choices(each) else expected(each) for each in kinds]
        words[0] += "" if least is None else f" of at least {least}"
        raise RequestError(f"{word}: expected {' or '.join(words)}.{nearest(text, choices(hint))}")
    return value


def _read(word: str, text: str) -> Any:
    """The value of `text` in Hydra's grammar. What has no reading there (`ü`, `?a=b`) is taken as it is written, since
    most values are names of files."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        value = text
    if "${" not in text:
        return value
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create([value]), resolve=True)[0]  # type: ignore[index]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rpartition("resolving interpolation: ")[2]
        raise RequestError(f"{word}: {reason}; expected ${{oc.env:NAME}}, a variable of the environment") from error


def _written(option: Field[Any]) -> str:
    default = option.default if option.default_factory is MISSING else option.default_factory()
    if isinstance(default, tuple):
        return str(list(default)).replace(" ", "")
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _docstrings(kind: type[Any]) -> dict[str, str]:
    """The docstring of each field, those of `kind` itself before those of its bases."""
    docs: dict[str, str] = {}
    for each in kind.__mro__[:-1]:
        (body,) = (node.body for node in ast.parse(inspect.getsource(each)).body if isinstance(node, ast.ClassDef))
        for statement, doc in pairwise(body):
            match statement, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs.setdefault(name, " ".join(text.split()))
    return docs
