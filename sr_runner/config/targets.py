"""The class that a config or an option names, and which arguments it takes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from typing import Any

from sr_runner.errors import RequestError, nearest


def locate(key: str, name: str) -> Callable[..., Any]:
    """The class or function `name`, `package.module.Class`. Raises `RequestError` that names `key` where it is not."""
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise RequestError(f"{key}={name}: expected package.module.Class")
    try:
        return pkgutil.resolve_name(name)  # type: ignore[no-any-return]
    except Exception as error:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as missing:
            raise RequestError(
                f"{key}={name}: there is no module {missing.name!r} that can be imported from here "
                "(the current folder and the installed packages are searched)"
            ) from error
        except Exception as broken:
            raise RequestError(f"{key}={name}: importing it fails: {broken!r}") from error
        raise RequestError(
            f"{key}={name}: {module_name} has no {attribute!r}.{nearest(attribute, dir(module))}"
        ) from error


def signature(target: Callable[..., Any]) -> tuple[dict[str, tuple[Any, Any]], bool]:
    """Annotation and default of each argument of `target`, and whether it takes others. What has no annotation, or one
    that cannot be evaluated, is `Any`."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}, True
    owners = reversed(inspect.getmro(target)) if isinstance(target, type) else [target]
    names = dict(vars(typing))  # which many import only for a type checker
    for each in owners:
        names |= vars(inspect.getmodule(each) or typing)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return {each.name: (_evaluated(each.annotation, names), each.default) for each in named}, takes_any


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))
    except Exception:  # such as a name that only a type checker imports
        return Any
